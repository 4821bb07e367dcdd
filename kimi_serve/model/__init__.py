"""What the engine runs: Kimi-VL on vLLM's layers. The only package that imports vLLM."""
