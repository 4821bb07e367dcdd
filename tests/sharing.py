"""Which test files one worker of `pytest -n` runs, so that they share what takes a minute to start. Knows paths."""

from xdist.scheduler import LoadFileScheduling

# The files of one folder share engines, or one server, but for those that start their own.
TOGETHER = ("tests/engine/", "tests/stack/")
APART = ("tests/stack/test_nano.py", "tests/stack/test_own_engine.py", "tests/stack/test_plugin.py")
FIRST = (*TOGETHER, *APART)  # what takes longest, so that no worker begins it when the other has nothing left


class Scheduling(LoadFileScheduling):  # type: ignore[misc]
    """A file is one unit of work, and so is what belongs together."""

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid.partition("::")[0])


def unit(file: str) -> str:
    return next((folder for folder in TOGETHER if file.startswith(folder) and file not in APART), file)


def place(file: str) -> int:
    """Of a file's unit in the order of the whole run."""
    return FIRST.index(found) if (found := unit(file)) in FIRST else len(FIRST)
