"""When requests are due."""

from itertools import pairwise

import numpy as np
import pytest

from benchmarks.load.arrivals import moments


def test_a_constant_process_is_even_and_ends_in_time() -> None:
    assert list(moments("constant", 4.0, 1.0, seed=1)) == [0.0, 0.25, 0.5, 0.75]


def test_a_poisson_process_has_the_rate_and_the_spread_of_one() -> None:
    gaps = [after - before for before, after in pairwise(moments("poisson", 50.0, 200.0, seed=7))]
    assert len(gaps) == pytest.approx(10_000, rel=0.03)
    assert np.std(gaps) / np.mean(gaps) == pytest.approx(1.0, abs=0.05)  # an even process has 0


def test_the_seed_decides() -> None:
    assert list(moments("poisson", 5.0, 9.0, 1)) == list(moments("poisson", 5.0, 9.0, 1))
    assert list(moments("poisson", 5.0, 9.0, 1)) != list(moments("poisson", 5.0, 9.0, 2))
