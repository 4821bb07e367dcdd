"""What `kimi-serve quantize` is asked to do. Knows options; loads no torch, so that every verb starts quickly."""

import argparse
from dataclasses import dataclass
from pathlib import Path

SCHEMES = ("int4", "int8")
GROUP_SIZES = (128, 64, 32)  # what the int4 kernels of vLLM take, Marlin first
SHARD_BYTES = 1 << 30  # an interruption costs one shard at most


@dataclass(frozen=True, slots=True)
class Options:
    source: Path
    target: Path
    scheme: str
    group_size: int | None = None  # int4 only; None: the largest that fits
    lm_head: bool = False
    tower: bool = False
    calibrate: Path | None = None
    check: bool = False
    prompts: Path | None = None
    shard_bytes: int = SHARD_BYTES


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("source", type=Path, metavar="SRC", help="the checkpoint's directory; it is only read")
    verb.add_argument("target", type=Path, metavar="DST", help="the directory to make; it appears when it is complete")
    verb.add_argument(
        "--scheme",
        required=True,
        choices=SCHEMES,
        help="int4: weights in groups (W4A16); int8: weights and activations (W8A8)",
    )
    verb.add_argument(
        "--group-size",
        type=int,
        choices=GROUP_SIZES,
        help="values that share a scale in int4 (default: the largest that divides every quantized linear's input)",
    )
    verb.add_argument("--lm-head", action="store_true", help="quantize lm_head too")
    verb.add_argument("--tower", action="store_true", help="quantize the vision tower too, always in int8")
    verb.add_argument(
        "--calibrate", type=Path, metavar="FILE", help="conversations (JSON lines) that weigh the errors of weights"
    )
    verb.add_argument(
        "--check", action="store_true", help="compare DST with SRC, tensor by tensor; a complete DST is not made again"
    )
    verb.add_argument(
        "--prompts", type=Path, metavar="FILE", help="with --check: conversations on which to compare the answers"
    )


def from_arguments(arguments: argparse.Namespace) -> Options:
    return Options(
        source=arguments.source,
        target=arguments.target,
        scheme=arguments.scheme,
        group_size=arguments.group_size,
        lm_head=arguments.lm_head,
        tower=arguments.tower,
        calibrate=arguments.calibrate,
        check=arguments.check,
        prompts=arguments.prompts,
    )
