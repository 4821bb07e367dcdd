"""One thing to find in a long prompt: kimi-vl-nano's answers by how much stands around it, through the served API.

    python -m benchmarks.needle --samples 25

A number is printed in one of n + 1 pictures, PDF pages or frames of an animation, whose others show shapes; or one of
n + 1 sentences says a thing's colour, and the others who has how many books. Its place is drawn. Right is the exact
answer. n = 0 is the plain prompt: the needle alone, in the same form. Starts `kimi-serve up` with the bundled
checkpoint where --base-url names no server; prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
from numpy.random import Generator
from PIL import Image
from tqdm import tqdm

from kimi_serve.launch.family import Family
from kimi_serve.launch.up import free_port
from nano import questions
from nano.fonts import HELD_OUT, installed
from nano.pictures import Picture, Style, add_text, canvas
from nano.scenes import number, shape_scene

SEED = 20261123
SIZE = (140, 112)  # pixels: 5x4 tokens, as in training
OTHERS = (0, 1, 4, 16, 64)
STARTS_WITHIN_S = 400.0
ANSWERS_WITHIN_S = 600.0

Part = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Prompt:
    parts: list[Part]
    answer: str


@dataclass(frozen=True, slots=True)
class Reply:
    content: str
    prompt_tokens: int


@dataclass(frozen=True, slots=True)
class Score:
    kind: str
    others: int
    samples: int
    right: int
    refused: int  # by the server: a limit, not an answer
    prompt_tokens: int  # of the longest


def style() -> Style:
    """Held-out fonts, as far as they are installed."""
    return Style(tuple(str(installed()[name]) for name in HELD_OUT if name in installed()) or ("",), held_out=True)


def numbered(rng: Generator, drawn: Style) -> tuple[Image.Image, str]:
    """A picture of nothing but a number of one to three digits."""
    while True:
        on, content = canvas(*SIZE, rng, drawn), number(rng, 3)
        if add_text(on, "number", content, rng, drawn):
            return on.image, content


def shapes(rng: Generator, drawn: Style) -> Image.Image:
    picture: Picture = shape_scene(*SIZE, rng, drawn)
    return Image.fromarray(picture.pixels)


def hidden(rng: Generator, others: int) -> tuple[list[Image.Image], Part, str]:
    """Pictures with the number's among them, the question, the answer."""
    drawn = style()
    needle, content = numbered(rng, drawn)
    found = [shapes(rng, drawn) for _ in range(others)]
    found.insert(int(rng.integers(0, others + 1)), needle)
    return found, text(questions.read("number", content, rng).question), content


def in_pictures(rng: Generator, others: int) -> Prompt:
    found, question, answer = hidden(rng, others)
    urls = [url("image/png", stored(one, "PNG")) for one in found]
    return Prompt([*({"type": "image_url", "image_url": {"url": each}} for each in urls), question], answer)


def in_pages(rng: Generator, others: int) -> Prompt:
    found, question, answer = hidden(rng, others)
    data = stored(found[0], "PDF", save_all=True, append_images=found[1:])
    return Prompt([{"type": "file", "file": {"file_data": url("application/pdf", data)}}, question], answer)


def in_frames(rng: Generator, others: int) -> Prompt:
    """A second each."""
    found, question, answer = hidden(rng, others)
    data = stored(found[0], "GIF", save_all=True, append_images=found[1:], duration=1000)
    return Prompt([{"type": "video_url", "video_url": {"url": url("image/gif", data)}}, question], answer)


def in_sentences(rng: Generator, others: int) -> Prompt:
    said, question, answer, _ = questions.colours(rng, 1)[0]
    told = [questions.amounts(rng, 1)[0][0] for _ in range(others)]
    told.insert(int(rng.integers(0, others + 1)), said)
    return Prompt([text(" ".join([*told, question]))], answer)


KINDS: dict[str, Callable[[Generator, int], Prompt]] = {
    "pictures": in_pictures,
    "pages": in_pages,
    "frames": in_frames,
    "sentences": in_sentences,
}


def text(words: str) -> Part:
    return {"type": "text", "text": words}


def stored(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def score(client: openai.OpenAI, model: str, kind: str, others: int, samples: int, concurrency: int) -> Score:
    place = list(KINDS).index(kind)
    prompts = [KINDS[kind](np.random.default_rng([SEED, place, others, k]), others) for k in range(samples)]
    with ThreadPoolExecutor(concurrency) as pool:
        asked = pool.map(lambda prompt: ask(client, model, prompt), prompts)
        replies = list(tqdm(asked, total=samples, desc=f"{kind}, {others} others"))
    answered = [reply for reply in replies if reply]
    right = sum(bool(reply) and reply.content == one.answer for one, reply in zip(prompts, replies, strict=True))
    longest = max((reply.prompt_tokens for reply in answered), default=0)
    return Score(kind, others, samples, right, samples - len(answered), longest)


def ask(client: openai.OpenAI, model: str, prompt: Prompt) -> Reply | None:
    """None where the server refuses the prompt; whatever else goes wrong ends the run."""
    messages: list[Any] = [{"role": "user", "content": prompt.parts}]
    try:
        answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=16)
    except openai.BadRequestError as error:
        tqdm.write(f"refused: {error.message[:300]}")
        return None
    assert answer.usage is not None
    return Reply(answer.choices[0].message.content or "", answer.usage.prompt_tokens)


@contextmanager
def server(base_url: str | None) -> Iterator[str]:
    """Somebody's, or one of our own until the end."""
    if base_url:
        yield base_url
        return
    port = free_port()
    argv = [str(Path(sys.executable).parent / "kimi-serve"), "up", "--port", str(port)]
    with tempfile.TemporaryDirectory() as folder:
        argv += ["--log", f"{folder}/engine.log"]
        with Family(argv, {"VLLM_CPU_KVCACHE_SPACE": "1", **os.environ}, Path(folder) / "up.log") as family:
            await_ready(f"http://127.0.0.1:{port}/readyz", family)
            yield f"http://127.0.0.1:{port}/v1"


def await_ready(address: str, family: Family) -> None:
    deadline = time.monotonic() + STARTS_WITHIN_S
    while True:
        try:
            if httpx.get(address, trust_env=False).status_code == 200:
                return
        except httpx.TransportError:
            pass
        if family.exit_code is not None or time.monotonic() > deadline:
            raise SystemExit(f"{address} does not answer:\n{family.log.read_text()[-4000:]}")
        time.sleep(0.3)


def table(scores: Sequence[Score]) -> str:
    """Percent right by n; (tokens of the longest prompt)."""
    counts = sorted({one.others for one in scores})
    lines = [f"| among others | {' | '.join(str(n) if n else 'alone' for n in counts)} |"]
    lines.append("| --- |" + " ---: |" * len(counts))
    by_kind: dict[str, dict[int, Score]] = {}
    for one in scores:
        by_kind.setdefault(one.kind, {})[one.others] = one
    for kind, found in by_kind.items():
        lines.append(f"| {kind} | {' | '.join(cell(found[n]) for n in counts)} |")
    return "\n".join(lines)


def cell(one: Score) -> str:
    refused = f", {one.refused} refused" if one.refused else ""
    return f"{one.right}/{one.samples} ({one.prompt_tokens}{refused})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base-url", help="default: a server of our own")
    parser.add_argument("--samples", type=int, default=25, help="for every kind and n")
    parser.add_argument("--others", type=int, nargs="*", default=list(OTHERS), metavar="N")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--concurrency", type=int, default=4)
    args = parser.parse_args()
    http = openai.DefaultHttpxClient(trust_env=False)
    with server(args.base_url) as url, openai.OpenAI(
        base_url=url, api_key="none", timeout=ANSWERS_WITHIN_S, http_client=http
    ) as client:  # fmt: skip
        model = client.models.list().data[0].id
        asked = [(kind, others) for kind in args.kinds for others in args.others]
        scores = [score(client, model, *each, args.samples, args.concurrency) for each in asked]
    told = {"model": model, "seed": SEED, "fonts": len(style().fonts), "scores": [asdict(one) for one in scores]}
    print(table(scores), json.dumps(told), sep="\n\n")


if __name__ == "__main__":
    main()
