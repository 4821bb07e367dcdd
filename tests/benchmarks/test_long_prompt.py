"""Which lengths the long prompt's benchmark takes, and whose logits it keeps."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.long_prompt import CONTEXT, length, reference
from tests.engine import long_prompt


@pytest.mark.parametrize("said", ["12", "100000", str(CONTEXT - 1)])
def test_a_length_that_leaves_room_for_one_token_is_taken(said: str) -> None:
    assert length(said) == int(said)


@pytest.mark.parametrize("said", ["11", str(CONTEXT), "-5", "many", "1e5"])
def test_another_length_is_refused_with_the_limits(said: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"{said} is not supported; expected 12 to 131071"):
        length(said)


def test_kept_logits_are_of_the_length_that_is_asked_for(tmp_path: Path) -> None:
    keep = tmp_path / "kept"
    with long_prompt.golden_checkpoint() as checkpoint:
        made = {tokens: reference(checkpoint, tokens, keep) for tokens in (20, 30)}
    gone = tmp_path / "gone"  # no checkpoint: what comes back is what was kept
    for tokens, logits in made.items():
        np.testing.assert_array_equal(reference(gone, tokens, keep), logits)
    assert not np.array_equal(made[20], made[30])
    with pytest.raises(FileNotFoundError):
        reference(gone, 40, keep)
