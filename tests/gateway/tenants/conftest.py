"""What tests of tenants share: a cheap hasher, keys made with it, and a clock that tests move."""

from datetime import datetime

import pytest
from argon2 import PasswordHasher

from tests.gateway.tenants.clocks import NOW, Clock


@pytest.fixture
def clock() -> Clock:
    return Clock(1000.0)


@pytest.fixture
def wall() -> Clock:
    return Clock(NOW.timestamp())


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def hasher() -> PasswordHasher:
    return PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
