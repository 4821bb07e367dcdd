"""What the plan's tests share: a question's answer on a machine that does not change."""

from collections.abc import Callable

import pytest

from kimi_serve.launch.machine import Machine
from kimi_serve.plan import plan as plans
from kimi_serve.plan.options import Options
from kimi_serve.plan.plan import Plan
from tests.launch.conftest import machine

MakePlan = Callable[..., Plan]


@pytest.fixture
def here() -> Machine:
    """8 cores with AMX and 64 GiB, no GPU."""
    return machine(memory_total=64 << 30, memory_available=60 << 30)


@pytest.fixture
def make_plan(here: Machine) -> MakePlan:
    """A plan of Thinking-2506 unless told otherwise."""

    def make(environ: dict[str, str] | None = None, **options: object) -> Plan:
        if "model" not in options:
            options.setdefault("preset", "thinking-2506")
        return plans.make(Options(**options), here, environ or {})  # type: ignore[arg-type]

    return make
