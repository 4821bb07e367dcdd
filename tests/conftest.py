"""What every test shares: where the golden pack is, and an environment that no other test has changed."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.sharing import Scheduling, place
from tests.vllm_host import Host

HERE = Path(__file__).parent

# Two slow cores: a deadline per example would fail by chance.
settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Scheduling:
    return Scheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: place(item.nodeid.partition("::")[0]))


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


@pytest.fixture(scope="session")
def vllm_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    """Runs programs that use vLLM, each in a process of its own."""
    with Host(tmp_path_factory.mktemp("vllm_host")) as host:
        yield host
