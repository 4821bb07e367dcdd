"""Quantized products in float64, and how far float32 kernels may stray from them. Knows numbers; never a kernel.

Every result comes with a bound on the kernels' error, derived and not measured. Notation: u = 2^-24, the unit roundoff
of float32; gamma(n) = n u / (1 - n u), which bounds the relative error of any term after n roundings (Higham, Accuracy
and Stability of Numerical Algorithms, section 3.1). An fma rounds once, so counting a product and a sum as two
roundings holds for it too.

Quantized activations are part of the definition: scale = max |x| / 127 and q = round(x * (127 / max |x|)), each
operation one float32 rounding, ties to even. From x both sides compute the same bits, so `linear` has no term for it.
The products inside an expert reach the quantizer with an error, though, and may round to the other side:

  h' = h + e,  |e| <= E   ->   |s' - s| <= max E / 127 + 3 u s
  v = h / s, v' = h' / s'  ->  |v' - v| <= (E + |v| |s' - s|) / (s - |s' - s|) + 4 u |v| =: d
  |q' - v'| <= 1/2, |q - v| known  ->  |q' - q| <= floor(|q - v| + d + 1/2), which is 0 unless v is near a tie
  |s' q' - s q| <= |s' - s| |q| + (s + |s' - s|) |q' - q|
"""

from dataclasses import dataclass

import numpy as np

U = 2.0**-24
BF16_U = 2.0**-8
SILU_SLOPE = 1.1  # max |silu'| = 1.0998...
# exp within 4 u (test_gate.py), then 1 + e, a division and a product: four terms of one u each, rounded up.
GATE_ERROR = 8 * U
TINY = 1e-30  # activations below it count as zero; float32 underflow is far below

Array = np.ndarray


def gamma(roundings: float) -> float:
    return roundings * U / (1 - roundings * U)


@dataclass(frozen=True, slots=True)
class Value:
    """A float64 result, and a bound on the error of a kernel's float32 one."""

    value: Array
    error: Array

    def rounded_to_bf16(self) -> "Value":
        return Value(self.value, self.error + BF16_U * (np.abs(self.value) + self.error))


@dataclass(frozen=True, slots=True)
class Matrix:
    """integers (rows, columns) times scales (rows, groups); `offset` is what the stored form adds to an integer."""

    integers: Array
    scales: Array
    offset: int = 0

    @property
    def groups(self) -> int:
        return self.scales.shape[1]

    def real(self) -> Array:
        rows, columns = self.integers.shape
        grouped = self.integers.reshape(rows, self.groups, -1) * self.scales[:, :, None]
        return grouped.reshape(rows, columns)


def quantize(x: Array, groups: int) -> tuple[Array, Array]:
    """x (tokens, columns) float32 -> q of the same shape, scales (tokens, groups), both float64 holding float32."""
    grouped = x.astype(np.float32).reshape(x.shape[0], groups, -1)
    limit = np.abs(grouped).max(-1)
    some = limit >= np.float32(TINY)
    inverse = np.where(some, np.float32(127) / np.where(some, limit, np.float32(1)), np.float32(0))
    q = np.rint(grouped * inverse[:, :, None])
    scale = np.where(some, limit / np.float32(127), np.float32(0))
    return q.reshape(x.shape).astype(np.float64), scale.astype(np.float64)


def linear(x: Array, matrix: Matrix, *, exact: bool) -> Value:
    """x (tokens, columns) times the matrix."""
    if exact:
        return float_product(Value(x.astype(np.float64), np.zeros(x.shape)), matrix)
    q, scale = quantize(x, matrix.groups)
    return integer_product(q, scale, np.zeros(q.shape), matrix)


def float_product(x: Value, matrix: Matrix) -> Value:
    """A weight is rounded once (integer times scale); each of its terms passes at most columns + 8 more."""
    weights = matrix.real()
    magnitude = (np.abs(x.value) + x.error) @ np.abs(weights).T
    return Value(x.value @ weights.T, x.error @ np.abs(weights).T + gamma(weights.shape[1] + 9) * magnitude)


def integer_product(q: Array, scale: Array, error: Array, matrix: Matrix) -> Value:
    """q with scales (tokens, groups), off by `error` (tokens, columns) in real values.

    Integer sums are exact. A group's sum passes: into float32 1, scale times scale 1, product 1, one sum a group, and
    5 at the end (lanes, correction). With an offset the kernels sum (integer + offset) * q and take offset * sum(q)
    away, so the magnitudes of both count.
    """
    tokens, rows, groups = q.shape[0], matrix.integers.shape[0], matrix.groups
    value, magnitude = np.zeros((tokens, rows)), np.zeros((tokens, rows))
    parts = zip(np.split(q, groups, 1), np.split(matrix.integers, groups, 1), strict=True)
    for g, (activations, weights) in enumerate(parts):
        factors = scale[:, g, None] * matrix.scales[None, :, g]
        value += factors * (activations @ weights.T)
        stored = np.abs(activations) @ np.abs(weights + matrix.offset).T
        shift = np.abs(matrix.offset * activations.sum(-1, keepdims=True))
        magnitude += np.abs(factors) * (stored + shift)
    moved = error @ np.abs(matrix.real()).T
    return Value(value, moved + gamma(groups + 8) * (magnitude + moved))


def silu(x: Array) -> Array:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


def gated(gate: Value, up: Value) -> Value:
    """Return silu(gate) * up."""
    activated = silu(gate.value)
    moved = SILU_SLOPE * gate.error
    largest = (np.abs(activated) + moved) * (np.abs(up.value) + up.error)
    error = moved * (np.abs(up.value) + up.error) + np.abs(activated) * up.error + GATE_ERROR * largest
    return Value(activated * up.value, error + TINY * (1 + np.abs(up.value)))


def requantized(h: Value, groups: int) -> tuple[Array, Array, Array]:
    """Return q, scales and the error in real values of quantizing h, as derived above."""
    q, scale = quantize(h.value, groups)
    shape = (h.value.shape[0], groups, -1)
    s = scale[:, :, None]
    off = h.error.reshape(shape)
    moved = off.max(-1, keepdims=True) / 127 + 3 * U * s
    some = s > 2 * moved
    v = h.value.reshape(shape) / np.where(some, s, 1)
    drift = (off + np.abs(v) * moved) / np.where(some, s - moved, 1) + 4 * U * np.abs(v)
    grouped = q.reshape(shape)
    steps = np.floor(np.abs(grouped - v) + drift + 0.5)
    error = moved * np.abs(grouped) + (s + moved) * steps
    # Where the error is as large as the values, nothing is known but both sizes.
    unknown = 2 * np.abs(h.value).reshape(shape) + 2 * off.max(-1, keepdims=True) + TINY
    return q, scale, np.where(some, error, unknown).reshape(q.shape)


def experts(x: Array, ids: Array, routing: Array, gate_up: list[Matrix], down: list[Matrix], *, exact: bool) -> Value:
    """The weighted sum over ids (tokens, top_k); each term passes a product and top_k sums."""
    tokens, top_k = ids.shape
    total, error = np.zeros((tokens, x.shape[1])), np.zeros((tokens, x.shape[1]))
    magnitude = np.zeros_like(total)
    for expert in np.unique(ids[ids >= 0]):
        rows, choices = np.nonzero(ids == expert)
        one = expert_output(x[rows], gate_up[expert], down[expert], exact=exact)
        weights = routing[rows, choices][:, None].astype(np.float64)
        np.add.at(total, rows, weights * one.value)
        np.add.at(error, rows, np.abs(weights) * one.error)
        np.add.at(magnitude, rows, np.abs(weights) * (np.abs(one.value) + one.error))
    return Value(total, error + gamma(top_k + 2) * magnitude)


def expert_output(x: Array, gate_up: Matrix, down: Matrix, *, exact: bool) -> Value:
    both = linear(x, gate_up, exact=exact)
    half = both.value.shape[1] // 2
    h = gated(Value(both.value[:, :half], both.error[:, :half]), Value(both.value[:, half:], both.error[:, half:]))
    if exact:
        return float_product(h, down)
    return integer_product(*requantized(h, down.groups), down)
