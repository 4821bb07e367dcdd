"""docs/media.md says what the code does: every format, every refusal by name, every rule and its default."""

from dataclasses import fields
from pathlib import Path

from kimi_serve.gateway.media.fetch import FetchRules
from kimi_serve.gateway.media.formats.reading import MAX_PARTS
from kimi_serve.gateway.media.headers import MAX_PIXELS, MAX_SIDE, READERS, REFUSED

TEXT = (Path(__file__).parents[3] / "docs" / "media.md").read_text(encoding="utf-8")


def table(first_column: str) -> list[list[str]]:
    lines = TEXT.split(f"| {first_column} |", 1)[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_lists_exactly_the_formats_that_are_read() -> None:
    assert [row[0] for row in table("format")] == list(READERS)


def test_the_table_lists_exactly_the_formats_that_are_refused_by_name() -> None:
    assert {row[0]: row[1] for row in table("refused")} == REFUSED


def test_every_rule_of_fetching_has_its_default_in_the_table() -> None:
    empty = {"allowed_domains": "all", "denied_domains": "none", "allow_private": "none"}
    rules = FetchRules()
    expected = {}
    for field in fields(rules):
        value = getattr(rules, field.name)
        shown = ", ".join(map(str, sorted(value))) if isinstance(value, frozenset) else str(value)
        expected[f"`{field.name}`"] = empty.get(field.name, shown)
    assert {row[0]: row[1] for row in table("rule")} == expected


def test_the_limits_on_size_are_in_the_text() -> None:
    assert all(f"{limit:,}" in TEXT for limit in (MAX_PIXELS, MAX_SIDE, MAX_PARTS))
