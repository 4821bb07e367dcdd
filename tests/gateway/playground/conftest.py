"""A gateway with the page, and a browser that opens it. Expects nothing."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from kimi_serve.gateway.settings import read
from kimi_serve.testing.dials import Dials
from kimi_serve.testing.fake_engine import FakeEngine
from kimi_serve.testing.serving import in_thread
from tests.gateway.conftest import Front, running
from tests.gateway.playground.browsing import Tab, chromium, tab


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def served(checkpoint: Path) -> Iterator[Front]:
    """Every picture goes to the engine as it came, so that a test can compare."""
    engine = FakeEngine(Dials(max_model_len=8192))
    sections = {"playground": {"enabled": True}, "elision": {"enabled": False}}
    with in_thread(engine) as double:
        settings = read(None, checkpoint=checkpoint, replicas={"urls": [double.url], "check_s": 0.2}, **sections)
        with running(settings, [engine]) as front:
            yield front


@pytest.fixture
def front(served: Front) -> Front:
    served.engines[0].record.clear()
    served.engines[0].once.clear()
    return served


@pytest.fixture
def opened(browser: Browser, front: Front) -> Iterator[Tab]:
    with tab(browser, front, reduced_motion="reduce") as found:  # an animation is work for the processor, all the time
        found.open()
        found.wait_for_model()
        yield found
