"""Every kernel test runs on every path that this CPU has."""

from collections.abc import Iterator

import pytest

from kimi_serve.kernels import library


@pytest.fixture(params=library.load().paths if library.is_available() else ["no library"])
def path(request: pytest.FixtureRequest) -> Iterator[str]:
    lib = library.load()
    before = lib.path_chosen
    lib.choose_path(request.param)
    yield request.param
    lib.choose_path(before)
