"""Measurements: `python -m benchmarks.overhead`. LOG.md holds what they found."""
