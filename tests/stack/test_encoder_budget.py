"""The encoder's budget follows the checkpoint: its costliest images are served with default flags."""

import json
import shutil
from pathlib import Path

import pytest

from kimi_serve.inputs.config import load_checkpoint
from tests.stack import pictures
from tests.stack.served import Server

LIMIT = 16_384  # as in Thinking-2506
LARGEST = (1792, 1792)  # 4096 tokens
COSTLY = (500, 6000)  # more than LIMIT patches: scaled down, then padded


@pytest.fixture(scope="module")
def large(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("large") / "Kimi-VL-Instruct"
    shutil.copytree(checkpoint, directory)
    file = directory / "preprocessor_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text("utf-8")), "in_token_limit": LIMIT}))
    return directory


def test_the_largest_images_are_served_with_default_flags(large: Path, tmp_path: Path) -> None:
    geometry = load_checkpoint(large).image.geometry
    with Server(large, ["--max-model-len", "8192"], tmp_path / "engine.log", {"VLLM_MLA_DISABLE": "1"}) as server:
        text = server.chat("").prompt_tokens
        for sizes in ([LARGEST], [COSTLY], [(1260, 1260), (1260, 1260), (1288, 1260)]):
            reply = server.chat([pictures.part(pictures.plain(*size)) for size in sizes], max_tokens=2)
            assert reply.status == 200, reply.body
            images = sum(geometry.num_tokens(*size) + 5 for size in sizes)  # five around each
            assert reply.prompt_tokens == text + images
            assert images > 2048 // 2
