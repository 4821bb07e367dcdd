"""How a trace becomes a table: own times, and which part of a layer a call is."""

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import random_checkpoint
from benchmarks.decode_profile import LINEAR, SPARSE, Event, events, own_times, part, steps, table
from kimi_serve.inputs.config import TextConfig, parse_model_config


@pytest.fixture(scope="module")
def text() -> TextConfig:
    return parse_model_config(random_checkpoint.published_config()).text


def linear(inputs: int, outputs: int, begin: float = 0, tokens: int = 1) -> Event:
    return Event(LINEAR, begin, begin + 1, ((tokens, inputs), (outputs, inputs // 8)))


def test_an_operators_own_time_leaves_out_what_it_calls() -> None:
    nested = [Event("outer", 0, 10, ()), Event("inner", 2, 5, ()), Event("leaf", 3, 4, ()), Event("next", 10, 12, ())]
    assert {event.name: own for event, own in own_times(nested)} == {"outer": 7, "inner": 2, "leaf": 1, "next": 2}


def test_parts_have_names_of_their_own(text: TextConfig) -> None:
    assert part(linear(2048, 163840), text) == "lm_head"
    assert part(linear(2048, 2048), text) == "o_proj"
    names = ["kimi_serve::latent", SPARSE, "kimi_serve::add_norm", "vllm::unified_attention_with_output", "aten::view"]
    assert [part(Event(name, 0, 1, ()), text) for name in names] == [
        "queries, keys and values",
        "router and experts",
        "norms",
        "attention over the cache",
        "aten::view",
    ]


def test_steps_of_another_batch_do_not_count(text: TextConfig) -> None:
    prefill = [linear(2048, 3072, 0, tokens=8), linear(2048, text.vocab_size, 2, tokens=2)]
    decoding = [linear(2048, text.vocab_size, at) for at in (4, 8, 12)]
    assert steps([*prefill, *decoding], text) == decoding[1:]


def test_the_table_is_of_the_thread_that_computes(tmp_path: Path, text: TextConfig) -> None:
    def told(name: str, tid: int, at: float, dims: object) -> dict[str, object]:
        return {
            "ph": "X",
            "cat": "cpu_op",
            "name": name,
            "tid": tid,
            "ts": at,
            "dur": 500.0,
            "args": {"Input Dims": dims},
        }

    head = [[1, 2048], [text.vocab_size, 256]]
    trace = [told(LINEAR, 1, at, head) for at in (0, 2000, 4000)]
    trace += [told(SPARSE, 1, at, [[1, 2048]]) for at in (1000, 3000)] + [told("aten::add", 2, 1500, [])]
    with gzip.open(tmp_path / "trace.json.gz", "wt") as file:
        json.dump({"traceEvents": trace}, file)
    lines = table(events(tmp_path / "trace.json.gz"), text).splitlines()
    assert "| router and experts | 0.50 | 28.6% | 1 |" in lines
    assert not any("aten::add" in line for line in lines)
