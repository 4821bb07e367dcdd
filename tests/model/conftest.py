"""What the tests of kimi_serve.model share. Knows where the golden pack is."""

from pathlib import Path

import pytest
from hypothesis import settings

from kimi_serve.model.tokenizer import KimiVLTokenizer

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("model", deadline=None)
settings.load_profile("model")


@pytest.fixture(scope="session")
def golden_pack() -> Path:
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def tokenizer(golden_pack: Path) -> KimiVLTokenizer:
    return KimiVLTokenizer.from_pretrained(golden_pack / "checkpoint")
