"""Which replica a request goes to."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kimi_serve.gateway.replicas import ReplicaView, RequestView, choose


def replica(name: str, **changes: object) -> ReplicaView:
    plain = ReplicaView(name, True, {"kimi": 10_000}, outstanding=0, warmth=1.0, prefix_tokens=0, image_tokens=0)
    return replace(plain, **changes)  # type: ignore[arg-type]


def request(key: bytes = b"key", weight: int = 5000, total: int = 5000, **changes: object) -> RequestView:
    return replace(RequestView("kimi", weight, total, key), **changes)  # type: ignore[arg-type]


def keys(count: int) -> list[bytes]:
    return [str(number).encode() for number in range(count)]


@pytest.mark.parametrize(
    "unfit",
    [
        {"is_available": False},
        {"models": {"other": 10_000}},
        {"models": {"kimi": 4999}},
    ],
)
def test_a_replica_that_cannot_take_it_is_not_chosen_however_much_it_holds(unfit: dict[str, object]) -> None:
    views = [replica("unfit", prefix_tokens=5000, **unfit), replica("fit", outstanding=10**6)]
    assert choose(views, request()) == "fit"
    assert choose(views[:1], request()) is None


def test_a_replica_that_failed_this_request_is_not_tried_again() -> None:
    views = [replica("a", prefix_tokens=5000), replica("b")]
    assert choose(views, request(excluded=frozenset({"a"}))) == "b"
    assert choose(views, request(excluded=frozenset({"a", "b"}))) is None


def test_without_replicas_there_is_no_choice() -> None:
    assert choose([], request()) is None


def test_the_least_busy_is_chosen_when_nobody_holds_anything() -> None:
    views = [replica("a", outstanding=30_000), replica("b", outstanding=10_000), replica("c", outstanding=50_000)]
    assert {choose(views, request(key)) for key in keys(50)} == {"b"}


def test_a_held_prefix_pulls_until_the_load_outweighs_what_it_saves() -> None:
    def chosen(load: int) -> str | None:
        return choose([replica("holder", prefix_tokens=40_000, outstanding=load), replica("idle")], big)

    big = request(weight=42_000)
    assert chosen(0) == chosen(20_000) == chosen(39_000) == "holder"
    assert chosen(70_000) == chosen(10**6) == "idle"


def test_held_images_pull_by_what_their_encoding_costs() -> None:
    def chosen(load: int) -> str | None:
        return choose(
            [replica("holder", image_tokens=20_000, outstanding=load), replica("idle")], request(weight=40_000)
        )

    assert chosen(10_000) == "holder"  # 20,000 image tokens spare 12,000
    assert chosen(20_000) == "idle"


def test_the_longer_prefix_wins_among_holders() -> None:
    views = [replica("short", prefix_tokens=10_000), replica("long", prefix_tokens=30_000), replica("none")]
    assert {choose(views, request(key, weight=40_000)) for key in keys(20)} == {"long"}


def test_among_replicas_as_good_as_equal_the_one_that_holds_more_wins() -> None:
    views = [replica("holder", prefix_tokens=3000, outstanding=40_000), replica("other", outstanding=38_000)]
    assert {choose(views, request(key)) for key in keys(50)} == {"holder"}


def test_under_load_a_difference_of_a_tenth_does_not_move_a_conversation_from_its_home() -> None:
    views = [replica("a", outstanding=100_000), replica("b", outstanding=110_000)]
    idle = [replica("a"), replica("b")]
    assert [choose(views, request(key)) for key in keys(50)] == [choose(idle, request(key)) for key in keys(50)]


def test_a_short_beginning_that_all_share_pulls_nobody() -> None:
    views = [replica("a", prefix_tokens=500), *(replica(name) for name in "bcd")]
    assert Counter(choose(views, request(key)) for key in keys(400))["a"] < 150


def test_new_conversations_spread_evenly_by_their_key() -> None:
    views = [replica(f"r{number}") for number in range(8)]
    shares = Counter(choose(views, request(key)) for key in keys(1600))
    assert len(shares) == 8
    assert all(140 < share < 260 for share in shares.values())


def test_a_replica_that_goes_moves_only_its_own_share() -> None:
    views = [replica(f"r{number}") for number in range(8)]
    before = {key: choose(views, request(key)) for key in keys(800)}
    after = {key: choose(views[1:], request(key)) for key in keys(800)}
    assert {before[key] for key in before if before[key] != after[key]} == {"r0"}
    assert len({after[key] for key in before if before[key] == "r0"}) == 7


def test_a_replica_that_comes_takes_only_its_own_share() -> None:
    views = [replica(f"r{number}") for number in range(8)]
    before = {key: choose(views[1:], request(key)) for key in keys(800)}
    after = {key: choose(views, request(key)) for key in keys(800)}
    moved = [key for key in before if before[key] != after[key]]
    assert {after[key] for key in moved} == {"r0"}
    assert 60 < len(moved) < 140


def test_the_order_of_the_list_does_not_matter() -> None:
    views = [replica(f"r{number}", outstanding=number * 100) for number in range(8)]
    for key in keys(50):
        assert choose(views, request(key)) == choose(views[::-1], request(key))


def test_bounded_load_a_key_leaves_its_replica_when_that_is_busy() -> None:
    home = choose([replica("a"), replica("b")], request())
    assert home is not None
    views = [replica(name, outstanding=20_000 if name == home else 0) for name in "ab"]
    assert choose(views, request()) != home


def test_a_replica_that_starts_slowly_gets_only_what_the_others_are_too_busy_for() -> None:
    cold = replica("cold", warmth=0.1)
    assert choose([cold, replica("warm", outstanding=20_000)], request(weight=3000)) == "warm"
    assert choose([cold, replica("warm", outstanding=80_000)], request(weight=3000)) == "cold"


views_of_any_kind = st.builds(
    ReplicaView,
    url=st.sampled_from([f"r{number}" for number in range(5)]),
    is_available=st.booleans(),
    models=st.sampled_from([{"kimi": 10_000}, {"kimi": 100}, {}]),
    outstanding=st.integers(0, 10**6),
    warmth=st.floats(0.1, 1.0),
    prefix_tokens=st.integers(0, 60_000),
    image_tokens=st.integers(0, 60_000),
)


@settings(max_examples=40)
@given(st.lists(views_of_any_kind, unique_by=lambda view: view.url), st.integers(1, 200_000))
def test_the_chosen_is_able_and_never_busier_than_the_pull_allows(views: list[ReplicaView], weight: int) -> None:
    asked = request(weight=weight)
    able = {view.url: view for view in views if view.is_available and view.models.get("kimi", 0) >= 5000}
    url = choose(views, asked)
    assert (url is None) == (not able)
    if url is not None:
        mean = sum(view.outstanding for view in able.values()) / len(able)
        most = min((view.outstanding + weight) / view.warmth for view in able.values()) + 1024 + mean / 4
        assert able[url].outstanding <= most
