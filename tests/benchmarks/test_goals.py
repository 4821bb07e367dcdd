"""Which goals are judged, and how: by what was measured and nothing else."""

from benchmarks.full_size import Row
from benchmarks.goals import Start, judged


def row(target: str, what: str, rate: float, ceiling: float = 20) -> Row:
    return Row(target, what, [rate], [ceiling], [2e10])


def test_what_was_not_measured_is_not_judged() -> None:
    assert judged("int4", [], None) == []
    assert not any("llama" in line for line in judged("int4", [row("kimi-serve int4", "decode, 1 sequence", 12)], None))


def test_one_sequence_is_judged_by_its_ceiling_and_its_peer() -> None:
    rows = [row("kimi-serve int4", "decode, 1 sequence", 12), row("llama.cpp Q4_0", "decode, 1 sequence", 10)]
    assert judged("int4", rows, None) == [
        "- one sequence, of the ceiling of its rounds (int4): 0.60 (goal: at least 0.75): DOES NOT HOLD",
        "- one sequence, times llama.cpp Q4_0: 1.20 (goal: at least 1.4): DOES NOT HOLD",
    ]
    rows[0].samples = [16]
    assert all(line.endswith(": holds") for line in judged("int4", rows, None))


def test_sixteen_sequences_are_not_taken_for_one() -> None:
    told = judged("int4", [row("kimi-serve int4", "decode, 16 sequences", 41)], None)
    assert told == ["- 16 sequences, tokens/s in all: 41.00 (goal: at least 40): holds"]


def test_memory_is_judged_without_the_cache_whose_size_is_chosen() -> None:
    start = Start(ready_s=70, loading_s=20, memory=15 << 30, largest=14 << 30, cache=5 << 30, stored=9 << 30)
    slow, memory = judged("int4", [], start)
    assert slow.endswith("DOES NOT HOLD")
    assert memory.endswith("1.11 (goal: at most 1.15): holds")
