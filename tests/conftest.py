"""What every test shares: the golden pack, and which tests may run beside which. Knows fixtures by name, no product."""

from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share an engine stay in one process, which starts it once; engines start first, they take longest."""
    for item in items:
        engine = engine_of(item)
        if engine:
            item.add_marker(pytest.mark.xdist_group(engine))
    items.sort(key=lambda item: item.get_closest_marker("xdist_group") is None)


def engine_of(item: pytest.Item) -> str | None:
    """A name for the engine that a test asks for first; None for a test that needs none, or starts its own."""
    assert isinstance(item, pytest.Function)
    if "results" in item.fixturenames:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return parameters.get("engine") or parameters.get("found")
    return next((name for name in ("server", "up") if name in item.fixturenames), None)


@pytest.fixture(scope="session")
def golden_pack() -> Path:
    return HERE / "golden"
