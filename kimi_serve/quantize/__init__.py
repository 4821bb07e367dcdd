"""A Kimi-VL checkpoint in fewer bits, in the format that vLLM loads. Knows files and weights; imports no engine."""
