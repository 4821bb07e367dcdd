"""llama.cpp as a target of full_size.py: its file, its process. Knows pipes; never llama.cpp's own functions."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from benchmarks import gguf
from benchmarks.served_engine import Decoded, decode_prompts, prompt
from kimi_serve.inputs.config import parse_model_config

WORKER = Path(__file__).with_name("llama_worker.py")


class Llama:
    """From its start to its end; `environment` holds llama-cpp-python."""

    def __init__(self, environment: Path, folder: Path, config: Path, scheme: str, threads: int) -> None:
        form = gguf.FORMATS[scheme]
        self.format, self.bits_a_weight = form.name, form.bits_a_weight
        model = parse_model_config(json.loads(config.read_text(encoding="utf-8")))
        path = folder / f"{form.name}-{model.text.num_hidden_layers}-layers.gguf"
        print(f"llama.cpp: {path}", file=sys.stderr)
        gguf.write(model, form, path)
        argv = [str(environment / "bin" / "python"), str(WORKER), str(path), str(threads)]
        log = path.with_suffix(".log").open("wb")
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)

    def __enter__(self) -> Self:
        self._read()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(60)

    def decode(self, round_: int, batch: int, tokens: int) -> Decoded:
        found = self._ask(decode_prompts(round_, batch), tokens)
        return Decoded(int(found["tokens"]), found["seconds"], int(found["distinct"]))

    def prefill(self, round_: int, tokens: int) -> float:
        found = self._ask([prompt(f"prefill {round_}", tokens)], 0)
        return found["tokens"] / found["seconds"]

    def _ask(self, prompts: Sequence[Sequence[int]], tokens: int) -> dict[str, float]:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{json.dumps({'prompts': prompts, 'tokens': tokens})}\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"llama.cpp ended with code {self._process.wait(60)}; its log is beside its model")
        found: dict[str, float] = json.loads(line)
        return found
