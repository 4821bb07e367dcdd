"""The compiled library: where it is, whether it fits, its calls. Knows addresses and sizes; never a tensor.

Importing this module cannot fail; `load()` says why there is no library. A call is packed into one block of 64-bit
fields, since ctypes takes longer for sixteen arguments than a small layer takes to compute.
"""

import ctypes
import functools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

from kimi_serve.errors import KernelError

ABI = 3
NAME = "_library"
FOLDER = Path(__file__).resolve().parent
LINEAR = struct.Struct("=15q")  # kimi_linear_call
EXPERTS = struct.Struct("=12qd8q")  # kimi_experts_call
ROUTE = struct.Struct("=8q")  # kimi_route_call
SPARSE = struct.Struct("=3q12qd8q12qd8q")  # kimi_sparse_call
NORM = struct.Struct("=3qd5q")  # kimi_norm_call
LATENT = struct.Struct("=8qd31q")  # kimi_latent_call

MEANINGS = {
    1: "the weights' format is not known, or this format needs float activations",
    2: "int4 groups must be 32, 64 or 128 values wide and divide the row",
    3: "a size is out of range: rows have 1 to 65536 columns; a call has at most 2**31 - 1 pairs of token and expert",
    4: "an expert id is not smaller than the number of experts",
    5: "no memory for the workspace",
    6: "this CPU cannot run that path",
    7: "a token goes to at least one expert and at most all of them; there are at most 1024",
    8: "a position is negative or past the last one that the rotary embedding knows",
}


@dataclass(frozen=True, slots=True)
class Library:
    path: Path
    handle: ctypes.CDLL

    def linear(self, *fields: int) -> None:
        check(self.handle.kimi_linear(LINEAR.pack(*fields)))

    def experts(self, *fields: float) -> None:
        check(self.handle.kimi_experts(EXPERTS.pack(*fields)))

    def route(self, *fields: int) -> None:
        check(self.handle.kimi_route(ROUTE.pack(*fields)))

    def sparse(self, *fields: float) -> None:
        check(self.handle.kimi_sparse(SPARSE.pack(*fields)))

    def norm(self, *fields: float) -> None:
        check(self.handle.kimi_norm(NORM.pack(*fields)))

    def latent(self, *fields: float) -> None:
        check(self.handle.kimi_latent(LATENT.pack(*fields)))

    def gate(self, gate: int, up: int, count: int) -> None:
        check(self.handle.kimi_gate(gate, up, count))

    def read_seconds(self, data: int, nbytes: int) -> float:
        return float(self.handle.kimi_read_seconds(data, nbytes))

    @property
    def threads(self) -> int:
        return int(self.handle.kimi_threads())

    @property
    def paths(self) -> list[str]:
        """The paths that this CPU can run, slowest first."""
        return [name for _, name in self._usable()]

    @property
    def path_chosen(self) -> str:
        return str(self.handle.kimi_path_name(self.handle.kimi_path_chosen()).decode())

    def choose_path(self, name: str) -> None:
        """Use one path from now on, in all threads: for tests and benchmarks."""
        found = [index for index, usable in self._usable() if usable == name]
        if not found:
            raise KernelError(f"path {name!r} cannot run here; this CPU has {', '.join(self.paths)}")
        check(self.handle.kimi_choose_path(found[0]))

    def _usable(self) -> Iterator[tuple[int, str]]:
        for index in range(self.handle.kimi_path_count()):
            if self.handle.kimi_path_usable(index):
                yield index, self.handle.kimi_path_name(index).decode()


def check(status: int) -> None:
    if status:
        raise KernelError(MEANINGS[status])


@functools.cache
def load() -> Library:
    """The library of this installation. Raise KernelError where there is none, or one of another version."""
    return open_library(find(FOLDER))


def is_available() -> bool:
    return find_or_none(FOLDER) is not None


def find(folder: Path) -> Path:
    found = find_or_none(folder)
    if found is None:
        raise KernelError(
            f"kernels: no compiled library in {folder}; install a C++ compiler (g++) and install kimi_serve again, "
            "or install a wheel built where there is one"
        )
    return found


def find_or_none(folder: Path) -> Path | None:
    return next((path for suffix in EXTENSION_SUFFIXES if (path := folder / f"{NAME}{suffix}").exists()), None)


def open_library(path: Path) -> Library:
    """Open the library at `path`, which takes its OpenMP from torch (docs/kernels.md)."""
    import torch  # noqa: F401  its OpenMP runtime, or the one preloaded before it, must be there first

    try:
        handle = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(f"kernels: {path} cannot be loaded: {error}") from error
    _declare(handle.kimi_abi, ctypes.c_int)
    if handle.kimi_abi() != ABI:
        raise KernelError(
            f"kernels: {path} has interface {handle.kimi_abi()} and this package needs {ABI}; install kimi_serve again"
        )
    for name in ("linear", "experts", "route", "sparse", "norm", "latent"):
        _declare(getattr(handle, f"kimi_{name}"), ctypes.c_int, ctypes.c_char_p)
    _declare(handle.kimi_gate, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
    _declare(handle.kimi_read_seconds, ctypes.c_double, ctypes.c_void_p, ctypes.c_int64)
    _declare(handle.kimi_threads, ctypes.c_int)
    _declare(handle.kimi_path_count, ctypes.c_int)
    _declare(handle.kimi_path_chosen, ctypes.c_int)
    for function in (handle.kimi_path_usable, handle.kimi_choose_path):
        _declare(function, ctypes.c_int, ctypes.c_int)
    _declare(handle.kimi_path_name, ctypes.c_char_p, ctypes.c_int)
    return Library(path, handle)


def _declare(function: Callable[..., object], returns: type, *takes: type) -> None:
    function.restype = returns  # type: ignore[attr-defined]
    function.argtypes = list(takes)  # type: ignore[attr-defined]
