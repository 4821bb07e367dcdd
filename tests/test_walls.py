"""The walls between the parts: told by import-linter from the sources, and by a fresh process from what it loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ENGINES = ("vllm", "torch", "transformers")


def loaded_by(module: str) -> set[str]:
    code = f"import {module}, sys; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(shown.stdout.split())


@pytest.mark.parametrize(
    "module",
    [
        "kimi_serve.cli",
        "kimi_serve.plugin",
        "kimi_serve.launch.doctor",
        "kimi_serve.inputs",
        "kimi_serve.inputs.chat",
        "kimi_serve.inputs.config",
        "kimi_serve.inputs.geometry",
        "kimi_serve.inputs.image_processor",
        "kimi_serve.inputs.tokenizer",
        "kimi_serve.kernels.library",
        "kimi_serve.gateway.run",
        "kimi_serve.testing.fake_engine",
        "kimi_serve.protocol.chat",
        "kimi_serve.plan.command",
        "kimi_serve.quantize.options",
        "kimi_serve.merge.options",
        "kimi_serve.inputs.adapter",
    ],
)
def test_importing_it_loads_no_engine(module: str) -> None:
    assert loaded_by(module).isdisjoint(ENGINES)


def test_geometry_loads_neither_numpy_nor_pil() -> None:
    assert loaded_by("kimi_serve.inputs.geometry").isdisjoint({"numpy", "PIL", "tiktoken"})


def test_every_contract_on_imports_is_kept() -> None:
    lint_imports = Path(sys.executable).parent / "lint-imports"
    shown = subprocess.run([lint_imports, "--no-cache"], capture_output=True, text=True, check=False, cwd=ROOT)
    assert shown.returncode == 0, shown.stdout
    assert "0 broken" in shown.stdout


def test_a_forbidden_import_breaks_a_contract(tmp_path: Path) -> None:
    """The contracts bite: the same configuration over a gateway that imports torch."""
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for source in (ROOT / "kimi_serve").rglob("*.py"):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    gateway = tmp_path / "kimi_serve" / "gateway"
    (gateway / "breach.py").write_text("import torch\nfrom kimi_serve.inputs import config\n")
    lint_imports = Path(sys.executable).parent / "lint-imports"
    shown = subprocess.run([lint_imports, "--no-cache"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert shown.returncode == 1
    assert "kimi_serve.gateway.breach -> torch" in shown.stdout
    assert "kimi_serve.gateway.breach -> kimi_serve.inputs.config" in shown.stdout
