"""A checkpoint with tensors that no process should hold whole, and how much memory a verb takes for it."""

import json
import subprocess
import sys
from pathlib import Path

from kimi_serve.inputs.config import parse_model_config
from kimi_serve.inputs.tensors import expected_tensors
from kimi_serve.quantize.layout import Output, header

ROOT = Path(__file__).parents[2]
ROWS = 160_000_000 // 128  # of 64 values in bfloat16


def widen(checkpoint: Path) -> None:
    """Give it a sparse embedding and head of 160 MB each."""
    config = json.loads((checkpoint / "config.json").read_text())
    config["vocab_size"] = config["text_config"]["vocab_size"] = ROWS
    (checkpoint / "config.json").write_text(json.dumps(config))
    outputs = [Output(name, "BF16", shape) for name, shape in expected_tensors(parse_model_config(config)).items()]
    with (checkpoint / "model.safetensors").open("wb") as file:
        file.write(header(outputs))
        file.truncate(file.tell() + sum(output.nbytes for output in outputs))


def growth(verb: str, package: str, *arguments: str) -> int:
    """Kilobytes that `kimi-serve VERB` takes beside what its imports do."""
    code = (
        f"import resource, sys; from kimi_serve import cli; from kimi_serve.{package} import command; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        f"assert cli.main({[verb, *arguments]!r}) == 0; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return int(shown.stdout.splitlines()[-1])
