"""Which optimizer moves which parameter. Knows names and shapes; no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nano.muon import Muon


class Optimizers:
    """Muon for the layers' matrices, which learn in far fewer steps with it; AdamW for all else."""

    def __init__(self, model: nn.Module, rate: float) -> None:
        def is_inner(name: str, p: Tensor) -> bool:
            layer = ".blocks." in name or ".layers." in name
            # The cubic cost of orthogonalising is only worth it for small matrices.
            return layer and p.ndim == 2 and min(p.shape) <= 256

        inner = [p for n, p in model.named_parameters() if is_inner(n, p)]
        matrices = [p for n, p in model.named_parameters() if not is_inner(n, p) and p.ndim >= 2]
        vectors = [p for n, p in model.named_parameters() if p.ndim < 2]
        self.all = [
            Muon(inner, rate, weight_decay=0.05),
            torch.optim.AdamW(
                [{"params": matrices, "weight_decay": 0.05}, {"params": vectors, "weight_decay": 0.0}],
                lr=rate,
                betas=(0.9, 0.98),
                fused=True,
            ),
        ]

    def set_rate(self, rate: float) -> None:
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = rate

    def step(self) -> None:
        for optimizer in self.all:
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.all:
            optimizer.zero_grad(set_to_none=True)

    def parameters(self) -> list[Tensor]:
        return [p for optimizer in self.all for group in optimizer.param_groups for p in group["params"]]

    def state_dict(self) -> list[dict[str, Any]]:
        return [optimizer.state_dict() for optimizer in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)
