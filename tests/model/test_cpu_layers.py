"""Which parts of a layer become one call: those whose matrices are all in one form."""

from types import SimpleNamespace

import pytest
from vllm.platforms import current_platform

from kimi_serve.model.cpu_compressed import CpuLinearScheme, Form
from kimi_serve.model.cpu_layers import common_form

pytestmark = pytest.mark.skipif(not current_platform.is_cpu(), reason="a vLLM for GPUs keeps its own path")

INT4, WIDER, INT8 = Form(4, 64, exact=False), Form(4, 128, exact=False), Form(8, 0, exact=False)


def linear(form: Form) -> SimpleNamespace:
    return SimpleNamespace(scheme=CpuLinearScheme(form, "some linear"))


def test_matrices_of_one_form_have_it_in_common() -> None:
    assert common_form(linear(INT4), linear(INT4), linear(INT4)) == INT4
    assert common_form(linear(INT8)) == INT8


@pytest.mark.parametrize("other", [linear(WIDER), linear(INT8)], ids=["another group", "another width"])
def test_matrices_of_different_forms_have_none_in_common(other: SimpleNamespace) -> None:
    assert common_form(linear(INT4), other, linear(INT4)) is None


@pytest.mark.parametrize("other", [SimpleNamespace(), SimpleNamespace(scheme=object())], ids=["plain", "of vLLM"])
def test_a_matrix_that_is_not_on_our_kernels_has_no_form(other: SimpleNamespace) -> None:
    assert common_form(linear(INT4), other) is None
    assert common_form(other, other) is None
