"""The HTTP edge in front of the engines. Knows what a prompt costs; loads neither torch nor vLLM."""
