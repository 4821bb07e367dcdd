"""How far a quantized checkpoint is from its source: each weight, and what they say. Knows both; changes neither."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kimi_serve.inputs.config import Checkpoint
from kimi_serve.quantize.layout import Shard
from kimi_serve.quantize.prompts import Prompt
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.states import final_states

ROWS = 4096  # of a weight at a time
HEAD = "language_model.lm_head"


@dataclass(frozen=True, slots=True)
class TensorError:
    name: str
    relative: float  # Frobenius norm of the difference over that of the source
    largest: float  # absolute difference of one value


@dataclass(frozen=True, slots=True)
class Agreement:
    """On positions of given prompts, each answered from the same tokens."""

    positions: int
    kl: float  # mean over positions, source against quantized, in nats
    same_token: float  # share of positions where both find the same next token most likely


def tensor_errors(shards: Iterable[Shard], source: Model, made: Model) -> Iterator[TensorError]:
    """Compare every quantized weight, as kernels will see it, with the source's."""
    for shard in shards:
        for task in shard.tasks:
            if task.format is not None:
                yield tensor_error(task.source.name, source, made)


def tensor_error(name: str, source: Model, made: Model) -> TensorError:
    difference = norm = largest = 0.0
    height = source.height(name)
    for start in range(0, height, ROWS):
        want = source.rows(name, start, min(start + ROWS, height))
        off = made.rows(name, start, min(start + ROWS, height)) - want
        difference += float(off.double().square().sum())
        norm += float(want.double().square().sum())
        largest = max(largest, float(off.abs().max()))
    return TensorError(name, (difference / norm) ** 0.5 if norm else 0.0, largest)


@torch.no_grad()
def agreement(source: Model, made: Model, checkpoint: Checkpoint, prompts: Sequence[Prompt]) -> Agreement:
    where = torch.cat([compared(prompt, checkpoint.model.media_placeholder_token_id) for prompt in prompts])
    want = final_states(source, checkpoint, prompts)[where]
    got = final_states(made, checkpoint, prompts)[where]
    head = Divergence(len(want))
    height = source.height(f"{HEAD}.weight")
    for start in range(0, height, ROWS):
        stop = min(start + ROWS, height)
        head.add(source.linear(HEAD, start, stop)(want), made.linear(HEAD, start, stop)(got), start)
    kl, same = head.result()
    return Agreement(len(want), float(kl.mean()), float(same.float().mean()))


def compared(prompt: Prompt, placeholder: int) -> Tensor:
    """Mark the positions that predict the answer; where there is none, all that hold no picture."""
    ids = torch.tensor(prompt.ids)
    if not prompt.answer:
        return ids != placeholder
    positions = torch.arange(len(ids))
    return (positions >= len(ids) - 1 - prompt.answer) & (positions < len(ids) - 1)


class Divergence:
    """KL divergence and equal maxima of two rows of logits that arrive in blocks: the whole rows fit in no memory."""

    def __init__(self, rows: int) -> None:
        self.top = torch.full((2, rows), -torch.inf)  # the largest logit so far, of source and quantized
        self.token = torch.zeros((2, rows), dtype=torch.long)
        self.sums = torch.zeros((2, rows), dtype=torch.float64)  # of exp(logit - top)
        self.cross = torch.zeros(rows, dtype=torch.float64)  # of exp(source - top) * (source - quantized)

    def add(self, source: Tensor, made: Tensor, first: int) -> None:
        """`first`: the vocabulary id of the blocks' first column."""
        before = self.top[0].clone()
        for side, logits in enumerate((source, made)):
            value, token = logits.max(-1)
            self.token[side] = torch.where(value > self.top[side], token + first, self.token[side])
            top = torch.maximum(value, self.top[side])
            self.sums[side] *= (self.top[side] - top).double().exp()
            self.sums[side] += (logits - top[:, None]).exp().sum(-1, dtype=torch.float64)
            self.top[side] = top
        self.cross *= (before - self.top[0]).double().exp()
        self.cross += ((source - self.top[0][:, None]).exp() * (source - made)).sum(-1, dtype=torch.float64)

    def result(self) -> tuple[Tensor, Tensor]:
        """Return KL of source against quantized by row, and whether both choose one token."""
        log_sums = self.top.double() + self.sums.log()
        kl = self.cross / self.sums[0] - log_sums[0] + log_sums[1]
        return kl.clamp_min(0), self.token[0] == self.token[1]
