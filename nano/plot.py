"""The loss plot of a run, from its log. Knows figures; no model."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

LOSSES = ("copying", "seeing", "character", "place", "shape", "colour", "spot")


def plot(log: Path, picture: Path) -> None:
    """Losses over steps, and the share of held-out answers that are right."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    answers = {name for r in records for name in r if name.startswith("answers") and not name.endswith("_right")}
    for name in (*sorted(answers), *LOSSES):
        points = [(r["step"], r[name]) for r in records if name in r]
        if points:
            left.plot(*zip(*points, strict=True), label=name)
    left.set(xlabel="step", ylabel="loss", yscale="log", title="training loss (smoothed)")
    for task in records[-1]["held_out"]:
        right.plot([r["step"] for r in records], [r["held_out"][task] for r in records], label=task)
    right.set(xlabel="step", ylabel="share right", ylim=(0, 1), title="held-out answers")
    for axes in (left, right):
        axes.legend(fontsize=8)
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(picture, dpi=110)
    plt.close(figure)
