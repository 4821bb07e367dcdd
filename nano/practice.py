"""Train the decoder alone: `python -m nano.practice --folder RUN --init-from OLD --minutes 60`. Run again to resume.

The tower looks at every picture of a collection once, and what it saw is kept: a step then draws nothing and sees
nothing, and asks eight times as many questions in the same time. `nano.train` on the same folder joins the two again.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from kimi_serve.inputs.tokenizer import Tokenizer
from nano import questions
from nano.batches import KINDS, SIDES, Batch, Source, Written, held_out
from nano.guides import Guides
from nano.labels import patchify
from nano.learning import examine, practise
from nano.optimizers import Optimizers
from nano.pictures import Picture
from nano.questions import Turn
from nano.train import Run, share_of_rate
from tests.oracle.kimi_vl import normalise

AT_ONCE = 64  # pictures of one grid that the tower sees together
MOST_TURNS = 6
ROUNDS = 3  # of questions about one picture
SAVE_EVERY, EXAMINE_EVERY = 120.0, 300.0  # seconds
# Shares of copies and of KINDS, until a share of the time is over: find what stood in a text and name, then all.
MIXES = (
    (0.06, 0.20, (0.20, 0.20, 0, 0.25, 0.15, 0.20)),
    (1.00, 0.02, (0.05, 0.26, 0, 0.45, 0.13, 0.11)),
)
SHOWN = ("answers_text", "answers_shapes", "answers_which", "looking_right", "order", "saying")
Grid = tuple[int, int]


@dataclass(slots=True)
class Collection:
    """Pictures without their pixels, by kind and grid (in tokens), and what the tower made of them."""

    truths: list[tuple[str, Grid, Picture]] = field(default_factory=list)
    rows: list[Tensor] = field(default_factory=list)  # (tokens, hidden) float16, picture by picture

    def keep(self, kind: str, grid: Grid, picture: Picture, rows: Tensor) -> None:
        # Of the pixels only their number is still asked for, and this array takes no room.
        shell = np.broadcast_to(np.uint8(0), picture.pixels.shape)
        self.truths.append((kind, grid, Picture(shell, picture.shapes, picture.texts)))
        self.rows.append(rows.half())

    def save(self, file: Path) -> None:
        plain = [(kind, grid, p.pixels.shape, p.shapes, p.texts) for kind, grid, p in self.truths]
        partial = file.with_suffix(".partial")
        torch.save({"truths": pickle.dumps(plain), "rows": self.rows}, partial)
        partial.replace(file)

    @classmethod
    def load(cls, file: Path) -> Collection:
        stored = torch.load(file, weights_only=True)
        plain = pickle.loads(stored["truths"])
        truths = [(k, g, Picture(np.broadcast_to(np.uint8(0), shape), s, t)) for k, g, shape, s, t in plain]
        return cls(truths, stored["rows"])


class Seen(Source):
    """Conversations about pictures of a collection; a batch holds their numbers in place of pixels."""

    def __init__(self, tokenizer: Tokenizer, seed: int, truths: list[tuple[str, Grid, Picture]], size: int) -> None:
        super().__init__(tokenizer, seed, size=size, most_turns=MOST_TURNS)
        self._by: dict[tuple[str, Grid], list[Picture]] = {}
        self._number = {id(picture): number for number, (_, _, picture) in enumerate(truths)}
        for kind, grid, picture in truths:
            self._by.setdefault((kind, grid), []).append(picture)

    def picture(self, rows: int, columns: int, kind: str) -> Picture:
        known = self._by[kind, (rows, columns)]
        return known[int(self.rng.integers(len(known)))]

    def batch(self, kind: str, only: str | None = None) -> Batch:
        self.most_turns = int(self.rng.integers(2, MOST_TURNS + 1))  # about as many in all: padding teaches nothing
        return super().batch(kind, only)

    def about(self, kind: str, picture: Picture) -> list[Turn]:
        rounds = [questions.about(picture, self.rng) for _ in range(ROUNDS)]
        # Anything can be counted: three rounds of that would leave room for nothing else.
        return [turn for number, turns in enumerate(rounds) for turn in turns if number < 2 or turn.task != "count"]

    def _pack(self, rows: int, columns: int, pictures: list[Picture], written: list[Written]) -> Batch:
        batch = super()._pack(rows, columns, [], written)
        batch.seen = [self._number[id(picture)] for picture in pictures]
        return batch


def draw(folder: str, seed: int, count: int, queue: Any) -> None:
    """Pictures of every kind and grid, AT_ONCE at a time, in a process of its own."""
    torch.set_num_threads(1)
    source = Source(Tokenizer.from_directory(Path(folder)), seed)
    choices = [("simple", (r, c)) for r in (3, 4) for c in (3, 4)]
    choices += [(kind, (r, c)) for kind in ("text", "shapes") for r in SIDES[:3] for c in SIDES]
    for number in range(count // AT_ONCE):
        kind, (rows, columns) = choices[number % len(choices)]
        queue.put((kind, (rows, columns), [source.picture(rows, columns, kind) for _ in range(AT_ONCE)]))


@torch.no_grad()
def collect(run: Run, count: int, seed: int) -> Collection:
    file = run.folder / "collection.pt"
    if file.exists():
        return Collection.load(file)
    context = mp.get_context("spawn")
    queue = context.Queue(8)
    worker = context.Process(target=draw, args=(str(run.folder), seed, count, queue), daemon=True)
    worker.start()
    collection = Collection()
    for _ in tqdm(range(count // AT_ONCE), unit="x64 pictures"):
        kind, grid, pictures = queue.get()
        patches = torch.from_numpy(np.stack([patchify(p.pixels) for p in pictures]))
        for picture, rows in zip(pictures, run.model.see(normalise(patches), 2 * grid[0], 2 * grid[1]), strict=True):
            collection.keep(kind, grid, picture, rows)
    worker.join()
    collection.save(file)
    return collection


def ask(folder: str, seed: int, size: int, begun: float, seconds: float, queue: Any) -> None:
    """An endless stream of batches, in a process of its own."""
    torch.set_num_threads(1)
    truths = Collection.load(Path(folder) / "collection.pt").truths
    for batch in conversations(Seen(Tokenizer.from_directory(Path(folder)), seed, truths, size), begun, seconds):
        queue.put(batch)


def conversations(source: Seen, begun: float, seconds: float) -> Iterator[Batch]:
    while True:
        share = (time.time() - begun) / seconds
        _, copies, mix = next((m for m in MIXES if share < m[0]), MIXES[-1])
        if source.rng.random() < copies:
            yield source.copies()
        else:
            yield source.batch(str(source.rng.choice(KINDS, p=np.array(mix) / sum(mix))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="the run, as of nano.train")
    parser.add_argument("--init-from", type=Path, required=True, help="a run or a checkpoint whose tower can see")
    parser.add_argument("--minutes", type=float, default=60, help="from the practice's first start")
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--batch", type=int, default=24, help="conversations a step")
    parser.add_argument("--rate", type=float, default=2.5e-3, help="highest learning rate")
    parser.add_argument("--final", type=float, default=0.1, help="the last learning rate, as a share of the highest")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    run = Run(args.folder, args.rate, args.seed, args.init_from)
    collection = collect(run, args.pictures, args.seed + 500)
    rehearse(run, collection, args)


class Practice:
    """The decoder's optimizer and teachers, and the file that keeps them beside the run's own state."""

    def __init__(self, run: Run, rate: float) -> None:
        self.run, self.file, self.begun = run, run.folder / "practice.pt", time.time()
        self.guides = Guides(run.model.language_model.model.embed_tokens.weight.shape[1])
        self.optimizer = Optimizers(nn.ModuleList([run.model.language_model, self.guides]), rate)
        self.first = run.step
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            self.begun, self.first = state["begun"], state["first"]
            self.guides.load_state_dict(state["guides"])
            self.optimizer.load_state_dict(state["optimizer"])

    def save(self) -> None:
        """Atomically each; the run's last, so that a stop between them repeats two minutes and loses none."""
        partial = self.file.with_suffix(".partial")
        own = {"guides": self.guides.state_dict(), "optimizer": self.optimizer.state_dict()}
        torch.save(own | {"begun": self.begun, "first": self.first}, partial)
        partial.replace(self.file)
        self.run.save()


def rehearse(run: Run, collection: Collection, args: argparse.Namespace) -> None:
    practice, seconds = Practice(run, args.rate), args.minutes * 60
    examination = held_out(Tokenizer.from_directory(run.folder), 48)
    context = mp.get_context("spawn")
    queue = context.Queue(8)
    asking = (str(run.folder), args.seed * 1000 + run.step, args.batch, practice.begun, seconds, queue)
    worker = context.Process(target=ask, args=asking, daemon=True)
    worker.start()
    due = {"save": time.time() + SAVE_EVERY, "examine": time.time() + EXAMINE_EVERY}
    bar = tqdm(total=round(seconds), unit="s")
    while (elapsed := time.time() - practice.begun) < seconds:
        practice.optimizer.set_rate(args.rate * share_of_rate(elapsed / seconds, run.step - practice.first, args.final))
        batch = queue.get()
        rows = torch.cat([collection.rows[number] for number in batch.seen]).float() if batch.seen else None
        run.note(practise(run.model, practice.guides, practice.optimizer, batch, rows))
        run.step += 1
        bar.n = round(elapsed)
        bar.set_postfix(step=run.step, **{k[:9]: f"{v:.3f}" for k, v in run.figures.items() if k in SHOWN})
        if time.time() > due["save"]:
            practice.save()
            due["save"] = time.time() + SAVE_EVERY
        if time.time() > due["examine"]:
            run.write_log(elapsed / 60, examine(run.model, examination))
            due["examine"] = time.time() + EXAMINE_EVERY
    worker.terminate()
    practice.save()
    run.write_log(args.minutes, examine(run.model, examination))


if __name__ == "__main__":
    main()
