"""docs/keys.md has every field of a key and of its limits, with its default."""

import re
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

from kimi_serve.gateway.priority import PRIORITIES
from kimi_serve.gateway.tenants.keys import SCOPES, Key
from kimi_serve.gateway.tenants.limits import UNLIMITED, Limits
from kimi_serve.gateway.tenants.verify import Pace

PAGE = (Path(__file__).parents[3] / "docs" / "keys.md").read_text("utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", PAGE, re.MULTILINE))
# How the page writes the defaults of Key; a default that changes must change here and there.
WRITTEN = {
    MISSING: "needed",
    "": "empty",
    None: "never",
    frozenset({"chat", "models", "tokenize"}): "`chat`, `models`, `tokenize`",
    ("*",): '`["*"]`',
    UNLIMITED: "none",
    "normal": "`normal`",
}


@pytest.mark.parametrize("field", fields(Key), ids=lambda field: field.name)
def test_a_field_of_a_key_is_there_with_its_default(field: object) -> None:
    expected = "`id`" if field.name == "account" else WRITTEN[field.default]  # type: ignore[attr-defined]
    assert ROWS[field.name] == expected  # type: ignore[attr-defined]


@pytest.mark.parametrize("field", fields(Limits), ids=lambda field: field.name)
def test_a_limit_is_there_and_unlimited_by_default(field: object) -> None:
    assert field.default is None  # type: ignore[attr-defined]
    assert ROWS[field.name] == "unlimited"  # type: ignore[attr-defined]


def test_the_page_has_no_field_that_is_gone() -> None:
    assert set(ROWS) == {field.name for part in (Key, Limits) for field in fields(part)}


@pytest.mark.parametrize("word", [*SCOPES, *PRIORITIES])
def test_every_scope_and_priority_is_there(word: str) -> None:
    assert f"`{word}`" in PAGE


def test_the_seconds_of_a_revocation_are_those_of_the_code() -> None:
    assert f"**Within {Pace().refresh:g} seconds**" in PAGE
