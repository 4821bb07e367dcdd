"""Which ids end a turn: [EOS] and <|im_end|>, whatever generation_config.json says. Knows vLLM's two sources of them.

vLLM stops at the tokenizer's one end token and at the ids that the generation config names. The tokenizer gives the one
that the checkpoint's file leaves out (`primary`); where that is not enough, `complete` gives vLLM a completed file.
"""

import atexit
import json
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from kimi_serve.inputs.config import parse_generation_config
from kimi_serve.inputs.tokenizer import Tokenizer

if TYPE_CHECKING:
    from vllm.config import ModelConfig

FILE = "generation_config.json"


def primary(directory: Path, native: Tokenizer) -> str:
    """The end token for the tokenizer: <|im_end|>, which ends a turn, unless the file names it and not [EOS]."""
    file = directory / FILE
    stated = parse_generation_config(json.loads(file.read_text("utf-8"))).eos_token_ids if file.exists() else ()
    return "[EOS]" if stated and native.special_id("[EOS]") not in stated else "<|im_end|>"


def complete(model_config: "ModelConfig", native: Tokenizer, tokenizer_stop: int) -> bool:
    """Make the generation config of `model_config` name every stop id; whether it had to change."""
    config = model_config.try_get_generation_config()
    stated = config.get("eos_token_id") or []
    named = {stated} if isinstance(stated, int) else set(stated)
    wanted = set(native.stop_token_ids())
    if wanted <= named | {tokenizer_stop}:
        return False
    neutral = model_config.generation_config == "vllm"  # of that file vLLM then takes the stop ids alone
    completed = {} if neutral else {key: value for key, value in config.items() if not key.startswith("_")}
    completed["eos_token_id"] = sorted(named | wanted)
    # A folder is the one form in which vLLM takes another generation config.
    folder = tempfile.mkdtemp(prefix="kimi_serve_generation_")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (Path(folder) / FILE).write_text(json.dumps(completed), encoding="utf-8")
    model_config.generation_config = folder
    if neutral:
        model_config.override_generation_config.setdefault("temperature", 1.0)
    return True
