"""What runs in a process of its own, over one client's file: the standard library and the file's reader, no more."""
