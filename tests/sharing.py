"""Which test files one worker of `pytest -n` runs, so that they share what takes long to start. Knows paths."""

from xdist.scheduler import LoadFileScheduling

# Files that need vLLM imported, here or in the process that forks engines: two units, of about the same length.
ENGINES = ("tests/engine/", "tests/model/", "tests/quantize/test_vllm.py")
FORKED = (
    "tests/engine/test_parallel.py",
    "tests/stack/test_plugin.py",
    "tests/plan/test_full_size.py",
    "tests/quantize/test_in_tree.py",
    "tests/launch/test_doctor.py",
    "tests/benchmarks/load/test_crosscheck.py",
)
# A file belongs to the first unit that one of its beginnings is of. What takes longest comes first, so that no worker
# begins it when the others have nothing left.
UNITS = (
    FORKED,
    ENGINES,
    ("tests/stack/test_own_engine.py",),
    ("tests/stack/test_nano.py",),
    ("tests/stack/",),  # one server
)


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """A file is one unit of work, and so is what belongs together."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        number = place(file)
        return UNITS[number][0] if number < len(UNITS) else file


def place(file: str) -> int:
    """Of a file's unit in the order of the whole run."""
    return next((number for number, unit in enumerate(UNITS) if file.startswith(unit)), len(UNITS))
