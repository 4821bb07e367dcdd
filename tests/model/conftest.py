"""What the tests of kimi_serve.model share."""

from pathlib import Path

import pytest

from kimi_serve.model.tokenizer import KimiVLTokenizer


@pytest.fixture(scope="session")
def tokenizer(golden_pack: Path) -> KimiVLTokenizer:
    return KimiVLTokenizer.from_pretrained(golden_pack / "checkpoint")
