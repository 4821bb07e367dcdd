"""What a request costs and what a checkpoint needs, before anything runs. Knows shapes and machines; starts nothing."""
