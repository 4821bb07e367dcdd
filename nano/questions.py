"""Conversations about pictures, and about nothing but text. Knows pictures' truth; never pixels or tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from numpy.random import Generator

from nano.pictures import COLOURS, SHAPES, Picture, Shape

TASKS = ("number", "word", "colour", "shape", "count", "which", "point", "describe", "text", "chat")
THINK = "Think first."
REPEAT = "Repeat"
DESCRIPTIONS = 0.15  # share of conversations that ask for all that is in the picture
DEFAULT_SYSTEM = "You are a helpful assistant"
MOST = 6  # things to count
PLURAL = {"cross": "crosses"}
NAMES = ("Tom", "Ann", "Max", "Eva", "Sam", "Lea")
THINGS = ("box", "ball", "car", "hat", "cup", "door", "book", "lamp")


Place = tuple[int, float, float]  # which picture, and pixels from its left and top


@dataclass(frozen=True, slots=True)
class Turn:
    task: str
    question: str
    answer: str
    thought: str = ""
    # Where one who gives the answer looks: for each of its characters, or one place for all.
    looks: tuple[Place | None, ...] = ()
    values: tuple[float, ...] = ()  # what it says in numbers, 0..1: x and y; or a count's share of MOST
    among: tuple[Place, ...] = ()  # what is counted


def plural(kind: str) -> str:
    return PLURAL.get(kind, kind + "s")


def pick(rng: Generator, *options: str) -> str:
    return options[int(rng.integers(len(options)))]


def about(picture: Picture, rng: Generator, style_rng: Generator | None = None) -> list[Turn]:
    """Every kind of question that this picture answers, shuffled."""
    turns: list[Turn] = []
    for text in picture.texts:
        looks = tuple((0, x, y) for x, y in text.centres)
        turns.append(replace(read(text.kind, text.content, rng), looks=looks))
    shapes = picture.shapes
    if picture.texts or shapes:
        turns.append(describe(picture, rng))
    if shapes:
        turns += [ask(shapes, rng) for ask in (colour_of, shape_of, count, count, point) for _ in range(1)]
        if len(shapes) > 1:
            turns.append(point(shapes, rng))
    turns = [t for t in turns if t.question]
    placed = [located(t, picture) if t.task == "point" else t for t in turns]
    order = rng.permutation(len(placed))
    seen: set[str] = set()
    out = []
    for i in order:
        if placed[i].question not in seen:
            seen.add(placed[i].question)
            out.append(placed[i])
    return out


def once(turns: list[Turn], picture: Picture, rng: Generator) -> list[Turn]:
    """At most one question about each thing: what an earlier turn gave away is copied and not looked for."""
    tell = [turn for turn in turns if turn.task == "describe"]
    if tell and (len(tell) == len(turns) or rng.random() < DESCRIPTIONS):
        return tell[:1]
    first: dict[str, Turn] = {}
    for turn in turns:
        if turn.task != "describe":
            first.setdefault(subject(turn, picture), turn)
    return list(first.values())


def subject(turn: Turn, picture: Picture) -> str:
    """What an answer is about: a text, a shape by colour and kind, or for a number of things the question itself."""
    if turn.task in ("number", "word"):
        return turn.answer
    if turn.task not in ("colour", "shape", "point"):
        return turn.question
    for shape in picture.shapes:
        known = {
            "colour": (shape.kind, turn.answer == shape.colour),
            "shape": (shape.colour, turn.answer == shape.kind),
        }
        named, fits = known.get(turn.task, (f"{shape.colour} {shape.kind}", True))
        if fits and (named in turn.question or len(picture.shapes) == 1):
            return f"{shape.colour} {shape.kind}"
    raise AssertionError(turn)


def read(kind: str, content: str, rng: Generator) -> Turn:
    if kind == "number":
        question = pick(
            rng, "What number is printed?", "Read the number.", "Which number is in the picture?", "What is the number?"
        )
    else:
        question = pick(
            rng, "What word is printed?", "Read the word.", "Which word is in the picture?", "What is the word?"
        )
    return Turn(kind, question, content, f"The {kind} is {content}.")


def describe(picture: Picture, rng: Generator) -> Turn:
    """Everything in reading order, a line each: no other answer makes a decoder look at a picture as often."""
    lines = [(t.content, list(t.centres)) for t in picture.texts]
    for s in picture.shapes:
        named = f"a {s.colour} {s.kind}"
        lines.append((named, [(s.x, s.y)] * len(named)))
    in_order = sorted(lines, key=lambda line: (int(line[1][0][1]) // 28, line[1][0][0]))
    looks = [place for _, centres in in_order for place in (*((0, x, y) for x, y in centres), None)]
    question = pick(rng, "Describe the picture.", "What is in the picture?")
    return Turn("describe", question, "\n".join(text for text, _ in in_order), looks=tuple(looks[:-1]))


def unique(shapes: tuple[Shape, ...], key: Callable[[Shape], object], rng: Generator) -> Shape | None:
    counts = Counter(key(s) for s in shapes)
    alone = [s for s in shapes if counts[key(s)] == 1]
    return alone[int(rng.integers(len(alone)))] if alone else None


def colour_of(shapes: tuple[Shape, ...], rng: Generator) -> Turn:
    shape = unique(shapes, lambda s: s.kind, rng)
    if shape is None:
        return Turn("colour", "", "")
    question = pick(rng, f"What colour is the {shape.kind}?", f"Which colour does the {shape.kind} have?")
    if len(shapes) == 1 and rng.random() < 0.4:
        question = "What colour is the shape?"
    return Turn("colour", question, shape.colour, f"I see a {shape.colour} {shape.kind}.", at(shape))


def shape_of(shapes: tuple[Shape, ...], rng: Generator) -> Turn:
    shape = unique(shapes, lambda s: s.colour, rng)
    if shape is None:
        return Turn("shape", "", "")
    question = pick(
        rng, f"What shape is {shape.colour}?", f"Which shape is {shape.colour}?", f"What is the {shape.colour} shape?"
    )
    if len(shapes) == 1 and rng.random() < 0.4:
        question = "What shape is in the picture?"
    return Turn("shape", question, shape.kind, f"I see a {shape.colour} {shape.kind}.", at(shape))


def count(shapes: tuple[Shape, ...], rng: Generator) -> Turn:
    how = int(rng.integers(3))
    if how == 0:
        return counted("shapes", shapes)
    shape = shapes[int(rng.integers(len(shapes)))]
    if how == 1:
        return counted(plural(shape.kind), [s for s in shapes if s.kind == shape.kind])
    return counted(f"{shape.colour} shapes", [s for s in shapes if s.colour == shape.colour])


def counted(what: str, among: Sequence[Shape]) -> Turn:
    number = len(among)
    return Turn(
        "count",
        f"How many {what} are there?",
        str(number),
        f"I count the {what}: {', '.join(str(k + 1) for k in range(number))}.",
        values=(number / MOST,),
        among=tuple(place for shape in among for place in at(shape)),
    )


def point(shapes: tuple[Shape, ...], rng: Generator) -> Turn:
    shape = unique(shapes, lambda s: (s.colour, s.kind), rng)
    if shape is None:
        return Turn("point", "", "")
    return Turn(
        "point",
        f"Click the {shape.colour} {shape.kind}.",
        f"{shape.x} {shape.y}",
        f"I see the {shape.colour} {shape.kind}.",
        at(shape),
    )


def at(shape: Shape, picture: int = 0) -> tuple[Place]:
    return ((picture, shape.x, shape.y),)


def located(turn: Turn, picture: Picture) -> Turn:
    """Pixels as a share of the picture's sides."""
    x, y = (float(v) for v in turn.answer.split())
    values = (x / picture.width, y / picture.height)
    return replace(turn, answer=f"pyautogui.click(x={values[0]:.2f}, y={values[1]:.2f})", values=values)


def which(pictures: list[Picture], rng: Generator) -> list[Turn]:
    """Several pictures in one prompt: which of them shows something that the others do not."""
    turns = []
    for index in rng.permutation(len(pictures)):
        picture = pictures[index]
        others = [p for k, p in enumerate(pictures) if k != index]
        for shape in picture.shapes:
            if all((s.colour, s.kind) != (shape.colour, shape.kind) for p in others for s in p.shapes):
                what = f"a {shape.colour} {shape.kind}"
                asked, answer, thought = f"Which image shows {what}?", f"Image {index + 1}", f"I look for {what}."
                turns.append(Turn("which", asked, answer, thought, at(shape, int(index))))
                break
    return turns


def text_only(rng: Generator) -> list[Turn]:
    """A few turns that need no picture: facts to find again, letters to copy, small talk."""
    how = int(rng.integers(6))
    if how < 3:
        return facts(rng, (colours, belongings, amounts)[how])
    if how < 5:
        return [repeat(rng) for _ in range(int(rng.integers(1, 5)))]
    return [small_talk(rng)]


Fact = tuple[str, str, str, str]  # what is said, what is asked, the answer, the thought


def facts(rng: Generator, kind: Callable[[Generator, int], list[Fact]]) -> list[Turn]:
    """Two to five facts in the first turn, and questions about some of them, one a turn."""
    told = kind(rng, int(rng.integers(2, 6)))
    said = " ".join(fact[0] for fact in told)
    asked = [told[int(k)] for k in rng.permutation(len(told))[: int(rng.integers(1, 5))]]
    turns = [Turn("text", question, answer, thought) for _, question, answer, thought in asked]
    return [Turn("text", f"{said} {turns[0].question}", turns[0].answer, turns[0].thought), *turns[1:]]


def colours(rng: Generator, count: int) -> list[Fact]:
    things = [str(t) for t in rng.choice(THINGS, count, replace=False)]
    shades = [str(c) for c in rng.choice(COLOURS, count)]
    return [
        (f"The {t} is {c}.", f"What colour is the {t}?", c, f"The {t} is {c}.")
        for t, c in zip(things, shades, strict=True)
    ]


def belongings(rng: Generator, count: int) -> list[Fact]:
    names = [str(n) for n in rng.choice(NAMES, count, replace=False)]
    things = [str(t) for t in rng.choice(THINGS, count)]
    return [
        (f"{n} has a {t}.", f"What does {n} have?", f"a {t}", f"{n} has a {t}.")
        for n, t in zip(names, things, strict=True)
    ]


def amounts(rng: Generator, count: int) -> list[Fact]:
    names = [str(n) for n in rng.choice(NAMES, count, replace=False)]
    numbers = [int(k) for k in rng.integers(1, 100, count)]
    return [
        (f"{n} has {k} books.", f"How many books does {n} have?", str(k), f"{n} has {k} books.")
        for n, k in zip(names, numbers, strict=True)
    ]


def repeat(rng: Generator) -> Turn:
    copied = invented_letters(rng)
    return Turn("text", f"{REPEAT} {copied}", copied, f"It says {copied}.")


def small_talk(rng: Generator) -> Turn:
    greeting = pick(rng, "Hello", "Hi", "Hello!", "Hi there")
    who = pick(rng, "What are you?", "Who are you?")
    turns = [
        Turn("chat", greeting, "Hello! Show me a picture with a word, a number or some shapes."),
        Turn(
            "chat",
            who,
            "I am kimi-vl-nano, a small model for tests. I read words and numbers and I know simple shapes.",
        ),
        Turn("chat", pick(rng, "Thanks", "Thank you", "Thanks!"), "You are welcome."),
    ]
    return turns[int(rng.integers(3))]


def invented_letters(rng: Generator) -> str:
    """Letters or digits to copy: copying is half of reading."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if rng.random() < 0.6 else "0123456789"
    return "".join(alphabet[int(k)] for k in rng.integers(0, len(alphabet), int(rng.integers(2, 6))))


def vocabulary() -> list[str]:
    """Texts whose words deserve a token."""
    words = [*COLOURS, *SHAPES, *(plural(s) for s in SHAPES), *THINGS, *NAMES]
    texts = [
        " " + " ".join(words),
        "\n".join((*COLOURS, *SHAPES)),
        "system user assistant image",
        DEFAULT_SYSTEM,
        THINK,
    ]
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = (Shape("circle", "red", 1, 1, 1),)
    asks = [
        lambda: read("number", "", rng),
        lambda: read("word", "", rng),
        *((lambda f=f: f(shapes, rng)) for f in (colour_of, shape_of, count, point)),
    ]
    for _ in range(200):
        for ask in asks:
            turn = ask()
            texts += [turn.question, *([] if turn.task == "point" else [" " + turn.answer]), turn.thought]
        for turn in [t for t in text_only(rng) if not t.question.startswith(REPEAT)]:
            texts += [turn.question, turn.answer, turn.thought]
    texts += [REPEAT, "It says", "Describe the picture.", "What is in the picture?", "a\na"]
    texts += ["Which image shows a", "Image", "I look for a", "pyautogui", ".click", "(x", " y", "◁think▷", "◁/think▷"]
    return texts
