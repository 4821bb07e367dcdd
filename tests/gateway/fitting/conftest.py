"""A checkpoint whose images have as many tokens as Kimi-VL-Instruct's. Knows files; expects nothing."""

import json
import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def checkpoint(golden_pack: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, given = tmp_path_factory.mktemp("checkpoint"), golden_pack / "checkpoint"
    for name in ("tiktoken.model", "tokenizer_config.json"):
        shutil.copy(given / name, folder / name)
    told = json.loads((given / "preprocessor_config.json").read_text("utf-8"))
    (folder / "preprocessor_config.json").write_text(json.dumps({**told, "in_token_limit": 4096}), "utf-8")
    return folder
