"""Starting an engine and looking after it. Knows this machine and vLLM's command line; imports no engine."""
