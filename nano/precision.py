"""Accuracy of kimi-vl-nano in fewer bits (`python -m nano.precision DIR ...`). Knows questions; trains nothing.

Each DIR is a checkpoint, quantized or not. Every one answers the same questions, by the plain forward of
kimi_serve.quantize: weights as kernels see them, int8's activations rounded to int8 as well. An answer is right when
every token of it is the most likely one: greedy decoding would give exactly these.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

import torch
from tqdm import tqdm

from kimi_serve.inputs.config import Checkpoint, load_checkpoint
from kimi_serve.inputs.geometry import Grid
from kimi_serve.inputs.image_processor import ImagePatches
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.quantize.prompts import Prompt
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.states import final_states
from nano.batches import Batch, held_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directories", type=Path, nargs="+", metavar="DIR")
    parser.add_argument("--each", type=int, default=500, help="questions per task")
    args = parser.parse_args()
    batches = held_out(Tokenizer.from_directory(args.directories[0]), args.each)
    for directory in args.directories:
        print(json.dumps({"checkpoint": directory.name, **examine(directory, batches)}))


@torch.no_grad()
def examine(directory: Path, batches: list[Batch]) -> dict[str, float]:
    """Share of right answers by task, and their mean over tasks."""
    checkpoint = load_checkpoint(directory)
    right: dict[str, list[bool]] = defaultdict(list)
    with Weights(directory) as weights:
        model = Model(weights)
        head = model.linear("language_model.lm_head")
        for batch in tqdm(batches, desc=directory.name):
            states = final_states(model, checkpoint, prompts_of(batch, checkpoint))
            targets = torch.from_numpy(batch.targets).flatten()
            numbers = torch.from_numpy(batch.answers).flatten()[targets >= 0]
            correct = head(states[targets >= 0]).argmax(-1) == targets[targets >= 0]
            for number, task in enumerate(batch.tasks):
                right[task].append(bool(correct[numbers == number].all()))
    shares = {task: sum(answers) / len(answers) for task, answers in right.items()}
    mean = sum(shares.values()) / len(shares)
    return {task: round(share, 4) for task, share in (*shares.items(), ("mean", mean))}


def prompts_of(batch: Batch, checkpoint: Checkpoint) -> list[Prompt]:
    """Rows of a batch as prompts, padding included: nothing looks ahead to it."""
    grid = Grid(batch.rows, batch.columns)
    pictures = [ImagePatches(patches, grid) for patches in batch.patches]
    tokens = grid.num_patches // 4
    prompts = []
    for row in batch.ids:
        count = int((row == checkpoint.model.media_placeholder_token_id).sum()) // tokens
        prompts.append(Prompt(tuple(row.tolist()), tuple(pictures[:count])))
        pictures = pictures[count:]
    return prompts


if __name__ == "__main__":
    main()
