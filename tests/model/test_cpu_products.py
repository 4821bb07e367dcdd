"""The tower and the launcher judge a CPU alike."""

from collections.abc import Iterator

import pytest
import torch
from vllm.platforms import current_platform

from kimi_serve import cpu
from kimi_serve.launch import machine
from kimi_serve.model import cpu_products
from tests.test_cpu import CASCADE_LAKE, COOPER_LAKE

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="a vLLM for GPUs keeps its own path")


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    cpu_products.are_slow.cache_clear()
    yield
    cpu_products.are_slow.cache_clear()


def test_this_cpu_is_slow_where_the_launcher_finds_no_bfloat16() -> None:
    assert cpu_products.are_slow() is not machine.read().has_bfloat16


@pytest.mark.parametrize(("flags", "dtype"), [(CASCADE_LAKE, torch.float32), (COOPER_LAKE, torch.bfloat16)])
def test_avx512_alone_is_not_enough(monkeypatch: pytest.MonkeyPatch, flags: str, dtype: torch.dtype) -> None:
    monkeypatch.setattr(cpu, "flags", lambda: frozenset(flags.split()))
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    assert cpu_products.dtype_for(torch.device("cpu"), torch.bfloat16) == dtype
    assert machine.read().has_bfloat16 is (dtype == torch.bfloat16)
