"""A broken plugin ends in an error, never in vLLM's own class of the same name; a listed one is in use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kimi_serve.launch.up import free_port
from tests.stack.served import command
from tests.vllm_host import TOO_LONG, Host, Ran

OURS = "kimi_serve.model.kimi_vl"


def serve(host: Host, checkpoint: Path, before: str = "", **environ: str) -> Ran:
    """Plain `vllm serve`, which must end by itself; `before` is run in its process first."""
    argv = ["vllm", "serve", str(checkpoint), "--port", str(free_port()), "--max-model-len", "2048"]
    code = f"{before}\nimport sys\nfrom vllm.entrypoints.cli.main import main\nsys.argv = {argv!r}\nmain()\n"
    return host.run("-c", code, VLLM_MLA_DISABLE="1", **environ)


def broken(folder: Path, module: str) -> dict[str, str]:
    """An environment in which every Python that starts fails to import `module`."""
    (folder / "sitecustomize.py").write_text(breaking(module))
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def breaking(module: str) -> str:
    return (
        "import sys\n"
        "class Broken:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        f"            raise ImportError('broken on purpose: ' + name)\n"
        "sys.meta_path.insert(0, Broken())\n"
    )


@pytest.mark.parametrize("module", [OURS, "kimi_serve.plugin"])
def test_a_plugin_that_does_not_import_ends_the_engine(
    vllm_host: Host, checkpoint: Path, tmp_path: Path, module: str
) -> None:
    done = serve(vllm_host, checkpoint, breaking(module), **broken(tmp_path, module))
    assert done.status not in (0, TOO_LONG)
    assert f"broken on purpose: {module}" in done.stdout + done.stderr
    assert "Application startup complete" not in done.stdout + done.stderr


def test_an_allow_list_without_the_plugin_ends_the_engine(vllm_host: Host, checkpoint: Path) -> None:
    done = serve(vllm_host, checkpoint, VLLM_PLUGINS="")
    assert done.status not in (0, TOO_LONG)
    assert "Application startup complete" not in done.stdout + done.stderr


@pytest.mark.parametrize("allowed", ["", "other", "other,another"])
def test_the_launcher_refuses_an_allow_list_without_the_plugin(checkpoint: Path, allowed: str) -> None:
    argv = [command("kimi-serve"), "engine", str(checkpoint)]
    done = subprocess.run(
        argv, env={**os.environ, "VLLM_PLUGINS": allowed}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "leaves 'kimi_serve' out" in done.stderr


def test_the_doctor_says_whose_class_is_in_use(checkpoint: Path, tmp_path: Path) -> None:
    argv = [command("kimi-serve"), "doctor", str(checkpoint)]
    well = subprocess.run(
        argv, env={**os.environ, "VLLM_PLUGINS": "kimi_serve"}, capture_output=True, text=True, timeout=200, check=False
    )
    assert f"{OURS}.KimiVLForConditionalGeneration" in well.stdout
    assert well.returncode == 0
    # What a plugin that does not import leads to is among the doctor's own tests; here, a vLLM that does not.
    ill = subprocess.run(
        argv, env={**os.environ, **broken(tmp_path, "vllm")}, capture_output=True, text=True, timeout=200, check=False
    )
    assert "FAIL  class in use" in ill.stdout
    assert ill.returncode == 1


def test_this_environment_has_one_plugin_of_this_name() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlib.metadata import entry_points as e; "
            "print([p.value for p in e(group='vllm.general_plugins', name='kimi_serve')])",
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "['kimi_serve.plugin:register']"
