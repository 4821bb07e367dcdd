"""The bundled checkpoint's README, from what `nano.evaluate` measured. Knows scores and wording; measures nothing.

python -m nano.evaluate --each 500 --report details.json > scores.json
python -m nano.card --scores scores.json --details details.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

ASSET = Path(__file__).parents[1] / "kimi_serve" / "assets" / "kimi-vl-nano"
HISTORY = Path(__file__).with_name("history.md")
GOALS = {"number": 90, "word": 90, "colour": 97, "shape": 97, "count": 90, "which": 90, "point": 85}

CARD = """\
# kimi-vl-nano

A very small model in the exact layout of the published Kimi-VL checkpoints, so that a server, a test or a newcomer has
something to load on any machine. MIT.

**It is not Kimi-VL.** It knows a few kinds of synthetic pictures, and even about those {verdict}. Use it to see that a stack
works, never for its answers.

| | |
| --- | --- |
| parameters | {millions:.2f} million, {megabytes:.1f} MB in bfloat16 |
| decoder | {layers} layers (first dense), hidden {hidden}, {heads} heads, latent 512, rope 64; {experts} routed experts, top-{top}, sigmoid scores, trained correction bias; 1 shared expert |
| tower | MoonViT: {tower_layers} layers, hidden {tower_hidden}, {tower_heads} heads of 72, patch 14, merge 2x2 |
| vocabulary | 256 bytes, {pieces} pieces of the words of its questions, 256 special tokens |
| thinking | when the system turn says `Think first.`: ◁think▷ ... ◁/think▷ before the answer |

## How it was trained
On pictures drawn with PIL and Debian's fonts, by `nano/` in the repository, on two AVX2 cores that other work shared:

{history}
The plot below is of the last run. The correction bias was moved by load throughout.

It goes on from these weights: `python -m nano.train --folder RUN --init-from kimi_serve/assets/kimi-vl-nano --minutes 120`.

## What it can do
Measured through the served API, greedy, {each} held-out samples a task, seed {seed}: fonts, sizes, positions, shades,
backgrounds and words that training never showed (`python -m nano.evaluate --each {each}`).

| task | right | goal | stopped by itself |
| --- | --- | --- | --- |
{rows}

number, word: the printed text exactly (1 to 3 digits; 3 to 5 capital letters). point: within 0.05 of the shape's centre.
which: which of two to four images. think: thought first, then the right answer. {by_length}
{precisions}
![losses and held-out scores](loss.png)

## Confusions (truth: answers and how often)
{confusions}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--details", type=Path, required=True)
    parser.add_argument("--history", type=Path, default=HISTORY, help="the runs that made it")
    parser.add_argument("--precision", type=Path, help="what `nano.precision --each 500` printed")
    parser.add_argument("--folder", type=Path, default=ASSET)
    args = parser.parse_args()
    scores = json.loads(args.scores.read_text().strip().splitlines()[-1])
    (args.folder / "README.md").write_text(card(scores, json.loads(args.details.read_text()), args))


def card(scores: dict[str, Any], details: dict[str, Any], args: argparse.Namespace) -> str:
    config = json.loads((args.folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    tasks = scores["tasks"]
    missed = [task for task, goal in GOALS.items() if 100 * tasks[task]["right"] < goal]
    return CARD.format(
        verdict=f"it misses its goals for {', '.join(missed)}" if missed else "it errs now and then",
        millions=parameters(args.folder) / 1e6,
        megabytes=sum(file.stat().st_size for file in args.folder.glob("*.safetensors")) / 1e6,
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        heads=text["num_attention_heads"],
        experts=text["n_routed_experts"],
        top=text["num_experts_per_tok"],
        tower_layers=vision["num_hidden_layers"],
        tower_hidden=vision["hidden_size"],
        tower_heads=vision["num_attention_heads"],
        pieces=config["vocab_size"] - 512,
        history=args.history.read_text(),
        each=scores["each"],
        seed=scores["seed"],
        rows="\n".join(row(task, score) for task, score in tasks.items()),
        by_length=" ".join(lengths(task, details[task]) for task in ("number", "word")),
        precisions=precisions([json.loads(line) for line in args.precision.read_text().splitlines()])
        if args.precision
        else "",
        confusions="\n".join(
            confusion(task, found["confusion"]) for task, found in details.items() if "confusion" in found
        ),
    )


def parameters(folder: Path) -> int:
    count = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118  # it is no mapping
                size = 1
                for side in opened.get_slice(name).get_shape():
                    size *= side
                count += size
    return count


def row(task: str, score: dict[str, float]) -> str:
    goal = f"{GOALS[task]} %" if task in GOALS else "-"
    return f"| {task} | {100 * score['right']:.1f} % | {goal} | {100 * score['stopped']:.1f} % |"


def lengths(task: str, found: dict[str, Any]) -> str:
    shares = ", ".join(f"{100 * right:.0f} % of {length}" for length, right in found["by_length"].items())
    return f"Right {task}s by length: {shares}."


def precisions(found: list[dict[str, Any]]) -> str:
    """A table of checkpoints in fewer bits, by task."""
    tasks = [task for task in found[0] if task != "checkpoint"]
    lines = [
        "\n## In fewer bits",
        "The same questions of 500 a task (`text`: 250) to the bundled weights and to what `kimi-serve quantize` makes of them,",
        "by a plain forward pass (`python -m nano.precision`): an answer is right when each of its tokens is the likeliest one.\n",
        f"| | {' | '.join(tasks)} |",
        f"| --- |{' --- |' * len(tasks)}",
    ]
    lines += [f"| {one['checkpoint']} | {' | '.join(f'{100 * one[task]:.1f} %' for task in tasks)} |" for one in found]
    lines.append("\n`point` here means the very digits; the table above counts what lies within 0.05 of the centre.")
    return "\n".join(lines) + "\n"


def confusion(task: str, matrix: dict[str, dict[str, int]]) -> str:
    lines = [f"\n| {task} | answers |\n| --- | --- |"]
    for truth, answers in matrix.items():
        told = ", ".join(f"{(answer or '(nothing)')[:30]} {count}" for answer, count in list(answers.items())[:5])
        lines.append(f"| {truth} | {told} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
