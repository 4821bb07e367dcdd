"""Doubles for tests and benchmarks: an engine that answers like vLLM and computes nothing."""
