"""What the quantizer's tests share: the golden checkpoint, made once, and what became of it under each scheme."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from kimi_serve.quantize import command
from kimi_serve.quantize.options import Options

PACK = Path(__file__).parent.parent / "golden"


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("golden") / "checkpoint"
    subprocess.run([sys.executable, PACK / "make_checkpoint.py", target], check=True, capture_output=True, timeout=60)
    return target


@pytest.fixture(scope="session")
def quantized(golden: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The golden checkpoint under a scheme; each is made once."""
    made: dict[tuple[tuple[str, object], ...], Path] = {}

    def quantize(scheme: str, **options: object) -> Path:
        key = (("scheme", scheme), *sorted(options.items()))
        if key not in made:
            target = tmp_path_factory.mktemp("quantized") / scheme
            command.run(Options(golden, target, scheme, **options))  # type: ignore[arg-type]
            made[key] = target
        return made[key]

    return quantize
