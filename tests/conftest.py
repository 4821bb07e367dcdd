"""What every test shares: where the golden pack is, and an environment that no other test has changed."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """vLLM changes its process's environment, LD_PRELOAD among it, which compilers of later tests would inherit."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="session")
def golden_pack() -> Path:
    return HERE / "golden"
