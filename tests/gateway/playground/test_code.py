"""The request as code: run, it asks the engine exactly what the page asks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.conftest import Front
from tests.gateway.media.pictures import saved
from tests.gateway.playground.browsing import Tab, written

NASTY = "Say \"$HOME\", `date`, \\n and 'it''s' <b>\nEOF\nü 日本 🙂 {x}"
FILES = [
    ("it's a $(photo).png", "image/png", saved("PNG", size=(64, 64))),
    ("zwei ü.jpg", "image/jpeg", saved("JPEG", size=(32, 32))),
]


def asked(front: Front) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(front.engines[0].record.requests[-1].body)
    return body


def prepared(opened: Tab) -> None:
    opened.page.fill("#system", NASTY)
    opened.page.fill("#temperature", "0.5")
    opened.page.fill("#max-tokens", "3")
    opened.page.select_option("#fit", "downscale")
    opened.give(*FILES)
    opened.page.fill("#message", NASTY)


def code(opened: Tab, language: str) -> str:
    opened.page.click("#show-code")
    opened.page.check(f"input[value={language}]")
    text = opened.page.locator("#code-text").text_content()
    assert text is not None
    opened.page.click("#code-close")
    return text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_asks_what_the_page_asks(opened: Tab, front: Front, tmp_path: Path) -> None:
    prepared(opened)
    (tmp_path / "ask.sh").write_text(code(opened, "curl"))
    same(opened, front, ["sh", "ask.sh"], tmp_path)


def test_python_asks_what_the_page_asks(opened: Tab, front: Front, tmp_path: Path) -> None:
    prepared(opened)
    (tmp_path / "ask.py").write_text(code(opened, "python"))
    shown = same(opened, front, [sys.executable, "ask.py"], tmp_path)
    assert shown == " token token token\n"


def same(opened: Tab, front: Front, command: list[str], folder: Path) -> str:
    opened.page.press("#message", "Enter")
    opened.wait_for_end()
    by_page = asked(front)
    front.engines[0].record.clear()
    written(folder, *FILES)
    environ = {**os.environ, "no_proxy": "*"}
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environ, timeout=120, check=True)
    assert asked(front) == by_page
    assert by_page["messages"][1]["content"][2]["text"] == NASTY
    return ran.stdout


def test_it_can_be_copied(opened: Tab) -> None:
    opened.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    opened.page.fill("#message", "Hello")
    opened.page.click("#show-code")
    opened.page.click("#code-copy")
    opened.page.locator("#code-copy", has_text="Copied").wait_for()
    assert opened.page.evaluate("navigator.clipboard.readText()") == opened.page.locator("#code-text").text_content()


def test_without_a_clipboard_it_is_selected_to_be_copied(opened: Tab) -> None:
    opened.page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    opened.page.click("#show-code")
    opened.page.click("#code-copy")
    opened.page.locator("#code-copy", has_text="Press Ctrl+C").wait_for()
    selected = opened.page.evaluate("getSelection().toString()")
    assert "Hello" in selected
    assert selected.startswith("curl")
