"""What choosing by caches and load is worth, against taking turns and against chance, for agents with screenshots."""

from functools import cache

import pytest

from tests.gateway.replicas.simulation import Chooser, Result, by_chance, in_turn, ours, simulate

AGENTS = {"replicas": 6, "agents": 60, "conversations": 90, "turns": 14}


@cache
def result(name: str) -> Result:
    choosers: dict[str, Chooser] = {"ours": ours, "in turn": in_turn(), "by chance": by_chance(7)}
    return simulate(choosers[name], **AGENTS)


def test_nearly_all_that_can_be_cached_is_found() -> None:
    """A turn can find the whole prompt of the turn before; the first one, what all conversations begin with."""
    prompts = [660 + turn * 1024 + (turn - 1) * 100 for turn in range(1, 15)]
    possible = (600 + sum(prompts[:-1])) / sum(prompts)
    assert 0.97 * possible < result("ours").hit_rate <= possible


@pytest.mark.parametrize("other", ["in turn", "by chance"])
def test_the_hit_rate_is_far_above_the_others(other: str) -> None:
    assert result("ours").hit_rate > 2 * result(other).hit_rate


@pytest.mark.parametrize("other", ["in turn", "by chance"])
def test_answers_come_in_less_than_half_the_time(other: str) -> None:
    assert result("ours").latency < 0.5 * result(other).latency


def test_no_replica_works_a_quarter_more_than_the_mean() -> None:
    assert result("ours").imbalance < 1.25


def test_outstanding_work_differs_by_no_more_than_what_a_cache_can_save() -> None:
    longest = 660 + 14 * 1124
    assert result("ours").spread < 2 * longest


def test_a_few_agents_do_not_all_sit_on_one_replica() -> None:
    few = simulate(ours, replicas=6, agents=12, conversations=36, turns=8)
    assert min(few.worked) > 0
    assert few.imbalance < 2.0
