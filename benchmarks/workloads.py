"""The requests that are measured. Knows bodies of chat; not who gets them."""

from __future__ import annotations

import base64
import io
import json
import random
from dataclasses import dataclass

from PIL import Image

from benchmarks.targets import MODEL


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    body: bytes
    rate: float  # requests a second of the measurement of latency
    clients: int  # of the measurement of throughput


def workloads() -> list[Workload]:
    """The last one's rate is low: 50 of its bodies a second are more than a core copies in and out."""
    return [
        Workload("text", _body("What is the capital of France? " * 8), 50, 16),
        Workload("one image of 200 KB", _body(_pictures(1, 200)), 50, 16),
        Workload("64 images of 100 KB", _body(_pictures(64, 100)), 5, 4),
    ]


def stream() -> bytes:
    return _body("Count.", stream=True)


def _body(content: object, **more: object) -> bytes:
    return json.dumps({"model": MODEL, "messages": [{"role": "user", "content": content}], **more}).encode()


def _pictures(count: int, kilobytes: int) -> list[dict[str, object]]:
    return [{"type": "image_url", "image_url": {"url": _noise_png(kilobytes, seed)}} for seed in range(count)]


def _noise_png(kilobytes: int, seed: int) -> str:
    """A picture of about that many bytes: noise does not compress."""
    side = int((kilobytes * 1024 / 3) ** 0.5)
    image = Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3))
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=0)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
