"""A folder of the published size: configuration, and stand-ins for the tokenizer's files. Knows no weights."""

import base64
import json
import shutil
from pathlib import Path

CONFIG = Path(__file__).parent / "full_size_config.json"


def write(folder: Path, golden: Path) -> None:
    """`golden`: the golden checkpoint's folder, whose other files fit."""
    shutil.copy(golden / "preprocessor_config.json", folder)
    shutil.copy(CONFIG, folder / "config.json")
    write_vocabulary(folder)
    write_special_tokens(golden / "tokenizer_config.json", folder)


def write_special_tokens(golden: Path, folder: Path) -> None:
    """The golden names at the published ids, which follow the published 163,584 byte pairs."""
    config = json.loads(golden.read_text())
    shift = 163_584 - 1024
    config["added_tokens_decoder"] = {str(int(i) + shift): token for i, token in config["added_tokens_decoder"].items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_vocabulary(directory: Path) -> None:
    """A stand-in for tiktoken.model of the published size: single bytes, then made-up pairs."""
    tokens = [bytes([i]) for i in range(256)] + [b"\xff" + i.to_bytes(3, "big") for i in range(163584 - 256)]
    lines = (base64.b64encode(token) + b" %d" % rank for rank, token in enumerate(tokens))
    (directory / "tiktoken.model").write_bytes(b"\n".join(lines))
