"""Train kimi-vl-nano: `python -m nano.train --folder RUN --minutes 60`. Knows the clock and the run's files.

Run it again to go on: the learning rate follows the clock from the run's first start.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing as mp
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from kimi_serve.inputs.tokenizer import Tokenizer
from nano import questions, vocabulary
from nano.batches import LESSONS, SEEING, held_out, stream, style
from nano.configuration import configuration
from nano.heads import LOSSES, DenseHeads
from nano.learning import examine, learn
from nano.optimizers import Optimizers
from nano.plot import plot
from nano.start import carry_over, initialise
from tests.oracle.kimi_vl import from_config
from tests.oracle.kimi_vl import load as load_checkpoint

WARM_STEPS = 40
SAVE_EVERY = 120.0  # seconds
SMOOTHING = 0.97  # of the figures that are shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder", type=Path, required=True, help="the run: state, log, plot, vocabulary, configuration"
    )
    parser.add_argument("--minutes", type=float, default=60, help="from the run's first start")
    parser.add_argument("--batch", type=int, default=12, help="conversations a step")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="highest learning rate")
    parser.add_argument("--final", type=float, default=0.03, help="the last learning rate, as a share of the highest")
    parser.add_argument("--init-from", type=Path, help="begin with the weights of this checkpoint folder")
    parser.add_argument("--see", action="store_true", help="train the tower alone")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--examine-every", type=float, default=4, help="minutes")
    train(parser.parse_args())


def prepare(folder: Path) -> dict[str, Any]:
    """Write the vocabulary and configuration once."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        base = vocabulary.write(folder / "tiktoken.model", questions.vocabulary())
        (folder / "tokenizer_config.json").write_text(json.dumps(vocabulary.config(base), indent=2))
        (folder / "config.json").write_text(json.dumps(configuration(base + 256), indent=2))
    loaded: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return loaded


class Run:
    """A model in training, and its files."""

    def __init__(self, folder: Path, rate: float, seed: int, init_from: Path | None) -> None:
        torch.manual_seed(seed)
        self.folder = folder
        config = prepare(folder)
        self.model, self.heads = (
            from_config(config),
            DenseHeads(config["text_config"]["hidden_size"], Tokenizer.from_directory(folder)),
        )
        self.both = nn.ModuleList([self.model, self.heads])
        self.optimizer = Optimizers(self.both, rate)
        self.step = 0
        self.figures: dict[str, float] = {}
        self.begun = self._begun()
        if self.state_file.exists():
            self.load()
        elif init_from:
            self.take(init_from)
        else:
            initialise(self.model, style(held_out=False), seed)

    def take(self, folder: Path) -> None:
        """The weights of a run, with its heads, or of a checkpoint."""
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)["model"]
            part = [{n[2:]: t for n, t in state.items() if n.startswith(k)} for k in ("0.", "1.")]
            self.heads.load_state_dict(part[1])
            carry_over(part[0], folder, self.model, self.folder)
        else:
            carry_over(load_checkpoint(folder).state_dict(), folder, self.model, self.folder)

    @property
    def state_file(self) -> Path:
        return self.folder / "state.pt"

    def load(self) -> None:
        state = torch.load(self.state_file, weights_only=True)
        self.both.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        """Atomically, so that a stop in the middle loses nothing."""
        partial = self.state_file.with_suffix(".partial")
        state = {"model": self.both.state_dict(), "optimizer": self.optimizer.state_dict(), "step": self.step}
        torch.save(state, partial)
        partial.replace(self.state_file)

    def note(self, stats: dict[str, float]) -> None:
        for name, value in stats.items():
            if not math.isnan(value):
                self.figures[name] = SMOOTHING * self.figures.get(name, value) + (1 - SMOOTHING) * value

    def write_log(self, minutes: float, held_out_scores: dict[str, float]) -> None:
        figures = {name: round(value, 4) for name, value in self.figures.items()}
        record = {"step": self.step, "minutes": round(minutes, 1), **figures, "held_out": held_out_scores}
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        plot(self.folder / "log.jsonl", self.folder / "loss.png")

    def _begun(self) -> float:
        file = self.folder / "begun"
        if not file.exists():
            file.write_text(str(time.time()))
        return float(file.read_text())


def train(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    run = Run(args.folder, args.rate, args.seed, args.init_from)
    examination = held_out(Tokenizer.from_directory(args.folder), 48)
    first_step, seconds = run.step, args.minutes * 60
    due = defaultdict(time.time)
    due["examine"], due["save"] = time.time() + args.examine_every * 60, time.time() + SAVE_EVERY
    queue, worker = _start_feeding(args, run)
    bar = tqdm(total=round(seconds), unit="s")
    while (elapsed := time.time() - run.begun) < seconds:
        run.optimizer.set_rate(args.rate * share_of_rate(elapsed / seconds, run.step - first_step, args.final))
        run.note(learn(run.model, run.heads, run.optimizer, queue.get()))
        run.step += 1
        bar.n = round(elapsed)
        bar.set_postfix(step=run.step, **_short(run.figures))
        if time.time() > due["examine"]:
            run.write_log(elapsed / 60, examine(run.model, examination))
            due["examine"] = time.time() + args.examine_every * 60
        if time.time() > due["save"]:
            run.save()
            due["save"] = time.time() + SAVE_EVERY
    run.save()
    run.write_log(args.minutes, examine(run.model, examination))
    worker.terminate()


def share_of_rate(finished: float, steps: int, final: float) -> float:
    """Of the highest learning rate: up over the first steps, then down to `final` by a cosine of the finished share."""
    cosine = 0.5 * (1 + math.cos(math.pi * finished))
    return min(1, (steps + 1) / WARM_STEPS) * (final + (1 - final) * cosine)


def _short(figures: dict[str, float]) -> dict[str, str]:
    shown = ("answers", "copying", *LOSSES, "characters_right", "shapes_right")
    return {name[:7]: f"{figures[name]:.2f}" for name in shown if name in figures}


def _start_feeding(args: argparse.Namespace, run: Run) -> tuple[Any, Any]:
    """Draw pictures in a process beside the training; a resumed run draws new ones."""
    context = mp.get_context("spawn")
    queue = context.Queue(8)
    seed = args.seed * 1000 + run.step
    worker = context.Process(
        target=feed, args=(str(args.folder), seed, args.batch, run.begun, args.minutes, args.see, queue), daemon=True
    )
    worker.start()
    return queue, worker


def feed(folder: str, seed: int, size: int, begun: float, minutes: float, see: bool, queue: Any) -> None:
    os.nice(5)
    torch.set_num_threads(1)
    lessons = SEEING if see else LESSONS
    for batch in stream(folder, seed, size, lambda: (time.time() - begun) / (60 * minutes), lessons):
        queue.put(batch)


if __name__ == "__main__":
    main()
