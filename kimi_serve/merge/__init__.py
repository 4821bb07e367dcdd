"""A LoRA adapter added into a checkpoint's weights, file by file."""
