"""Documents and videos on their way to an engine: read in processes with limits, and made into pictures and text."""
