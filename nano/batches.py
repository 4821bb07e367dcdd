"""Batches of conversations: pictures, token ids, and which tokens are answers. Knows the template; trains nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from kimi_serve.inputs.tokenizer import Tokenizer
from nano import questions
from nano.fonts import HELD_OUT, TRAINING, find
from nano.labels import PATCH, TOKEN, label, patchify
from nano.pictures import Picture, Style
from nano.questions import Place, Turn
from nano.scenes import page_scene, shape_scene, simple_scene, text_scene

SIDES = (3, 4, 5, 6)  # tokens of 28 pixels
IGNORED = -100
KINDS = ("simple", "text", "page", "shapes", "which", "words")  # of conversations
NAMING = {"describe", "colour", "shape", "word", "number"}  # what is asked of simple pictures
NEAR = 0.02  # of a side: how far beside the mark a point is nearly right
CROWD = 40  # pictures of a step that trains the tower alone


@dataclass(frozen=True, slots=True)
class Lesson:
    """What is practised until a share of the time is over."""

    until: float
    pages: float  # share of steps on crowded pictures, for the tower alone
    copies: float  # share of steps on doubled text, for the decoder alone
    mix: tuple[float, ...]  # of KINDS, in the other steps


# First see, and find again what stands in a text; then name one thing; then several, and whole words; then answer.
LESSONS = (
    Lesson(0.20, 0.85, 0.15, (1, 0, 0, 0, 0, 0)),
    Lesson(0.35, 0.10, 0.10, (1, 0, 0, 0, 0, 0)),
    Lesson(0.70, 0.10, 0.04, (0.40, 0.30, 0.02, 0.28, 0, 0)),
    Lesson(1.0, 0.05, 0.03, (0.15, 0.28, 0.03, 0.30, 0.14, 0.10)),
)
# Nothing but seeing: for a tower whose decoder is trained apart, by nano.practice.
SEEING = (Lesson(1.0, 1.0, 0, (1, 0, 0, 0, 0, 0)),)


@dataclass(slots=True)
class Batch:
    """Conversations whose pictures have one grid of patches."""

    rows: int  # patches
    columns: int
    patches: np.ndarray  # (pictures, rows*columns, 3, 14, 14) uint8
    labels: dict[str, np.ndarray]  # (pictures, tokens, ...)
    ids: np.ndarray  # (conversations, length)
    targets: np.ndarray  # (conversations, length): the next token where it belongs to an answer
    answers: np.ndarray  # (conversations, length): number of the answer that the target belongs to, or below 0
    tasks: list[str]  # of every answer
    images: np.ndarray  # (conversations, length): which of the conversation's pictures a token is of, or below 0
    looks: np.ndarray  # (conversations, length): the picture's token that the next token is read off, or below 0
    values: np.ndarray  # (conversations, length, 3): x, y and count that an answer says, NaN in all other places
    among: list[tuple[int, int, list[int]]] = field(default_factory=list)  # conversation, token before a count, counted
    near: list[tuple[int, int, np.ndarray]] = field(default_factory=list)  # conversation, token before a digit, shares
    digits: tuple[int, ...] = ()  # tokens of 0 to 9
    kind: str = ""  # one of KINDS
    seen: list[int] = field(default_factory=list)  # in place of patches: numbers of pictures that were seen before


def style(held_out: bool) -> Style:
    return Style(tuple(find(HELD_OUT if held_out else TRAINING)), held_out)


@dataclass(slots=True)
class Written:
    """A conversation as tokens, and about every token what is known."""

    ids: list[int] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # number of the answer that it belongs to, or -1
    looks: list[Place | None] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)
    among: dict[int, tuple[Place, ...]] = field(default_factory=dict)  # by the index of a count
    near: dict[int, np.ndarray] = field(default_factory=dict)  # by the index of a coordinate's digit: shares of 0 to 9
    tasks: list[str] = field(default_factory=list)  # of the answers

    def add(self, ids: list[int]) -> None:
        """Tokens of no answer."""
        self.ids += ids
        self.marks += [-1] * len(ids)
        self.looks += [None] * len(ids)
        self.values += [()] * len(ids)


class Writer:
    """Token ids of a conversation by the published template."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.digits = tuple(tokenizer.encode(str(digit))[0] for digit in range(10))
        self.special = {
            n: tokenizer.special_id(f"<|{n}|>")
            for n in (
                "im_end",
                "im_user",
                "im_assistant",
                "im_system",
                "im_middle",
                "media_start",
                "media_content",
                "media_end",
                "media_pad",
            )
        }

    def write(self, system: str, turns: list[Turn], images: int, tokens: int, think: bool) -> Written:
        s, encode = self.special, self.tokenizer.encode
        written = Written()
        written.add([s["im_system"], *encode("system"), s["im_middle"], *encode(system), s["im_end"]])
        picture = [s["media_start"], *encode("image"), s["media_content"], *[s["media_pad"]] * tokens, s["media_end"]]
        for number, turn in enumerate(turns):
            written.add([s["im_user"], *encode("user"), s["im_middle"]])
            written.add(picture * images if number == 0 else [])
            written.add([*encode(turn.question), s["im_end"], s["im_assistant"], *encode("assistant"), s["im_middle"]])
            self._answer(written, number, turn, think)
        return written

    def _answer(self, written: Written, number: int, turn: Turn, think: bool) -> None:
        said = f"◁think▷{turn.thought}◁/think▷{turn.answer}" if think else turn.answer
        ids = self.tokenizer.encode(said)
        sizes = [len(self.tokenizer.decode([token])) for token in ids]
        starts = [sum(sizes[:k]) - (len(said) - len(turn.answer)) for k in range(len(ids))]  # in the answer proper
        many = len(turn.looks) > 1
        looks = [turn.looks[s] if many and 0 <= s < len(turn.looks) else None for s in starts]
        if turn.among and 0 in starts:
            written.among[len(written.ids) + starts.index(0)] = turn.among
        if turn.task == "point":
            written.near |= {len(written.ids) + starts.index(s): w for s, w in digits(turn).items()}
        written.ids += [*ids, self.special["im_end"]]
        written.marks += [number] * (len(ids) + 1)
        written.looks += [*(looks if many or not turn.looks else [turn.looks[0]] * len(ids)), None]
        written.values += [*([turn.values] * len(ids)), ()]
        written.tasks.append("think" if think else turn.task)


def digits(turn: Turn) -> dict[int, np.ndarray]:
    """Of a pointing answer, by the place of each decimal in it: how good every digit would be there.

    A hundredth beside the mark is nearly right and nine hundredths are not: in doubt the middle should be said.
    """
    shares = {}
    for found, value in zip(re.finditer(r"0\.(\d)(\d)", turn.answer), turn.values, strict=True):
        weights = np.exp(-(((np.arange(100) / 100 - value) / NEAR) ** 2) / 2).reshape(10, 10)
        for place, share in ((found.start(1), weights.sum(1)), (found.start(2), weights[int(found[1])])):
            shares[place] = (share / share.sum()).astype(np.float32)
    return shares


class Source:
    """An endless, seeded stream of batches."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        seed: int,
        *,
        held_out: bool = False,
        size: int = 16,
        most_turns: int = 4,
    ) -> None:
        self.writer, self.size, self.most_turns = Writer(tokenizer), size, most_turns
        self.rng = np.random.default_rng(seed)
        self.style = style(held_out)

    def picture(self, rows: int, columns: int, kind: str) -> Picture:
        """A picture that is padded to rows x columns tokens: half of them exactly that large."""
        exact = self.rng.random() < 0.5
        height = 28 * rows - (0 if exact else int(self.rng.integers(0, 28)))
        width = 28 * columns - (0 if exact else int(self.rng.integers(0, 28)))
        scene = {"simple": simple_scene, "text": text_scene, "page": page_scene}.get(kind, shape_scene)
        while True:
            picture = scene(width, height, self.rng, self.style)
            if picture.texts or picture.shapes:
                return picture

    def batch(self, kind: str, only: str | None = None) -> Batch:
        """`kind`: one of KINDS; `only`: a task that every conversation is about."""
        rng = self.rng
        rows, columns = int(rng.choice(SIDES[:3])), int(rng.choice(SIDES))
        if kind in ("simple", "which"):
            rows, columns = int(rng.choice((3, 4))), int(rng.choice((3, 4)))
        pictures: list[Picture] = []
        written = []
        while len(written) < self.size * (2 if kind == "simple" else 1):
            mine, turns = self._conversation(kind, rows, columns)
            if only:
                turns = [t for t in turns if t.task == only][:1]
            elif len(mine) == 1:
                turns = questions.once(turns, mine[0], rng)
            if not turns:
                continue
            think = only == "think" or (only is None and kind != "simple" and rng.random() < 0.1)
            turns = turns[: 1 if think else self.most_turns]
            system = questions.THINK if think else questions.DEFAULT_SYSTEM
            if only is None and kind != "simple" and not think and rng.random() < 0.25:
                extra = questions.text_only(rng)
                turns = (turns + extra)[-self.most_turns :]
            written.append(self.writer.write(system, turns, len(mine), rows * columns, think))
            pictures += mine
        batch = self._pack(rows * 2, columns * 2, pictures, written)
        batch.kind = kind
        return batch

    def pages(self) -> Batch:
        """Crowded pictures and no conversation, for training the tower alone."""
        rows, columns = int(self.rng.choice(SIDES[:3])), int(self.rng.choice(SIDES))
        pictures = [self.picture(rows, columns, self.crowded()) for _ in range(CROWD)]
        return self._pack(rows * 2, columns * 2, pictures, [Written([0], [-1], [None], [()])])

    def crowded(self) -> str:
        return str(self.rng.choice(("page", "text", "shapes"), p=(0.6, 0.1, 0.3)))

    def copies(self, count: int = 32, length: int = 28) -> Batch:
        """Random tokens, twice: every second token can be found again, which is what attention must learn first."""
        base = min(self.writer.special.values()) - 2
        half = self.rng.integers(32, base, (count, length))
        ids = np.concatenate([half, half], 1)
        targets = np.full_like(ids, IGNORED)
        targets[:, length - 1 : -1] = half
        answers = np.where(targets >= 0, np.arange(count)[:, None], -1)
        none = np.full_like(ids, IGNORED)
        values = np.full((*ids.shape, 3), np.nan, np.float32)
        patches = np.zeros((0, 4, 3, PATCH, PATCH), np.uint8)
        return Batch(2, 2, patches, {}, ids, targets, answers, ["copy"] * count, none, none, values)

    def _conversation(self, kind: str, rows: int, columns: int) -> tuple[list[Picture], list[Turn]]:
        if kind == "words":
            return [], questions.text_only(self.rng)
        if kind == "which":
            pictures = [self.picture(rows, columns, "shapes") for _ in range(int(self.rng.integers(2, 5)))]
            return pictures, questions.which(pictures, self.rng)
        picture = self.picture(rows, columns, kind)
        if kind == "page":  # holds many words: "the word" would be none of them
            return [picture], [questions.describe(picture, self.rng)]
        return [picture], self.about(kind, picture)

    def about(self, kind: str, picture: Picture) -> list[Turn]:
        turns = questions.about(picture, self.rng)
        return [t for t in turns if t.task in NAMING] if kind == "simple" else turns

    def _pack(self, rows: int, columns: int, pictures: list[Picture], written: list[Written]) -> Batch:
        length = max(len(w.ids) for w in written)
        ids = np.zeros((len(written), length), np.int64)
        targets, answers, images, looks = (np.full((len(written), length), IGNORED, np.int64) for _ in range(4))
        values = np.full((len(written), length, 3), np.nan, np.float32)
        tasks: list[str] = []
        among: list[tuple[int, int, list[int]]] = []
        near: list[tuple[int, int, np.ndarray]] = []
        for row, w in enumerate(written):
            ids[row, : len(w.ids)] = w.ids
            pads = np.flatnonzero(ids[row] == self.writer.special["media_pad"])
            images[row, pads] = np.arange(len(pads)) // (rows * columns // 4)
            for k in range(len(w.ids) - 1):
                if w.marks[k + 1] < 0:
                    continue
                targets[row, k] = w.ids[k + 1]
                answers[row, k] = len(tasks) + w.marks[k + 1]
                if (place := w.looks[k + 1]) is not None:
                    looks[row, k] = pads[cell(place, rows, columns)]
                said = w.values[k + 1]
                values[row, k, slice(2, 3) if len(said) == 1 else slice(len(said))] = said
            tasks += w.tasks
            near += [(row, k - 1, shares) for k, shares in w.near.items()]
            among += [
                (row, k - 1, [int(pads[cell(place, rows, columns)]) for place in places])
                for k, places in w.among.items()
            ]
        none = np.zeros((0, rows * columns, 3, PATCH, PATCH), np.uint8)
        marked = [label(p, rows // 2, columns // 2) for p in pictures]
        return Batch(
            rows,
            columns,
            np.stack([patchify(p.pixels) for p in pictures]) if pictures else none,
            {name: np.stack([m[name] for m in marked]) for name in marked[0]} if marked else {},
            ids,
            targets,
            answers,
            tasks,
            images,
            looks,
            values,
            among,
            near,
            self.writer.digits,
        )


def cell(place: Place, rows: int, columns: int) -> int:
    """Which of a conversation's picture tokens holds it; rows and columns count patches."""
    inside = int(place[2]) // TOKEN * (columns // 2) + int(place[1]) // TOKEN
    return place[0] * rows * columns // 4 + inside


def held_out(tokenizer: Tokenizer, each: int, seed: int = 12345) -> list[Batch]:
    """The same held-out conversations every time, one question each."""
    source = Source(tokenizer, seed, held_out=True, size=each // 2)
    batches = []
    for task in ("number", "word", "colour", "shape", "count", "point"):
        kind = "text" if task in ("number", "word") else "shapes"
        batches += [source.batch(kind, task) for _ in range(2)]
    batches += [source.batch("which", "which") for _ in range(2)]
    return [*batches, source.batch("words", "text")]


def stream(
    folder: str, seed: int, size: int, finished: Callable[[], float], lessons: Sequence[Lesson] = LESSONS
) -> Iterator[Batch]:
    """`finished`: the share of the training's time that is over."""
    source = Source(Tokenizer.from_directory(Path(folder)), seed, size=size)
    while True:
        share = finished()
        lesson = next((lesson for lesson in lessons if share < lesson.until), lessons[-1])
        kind = source.rng.random()
        if kind < lesson.pages:
            yield source.pages()
        elif kind < lesson.pages + lesson.copies:
            yield source.copies()
        else:
            yield source.batch(str(source.rng.choice(KINDS, p=np.array(lesson.mix) / sum(lesson.mix))))
