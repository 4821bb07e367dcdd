"""What `kimi-serve merge-lora` is asked to do. Knows options; loads no torch, so that every verb starts quickly."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from kimi_serve.quantize.options import SHARD_BYTES


@dataclass(frozen=True, slots=True)
class Options:
    base: Path
    adapter: Path
    target: Path
    check: bool = False
    shard_bytes: int = SHARD_BYTES


def add_arguments(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("base", type=Path, metavar="BASE", help="the checkpoint that was trained from; it is only read")
    verb.add_argument(
        "adapter", type=Path, metavar="ADAPTER", help="the folder with adapter_config.json; it is only read"
    )
    verb.add_argument("target", type=Path, metavar="DST", help="the directory to make; it appears when it is complete")
    verb.add_argument(
        "--check",
        action="store_true",
        help="read DST back and compare every tensor with what BASE and ADAPTER give; a complete DST is not made again",
    )


def from_arguments(arguments: argparse.Namespace) -> Options:
    return Options(arguments.base, arguments.adapter, arguments.target, arguments.check)
