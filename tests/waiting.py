"""Waiting for what must come to hold. Knows the clock; its limits are for a machine with other work."""

import time
from collections.abc import Callable

SOON = 20.0  # seconds; what is waited for takes a tenth of one on an idle machine


def eventually(is_true: Callable[[], object], seconds: float = SOON) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline, f"it did not come to hold in {seconds} s"
        time.sleep(0.01)
