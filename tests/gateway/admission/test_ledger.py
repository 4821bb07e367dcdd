"""Bytes of bodies in flight."""

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.admission import BytesLedger
from kimi_serve.protocol.errors import ApiError


def refusal(ledger: BytesLedger, tenant: str, size: int) -> ApiError:
    with ledger.body(tenant) as body, pytest.raises(ApiError) as refused:
        body.reserve(size)
    return refused.value


def test_a_body_counts_from_its_first_byte() -> None:
    ledger = BytesLedger(limit=100, tenant_limit=100)
    with ledger.body("a") as body:
        assert ledger.total == 0
        body.reserve(1)
        assert ledger.total == 1
        body.reserve(30)
        assert ledger.snapshot() == {"a": 31}


def test_what_is_held_is_given_back_when_the_block_fails() -> None:
    ledger = BytesLedger(limit=100, tenant_limit=100)
    with suppress(ZeroDivisionError), ledger.body("a") as body:
        body.reserve(60)
        raise ZeroDivisionError
    assert (ledger.total, ledger.snapshot()) == (0, {})


def test_bytes_can_be_given_back_before_the_end() -> None:
    ledger = BytesLedger(limit=100, tenant_limit=100)
    with ledger.body("a") as body:
        body.reserve(90)
        body.release(80)
        assert ledger.total == 10
    assert ledger.total == 0


def test_all_bodies_together_are_bounded_and_the_refusal_is_ours() -> None:
    ledger = BytesLedger(limit=100, tenant_limit=100)
    with ledger.body("a") as body:
        body.reserve(60)
        error = refusal(ledger, "b", 41)
        assert (error.code, error.status) == ("bytes_in_flight", 503)
        assert error.retry_after is not None
        assert ledger.total == 60
        with ledger.body("b") as other:
            other.reserve(40)


def test_one_tenant_is_bounded_and_the_refusal_is_its_own() -> None:
    ledger = BytesLedger(limit=1000, tenant_limit=100)
    with ledger.body("a") as body:
        body.reserve(60)
        error = refusal(ledger, "a", 41)
        assert (error.code, error.status) == ("tenant_bytes_in_flight", 429)
        assert error.retry_after is not None
        with ledger.body("b") as other:
            other.reserve(100)


def test_a_refusal_in_mid_body_leaves_what_was_held_until_the_block_ends() -> None:
    ledger = BytesLedger(limit=100, tenant_limit=100)
    with ledger.body("b") as other:
        other.reserve(50)
        with ledger.body("a") as body:
            body.reserve(30)
            with pytest.raises(ApiError):
                body.reserve(30)
            assert body.held == 30
        assert ledger.total == 50


def test_a_body_that_could_never_fit_is_not_told_to_come_back() -> None:
    error = refusal(BytesLedger(limit=1000, tenant_limit=100), "a", 101)
    assert (error.code, error.retry_after) == ("body_too_large", None)


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(st.integers(0, 60), max_size=5)), max_size=12))
def test_after_all_bodies_nothing_is_outstanding(bodies: list[tuple[str, list[int]]]) -> None:
    ledger = BytesLedger(limit=150, tenant_limit=90)
    open_bodies = []
    for tenant, sizes in bodies:
        context = ledger.body(tenant)
        body = context.__enter__()
        open_bodies.append(context)
        for size in sizes:
            try:
                body.reserve(size)
            except ApiError:
                break
        assert ledger.total == sum(ledger.snapshot().values()) <= 150
        assert all(0 < held <= 90 for held in ledger.snapshot().values())
    for context in open_bodies:
        context.__exit__(None, None, None)
    assert (ledger.total, ledger.snapshot()) == (0, {})
