"""The routes: what each takes and gives. The work is done by the neighbours of this folder."""
