"""What the tests over HTTP share: the golden checkpoint, one engine for the session, and what its prompts should be."""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import httpx
import openai
import pytest

from kimi_serve.gateway.app import create_app
from kimi_serve.gateway.gateway import Gateway
from kimi_serve.gateway.settings import read
from kimi_serve.inputs.chat import render
from kimi_serve.inputs.config import Checkpoint, load_checkpoint
from kimi_serve.inputs.tokenizer import Tokenizer
from kimi_serve.testing.serving import in_thread
from tests.stack.served import CONTEXT, Server

HERE = Path(__file__).parent
GOLDEN = HERE.parent / "golden"
# The golden model's tokens are noise: it thinks only in tests that say so.
# Without free white space a grammar leads even noise to the end of its JSON.
# KIMI_SERVE_TEST_FLAGS="--data-parallel-size 2" runs the same tests on an engine that is served so.
FLAGS = [
    *("--dtype", "float32", "--max-model-len", str(CONTEXT)),
    *("--reasoning-parser", "kimi_vl_when_told"),
    "--enable-mm-embeds",
    *("--structured-outputs-config.backend=xgrammar", "--structured-outputs-config.disable_any_whitespace=true"),
    *shlex.split(os.environ.get("KIMI_SERVE_TEST_FLAGS", "")),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.engine)
            item.add_marker(pytest.mark.timeout(600))  # the first test of all waits for the engine


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("golden") / "checkpoint"
    directory.mkdir()
    script = [sys.executable, str(GOLDEN / "make_checkpoint.py"), str(directory)]
    subprocess.run(script, check=True, capture_output=True, timeout=120)
    return directory


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(checkpoint, FLAGS, tmp_path_factory.mktemp("engine") / "engine.log") as started:
        yield started


@pytest.fixture(autouse=True)
def engine_log(request: pytest.FixtureRequest) -> Iterator[None]:
    """Show what the engine wrote during a test that fails."""
    if "server" not in request.fixturenames:
        yield
        return
    server: Server = request.getfixturevalue("server")
    before = len(server.log)
    yield
    print(server.log[before:][-8000:])


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[openai.OpenAI]:
    with server.client() as opened:
        yield opened


@pytest.fixture(scope="module")
def front(server: Server, checkpoint: Path) -> Iterator[tuple[str, Gateway]]:
    opened: list[Gateway] = []
    settings = read(None, checkpoint=checkpoint, replicas={"urls": [server.url], "check_s": 0.5})
    with in_thread(create_app(settings, opened.append)) as served, httpx.Client(base_url=served.url) as http:
        for _ in range(100):
            if http.get("/readyz").status_code == 200:
                break
        assert http.get("/readyz").json()["status"] == "ready"
        yield served.url, opened[0]


@pytest.fixture(scope="session")
def files(checkpoint: Path) -> Checkpoint:
    return load_checkpoint(checkpoint)


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return Tokenizer.from_directory(checkpoint)


@pytest.fixture(scope="session")
def prompt_ids(tokenizer: Tokenizer, files: Checkpoint) -> Callable[..., list[int]]:
    """The ids that a conversation must become, with its images' sizes in order."""

    def expected(
        messages: Sequence[Mapping[str, object]], sizes: Sequence[tuple[int, int]] = (), **options: bool
    ) -> list[int]:
        counts = (files.image.geometry.num_tokens(*size) for size in sizes)
        pad = files.model.media_placeholder_token_id
        ids = render(messages, tokenizer, **options)
        return [i for each in ids for i in [each] * (next(counts) if each == pad else 1)]

    return expected


@pytest.fixture(scope="session")
def golden_cases() -> dict[str, dict[str, object]]:
    cases = json.loads((GOLDEN / "cases.json").read_text(encoding="utf-8"))
    return {case["id"]: case for case in cases["language_cases"] + cases["image_mode_cases"]}
