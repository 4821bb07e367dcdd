"""One step of learning, and examinations. Knows a model and a batch; no clock, no file."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nano.batches import Batch
from nano.guides import Guides
from nano.heads import DenseHeads
from nano.optimizers import Optimizers
from tests.oracle.decoder import Moe
from tests.oracle.kimi_vl import KimiVl, normalise


def learn(model: KimiVl, heads: DenseHeads, optimizer: Optimizers, batch: Batch) -> dict[str, float]:
    rows = see(model, batch)
    loss, stats = torch.zeros(()), dict[str, float]()
    if rows is not None:
        labels = {k: torch.from_numpy(v) for k, v in batch.labels.items()}
        names = model.language_model.model.embed_tokens.weight
        # The tower alone moves toward the decoder's words, not they toward it: the decoder need not learn them again.
        seeing, stats = heads.loss(rows, labels, names if batch.tasks else names.detach())
        stats["seeing"] = float(seeing.detach())
        loss = seeing
    if batch.tasks:
        answers, correct, _ = answer_loss(model, batch, model.hidden(torch.from_numpy(batch.ids), rows))
        loss = answers + 0.3 * loss
        name = "copying" if batch.tasks[0] == "copy" else "answers"
        stats |= {name: float(answers.detach()), f"{name}_right": float(correct.float().mean())}
        stats["busiest_expert"] = max(balance(model))
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
    optimizer.step()
    return stats


def practise(
    model: KimiVl, guides: Guides, optimizer: Optimizers, batch: Batch, rows: Tensor | None
) -> dict[str, float]:
    """A step of the decoder alone, on rows (tokens of all pictures, hidden) that the tower saw before."""
    hidden, inputs = guides.hidden(model, torch.from_numpy(batch.ids), rows)
    loss, correct, _ = answer_loss(model, batch, hidden)
    guided, stats = guides.loss(model, batch, inputs)
    optimizer.zero_grad()
    (loss + guided).backward()
    nn.utils.clip_grad_norm_(optimizer.parameters(), 1.0)
    optimizer.step()
    name = "copying" if batch.tasks[0] == "copy" else f"answers_{batch.kind}"
    return stats | {
        name: float(loss.detach()),
        f"{name}_right": float(correct.float().mean()),
        "busiest_expert": max(balance(model)),
    }


def see(model: KimiVl, batch: Batch) -> Tensor | None:
    """Projected rows of a batch's pictures, (pictures*tokens, hidden)."""
    if not len(batch.patches):
        return None
    return model.see(normalise(torch.from_numpy(batch.patches)), batch.rows, batch.columns).flatten(0, 1)


def answer_loss(model: KimiVl, batch: Batch, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean loss over answer tokens; which predictions are right; which answer each belongs to."""
    targets = torch.from_numpy(batch.targets)
    where = targets >= 0
    logits = model.logits(hidden[where])
    losses = F.cross_entropy(logits, targets[where], reduction="none")
    if batch.near:
        order = where.flatten().cumsum(0).view_as(where) - 1  # of a token among the answers'
        soft = torch.tensor([int(order[row, k]) for row, k, _ in batch.near])
        shares = torch.from_numpy(np.stack([shares for _, _, shares in batch.near]))
        digits = logits[soft].log_softmax(-1)[:, list(batch.digits)]
        losses = losses.index_copy(0, soft, -(shares * digits).sum(-1))
    return (
        losses.mean(),
        logits.argmax(-1) == targets[where],
        torch.from_numpy(batch.answers)[where],
    )


@torch.no_grad()
def examine(model: KimiVl, batches: list[Batch]) -> dict[str, float]:
    """Share of answers that are right to the last token: greedy decoding would give exactly these."""
    right: dict[str, list[bool]] = {}
    for batch in batches:
        rows = see(model, batch)
        _, correct, answers = answer_loss(model, batch, model.hidden(torch.from_numpy(batch.ids), rows))
        for number, task in enumerate(batch.tasks):
            right.setdefault(task, []).append(bool(correct[answers == number].all()))
    return {task: round(sum(v) / len(v), 3) for task, v in right.items()}


def balance(model: KimiVl, step: float = 0.001) -> list[float]:
    """Raise the bias of experts with too few tokens, lower that of busy ones; the load's largest share per layer."""
    shares = []
    for module in model.modules():
        if isinstance(module, Moe) and module.last_ids is not None:
            load = torch.bincount(module.last_ids.flatten(), minlength=len(module.experts)).float()
            module.gate.e_score_correction_bias += step * torch.sign(load.mean() - load)
            shares.append(float(load.max() / load.sum()))
    return shares
