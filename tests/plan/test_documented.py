"""docs/plan.md names every option and field, and each of its figures is computed again."""

import argparse
import re
from pathlib import Path

import pytest

from kimi_serve.launch.sizes import GIB, MIB
from kimi_serve.plan import memory, options, request, subject
from kimi_serve.plan.memory import Service
from kimi_serve.plan.options import Options, Preset, pictures_of
from kimi_serve.plan.plan import Plan, SchemePlan
from kimi_serve.plan.record import record
from tests.plan.conftest import MakePlan

DOCS = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The table whose head contains `heading`: first cell -> the others."""
    lines = DOCS.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|") and heading in line)
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        first, *others = (cell.strip() for cell in line.strip("|").split("|"))
        found[first] = others
    return found


def scheme(plan: Plan, name: str) -> SchemePlan:
    return next(each for each in plan.possible if each.weights.scheme == name)


def test_every_option_has_a_row() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    options.add_arguments(parser)
    named = [action.option_strings[0] for action in parser._actions if action.option_strings]
    listed = "".join(rows("what it says"))
    assert len(named) >= 18
    assert [name for name in named if f"`{name}" not in listed] == []


def fields(value: object) -> set[str]:
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list | tuple) else set()


def test_every_field_of_the_json_line_is_named(make_plan: MakePlan) -> None:
    plans = [
        make_plan(pictures=(pictures_of("image", "448x448"),)),
        make_plan(tensor_parallel=8, gpu="h100"),
        make_plan({"VLLM_CPU_KVCACHE_SPACE": "none"}),
    ]
    named = set().union(*(fields(record(plan)) for plan in plans))
    assert {"impossible", "why", "prompt_tokens"} <= named
    assert [name for name in sorted(named) if f"`{name}`" not in DOCS] == []


def tokens(preset: Preset, what: str) -> int:
    """`20 pages of 1240x1754`, or `picture of 448x448`."""
    match = re.match(r"(?:(\d+) )?(picture|page|frame)s? of (\d+x\d+)", what)
    assert match is not None
    pictures = pictures_of(match[2], f"{match[3]}x{match[1] or 1}")
    cost = request.cost(Options(preset=preset, pictures=(pictures,)), subject.published(preset))
    return cost.prompt - cost.template


@pytest.mark.parametrize("what", list(rows("Instruct, Thinking | Thinking-2506")))
def test_tokens_of_pictures(what: str) -> None:
    documented = rows("Instruct, Thinking | Thinking-2506")[what]
    assert documented == [f"{tokens(preset, what):,}" for preset in ("instruct", "thinking-2506")]
    assert tokens("thinking", what) == tokens("instruct", what)


def test_the_example_of_a_request() -> None:
    pictures = (pictures_of("image", "1920x1080x3"), pictures_of("page", "1240x1754x20"))
    asked = Options(preset="thinking-2506", text=500, pictures=pictures, max_tokens=2_000)
    cost = request.cost(asked, subject.published("thinking-2506"))
    assert f"{cost.prompt:,} tokens (16 + 500 + 3 x {cost.pictures[0].each:,} + 20 x {cost.pictures[1].each:,})" in DOCS
    assert f"its answer {cost.total:,} of 131,072" in DOCS


def test_bytes_of_weights(make_plan: MakePlan) -> None:
    plans = {ranks: make_plan(tensor_parallel=ranks) for ranks in (1, 2, 4)}
    for first, documented in rows("bytes of files").items():
        name = first.partition(",")[0]
        shares = [f"{scheme(plan, name).fixed[0].nbytes / GIB:.2f}" for plan in plans.values()]
        assert documented == [f"{scheme(plans[1], name).weights.files:,}", *shares]


def test_bytes_of_the_cache(make_plan: MakePlan) -> None:
    needs = make_plan().footprint
    for per_token, name in ((needs.latent_per_token, "of latents"), (needs.expanded_per_token, "expanded")):
        assert f"{per_token:,} bytes" in DOCS
        assert f"{memory.cache(per_token, 131_072) / GIB:.2f} GiB {name}" in DOCS


def test_parts_of_a_gpus_memory(make_plan: MakePlan) -> None:
    planned = {f"`{part.name}`": part for part in scheme(make_plan(), "bf16").fixed[1:]}
    documented = rows("how it is known")
    assert list(documented) == list(planned)
    for name, part in planned.items():
        assert documented[name][1] == f"{part.nbytes / MIB:,.0f} MiB", name


def test_moments_of_a_step(make_plan: MakePlan) -> None:
    model, needs = subject.published("thinking-2506").checkpoint.model, make_plan().footprint
    found = memory.moments(model, needs, Service(context=131_072, sequences=256))
    documented = [row[1] for row in rows("what is alive").values()]
    assert documented == [f"{nbytes / MIB:,.0f}" for nbytes, _ in found]


def test_requests_of_each_gpu(make_plan: MakePlan) -> None:
    plan = make_plan(context=32_768)
    found = {}
    for fits in zip(*(each.fits for each in plan.possible), strict=True):
        found[fits[0].gpu.name] = [f"{fit.requests:,}" if fit.requests else "-" for fit in fits]
    documented = {name: cells for row, cells in rows("| GPU | bf16").items() for name in row.split(", ")}
    assert documented == found
