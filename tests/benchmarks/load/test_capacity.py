"""The search for the rate that is answered within the limits."""

from pathlib import Path

import pytest

from benchmarks.load import capacity
from benchmarks.load.capacity import CapacityError, Search


@pytest.mark.parametrize("true", [0.6, 1.0, 7.3, 100.0])
def test_it_is_found_from_below(true: float) -> None:
    search = Search(first=0.5, steps=6)
    found = search.find(lambda rate: 1.0 if rate <= true else 0.2)
    assert found <= true < found * (1 + 2**-5)
    assert found in search.tried


def test_nearly_all_have_to_be_good() -> None:
    assert Search(first=1, steps=0).find(lambda rate: {1: 1.0, 2: 0.96, 4: 0.94}[rate]) == 2


def test_a_server_that_never_holds_is_told_of() -> None:
    with pytest.raises(CapacityError, match=r"at 0\.5 requests a second only 10% were within the limits"):
        Search().find(lambda rate: 0.1)


def test_a_server_that_always_holds_ends_the_search() -> None:
    with pytest.raises(CapacityError, match="still held"):
        Search(most=8).find(lambda rate: 1.0)


def test_what_was_found_is_known_to_later_runs(tmp_path: Path) -> None:
    assert capacity.known(tmp_path, "soak") is None
    capacity.keep(tmp_path, "overload", 3.25)
    capacity.keep(tmp_path, "soak", 1.5)
    assert (capacity.known(tmp_path, "overload"), capacity.known(tmp_path, "soak")) == (3.25, 1.5)
