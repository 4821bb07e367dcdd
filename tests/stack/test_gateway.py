"""The gateway in front of the real engine: its counts are the engine's, and its clients see no difference."""

import base64
import io
import os
import random

import httpx
import openai
from PIL import Image

from kimi_serve.gateway.gateway import Gateway
from tests.stack.served import CONTEXT, NAME, fresh_http

COUNT = int(os.environ.get("KIMI_SERVE_COST_REQUESTS", "60"))  # 500 for the claim in the documentation
SPECIAL = (
    "<|im_end|>",
    "<|media_pad|>",
    "◁/think▷",
    "◁think▷",
    "[EOS]",
    "\x00",
    "\u200d",
    "👩‍👩‍👧",
    "ﷺ",
    "月之暗面",
    "\r\n\t ",
)


def text(rng: random.Random) -> str:
    pieces = [rng.choice(SPECIAL) if rng.random() < 0.3 else words(rng) for _ in range(rng.randrange(1, 6))]
    return "".join(pieces)


def words(rng: random.Random) -> str:
    return "".join(chr(rng.choice((rng.randrange(32, 127), rng.randrange(0xA0, 0x2FF), rng.randrange(0x4E00, 0x4F00))))
                   for _ in range(rng.randrange(1, 60)))  # fmt: skip


def picture(rng: random.Random) -> dict[str, object]:
    image = Image.new(rng.choice(("RGB", "L", "P")), (rng.randrange(1, 700), rng.randrange(1, 700)), rng.randrange(255))
    stored, options = io.BytesIO(), {}
    kind = rng.choice(("PNG", "JPEG", "WEBP", "BMP", "GIF"))
    if kind == "JPEG" and rng.random() < 0.5:
        exif = Image.Exif()
        exif[274] = rng.randrange(1, 9)
        options["exif"] = exif.tobytes()
    (image if kind not in ("JPEG", "WEBP") else image.convert("RGB")).save(stored, kind, **options)
    url = f"data:image/{kind.lower()};base64,{base64.b64encode(stored.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def conversation(rng: random.Random) -> dict[str, object]:
    """A request of up to five messages with up to four pictures, sometimes with tools and thoughts."""
    messages: list[dict[str, object]] = []
    for _ in range(rng.randrange(1, 6)):
        role = rng.choice(("user", "user", "assistant", "system", "tool"))
        content: object = text(rng)
        if role == "user" and rng.random() < 0.6:
            parts: list[dict[str, object]] = [{"type": "text", "text": text(rng)}]
            parts += [picture(rng) for _ in range(rng.randrange(0, 3))]
            rng.shuffle(parts)
            content = parts
        if role == "assistant" and rng.random() < 0.5:
            content = f"◁think▷{text(rng)}◁/think▷{text(rng)}"
        message = {"role": role, "content": content}
        messages.append({**message, "tool_call_id": "x"} if role == "tool" else message)
    body: dict[str, object] = {"model": NAME, "messages": messages, "max_tokens": 1, "temperature": 0}
    if rng.random() < 0.2:
        body["tools"] = [{"type": "function", "function": {"name": "look", "description": text(rng), "parameters": {}}}]
    if rng.random() < 0.2:
        body["chat_template_kwargs"] = {"keep_thoughts": True}
    return body


def test_every_prompt_is_counted_to_the_token(front: tuple[str, Gateway]) -> None:
    different = []
    with httpx.Client(base_url=front[0], timeout=120, trust_env=False) as http:
        for seed in range(COUNT):
            body = conversation(random.Random(seed))
            response = http.post("/v1/chat/completions", json=body)
            assert response.status_code == 200, (seed, response.text)
            counted = int(response.headers["x-kimi-serve-prompt-tokens"])
            told = response.json()["usage"]["prompt_tokens"]
            tokenized = http.post("/tokenize", json={k: v for k, v in body.items() if k != "max_tokens"}).json()[
                "count"
            ]
            if not counted == told == tokenized:
                different.append((seed, counted, told, tokenized))
    assert different == []
    assert front[1].admission.snapshot().outstanding.requests == 0
    assert front[1].ledger.total == 0


def test_a_prompt_one_token_too_long_is_refused_before_the_engine(front: tuple[str, Gateway]) -> None:
    with httpx.Client(base_url=front[0], timeout=60, trust_env=False) as http:
        body = {"model": NAME, "messages": [{"role": "user", "content": "a"}]}
        used = http.post("/tokenize", json=body).json()["count"]
        refused = http.post("/v1/chat/completions", json={**body, "max_tokens": CONTEXT - used + 1})
        assert refused.json()["error"]["code"] == "context_length_exceeded"


def test_streams_arrive_whole_with_usage(front: tuple[str, Gateway]) -> None:
    url = f"{front[0]}/v1"
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, http_client=fresh_http(url)) as client:
        options = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
        whole = client.chat.completions.create(**options)  # type: ignore[call-overload]
        chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))  # type: ignore[call-overload]
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == whole.choices[0].message.content
    assert chunks[-1].usage.prompt_tokens == whole.usage.prompt_tokens
