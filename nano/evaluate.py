"""Score a served kimi-vl-nano on held-out samples (`python -m nano.evaluate`). Knows only the OpenAI API."""

from __future__ import annotations

import argparse
import base64
import io
import json
import re
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import OpenAI
from PIL import Image
from tqdm import tqdm

from nano.batches import style
from nano.pictures import Picture
from nano.samples import TASKS, Sample, draw

SEED = 20260
NEAR = 0.05  # of the picture's width and height, between the point given and the shape's centre
CONFUSED = ("colour", "shape", "count", "which")
SHOWN_ERRORS = 12
POINT = re.compile(r"pyautogui\.click\(x=(\d+(?:\.\d+)?), y=(\d+(?:\.\d+)?)\)")


@dataclass(frozen=True, slots=True)
class Reply:
    content: str
    thought: str
    finish: str


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="", help="default: the first that the server lists")
    parser.add_argument("--each", type=int, default=500, help="samples per task")
    parser.add_argument("--tasks", nargs="*", default=list(TASKS), choices=TASKS)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--report", type=Path, help="write confusions and wrong answers there as JSON")
    parser.add_argument("--write-samples", type=Path, help="ask nobody: write a few pictures and questions there")
    args = parser.parse_args()
    if args.write_samples:
        write_samples(args.write_samples, args.seed)
    else:
        evaluate(args)


def evaluate(args: argparse.Namespace) -> None:
    client = OpenAI(base_url=args.base_url, api_key="none", timeout=300)
    model = args.model or client.models.list().data[0].id
    scores: dict[str, Any] = {}
    details: dict[str, Any] = {}
    began = time.monotonic()
    for task in args.tasks:
        samples = draw(task, args.each, args.seed, style(held_out=True))
        with ThreadPoolExecutor(args.concurrency) as pool:
            asked = pool.map(lambda sample: ask(client, model, sample), samples)
            replies = list(tqdm(asked, total=len(samples), desc=task))
        scores[task] = summary(samples, replies)
        details[task] = detail(samples, replies)
    if args.report:
        args.report.write_text(json.dumps(details, indent=1, ensure_ascii=False) + "\n")
    seconds = round(time.monotonic() - began)
    print(json.dumps({"model": model, "seed": args.seed, "each": args.each, "seconds": seconds, "tasks": scores}))


def ask(client: OpenAI, model: str, sample: Sample) -> Reply:
    content: list[Any] = [{"type": "image_url", "image_url": {"url": data_url(p)}} for p in sample.pictures]
    content.append({"type": "text", "text": sample.question})
    messages: list[Any] = [{"role": "system", "content": sample.system}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(model=model, messages=messages, temperature=0, max_tokens=80).choices[0]
    extra = answer.message.model_extra or {}
    thought = str(extra.get("reasoning_content") or extra.get("reasoning") or "")
    return Reply(answer.message.content or "", thought, answer.finish_reason)


def data_url(picture: Picture) -> str:
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def is_right(sample: Sample, reply: Reply) -> bool:
    """Exact but for points, which may be near; a thinking sample must have thought and then answer."""
    thought, content = reply.thought, reply.content
    if "◁/think▷" in content:  # a server without a reasoning parser
        thought, content = content.split("◁/think▷", 1)
    if sample.task == "think" and not thought:
        return False
    want, got = POINT.fullmatch(sample.answer), POINT.fullmatch(content)
    if want and got:
        dx, dy = (float(a) - float(b) for a, b in zip(want.groups(), got.groups(), strict=True))
        return bool((dx * dx + dy * dy) ** 0.5 <= NEAR)
    return content == sample.answer


def summary(samples: list[Sample], replies: list[Reply]) -> dict[str, float]:
    right = sum(is_right(s, r) for s, r in zip(samples, replies, strict=True))
    stopped = sum(r.finish == "stop" for r in replies)
    return {"right": round(right / len(samples), 4), "stopped": round(stopped / len(samples), 4)}


def detail(samples: list[Sample], replies: list[Reply]) -> dict[str, Any]:
    """How answers are confused, for tasks with few of them, and examples of wrong ones."""
    out: dict[str, Any] = {}
    pairs = list(zip(samples, replies, strict=True))
    if samples[0].task in CONFUSED:
        matrix: dict[str, Counter[str]] = defaultdict(Counter)
        for s, r in pairs:
            matrix[s.answer][r.content] += 1
        out["confusion"] = {truth: dict(given.most_common(10)) for truth, given in sorted(matrix.items())}
    if samples[0].task in ("number", "word"):
        lengths: dict[int, list[bool]] = defaultdict(list)
        for s, r in pairs:
            lengths[len(s.answer)].append(is_right(s, r))
        out["by_length"] = {n: round(sum(v) / len(v), 3) for n, v in sorted(lengths.items())}
    wrong = [{"question": s.question, "want": s.answer, "got": r.content} for s, r in pairs if not is_right(s, r)]
    return out | {"wrong": wrong[:SHOWN_ERRORS]}


def write_samples(folder: Path, seed: int, each: int = 4) -> None:
    """Pictures and questions for the CI test through the API."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in TASKS:
        for number, s in enumerate(draw(task, each, seed, style(held_out=True))):
            names = [f"{task}_{number}_{k}.png" for k in range(len(s.pictures))]
            for name, drawn in zip(names, s.pictures, strict=True):
                Image.fromarray(drawn.pixels).quantize(64).save(folder / name, optimize=True)
            rows.append(
                {"task": task, "system": s.system, "pictures": names, "question": s.question, "answer": s.answer}
            )
    (folder / "samples.json").write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
