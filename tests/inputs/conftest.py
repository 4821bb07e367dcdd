"""What the tests of kimi_serve.inputs share. Knows where the golden pack is."""

from pathlib import Path

import pytest
from hypothesis import settings

from kimi_serve.inputs.tokenizer import Tokenizer

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("inputs", deadline=None)
settings.load_profile("inputs")


@pytest.fixture(scope="session")
def golden() -> Path:
    return Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session")
def checkpoint_dir(golden: Path) -> Path:
    return golden / "checkpoint"


@pytest.fixture(scope="session")
def tokenizer(checkpoint_dir: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint_dir)
