"""docs/lora.md names every option and every field of the report."""

import argparse
import json
from pathlib import Path

from kimi_serve.merge import command, options
from kimi_serve.merge.options import Options
from tests.merge.adapters import draw

DOCS = (Path(__file__).parents[2] / "docs" / "lora.md").read_text()


def test_every_option_has_a_row() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    options.add_arguments(parser)
    named = [action.option_strings[0] for action in parser._actions if action.option_strings]
    assert named
    assert [name for name in named if f"| `{name}" not in DOCS] == []


def test_every_field_of_the_report_has_a_row(tiny: Path, tmp_path: Path) -> None:
    draw(tmp_path / "adapter", tiny)
    report = json.loads(command.run(Options(tiny, tmp_path / "adapter", tmp_path / "target", check=True)))
    assert [name for name in report if f"`{name}`" not in DOCS] == []
