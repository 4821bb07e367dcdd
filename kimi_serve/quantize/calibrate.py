"""How much each input of each weight matters, seen on conversations. Knows squares of activations; quantizes nothing.

A weight's error reaches the output multiplied with its input, so the squared error of a column is weighed with the
mean square of that input. Nothing but the choice of scales and clipping uses it: norms and other weights stay as they
are, and the output's format is the same.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kimi_serve.inputs.config import Checkpoint
from kimi_serve.quantize.prompts import Prompt
from kimi_serve.quantize.reading import Model
from kimi_serve.quantize.scheme import Scheme
from kimi_serve.quantize.source import Weights
from kimi_serve.quantize.states import final_states

# An expert that few tokens chose has seen too little to be believed: every column counts as if it had also been seen
# this often with the mean square of all columns.
PRIOR_TOKENS = 16.0


class Squares:
    """Sums of squared inputs, by weight."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme
        self.sums: dict[str, Tensor] = {}
        self.tokens: dict[str, int] = {}

    def observe(self, name: str, x: Tensor) -> None:
        if self.scheme.format_of(name) is None:
            return
        total = x.square().sum(0)
        self.sums[name] = self.sums[name] + total if name in self.sums else total
        self.tokens[name] = self.tokens.get(name, 0) + len(x)

    def importance(self) -> dict[str, Tensor]:
        """Return the mean square of each column, with the prior, (width,) float32; its own mean is one."""
        found = {}
        for name, total in self.sums.items():
            blended = total + PRIOR_TOKENS * total.mean() / self.tokens[name]
            if bool(blended.mean() > 0):
                found[name] = blended / blended.mean()
        return found


def importance(
    weights: Weights, scheme: Scheme, checkpoint: Checkpoint, prompts: Sequence[Prompt]
) -> dict[str, Tensor]:
    """Run the prompts through the unquantized model. A weight that no token met is not in the answer."""
    squares = Squares(scheme)
    states = final_states(Model(weights, squares.observe), checkpoint, prompts)
    with torch.no_grad():
        squares.observe("language_model.lm_head.weight", states)
    return squares.importance()
