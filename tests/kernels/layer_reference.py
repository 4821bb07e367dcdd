"""Norms, turns and feed-forwards in float64, with bounds on float32 kernels. Knows numbers; never a kernel.

Notation and what a Value is: reference.py. A norm is y = s w / r with r = sqrt(mean(s^2) + eps). Its sum of squares has
one sign, so its relative error is that of its longest chain: sixteen sums side by side, what is left over, then the
sixteen together. Where s itself is off by e, |e| <= E, the mean moves by at most mean(2 |s| E + E^2), and 1 / r is
monotonous.
"""

from dataclasses import dataclass

import numpy as np

from tests.kernels import reference
from tests.kernels.reference import Array, Matrix, U, Value, gamma

LANES = 16
# Beside the chain: eps and the mean's division 3, the root, its inverse and two products.
AROUND = 12
LEAST_TOTAL = 1e-20  # of the chosen scores: far below it they are zeros in float32, and their shares no numbers
ROUTE_ROUNDINGS = 8  # sigmoid's exp within a unit in the last place, a sum and a division, with room


def norm(s: Value, weight: Array, eps: float) -> Value:
    """s (tokens, columns)."""
    mean = np.square(s.value).mean(-1, keepdims=True)
    moved = (2 * np.abs(s.value) * s.error + np.square(s.error)).mean(-1, keepdims=True)
    inverse = 1 / np.sqrt(mean + eps)
    most = 1 / np.sqrt(np.maximum(mean - moved, 0) + eps)  # of the kernel's inverse, but for roundings
    value = s.value * inverse * weight
    off = np.abs(weight) * ((np.abs(s.value) + s.error) * (most - inverse) + s.error * inverse)
    chain = s.value.shape[1] / LANES + 2 * LANES
    return Value(value, off + gamma(chain + AROUND) * (np.abs(value) + off))


def rounded(value: Value, *, to_bf16: bool) -> Value:
    return value.rounded_to_bf16() if to_bf16 else value


def turned(pairs: Value, turns: Array) -> Value:
    """Adjacent pairs (..., rope) turned by angles whose cosines and then sines are turns (..., rope)."""
    cosine, sine = np.split(turns, 2, -1)
    a, b = pairs.value[..., ::2], pairs.value[..., 1::2]
    a_error, b_error = pairs.error[..., ::2], pairs.error[..., 1::2]
    value, error = np.empty(pairs.value.shape), np.empty(pairs.value.shape)
    value[..., ::2], value[..., 1::2] = a * cosine - b * sine, b * cosine + a * sine
    for part, (first, first_off, second, second_off) in enumerate(((a, a_error, b, b_error), (b, b_error, a, a_error))):
        off = np.abs(cosine) * first_off + np.abs(sine) * second_off
        sizes = np.abs(cosine) * np.abs(first) + np.abs(sine) * np.abs(second) + off
        error[..., part::2] = off + gamma(2) * sizes
    return Value(value, error)


@dataclass(frozen=True, slots=True)
class Projections:
    """One layer's matrices, and the sizes of a head."""

    q: Matrix
    kv_a: Matrix
    kv_b: Matrix
    norm: Array
    eps: float
    heads: int
    nope: int
    rope: int
    value: int


def latent(x: Array, turns: Array, of: Projections, *, exact: bool, to_bf16: bool) -> tuple[Value, Value, Value]:
    """x (tokens, hidden) and its tokens' turns (tokens, rope) -> queries, keys, values (tokens, heads, nope + rope)."""
    tokens, turns = len(x), turns[:, None]
    q = _heads(rounded(reference.linear(x, of.q, exact=exact), to_bf16=to_bf16), tokens, of.heads)
    both = rounded(reference.linear(x, of.kv_a, exact=exact), to_bf16=to_bf16)
    size = of.norm.shape[0]
    shared = rounded(turned(_heads(_part(both, size, None), tokens, 1), turns), to_bf16=to_bf16)
    compressed = rounded(norm(_part(both, 0, size), of.norm, of.eps), to_bf16=to_bf16)
    if exact:
        expanded = reference.float_product(compressed, of.kv_b)
    else:
        expanded = reference.integer_product(*reference.requantized(compressed, of.kv_b.groups), of.kv_b)
    kv = _heads(rounded(expanded, to_bf16=to_bf16), tokens, of.heads)
    query = _joined(_part(q, 0, of.nope), rounded(turned(_part(q, of.nope, None), turns), to_bf16=to_bf16))
    everywhere = Value(*(np.repeat(array, of.heads, 1) for array in (shared.value, shared.error)))
    nothing = np.zeros((tokens, of.heads, of.nope + of.rope - of.value))
    values = _joined(_part(kv, of.nope, None), Value(nothing, nothing))
    return query, _joined(_part(kv, 0, of.nope), everywhere), values


def _heads(value: Value, tokens: int, heads: int) -> Value:
    return Value(value.value.reshape(tokens, heads, -1), value.error.reshape(tokens, heads, -1))


def _part(value: Value, first: int, last: int | None) -> Value:
    return Value(value.value[..., first:last], value.error[..., first:last])


def _joined(one: Value, other: Value) -> Value:
    return Value(np.concatenate([one.value, other.value], -1), np.concatenate([one.error, other.error], -1))


@dataclass(frozen=True, slots=True)
class Choices:
    """The experts of each token; where float32 could choose others, `clear` is false."""

    ids: Array  # (tokens, top_k)
    weights: Value
    clear: Array  # (tokens,)


def choose(x: Array, router: Array, bias: Array | None, top_k: int, *, renormalize: bool) -> Choices:
    """The router's products as `float_product` bounds them.

    The slope of sigmoid's logarithm is at most 1: a logit off by E moves its score by at most a factor of exp(E).
    """
    logits = reference.float_product(
        Value(x.astype(np.float64), np.zeros(x.shape)), Matrix(router, np.ones((len(router), 1)))
    )
    with np.errstate(over="ignore"):
        scores = 1 / (1 + np.exp(-logits.value))
    off = scores * np.expm1(logits.error) + ROUTE_ROUNDINGS * U * scores + reference.TINY
    choice = scores if bias is None else scores + bias
    doubt = off + U * np.abs(choice)
    ids = np.argsort(-choice, axis=-1, kind="stable")[:, :top_k]
    chosen = np.zeros(choice.shape, dtype=bool)
    np.put_along_axis(chosen, ids, True, -1)
    least = np.where(chosen, choice - doubt, np.inf).min(-1)
    others = np.where(chosen, -np.inf, choice + doubt).max(-1)
    weights, error = np.take_along_axis(scores, ids, -1), np.take_along_axis(off, ids, -1)
    total, moved = weights.sum(-1, keepdims=True), error.sum(-1, keepdims=True)
    clear = (least > others) & (total > LEAST_TOTAL)[:, 0]
    if renormalize:
        total = np.maximum(total, LEAST_TOTAL)
        shares = weights / total
        error = (error + shares * moved) / (total - moved)
        weights, error = shares, error + gamma(top_k + 2) * (shares + error)
    return Choices(ids, Value(weights, error), clear)


def sparse(
    x: Array, choices: Choices, scale: float, gate_up: list[Matrix], down: list[Matrix], shared: Value, *, exact: bool
) -> Value:
    """scale * sum over choices of weight * expert + shared: a weight and a sum a choice, then a product and a sum."""
    total, error, sizes = np.zeros(shared.value.shape), np.zeros(shared.value.shape), np.zeros(shared.value.shape)
    for expert in np.unique(choices.ids):
        rows, places = np.nonzero(choices.ids == expert)
        one = reference.expert_output(x[rows], gate_up[expert], down[expert], exact=exact)
        weights = choices.weights.value[rows, places][:, None]
        off = choices.weights.error[rows, places][:, None]
        size = (weights + off) * (np.abs(one.value) + one.error)
        np.add.at(total, rows, weights * one.value)
        np.add.at(error, rows, weights * one.error + off * (np.abs(one.value) + one.error))
        np.add.at(sizes, rows, size)
    top_k = choices.ids.shape[1]
    both = scale * sizes + np.abs(shared.value) + shared.error
    return Value(scale * total + shared.value, scale * error + shared.error + gamma(top_k + 5) * both)
