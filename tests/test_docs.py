"""The documents: links lead somewhere, commands exist, and what is said of where tests are is so."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve.gateway.settings import Section, Settings
from kimi_serve.protocol.errors import CODES

ROOT = Path(__file__).parents[1]
DOCS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    ROOT / "docker" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
# About running it: short enough to be read in a bad hour.
RUNNING = [ROOT / "docs" / f"{name}.md" for name in ("deploy", "faults", "metrics", "operate", "security")]
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def by_name(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


def anchors(file: Path) -> set[str]:
    """As renderers make them: lower case, spaces as hyphens, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", file.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", DOCS, ids=by_name)
def test_every_link_within_the_repository_leads_somewhere(file: Path) -> None:
    broken = []
    for target in _LINK.findall(file.read_text("utf-8")):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (file.parent / path) if path else file
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("file", RUNNING, ids=by_name)
def test_what_is_read_in_a_bad_hour_is_short_and_names_settings_and_codes_that_exist(file: Path) -> None:
    text = file.read_text("utf-8")
    assert len(text.splitlines()) < 180
    sections = {
        name: field.default for name, field in Settings.model_fields.items() if isinstance(field.default, Section)
    }
    known = {f"{name}.{key}" for name, section in sections.items() for key in type(section).model_fields}
    named = {name for name in re.findall(r"`([a-z]+\.[a-z_]+)`", text) if name.partition(".")[0] in sections}
    assert named - known == set()
    for path in re.findall(r"`((?:tests|deploy|benchmarks|kimi_serve)/[\w./-]+)`", text):
        assert (ROOT / path).exists(), path


def test_the_codes_that_the_runbook_names_exist() -> None:
    text = (ROOT / "docs" / "operate.md").read_text("utf-8") + (ROOT / "docs" / "security.md").read_text("utf-8")
    named = {"upstream_error", "upstream_timeout", "internal_error", "keys_unavailable", "invalid_key"}
    named |= {"media_url_forbidden", "invalid_document"}
    assert {name for name in named if f"`{name}`" in text} == named
    assert named - set(CODES) == set()


@pytest.mark.parametrize("file", [*RUNNING, ROOT / "README.md"], ids=by_name)
def test_every_command_of_ours_exists(file: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "kimi_serve.cli", "--help"], capture_output=True, text=True, check=True
    )
    named = set(re.findall(r"kimi-serve ([a-z][a-z-]+)\b", file.read_text("utf-8")))
    assert {name for name in named if not re.search(rf"\b{name}\b", shown.stdout)} == set()


def test_the_commands_that_plan_a_size_answer() -> None:
    text = (ROOT / "docs" / "deploy.md").read_text("utf-8")
    commands = re.findall(r"^kimi-serve (plan --preset [^#\n]+)", text, re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        words = [sys.executable, "-m", "kimi_serve.cli", *shlex.split(command)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout
