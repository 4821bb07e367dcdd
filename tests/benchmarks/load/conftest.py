"""A gateway over sockets in front of a fake engine, and locust as a process of its own, as a person starts it."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.load import scenarios
from benchmarks.load.locusts import Asked
from benchmarks.load.records import Run
from kimi_serve.gateway.settings import read
from kimi_serve.testing.serving import in_process
from tests.gateway.conftest import Front, running

MODEL_LENGTH = 8192


@dataclass
class Stage:
    """The whole stack, and a load on it."""

    front: Front
    engine: str  # its URL
    folder: Path

    def load(self, scenario: str, file: Path = scenarios.BUNDLED, most_open: int = 4096, **more: object) -> Run:
        asked = Asked(self.front.url, scenario, file, most_open=most_open)
        return asked.run(self.folder / str(more.get("label", scenario)), **more)


@pytest.fixture
def stage(golden_pack: Path, tmp_path: Path) -> Iterator[Callable[..., Stage]]:
    """stage(dials={}, **settings) -> Stage. The engine is a process: its clock is not the test's."""
    with ExitStack() as stack:

        def begin(dials: dict[str, Any] | None = None, **sections: Any) -> Stage:
            options = {"max_model_len": MODEL_LENGTH, **(dials or {})}
            engine = stack.enter_context(in_process("kimi_serve.testing.fake_engine:create", options=options))
            replicas = {"urls": [engine.url], "check_s": 0.2}
            settings = read(None, checkpoint=golden_pack / "checkpoint", replicas=replicas, **sections)
            front = stack.enter_context(running(settings, [None]))  # type: ignore[list-item]  # one engine, elsewhere
            return Stage(front, engine.url, tmp_path)

        yield begin
