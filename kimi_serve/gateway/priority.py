"""The classes in which requests wait. Knows their names, their order and what each is owed; no request.

A higher class goes first. So that a lower one is not starved, it is owed a share of the work that goes while it waits;
so that a higher one is not, the shares owed to those below it are small. Work is tokens, not requests: a class of few
large requests gets no more than one of many small ones.
"""

from collections.abc import Mapping
from typing import Final, Literal, get_args

Priority = Literal["high", "normal", "low"]
PRIORITIES: Final[tuple[Priority, ...]] = get_args(Priority)  # first goes first

# Percent of the work; what is left, three quarters, goes strictly by order.
SHARES: Final[Mapping[Priority, int]] = {"normal": 20, "low": 5}

# Somebody waits for these, and would rather be told to come back than wait long. The lowest is work for later.
AWAITED: Final[frozenset[Priority]] = frozenset({"high", "normal"})
