"""What `kimi-serve plan` is asked. Knows options and how sizes are written; loads nothing heavy."""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from kimi_serve.errors import PlanError
from kimi_serve.quantize.options import GROUP_SIZES

Preset = Literal["instruct", "thinking", "thinking-2506"]
SchemeName = Literal["bf16", "int8", "int4"]
PRESETS: tuple[Preset, ...] = ("instruct", "thinking", "thinking-2506")
SCHEMES: tuple[SchemeName, ...] = ("bf16", "int8", "int4")
UTILIZATION = 0.92  # vLLM 0.32's own share of a GPU
_PICTURES = re.compile(r"(\d+)x(\d+)(?:x(\d+))?")


@dataclass(frozen=True, slots=True)
class Pictures:
    """So many pictures of one size; a page and a frame are pictures too."""

    kind: str
    width: int  # pixels
    height: int
    count: int


@dataclass(frozen=True, slots=True)
class Options:
    model: Path | None = None  # None without a preset: the bundled checkpoint
    preset: Preset | None = None
    text: int = 0
    pictures: tuple[Pictures, ...] = ()
    max_tokens: int | None = None
    context: int | None = None  # tokens; None: the model's own
    concurrency: int = 1
    schemes: tuple[SchemeName, ...] = SCHEMES
    group_size: int | None = None
    lm_head: bool = False
    tower: bool = False
    gpu: str | None = None
    gpu_memory: float | None = None  # GiB
    tensor_parallel: int = 1
    utilization: float = UTILIZATION
    sequences: int | None = None
    as_json: bool = False
    chart: Path | None = None

    def __post_init__(self) -> None:
        if self.model is not None and self.preset is not None:
            raise PlanError(f"--preset: {self.preset} and MODEL {self.model} are two models; give one of them")
        if self.gpu is not None and self.gpu_memory is not None:
            raise PlanError(f"--gpu-memory: {self.gpu_memory:g} with --gpu {self.gpu}; give one of them")
        if self.group_size is not None and "int4" not in self.schemes:
            raise PlanError(f"--group-size: {self.group_size} without --scheme int4; only int4 has groups")
        if not 0 < self.utilization <= 1:
            raise PlanError(f"--gpu-memory-utilization: {self.utilization:g} is not supported; expected 0 to 1")
        if self.gpu_memory is not None and not 0 < self.gpu_memory < 1 << 20:
            raise PlanError(f"--gpu-memory: {self.gpu_memory:g} is not supported; expected GiB, above 0")
        _at_least(0, {"--text": self.text})
        _at_least(
            1,
            {
                "--max-tokens": self.max_tokens,
                "--context": self.context,
                "--concurrency": self.concurrency,
                "--tensor-parallel": self.tensor_parallel,
                "--max-num-seqs": self.sequences,
            },
        )


def _at_least(least: int, values: dict[str, int | None]) -> None:
    for option, value in values.items():
        if value is not None and value < least:
            raise PlanError(f"{option}: {value} is not supported; expected at least {least}")


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("model", nargs="?", type=Path, metavar="MODEL", help="a checkpoint's directory")
    verb.add_argument("--preset", choices=PRESETS, help="the published full-size configuration, without a directory")
    request = verb.add_argument_group("the request")
    request.add_argument("--text", type=int, default=0, metavar="N", help="tokens of what the messages say")
    for kind in ("image", "page", "frame"):
        request.add_argument(
            f"--{kind}", action="append", default=[], metavar="WxH[xN]", help=f"N {kind}s of W x H pixels; repeatable"
        )
    request.add_argument("--max-tokens", type=int, metavar="N", help="tokens of the answer (default: what is left)")
    memory = verb.add_argument_group("the memory")
    memory.add_argument("--context", type=int, metavar="N", help="tokens of one request (default: the model's most)")
    memory.add_argument("--concurrency", type=int, default=1, metavar="N", help="such requests at once (default: 1)")
    memory.add_argument("--scheme", choices=SCHEMES, action="append", help="repeatable (default: all three)")
    memory.add_argument("--group-size", type=int, choices=GROUP_SIZES, help="of int4 (default: the largest that fits)")
    memory.add_argument("--lm-head", action="store_true", help="lm_head quantized too")
    memory.add_argument("--tower", action="store_true", help="the vision tower quantized too")
    gpus = verb.add_argument_group("the GPUs")
    gpus.add_argument("--gpu", metavar="NAME", help="only this one, in detail")
    gpus.add_argument("--gpu-memory", type=float, metavar="GIB", help="a GPU that the table lacks, as nvidia-smi says")
    gpus.add_argument("--tensor-parallel", type=int, default=1, metavar="N", help="GPUs that share the weights")
    gpus.add_argument(
        "--gpu-memory-utilization", type=float, default=UTILIZATION, metavar="SHARE", help="default: %(default)s"
    )
    gpus.add_argument("--max-num-seqs", type=int, metavar="N", help="requests of a step (default: vLLM's for the GPU)")
    verb.add_argument("--json", action="store_true", help="one JSON line")
    verb.add_argument("--chart", type=Path, metavar="FILE.png", help="draw the memory too; needs matplotlib")


def from_arguments(given: argparse.Namespace) -> Options:
    """Raise PlanError for what is not supported."""
    pictures = [pictures_of(kind, text) for kind in ("image", "page", "frame") for text in getattr(given, kind)]
    asked = given.scheme or SCHEMES
    return Options(
        model=given.model,
        preset=given.preset,
        text=given.text,
        pictures=tuple(pictures),
        max_tokens=given.max_tokens,
        context=given.context,
        concurrency=given.concurrency,
        schemes=tuple(name for name in SCHEMES if name in asked),
        group_size=given.group_size,
        lm_head=given.lm_head,
        tower=given.tower,
        gpu=given.gpu,
        gpu_memory=given.gpu_memory,
        tensor_parallel=given.tensor_parallel,
        utilization=given.gpu_memory_utilization,
        sequences=given.max_num_seqs,
        as_json=given.json,
        chart=given.chart,
    )


def pictures_of(kind: str, text: str) -> Pictures:
    """`1920x1080x3`: three of them."""
    match = _PICTURES.fullmatch(text.lower())
    if match is None or int(match[3] or 1) < 1:
        raise PlanError(f"--{kind}: {text!r} is not supported; expected WxH or WxHxN, as in 1920x1080x3")
    return Pictures(kind, int(match[1]), int(match[2]), int(match[3] or 1))
