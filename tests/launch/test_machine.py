"""Reading this very machine: only what holds on any."""

import os

import pytest

from kimi_serve.launch import machine


def test_this_machine_is_described_consistently() -> None:
    here = machine.read()
    assert here.cpus == tuple(sorted(os.sched_getaffinity(0)))
    assert 1 <= here.cores <= len(here.cpus)
    assert 0 < here.memory_available <= here.memory_total
    assert here.numa_nodes >= 1


def test_the_cpu_build_of_vllm_is_told_without_importing_it() -> None:
    assert machine.installed_engine() == "cpu"


def test_a_container_limit_counts_where_it_is_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB",
        "/sys/fs/cgroup/memory.max": str(500 << 10),
        "/sys/fs/cgroup/memory.current": str(200 << 10),
        "/sys/fs/cgroup/memory.stat": f"anon 1\ninactive_file {50 << 10}",
    }
    monkeypatch.setattr(machine, "_read", files.get)
    assert machine.read_memory() == (500 << 10, 350 << 10)


def test_an_unlimited_container_has_the_machines_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"/proc/meminfo": "MemTotal: 1000 kB\nMemAvailable: 900 kB", "/sys/fs/cgroup/memory.max": "max"}
    monkeypatch.setattr(machine, "_read", files.get)
    assert machine.read_memory() == (1000 << 10, 900 << 10)
