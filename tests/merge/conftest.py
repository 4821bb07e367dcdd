"""The quantizer's checkpoints serve here too."""

from tests.quantize.conftest import golden, one_thread, tiny

__all__ = ["golden", "one_thread", "tiny"]
