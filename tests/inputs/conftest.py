"""What the tests of kimi_serve.inputs share."""

from pathlib import Path

import pytest

from kimi_serve.inputs.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def golden(golden_pack: Path) -> Path:
    return golden_pack


@pytest.fixture(scope="session")
def checkpoint_dir(golden_pack: Path) -> Path:
    return golden_pack / "checkpoint"


@pytest.fixture(scope="session")
def tokenizer(checkpoint_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint_dir)
