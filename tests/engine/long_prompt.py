"""A prompt of any length, and what the plain-torch reference says at a few of its positions. Knows no engine.

`python -m tests.engine.long_prompt` writes what the tests expect of LENGTH tokens: a minute that they need not take.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from tests.engine.golden import PACK
from tests.oracle.kimi_vl import KimiVl, load

LENGTH = 16_000
EXPECTED = Path(__file__).with_suffix(".npz")
WATCHED = 12  # positions, the last among them
TEXT_IDS = 1000  # of the golden vocabulary: above them are control tokens
ROWS = 8192  # of the layers' dense parts at a time: a bound for their memory


def prompt(length: int) -> list[int]:
    ids: list[int] = np.random.default_rng(length).integers(0, TEXT_IDS, length).tolist()
    return ids


def positions(length: int) -> list[int]:
    """Drawn anywhere, in order."""
    drawn = np.random.default_rng(length + 1).choice(length - 1, WATCHED - 1, replace=False)
    return [*sorted(drawn.tolist()), length - 1]


@torch.inference_mode()
def reference(checkpoint: Path, length: int) -> np.ndarray:
    """Logits (WATCHED, vocabulary) in float32."""
    model = load(checkpoint)
    x = model.language_model.model.embed_tokens(torch.tensor([prompt(length)]))
    for layer in tqdm(model.language_model.model.layers, unit="layer"):
        x = x + layer.self_attn(layer.input_layernorm(x))
        for part in x.split(ROWS, dim=1):
            part += layer.mlp(layer.post_attention_layernorm(part))
    logits: np.ndarray = _head(model, x[0, positions(length)]).numpy()
    return logits


def _head(model: KimiVl, rows: Tensor) -> Tensor:
    return model.logits(model.language_model.model.norm(rows))


@contextmanager
def golden_checkpoint() -> Iterator[Path]:
    """The golden pack's checkpoint, in a folder that goes with the block."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, PACK / "make_checkpoint.py", folder], check=True, capture_output=True)
        yield Path(folder)


def main() -> None:
    with golden_checkpoint() as checkpoint:
        np.savez_compressed(EXPECTED, logits=reference(checkpoint, LENGTH))


if __name__ == "__main__":
    main()
