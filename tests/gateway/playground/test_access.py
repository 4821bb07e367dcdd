"""The page for everybody: keyboard alone, names and roles, contrast, motion, what is read out, narrow screens.

KIMI_SERVE_AXE names an axe.min.js (npm's axe-core), whose rules are then run as well.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser

from tests.gateway.conftest import Front
from tests.gateway.media.pictures import saved
from tests.gateway.playground.browsing import Tab, tab

PHOTO = ("photo.png", "image/png", saved("PNG", size=(300, 200)))
POINTING = "It is there. Look: pyautogui.click(x=0.25, y=0.6)"
VIEWS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1280, "height": 860}, "color_scheme": "dark"},
    "narrow": {"viewport": {"width": 320, "height": 640}, "color_scheme": "light"},
}
AXE = os.environ.get("KIMI_SERVE_AXE")
ORDER = ["skip", "Get code", "New conversation", "Settings", "model", "system", "temperature", "max-tokens", "detail",
         "fit", "key", "message", "attach", "send"]  # fmt: skip

FOCUSED = "(({ id, className, textContent }) => id || className || textContent.trim())(document.activeElement)"
CONTRASTS = Path(__file__).with_name("contrasts.js").read_text("utf-8")


@pytest.fixture(scope="module", params=sorted(VIEWS))
def talked(request: pytest.FixtureRequest, browser: Browser, served: Front) -> Any:
    """After a thought, an answer that points, a refusal, and with pictures in the next message; only looked at."""
    with tab(browser, served, reduced_motion="reduce", **VIEWS[request.param]) as opened:
        opened.open()
        opened.wait_for_model()
        opened.give(PHOTO)
        served.engines[0].once.append({"tokens": 2, "thought_tokens": 1, "text": POINTING})
        opened.ask("Where?")
        opened.wait_for_end()
        opened.page.locator(".marked .ring").wait_for(state="attached")
        opened.give(PHOTO, ("broken.png", "image/png", b"no picture"))
        opened.page.locator(".chip.refused").wait_for()
        opened.ask("And here?")
        opened.page.locator("#notice:not(:empty)").wait_for()
        opened.page.locator(".chip.refused").wait_for()
        yield request.param, opened


def focused(opened: Tab) -> str:
    return str(opened.page.evaluate(FOCUSED))


def names(opened: Tab) -> list[tuple[str, str]]:
    """(role, name) of everything that can have the focus, as a screen reader is told."""
    session = opened.page.context.new_cdp_session(opened.page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    return [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
        and any(one["name"] == "focusable" and one["value"]["value"] for one in node.get("properties", []))
    ]


def test_tab_goes_through_the_page_in_the_order_that_it_shows(opened: Tab) -> None:
    opened.page.focus(".skip")  # the page began in the message
    seen = [focused(opened)]
    for _ in ORDER[1:]:
        opened.page.keyboard.press("Tab")
        seen.append(focused(opened))
    assert seen == [{"Get code": "show-code", "New conversation": "start-over"}.get(name, name) for name in ORDER]


def test_the_first_link_leads_to_the_message(opened: Tab) -> None:
    opened.page.focus(".skip")
    opened.page.keyboard.press("Enter")
    assert focused(opened) == "message"


def test_a_conversation_needs_no_mouse(opened: Tab, front: Front) -> None:
    keys = opened.page.keyboard
    keys.type("Hello")
    keys.press("Shift+Enter")
    keys.type("there")
    assert opened.page.input_value("#message") == "Hello\nthere"
    assert front.engines[0].record.count == 0
    keys.press("Enter")
    opened.wait_for_end()
    assert json.loads(front.engines[0].record.requests[-1].body)["messages"][-1]["content"] == "Hello\nthere"
    front.engines[0].once.append({"tokens": 100_000, "itl_s": 0.02})
    assert focused(opened) == "message"
    keys.type("Again")
    keys.press("Enter")
    opened.page.locator(".answer >> nth=1").locator("> .text", has_text="token").wait_for()
    keys.press("Escape")
    opened.wait_for_end(2)
    assert focused(opened) == "message"


def test_enter_that_chooses_a_character_does_not_send(opened: Tab, front: Front) -> None:
    opened.page.fill("#message", "にほん")
    opened.page.evaluate("""document.getElementById("message").dispatchEvent(
        new KeyboardEvent("keydown", { key: "Enter", isComposing: true, bubbles: true, cancelable: true }))""")
    opened.page.wait_for_timeout(300)
    assert front.engines[0].record.count == 0
    assert opened.page.input_value("#message") == "にほん"


def test_escape_closes_the_dialog_and_gives_the_focus_back(opened: Tab) -> None:
    opened.page.focus("#show-code")
    opened.page.keyboard.press("Enter")
    opened.page.locator("#code").wait_for()
    opened.page.keyboard.press("Escape")
    opened.page.locator("#code").wait_for(state="hidden")
    assert focused(opened) == "show-code"


def test_all_that_can_have_the_focus_has_a_name(talked: tuple[str, Tab]) -> None:
    view, opened = talked
    found = [(role, name) for role, name in names(opened) if role not in ("RootWebArea", "generic")]
    assert [role for role, name in found if not name.strip()] == []
    expected = {("textbox", "Message"), ("button", "Send"), ("button", "Attach"), ("button", "Remove photo.png")}
    if view != "narrow":  # where the settings are folded
        expected |= {("combobox", "Model"), ("textbox", "System text"), ("textbox", "API key")}
    assert expected <= set(found)


def test_the_parts_of_the_page_have_their_roles(opened: Tab) -> None:
    for role, name in {
        "banner": None,
        "main": None,
        "complementary": "Settings",
        "log": "Conversation",
        "form": "New message",
    }.items():
        assert opened.page.get_by_role(role, name=name, exact=True).count() == 1, role  # type: ignore[arg-type]
    assert opened.page.get_by_role("heading", level=1).count() == 1
    assert opened.page.get_attribute("html", "lang") == "en"


def test_every_text_has_enough_contrast(talked: tuple[str, Tab]) -> None:
    _, opened = talked
    found = opened.page.evaluate(CONTRASTS)
    assert len(found) > 15
    assert {text: round(ratio, 2) for text, ratio in found if ratio < 4.5} == {}


def test_nothing_is_wider_than_the_screen_and_targets_are_large_enough(talked: tuple[str, Tab]) -> None:
    _, opened = talked
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    sizes = opened.page.evaluate("""[...document.querySelectorAll("button, select, input:not([type=radio])")]
        .filter((one) => one.checkVisibility())
        .map((one) => one.getBoundingClientRect())
        .map((at) => [at.width, at.height])""")
    assert all(width >= 24 and height >= 24 for width, height in sizes)


def test_it_can_be_looked_at(talked: tuple[str, Tab], tmp_path: Path) -> None:
    """The pictures are left in pytest's temporary folder, one of each view."""
    view, opened = talked
    shot = opened.page.screenshot(path=tmp_path / f"playground-{view}.png", animations="disabled")
    assert shot.startswith(b"\x89PNG")
    page = opened.page.evaluate("getComputedStyle(document.body).backgroundColor").removeprefix("rgb(").split(",")
    assert (int(page[0]) < 64) == (view == "dark")


@pytest.mark.parametrize(("motion", "moves"), [("reduce", False), ("no-preference", True)])
def test_nothing_moves_for_who_wants_no_motion(browser: Browser, front: Front, motion: Any, moves: bool) -> None:
    with tab(browser, front, reduced_motion=motion) as opened:
        opened.open()
        opened.wait_for_model()
        front.engines[0].once.append({"ttft_s": 60.0})
        opened.ask("Hello")
        opened.page.locator(".waiting").wait_for()
        name = opened.page.evaluate("getComputedStyle(document.querySelector('.waiting'), '::after').animationName")
        assert (name != "none") == moves
        opened.page.keyboard.press("Escape")
        opened.page.locator("#notice:not(:empty)").wait_for()


def test_an_answer_is_read_out_by_sentences(opened: Tab, front: Front) -> None:
    front.engines[0].once.append({"tokens": 6, "thought_tokens": 2, "text": "One thing. And an", "itl_s": 0.05})
    opened.ask("Hello")
    opened.wait_for_end()
    lines = opened.page.locator("#announcer p").all_text_contents()
    assert lines[0] == "The model is thinking."
    assert lines[1:5] == ["One thing.", *["And anOne thing."] * 3]
    assert lines[5] == "And an"
    assert lines[6].startswith("The answer is complete")
    assert opened.page.get_attribute("#announcer", "aria-live") == "polite"
    assert opened.page.get_attribute("#log", "aria-live") == "off"  # it would read every token


def test_what_an_attachment_costs_is_read_out(opened: Tab) -> None:
    opened.give(PHOTO)
    opened.count()
    said = opened.page.locator("#announcer p").all_text_contents()
    assert len(said) == 1
    assert said[0].startswith(f"photo.png: {opened.text('.chip-cost')}. ")


@pytest.mark.skipif(AXE is None, reason="KIMI_SERVE_AXE names no axe.min.js: axe's own rules are not run")
def test_axe_finds_nothing(talked: tuple[str, Tab]) -> None:
    _, opened = talked
    assert AXE is not None
    opened.page.evaluate(Path(AXE).read_text("utf-8"))
    found = opened.page.evaluate("axe.run()")["violations"]
    assert [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found] == []
