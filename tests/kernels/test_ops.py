"""The operators as torch sees them, and as callers misuse them."""

import numpy as np
import pytest
import torch

from kimi_serve.errors import KernelError
from kimi_serve.kernels import library, ops
from tests.kernels.draws import draw, draw_tokens

HIDDEN, BETWEEN, EXPERTS, TOKENS, GROUP = 96, 64, 5, 9, 32


def expert_arguments(form: str = "int4") -> list[object]:
    rng = np.random.default_rng(1)
    gate_up = draw(rng, form, EXPERTS, 2 * BETWEEN, HIDDEN, GROUP, torch.float32)
    down = draw(rng, form, EXPERTS, HIDDEN, BETWEEN, GROUP, torch.float32)
    x = draw_tokens(rng, TOKENS, HIDDEN, torch.float32)
    ids = torch.from_numpy(rng.integers(0, EXPERTS, size=(TOKENS, 3)))
    routing = torch.from_numpy(rng.uniform(size=(TOKENS, 3))).float()
    return [x, ids, routing, gate_up.packed, gate_up.scales, down.packed, down.scales, GROUP, form == "bf16"]


def linear_arguments(form: str = "int4") -> list[object]:
    rng = np.random.default_rng(2)
    weights = draw(rng, form, 1, 70, HIDDEN, GROUP, torch.float32)
    x = draw_tokens(rng, TOKENS, HIDDEN, torch.bfloat16)
    return [x, weights.packed[0], weights.scales[0] if form != "bf16" else weights.scales, GROUP, form == "bf16"]


@pytest.mark.parametrize("form", ["int4", "int8", "bf16"])
def test_torch_accepts_both_operators(form: str) -> None:
    checks = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.kimi_serve.linear.default, linear_arguments(form), test_utils=checks)
    torch.library.opcheck(torch.ops.kimi_serve.experts.default, expert_arguments(form), test_utils=checks)


@pytest.mark.parametrize("form", ["int4", "int8"])
def test_int8_sums_are_the_same_bits_on_every_path_and_thread_count(form: str) -> None:
    """int8 has one rounding order everywhere; int4 has one a path."""
    lib = library.load()
    chosen, threads = lib.path_chosen, torch.get_num_threads()
    found = {}
    try:
        for path in lib.paths:
            lib.choose_path(path)
            for count in (1, 2):
                torch.set_num_threads(count)
                found[path, count] = ops.experts(*expert_arguments(form))
    finally:
        lib.choose_path(chosen)
        torch.set_num_threads(threads)
    for path in lib.paths:
        assert torch.equal(found[path, 1], found[path, 2])
        assert form == "int4" or torch.equal(found[path, 1], found[lib.paths[0], 1])


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 130])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_every_width_of_panel_and_block_gives_what_plain_loops_give(path: str, rows: int, group: int) -> None:
    """Tokens come in panels of 8, 16 and 32, rows in tiles of 16 and blocks of 8, 32 and 64."""
    lib = library.load()
    rng = np.random.default_rng(rows + group)
    columns = 3 * group  # in int8: not a multiple of 64 where groups are 32
    for form in ("int4", "int8"):
        weights = draw(rng, form, 1, rows, columns, group, torch.float32)
        for count in (8, 9, 16, 17, 32, 33, 41, 48):
            x = draw_tokens(rng, count, columns, torch.float32)
            lib.choose_path(path)
            found = ops.linear(x, weights.packed[0], weights.scales[0], group, False)
            lib.choose_path("portable")
            expected = ops.linear(x, weights.packed[0], weights.scales[0], group, False)
            if form == "int8":
                assert torch.equal(found, expected)
            sizes = x.abs() @ torch.from_numpy(np.abs(weights.matrices[0].real())).float().T
            assert ((found - expected).abs() <= 1e-6 * sizes).all()


def test_the_longest_row_of_the_largest_numbers_fits_its_sum(path: str) -> None:
    weights = torch.full((1, 65536), -128, dtype=torch.int8)
    weights[0, ::2] = 127
    x = torch.ones(20, 65536)
    x[:10] = -1.0
    x[:, ::2] *= -1
    found = ops.linear(x, weights, torch.full((1, 1), 1 / 65536), 0, False)
    assert torch.allclose(found[:, 0], torch.tensor([127.5] * 10 + [-127.5] * 10), rtol=1e-6)


def test_strided_and_empty_inputs_are_taken() -> None:
    arguments = expert_arguments()
    expected = ops.experts(*arguments)
    wide = torch.zeros(TOKENS, 2 * HIDDEN)
    wide[:, ::2] = arguments[0]
    assert torch.equal(ops.experts(wide[:, ::2], *arguments[1:]), expected)
    none = [tensor[:0] for tensor in arguments[:3]]
    assert ops.experts(*none, *arguments[3:]).shape == (0, HIDDEN)
    x, *rest = linear_arguments()
    assert ops.linear(x[:0], *rest).shape == (0, 70)


def test_tokens_past_one_round_of_the_workspace_are_computed_too() -> None:
    arguments = expert_arguments("int8")
    many = [tensor.repeat(300, 1) for tensor in arguments[:3]]  # 2700 tokens
    expected = ops.experts(*arguments)
    assert torch.equal(ops.experts(*many, *arguments[3:]), expected.repeat(300, 1))


def test_a_wrong_call_is_refused_with_a_sentence() -> None:
    x, ids, routing, gate_up, gate_up_scales, down, down_scales, group, exact = expert_arguments()
    rest = (gate_up, gate_up_scales, down, down_scales)
    with pytest.raises(KernelError, match="an expert id is not smaller than the number of experts"):
        ops.experts(x, ids + EXPERTS, routing, *rest, group, exact)
    with pytest.raises(KernelError, match=r"x has shape \(9, 64\); the weights take \(tokens, 96\)"):
        ops.experts(x[:, :64], ids, routing, *rest, group, exact)
    with pytest.raises(KernelError, match="must both be"):
        ops.experts(x, ids[:4], routing, *rest, group, exact)
    with pytest.raises(KernelError, match=r"ids are torch\.float32"):
        ops.experts(x, ids.float(), routing, *rest, group, exact)
    with pytest.raises(KernelError, match=r"gate_up_scales has shape .*; the weights imply"):
        ops.experts(x, ids, routing, gate_up, gate_up_scales[:, :, :1], down, down_scales, group, exact)
    with pytest.raises(KernelError, match=r"gate_up_scales are torch\.bfloat16; down_scales are torch\.float32"):
        ops.experts(x, ids, routing, gate_up, gate_up_scales.bfloat16(), down, down_scales, group, exact)
    with pytest.raises(KernelError, match=r"x: torch\.float16 is not supported"):
        ops.experts(x.half(), ids, routing, *rest, group, exact)
    with pytest.raises(KernelError, match="int4 groups must be 32, 64 or 128"):
        ops.experts(x, ids, routing, gate_up, gate_up_scales[:, :, :2], down, down_scales[:, :, :1], 48, exact)
    with pytest.raises(KernelError, match="this format needs float activations"):
        ops.experts(*expert_arguments("bf16")[:-1], False)
