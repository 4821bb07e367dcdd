"""One engine as the gateway sees it."""

import pytest

from kimi_serve.gateway.replicas import BreakerLimits, Picture, Replica, ReplicaLimits, RequestView, Text, read_prompt
from kimi_serve.gateway.replicas.health import Finding

LIMITS = ReplicaLimits(slow_start_s=30.0, least_warmth=0.1, breaker=BreakerLimits(consecutive=2, first_s=1.0))
WELL = Finding(models={"kimi": 10_000})
ILL = Finding("it does not answer")
PROMPT = read_prompt([Text(b"system", 1000), Picture(b"image", 1000)], b"", opening=1)
REQUEST = RequestView("kimi", weight=2700, total_tokens=2100, key=PROMPT.key)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def ready(clock: Clock) -> Replica:
    replica = Replica("http://engine", LIMITS, clock)
    replica.note(WELL)
    clock.now += 100
    return replica


def fail(replica: Replica, times: int) -> None:
    for _ in range(times):
        with replica.serving(PROMPT, REQUEST) as call:
            call.failed()


def test_it_is_not_available_before_a_check_was_good() -> None:
    replica = Replica("http://engine", LIMITS, Clock())
    assert not replica.view(PROMPT).is_available
    replica.note(WELL)
    assert replica.view(PROMPT).is_available
    assert replica.view(PROMPT).models == {"kimi": 10_000}


def test_work_is_outstanding_while_it_lasts_and_then_exactly_none() -> None:
    replica = ready(Clock())
    with replica.serving(PROMPT, REQUEST):
        assert (replica.requests, replica.outstanding) == (1, 2700)
    with pytest.raises(ZeroDivisionError), replica.serving(PROMPT, REQUEST):
        raise ZeroDivisionError
    assert (replica.requests, replica.outstanding) == (0, 0)


def test_what_its_caches_spare_is_not_outstanding() -> None:
    replica = ready(Clock())
    with replica.serving(PROMPT, REQUEST) as call:
        call.succeeded()
    with replica.serving(PROMPT, REQUEST):
        assert replica.outstanding == 100  # to generate; 2,000 tokens are read and 1,000 of an image are encoded


def test_a_prefix_pulls_from_the_request_on_and_an_image_is_held_once_the_prompt_was_read() -> None:
    replica = ready(Clock())
    with replica.serving(PROMPT, REQUEST) as call:
        assert replica.view(PROMPT).prefix_tokens == 2000
        call.succeeded()  # an error that the client caused, for instance
        assert not replica.holdings.holds_image(b"image")
        call.prompt_was_read()
        assert replica.holdings.holds_image(b"image")


def holding(finding: Finding = WELL, limits: ReplicaLimits = LIMITS) -> Replica:
    """A replica that is ready and has read the prompt."""
    replica = Replica("http://engine", limits, Clock())
    replica.note(finding)
    with replica.serving(PROMPT, REQUEST) as call:
        call.prompt_was_read()
        call.succeeded()
    return replica


def test_a_failure_forgets_its_images_and_an_ejection_everything() -> None:
    replica = holding()
    fail(replica, 1)
    assert not replica.holdings.holds_image(b"image")
    assert replica.view(PROMPT).prefix_tokens == 2000
    with replica.serving(PROMPT, REQUEST) as call:
        call.failed()
    assert replica.snapshot().breaker == "open"
    assert replica.view(PROMPT).prefix_tokens == 0


def test_another_instance_at_the_same_place_holds_nothing() -> None:
    first, second = (Finding(models={"kimi": 10_000}, instance=name) for name in ("first", "second"))
    replica = holding(first)
    replica.note(first)
    assert replica.holdings.holds_image(b"image")
    replica.note(second)
    assert not replica.holdings.holds_image(b"image")
    assert replica.is_ready


@pytest.mark.parametrize(("told", "is_held"), [(None, True), (2352 * 2_000, True), (2352 * 1_999, False), (0, False)])
def test_images_are_counted_on_in_a_share_of_the_cache_that_the_engine_has(told: int | None, is_held: bool) -> None:
    """The prompt's image has a thousand tokens, of 2,352 bytes each."""
    replica = holding(Finding(models={"kimi": 10_000}, image_cache_bytes=told))
    assert replica.holdings.holds_image(b"image") == is_held


def test_failures_eject_it_and_after_the_back_off_one_probe_lets_it_in_slowly() -> None:
    clock = Clock()
    replica = ready(clock)
    fail(replica, 2)
    assert not replica.view(PROMPT).is_available
    assert replica.snapshot().breaker == "open"
    clock.now += 1.1
    with replica.serving(PROMPT, REQUEST) as probe:
        assert not replica.view(PROMPT).is_available
        probe.succeeded()
    assert (replica.view(PROMPT).is_available, replica.view(PROMPT).warmth) == (True, 0.1)
    clock.now += 15
    assert replica.warmth == 0.5
    clock.now += 60
    assert replica.warmth == 1.0


def test_a_probe_whose_client_left_lets_another_one_go() -> None:
    clock = Clock()
    replica = ready(clock)
    fail(replica, 2)
    clock.now += 1.1
    with replica.serving(PROMPT, REQUEST):
        assert not replica.view(PROMPT).is_available
    assert replica.view(PROMPT).is_available


def test_the_first_outcome_counts() -> None:
    replica = ready(Clock())
    for _ in range(5):
        with replica.serving(PROMPT, REQUEST) as call:
            call.succeeded()
            call.failed()
    assert replica.snapshot().breaker == "closed"


def test_it_stays_ready_until_enough_checks_in_a_row_were_bad() -> None:
    replica = ready(Clock())
    for finding in (ILL, WELL, ILL):
        replica.note(finding, unready_after=2)
        assert replica.is_ready
    replica.note(ILL, unready_after=2)
    assert (replica.is_ready, replica.problem) == (False, "it does not answer")


def test_one_that_comes_back_is_cold_in_both_senses() -> None:
    clock = Clock()
    replica = ready(clock)
    with replica.serving(PROMPT, REQUEST) as call:
        call.succeeded()
    replica.note(ILL)
    replica.note(WELL)
    view = replica.view(PROMPT)
    assert (view.warmth, view.prefix_tokens, view.image_tokens) == (0.1, 0, 0)


def test_a_refused_connection_makes_it_unready_until_the_next_good_check() -> None:
    replica = ready(Clock())
    with replica.serving(PROMPT, REQUEST) as call:
        call.refused()
    assert not replica.view(PROMPT).is_available
    assert replica.snapshot().breaker == "closed"
    replica.note(WELL)
    assert replica.view(PROMPT).is_available
    assert replica.outstanding == 0
