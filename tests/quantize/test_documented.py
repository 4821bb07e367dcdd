"""docs/quantize.md names every option and every field of the report."""

import argparse
import json
from pathlib import Path

from kimi_serve.quantize import command, options
from kimi_serve.quantize.options import Options

DOCS = (Path(__file__).parents[2] / "docs" / "quantize.md").read_text()


def test_every_option_has_a_row() -> None:
    parser = argparse.ArgumentParser(add_help=False)
    options.add_arguments(parser)
    named = [action.option_strings[0] for action in parser._actions if action.option_strings]
    assert len(named) >= 7
    assert [name for name in named if f"| `{name}" not in DOCS] == []


def test_every_field_of_the_report_has_a_row(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"text": "A text."}')
    asked = Options(tiny, tmp_path / "target", "int8", check=True, prompts=tmp_path / "prompts.jsonl")
    report = json.loads(command.run(asked))
    named = {f"agreement.{name}" for name in report.pop("agreement")} | set(report)
    assert [name for name in named if f"`{name}`" not in DOCS] == []
