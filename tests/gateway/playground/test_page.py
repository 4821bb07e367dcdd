"""The page in a real Chromium: what is shown before, while and after a question is asked."""

import base64
import json
import time
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.gateway.conftest import Front, Start
from tests.gateway.expansion.corpus import pdf
from tests.gateway.expansion.films import film
from tests.gateway.media.pictures import saved
from tests.gateway.playground.browsing import Tab, tab

PHOTO = ("photo.png", "image/png", saved("PNG", size=(300, 200)))
SMALL = ("small.jpg", "image/jpeg", saved("JPEG", size=(64, 64)))
PAPER = ("paper.pdf", "application/pdf", pdf(2))
CLIP = ("clip.mp4", "video/mp4", film("mp4", frames=30, rate=10))


def url(file: tuple[str, str, bytes]) -> str:
    return f"data:{file[1]};base64,{base64.b64encode(file[2]).decode()}"


def tokenized(front: Front, *content: dict[str, Any], **fields: Any) -> dict[str, Any]:
    asked = {"model": "kimi-vl", "messages": [{"role": "user", "content": list(content)}], **fields}
    found: dict[str, Any] = front.http.post("/tokenize", json=asked).json()
    return found


def image(file: tuple[str, str, bytes], **also: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url(file), **also}}


def say(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def sent(front: Front) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(front.engines[0].record.requests[-1].body)
    return body


def chip_costs(opened: Tab) -> list[str]:
    return opened.page.locator(".chip-cost").all_inner_texts()


def test_it_opens_with_a_clean_console_and_the_cursor_in_the_message(opened: Tab) -> None:
    assert opened.page.title() == "Playground · kimi_serve"
    assert opened.page.evaluate("document.activeElement.id") == "message"
    assert opened.page.input_value("#model") == "kimi-vl"
    assert opened.text("#cost") == "8,192 tokens of context"


@pytest.mark.parametrize("by", ["drop", "paste"])
def test_a_picture_costs_what_tokenize_counts(opened: Tab, front: Front, by: str) -> None:
    opened.give(PHOTO, SMALL, by=by)
    opened.page.fill("#message", "What is it?")
    shown = opened.count()
    told = tokenized(front, image(PHOTO), image(SMALL), say("What is it?"))
    assert shown == f"{told['count']:,} of 8,192 tokens, {sum(told['image_tokens'])} of them pictures"
    assert chip_costs(opened) == [f"{tokens} tokens" for tokens in told["image_tokens"]]
    assert front.engines[0].record.count == 0


def test_a_chosen_file_is_attached_and_can_be_removed(opened: Tab) -> None:
    name, kind, data = PHOTO
    opened.page.set_input_files("#files", {"name": name, "mimeType": kind, "buffer": data})
    assert "of them pictures" in opened.count()
    opened.page.click("text=×")
    opened.wait_for("document.querySelector('#cost').textContent === '8,192 tokens of context'")
    assert opened.page.evaluate("document.activeElement.id") == "attach"


def test_a_document_and_a_video_cost_what_their_pages_and_frames_do(opened: Tab, front: Front) -> None:
    opened.give(PAPER, SMALL, CLIP)
    shown = opened.count()
    paper = {"type": "file", "file": {"filename": PAPER[0], "file_data": url(PAPER)}}
    told = tokenized(front, paper, image(SMALL), {"type": "video_url", "video_url": {"url": url(CLIP)}})
    first, second, small, *frames = told["image_tokens"]
    assert shown.startswith(f"{told['count']:,} of 8,192 tokens")
    assert chip_costs(opened) == [
        f"2 pages, {first + second:,} tokens", f"{small} tokens", f"{len(frames)} frames, {sum(frames):,} tokens"
    ]  # fmt: skip


def test_what_fit_makes_of_pictures_is_in_their_cost(opened: Tab, front: Front) -> None:
    large = ("large.png", "image/png", saved("PNG", size=(900, 900)))
    room = 8192 - tokenized(front, image(large))["count"] + 8  # eight tokens too few
    opened.give(large)
    opened.page.fill("#max-tokens", str(room))
    opened.page.select_option("#fit", "downscale")
    told = tokenized(front, image(large), max_tokens=room, fit="downscale")
    [pair] = told["kimi_serve"]["image_tokens"]
    assert pair["after"] < pair["before"]
    opened.page.locator(".chip-cost", has_text=f"{pair['after']} tokens").wait_for()
    assert (
        opened.text("#cost")
        == f"{told['count']:,} of 8,192 tokens, {pair['after']} of them pictures and {room:,} for the answer"
    )


def test_too_much_is_said_before_it_is_sent(opened: Tab) -> None:
    opened.page.fill("#message", "word " * 9000)
    assert opened.count().endswith("too many")
    assert "refused" in (opened.page.get_attribute("#cost", "class") or "")


def test_an_answer_streams_with_its_thought_apart(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"tokens": 6, "thought_tokens": 2, "text": "word ", "itl_s": 0.3})
    opened.ask("Hello")
    opened.page.locator(".answer[aria-busy=true] > .text", has_text="word").wait_for()  # while it streams
    opened.wait_for_end()
    assert opened.page.locator(".thought .text").text_content() == "word " * 2
    assert opened.page.locator(".answer > .text").text_content() == "word " * 4
    assert opened.text(".thought summary").startswith("Thought for")
    assert not opened.page.locator(".thought .text").is_visible()
    opened.page.click(".thought summary")
    assert opened.page.locator(".thought .text").is_visible()


def test_timings_and_usage_are_shown_behind_an_answer(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"tokens": 3, "prompt_tokens": 1234, "ttft_s": 0.2, "itl_s": 0.05})
    opened.ask("Hello")
    opened.wait_for_end()
    told = dict(zip(*(opened.page.locator(f".figures {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    assert set(told) == {"First token", "Speed", "Total", "Prompt", "Answer"}
    assert (told["Prompt"], told["Answer"]) == ("1,234 tokens", "3 tokens")
    assert told["Speed"].endswith(" tokens/s")


def test_settings_are_in_the_request(opened: Tab, front: Front) -> None:
    for field, value in {"#system": "Be brief.", "#temperature": "0.4", "#max-tokens": "12"}.items():
        opened.page.fill(field, value)
    opened.page.select_option("#detail", "high")
    opened.give(SMALL)
    opened.ask("What is it?")
    opened.wait_for_end()
    body = sent(front)
    assert (body["temperature"], body["max_tokens"], body["stream"]) == (0.4, 12, True)
    system, user = body["messages"]
    assert system == {"role": "system", "content": "Be brief."}
    assert user["content"][0]["image_url"] == {"url": url(SMALL), "detail": "high"}
    assert user["content"][1] == say("What is it?")


def test_a_conversation_goes_on_without_its_thoughts(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"tokens": 3, "thought_tokens": 1, "text": "yes "})
    opened.give(SMALL)
    opened.ask("Is it one?")
    opened.wait_for_end()
    opened.ask("Sure?")
    opened.wait_for_end(2)
    first, answer, second = sent(front)["messages"]
    assert first["content"][1] == say("Is it one?")
    assert answer == {"role": "assistant", "content": "yes yes "}
    assert second == {"role": "user", "content": "Sure?"}
    opened.page.click("#start-over")
    opened.ask("Hello again")
    opened.wait_for_end()
    assert sent(front)["messages"] == [{"role": "user", "content": "Hello again"}]


def test_stop_ends_the_request_at_the_engine(opened: Tab, front: Front) -> None:
    record = front.engines[0].record
    front.engines[0].once.append({"tokens": 100_000, "itl_s": 0.02})
    opened.ask("Count.")
    opened.page.locator(".answer > .text", has_text="token").wait_for()
    opened.page.click("#stop")
    opened.wait_for_end()
    assert opened.text(".note") == "Stopped."
    deadline = time.monotonic() + 10
    while not record.aborts and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(record.aborts) == 1
    assert record.aborts[0].frames < 100_000


def test_what_is_stopped_before_it_begins_is_written_again(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"ttft_s": 60.0})
    opened.give(SMALL)
    opened.ask("Hello")
    opened.page.click("#stop")
    opened.page.locator("#notice", has_text="Stopped before an answer began.").wait_for()
    assert opened.page.input_value("#message") == "Hello"
    assert opened.page.locator(".chip").count() == 1
    assert opened.page.locator(".turn").count() == 0


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", "<script>alert(1)</script>", "&lt;b&gt; **x**\n  y"])
def test_an_answer_is_text_whatever_it_looks_like(opened: Tab, front: Front, text: str) -> None:
    front.engines[0].once.append({"tokens": 2, "thought_tokens": 1, "text": text})
    opened.ask(text)
    opened.wait_for_end()
    for part in (".question .text", ".thought .text", ".answer > .text"):
        assert opened.page.locator(part).text_content() == text
        assert opened.page.locator(f"{part} *").count() == 0
    assert opened.page.locator("#announcer p").count() > 0
    assert opened.page.locator("#announcer p *").count() == 0


def test_a_files_name_is_text_too(opened: Tab) -> None:
    name = "<b onclick=alert(1)>.png"
    opened.give((name, *PHOTO[1:]))
    assert opened.text(".chip-name") == name
    assert opened.page.locator(".chip-name *").count() == 0


def test_a_refused_picture_is_named_with_the_gateways_sentence(opened: Tab, front: Front) -> None:
    broken = ("broken.png", "image/png", b"no picture at all")
    opened.give(SMALL, broken)
    opened.page.locator(".chip.refused").wait_for()
    assert opened.text(".chip.refused .chip-name") == "broken.png"
    asked = {"messages": [{"role": "user", "content": [image(SMALL), image(broken)]}]}
    assert opened.text("#cost") == front.http.post("/tokenize", json=asked).json()["error"]["message"]


def test_a_refused_request_is_said_and_nothing_of_it_is_lost(opened: Tab, front: Front) -> None:
    opened.page.fill("#max-tokens", "9000")
    opened.give(SMALL)
    opened.ask("Hello")
    opened.page.locator("#notice", has_text="more than the model's limit of 8192").wait_for()
    assert opened.page.input_value("#message") == "Hello"
    assert opened.page.locator(".chip").count() == 1
    assert opened.count().endswith("too many")
    opened.page.fill("#max-tokens", "9")
    opened.page.press("#message", "Enter")
    opened.wait_for_end()
    assert opened.text("#notice") == ""


def test_an_answer_that_breaks_off_keeps_what_came(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"tokens": 9, "fail": "die_mid_stream", "after_tokens": 2, "text": "so far "})
    opened.ask("Hello")
    opened.wait_for_end()
    assert opened.page.locator(".answer > .text").text_content() == "so far so far "
    assert opened.page.locator(".note.refused[role=alert]").inner_text() != ""


def test_an_answer_at_its_limit_says_that_it_was_cut(opened: Tab) -> None:
    opened.page.fill("#max-tokens", "2")
    opened.ask("Hello")
    opened.wait_for_end()
    assert opened.text(".note") == "Cut off: it reached the limit of tokens."


@pytest.mark.parametrize(("x", "y"), [("0.25", "0.6"), ("75", "120")])
def test_a_place_that_the_answer_points_to_is_marked(opened: Tab, front: Front, x: str, y: str) -> None:
    front.engines[0].once.append({"tokens": 1, "text": f"There: pyautogui.click(x={x}, y={y})"})
    opened.give(SMALL, PHOTO)
    opened.ask("Where?")
    opened.page.locator(".marked .ring").wait_for(state="attached")
    [ring, shown] = [opened.page.locator(f".marked {part}").bounding_box() for part in (".ring", "img")]
    assert ring is not None
    assert shown is not None
    share = (ring["x"] + ring["width"] / 2 - shown["x"]) / shown["width"]
    down = (ring["y"] + ring["height"] / 2 - shown["y"]) / shown["height"]
    assert (share, down) == (pytest.approx(0.25, abs=0.01), pytest.approx(0.6, abs=0.01))
    assert opened.page.get_attribute(".marked img", "alt") == "photo.png"
    assert "25 % from the left and 60 % from the top" in (opened.page.get_attribute(".marked svg", "aria-label") or "")


def test_a_key_is_asked_for_and_kept_in_the_tab_alone(browser: Browser, start: Start) -> None:
    front = start(playground={"enabled": True}, keys={"single": "open-sesame"})
    with tab(browser, front) as opened:
        opened.open()
        opened.page.locator("#key[aria-invalid=true]").wait_for()
        assert opened.page.evaluate("document.activeElement.id") == "key"
        assert "key" in opened.text("#notice").lower()
        opened.page.fill("#key", "open-sesame")
        opened.page.press("#key", "Tab")
        opened.wait_for_model()
        opened.ask("Hello")
        opened.wait_for_end()
        assert front.engines[0].record.count == 1
        kept = "[Object.values(sessionStorage).join(), Object.values(localStorage).join(), document.cookie]"
        assert opened.page.evaluate(kept) == ["open-sesame", "", ""]
        opened.page.click("#show-code")
        for language in ("curl", "python"):
            opened.page.check(f"input[value={language}]")
            assert "KIMI_API_KEY" in opened.text("#code-text")
            assert "open-sesame" not in opened.text("#code-text")
        opened.page.reload()
        opened.wait_for_model()


def test_an_engine_that_is_not_ready_yet_is_waited_for(browser: Browser, start: Start) -> None:
    front = start(playground={"enabled": True})
    with tab(browser, front) as opened:
        opened.page.route("**/v1/models", lambda route: route.fulfill(json={"object": "list", "data": []}), times=1)
        opened.open()
        opened.page.locator("#notice", has_text="No engine is ready yet").wait_for()
        opened.wait_for_model()
        assert opened.text("#notice") == ""
