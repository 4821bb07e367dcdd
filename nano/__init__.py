"""Data, training, export and evaluation of kimi-vl-nano. Not part of the wheel."""
