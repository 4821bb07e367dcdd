"""Batches of the fake engine: an input file, and a wait for the end. Knows the openai package."""

import json
import time
from collections.abc import Callable, Iterator, Sequence

import httpx
import openai
import pytest
from openai.types import Batch

from tests.gateway.conftest import MODEL, Front

ENDED = ("completed", "failed", "expired", "cancelled")
Json = dict[str, object]
Open = Callable[..., openai.OpenAI]


@pytest.fixture
def client_of() -> Iterator[Open]:
    """client_of(front, key) -> the openai package's client."""
    with httpx.Client(trust_env=False) as http:

        def opened(front: Front, key: str = "none") -> openai.OpenAI:
            return openai.OpenAI(base_url=f"{front.url}/v1", api_key=key, max_retries=0, http_client=http)

        yield opened


def chat_body(text: object = "Hello", **options: object) -> Json:
    return {"model": MODEL, "max_tokens": 8, "messages": [{"role": "user", "content": text}], **options}


def lines_of(bodies: Sequence[Json], endpoint: str = "/v1/chat/completions") -> bytes:
    lines = [
        {"custom_id": f"line-{number}", "method": "POST", "url": endpoint, "body": body}
        for number, body in enumerate(bodies)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def order(client: openai.OpenAI, data: bytes, endpoint: str = "/v1/chat/completions", **options: object) -> Batch:
    file = client.files.create(file=("in.jsonl", data), purpose="batch")
    window = options.pop("completion_window", "24h")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window=window,
        **options,  # type: ignore[arg-type]
    )


def ended(client: openai.OpenAI, batch_id: str, seconds: float = 120) -> Batch:
    deadline = time.monotonic() + seconds
    while (batch := client.batches.retrieve(batch_id)).status not in ENDED:
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
    return batch


def read(client: openai.OpenAI, file_id: str | None) -> list[Json]:
    if file_id is None:
        return []
    return [json.loads(line) for line in client.files.content(file_id).content.splitlines()]
