"""The gate's exponential, over all of float32's binades: the figure that the reference's bound rests on."""

import numpy as np
import torch

from kimi_serve.kernels import library
from tests.kernels.reference import GATE_ERROR, TINY, silu


def test_silu_times_up_stays_within_the_gates_bound(path: str) -> None:
    """Two million gates, denser than the polynomial's errors change, from every binade between 1e-30 and 1e4."""
    rng = np.random.default_rng(11)
    sizes = 10.0 ** rng.uniform(-30, 4, size=1_000_000)
    spread = np.concatenate([sizes * rng.choice([-1, 1], size=sizes.shape), rng.uniform(-90, 90, size=1_000_000)])
    gate = spread.astype(np.float32)
    up = rng.normal(size=gate.shape).astype(np.float32)
    found = torch.from_numpy(gate.copy())
    factor = torch.from_numpy(up)
    library.load().gate(found.data_ptr(), factor.data_ptr(), len(gate))
    expected = silu(gate.astype(np.float64)) * up
    off = np.abs(found.numpy() - expected)
    assert (off <= GATE_ERROR * np.abs(expected) + TINY).all()
