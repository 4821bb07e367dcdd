"""The OpenAI client against a real engine: what it sends works, and comes back as the protocol says."""

import json
import math
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest

from tests.stack import pictures
from tests.stack.served import CONTEXT, NAME, Server

HI = [{"role": "user", "content": "Hi"}]
SEVERAL = [
    {
        "role": "user",
        "content": [
            pictures.text("First: "),
            pictures.part(pictures.plain(140, 112)),
            pictures.text(" and "),
            pictures.part(pictures.noise(300, 71)),
            pictures.part(pictures.plain(33, 500)),
        ],
    }
]
SIZES = [(140, 112), (300, 71), (33, 500)]
SCHEMA = {
    "type": "object",
    "properties": {"colour": {"type": "string", "enum": ["red", "blue"]}, "is_round": {"type": "boolean"}},
    "required": ["colour", "is_round"],
    "additionalProperties": False,
}
GREEDY = {"model": NAME, "temperature": 0, "max_tokens": 12}

PromptIds = Callable[..., list[int]]


@pytest.fixture
def web() -> Iterator[str]:
    """A web server with one picture, /red.png."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = self.path == "/red.png"
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(pictures.plain(140, 112) if found else b"nothing here")

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == NAME
    assert model.to_dict()["max_model_len"] == CONTEXT


def test_an_answer_and_its_usage(client: openai.OpenAI, prompt_ids: PromptIds) -> None:
    answer = client.chat.completions.create(messages=HI, **GREEDY)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(prompt_ids(HI))
    assert answer.usage.completion_tokens == 12


def test_curl_gets_an_answer_too(server: Server) -> None:
    body = json.dumps({"model": NAME, "messages": HI, "max_tokens": 3})
    argv = [
        "curl",
        "-sS",
        "--noproxy",
        "*",
        f"{server.url}/v1/chat/completions",
        "-H",
        "Content-Type: application/json",
    ]
    done = subprocess.run([*argv, "-d", body], check=True, capture_output=True, timeout=120)
    assert json.loads(done.stdout)["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("messages", [HI, SEVERAL], ids=["text", "images"])
def test_streamed_pieces_join_to_the_whole_answer(client: openai.OpenAI, messages: list[dict[str, object]]) -> None:
    whole = client.chat.completions.create(messages=messages, **GREEDY)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, last = client.chat.completions.create(messages=messages, **GREEDY, **options)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == whole.choices[0].finish_reason
    assert last.choices == []
    assert last.usage.to_dict(exclude_none=True) == whole.usage.to_dict(exclude_none=True)


def test_the_prompt_of_several_images_is_what_inputs_says(server: Server, prompt_ids: PromptIds) -> None:
    expected = prompt_ids(SEVERAL, SIZES)
    reply = server.conversation(SEVERAL, return_token_ids=True)
    assert reply.body["prompt_token_ids"] == expected
    assert reply.prompt_tokens == len(expected)
    assert server.tokenize(SEVERAL) == expected


def test_images_of_several_turns_stay_in_their_turns(server: Server, prompt_ids: PromptIds) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [pictures.part(pictures.plain(140, 112)), pictures.text("What?")]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [pictures.text("And this?"), pictures.part(pictures.plain(70, 56))]},
    ]
    expected = prompt_ids(turns, [(140, 112), (70, 56)])
    assert server.conversation(turns, return_token_ids=True).body["prompt_token_ids"] == expected


def test_a_picture_by_url_is_the_picture_inlined(server: Server, web: str) -> None:
    inlined = server.chat([pictures.part(pictures.plain(140, 112)), pictures.text("What?")])
    assert (
        server.chat([pictures.at(f"{web}/red.png"), pictures.text("What?")]).body["choices"] == inlined.body["choices"]
    )


def test_a_url_without_a_picture_is_refused_with_its_status(server: Server, web: str) -> None:
    reply = server.chat([pictures.at(f"{web}/blue.png")])
    assert reply.status == 422
    assert "404" in reply.error


def test_a_picture_is_repeated_by_its_uuid(server: Server) -> None:
    first = server.chat([{**pictures.part(pictures.noise(84, 84)), "uuid": "noise-1"}, pictures.text("What?")])
    again = server.chat([{"type": "image_url", "image_url": None, "uuid": "noise-1"}, pictures.text("What?")])
    assert again.text == first.text
    assert again.prompt_tokens == first.prompt_tokens


def test_a_uuid_that_was_never_sent_is_refused(server: Server) -> None:
    reply = server.chat([{"type": "image_url", "image_url": None, "uuid": "never"}])
    assert reply.status == 400
    assert "image" in reply.error


def test_different_pictures_get_different_answers(server: Server) -> None:
    red, grey = (server.chat([pictures.part(data)]).text for data in (pictures.plain(84, 84), pictures.noise(84, 84)))
    assert red != grey


def test_logprobs_hold_the_chosen_token_among_the_best(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(messages=HI, logprobs=True, top_logprobs=5, **GREEDY)
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == 12
    for token in tokens:
        assert len(token.top_logprobs) == 5
        assert token.logprob == max(top.logprob for top in token.top_logprobs)  # greedy
        assert sum(math.exp(top.logprob) for top in token.top_logprobs) <= 1.0001


def test_n_gives_as_many_different_answers(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=NAME, messages=HI, n=2, temperature=1, seed=7, max_tokens=12, logprobs=True
    )
    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].message.content != answer.choices[1].message.content
    assert answer.usage.completion_tokens == 24


def test_a_seed_repeats_an_answer(client: openai.OpenAI) -> None:
    def ask(seed: int) -> str | None:
        options = {"temperature": 1, "seed": seed, "max_tokens": 12}
        return client.chat.completions.create(model=NAME, messages=HI, **options).choices[0].message.content

    assert ask(1) == ask(1)
    assert ask(1) != ask(2)


def test_without_a_temperature_the_checkpoints_own_holds(server: Server) -> None:
    # generation_config.json of the golden checkpoint states 0.2.
    unset, stated, other = (
        server.chat("Hi", max_tokens=40, seed=3, temperature=temperature).text for temperature in (None, 0.2, 1.0)
    )
    assert unset == stated != other


def test_a_stop_string_ends_the_answer_before_it(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(messages=HI, **GREEDY).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    choice = client.chat.completions.create(messages=HI, stop=[stop], **GREEDY).choices[0]
    assert choice.message.content == whole[: whole.index(stop)]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize("name", ["[EOS]", "<|im_end|>"])
def test_both_ends_of_a_turn_always_stop(server: Server, tokenizer, name: str) -> None:
    reply = server.chat("Hi", logit_bias={str(tokenizer.special_id(name)): 100}, max_tokens=9, return_token_ids=True)
    assert reply.body["choices"][0]["finish_reason"] == "stop"
    assert reply.body["choices"][0]["token_ids"] == [tokenizer.special_id(name)]
    assert not reply.body["choices"][0]["message"]["content"]


def test_a_json_schema_is_kept(client: openai.OpenAI) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model=NAME, messages=HI, response_format=form, temperature=1, seed=1, max_tokens=200
    )
    thing = json.loads(answer.choices[0].message.content)
    assert thing["colour"] in ("red", "blue")
    assert isinstance(thing["is_round"], bool)
    assert set(thing) == {"colour", "is_round"}


def test_a_json_object_is_json(server: Server, tokenizer) -> None:
    # Noise goes on for as long as it may, unless it likes quotes most and braces next.
    bias = {str(tokenizer.encode(sign)[0]): liking for sign, liking in (('"', 100), ("}", 90))}
    reply = server.chat("Hi", response_format={"type": "json_object"}, logit_bias=bias, max_tokens=200)
    assert isinstance(json.loads(reply.text), dict)


def test_the_answer_continues_the_final_message(server: Server, prompt_ids: PromptIds) -> None:
    turns = [*HI, {"role": "assistant", "content": "The colour is"}]
    options = {"continue_final_message": True, "add_generation_prompt": False}
    expected = prompt_ids(turns, **options)
    assert server.conversation(turns, return_token_ids=True, **options).body["prompt_token_ids"] == expected


@pytest.mark.parametrize("keep", [False, True])
def test_earlier_thoughts_are_left_out_unless_kept(server: Server, prompt_ids: PromptIds, keep: bool) -> None:
    turns = [*HI, {"role": "assistant", "content": "◁think▷so◁/think▷Yes"}, {"role": "user", "content": "Sure?"}]
    options = {"chat_template_kwargs": {"keep_thoughts": True}} if keep else {}
    assert server.tokenize(turns, **options) == prompt_ids(turns, keep_thoughts=keep)
    assert server.conversation(turns, **options).prompt_tokens == len(prompt_ids(turns, keep_thoughts=keep))


def test_a_raw_prompt_reads_control_tokens(server: Server, tokenizer) -> None:
    prompt = "<|im_user|>user<|im_middle|>Hi<|im_end|><|im_assistant|>assistant<|im_middle|>"
    reply = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 2, "return_token_ids": True})
    assert reply.body["choices"][0]["prompt_token_ids"] == tokenizer.encode(prompt, special=True)


@pytest.mark.parametrize("effort", ["low", "none"])
def test_options_of_other_models_that_clients_send_change_nothing(server: Server, effort: str) -> None:
    assert server.chat("Hi", reasoning_effort=effort).text == server.chat("Hi").text
