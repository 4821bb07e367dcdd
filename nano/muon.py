"""Muon (Jordan et al., 2024) in float32. Torch's own orthogonalises in bfloat16, which plain CPUs emulate slowly."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration in Jordan's description


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix, scaled to AdamW's typical update size; decoupled weight decay."""

    def __init__(
        self, params: Iterable[Tensor], lr: float, weight_decay: float, momentum: float = 0.95, steps: int = 5
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "steps": steps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault(p.shape, []).append(p)
            for same in by_shape.values():
                self._step(same, group)

    def _step(self, params: list[Tensor], group: dict[str, Any]) -> None:
        updates = []
        for p in params:
            assert p.grad is not None
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - group["momentum"])
            updates.append(p.grad.lerp(momentum, group["momentum"]))  # Nesterov
        stacked = orthogonalise(torch.stack(updates), group["steps"])
        scale = 0.2 * max(params[0].shape) ** 0.5
        for p, update in zip(params, stacked, strict=True):
            p.mul_(1 - group["lr"] * group["weight_decay"]).add_(update, alpha=-group["lr"] * scale)


def orthogonalise(x: Tensor, steps: int) -> Tensor:
    """Nearly orthogonal factors of matrices (count, rows, columns), by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
