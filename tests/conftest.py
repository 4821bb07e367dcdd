"""What every test shares: where the golden pack is."""

from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.fixture(scope="session")
def golden_pack() -> Path:
    return HERE / "golden"
