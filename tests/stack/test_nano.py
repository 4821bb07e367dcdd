"""What a newcomer gets: `kimi-serve up` with the bundled checkpoint, held-out pictures, and a clean end."""

import base64
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from kimi_serve.launch.footprint import BUNDLED
from kimi_serve.launch.up import free_port
from tests.stack.served import command, fresh_http

SAMPLES = Path(__file__).parents[1] / "nano"
# Of the 40 samples. The card beside the weights has the scores of many more; this only sees that answers are no noise.
LEAST_RIGHT = 25

pytestmark = pytest.mark.skipif(not (BUNDLED / "config.json").exists(), reason="no bundled checkpoint in this checkout")


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[subprocess.Popen[str], str, str]]:
    """The process, its URL, and what it printed until it was ready."""
    port, log = free_port(), tmp_path_factory.mktemp("up") / "engine.log"
    argv = [command("kimi-serve"), "up", "--port", str(port), "--log", str(log)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if "Ctrl-C" in line:
            break
    assert "Ctrl-C" in seen, f"{seen}\n{log.read_text(errors='replace')[-4000:]}"
    yield process, f"http://127.0.0.1:{port}/v1", seen
    process.terminate()
    process.communicate(timeout=60)  # also closes the pipe


def test_the_greeting_says_what_the_model_is_not(up: tuple[subprocess.Popen[str], str, str]) -> None:
    assert "NOT Kimi-VL" in up[2]


def test_the_first_answer_that_a_newcomer_gets_is_right(up: tuple[subprocess.Popen[str], str, str]) -> None:
    """The curl line of the greeting, with the gateway in between, as a shell runs it."""
    line = next(line for line in up[2].splitlines() if line.startswith("curl "))
    said = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=60).stdout
    assert json.loads(said)["choices"][0]["message"]["content"] == "a red circle"


def test_held_out_pictures_are_answered(up: tuple[subprocess.Popen[str], str, str]) -> None:
    client = OpenAI(base_url=up[1], api_key="none", max_retries=0, http_client=fresh_http(up[1]))
    samples = json.loads((SAMPLES / "samples.json").read_text("utf-8"))
    answers = [ask(client, sample) for sample in samples]
    right = [sample["task"] for sample, answer in zip(samples, answers, strict=True) if answer == sample["answer"]]
    assert len(right) >= LEAST_RIGHT, list(zip((s["answer"] for s in samples), answers, strict=True))


def test_interrupt_ends_it_with_success(up: tuple[subprocess.Popen[str], str, str]) -> None:
    up[0].send_signal(signal.SIGINT)
    assert up[0].wait(60) == 0


def ask(client: OpenAI, sample: dict[str, object]) -> str:
    pictures = [(SAMPLES / str(name)).read_bytes() for name in sample["pictures"]]  # type: ignore[attr-defined]
    urls = [f"data:image/png;base64,{base64.b64encode(data).decode()}" for data in pictures]
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": sample["question"]})
    messages = [{"role": "system", "content": sample["system"]}, {"role": "user", "content": content}]
    answer = client.chat.completions.create(
        model="kimi-vl-nano",
        messages=messages,  # type: ignore[arg-type]
        temperature=0,
        max_tokens=80,
    )
    return answer.choices[0].message.content or ""
