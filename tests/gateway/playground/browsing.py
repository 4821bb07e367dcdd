"""The page in a real Chromium, as a person meets it. Knows the page's ids; expects nothing but a clean console."""

from __future__ import annotations

import base64
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, sync_playwright

from tests.gateway.conftest import Front

CHROMIUM = "chromium"  # Debian's package; the test's own package brings no browser
PATIENCE_MS = 60_000  # on two busy cores
_ANSWERED = "Failed to load resource"  # what a browser says of every answer that is a refusal

# A file as a person drops or pastes it: an event that holds it.
_GIVE = """([kind, files]) => {
  const held = new DataTransfer();
  for (const [name, type, data] of files)
    held.items.add(new File([Uint8Array.from(atob(data), (one) => one.charCodeAt(0))], name, { type }));
  const told = { bubbles: true, cancelable: true };
  document.body.dispatchEvent(kind === "drop" ? new DragEvent("drop", { ...told, dataTransfer: held })
                                              : new ClipboardEvent("paste", { ...told, clipboardData: held }));
}"""
_WATCH_POLICY = """document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI}`))"""


@contextmanager
def chromium() -> Iterator[Browser]:
    """Ends with the block: while it runs, no other loop of asyncio can run in this thread."""
    path = shutil.which(CHROMIUM)
    if path is None:
        pytest.skip("chromium is not installed: the playground is not tested in a browser here")
    options = ["--disable-dev-shm-usage", "--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=options)
        yield browser
        browser.close()


@dataclass
class Tab:
    page: Page
    front: Front
    said: list[str] = field(default_factory=list)  # errors of the console, refusals of the server left out

    def open(self) -> None:
        self.page.goto(f"{self.front.url}/playground")

    def wait_for(self, condition: str, argument: Any = None) -> None:
        """Asked again from here: Playwright's own wait evaluates text in the page, which the page's policy forbids."""
        deadline = time.monotonic() + PATIENCE_MS / 1000
        while not self.page.evaluate(condition, argument):
            assert time.monotonic() < deadline, f"it never became true: {condition}"
            self.page.wait_for_timeout(50)

    def wait_for_model(self) -> None:
        self.wait_for("document.querySelector('#model').options.length > 0")

    def give(self, *files: tuple[str, str, bytes], by: str = "drop") -> None:
        """(name, type, bytes) of each."""
        self.page.evaluate(_GIVE, [by, [(name, kind, base64.b64encode(data).decode()) for name, kind, data in files]])
        for name, _, _ in files:
            self.page.locator(".chip-name", has_text=name).wait_for()

    def count(self) -> str:
        """What it will cost, once that is known."""
        self.wait_for("""() => {
            const cost = document.querySelector('#cost');
            return !cost.classList.contains('counting') && / of .* tokens/.test(cost.textContent);
        }""")
        return self.text("#cost")

    def text(self, selector: str) -> str:
        return self.page.locator(selector).first.inner_text()

    def ask(self, text: str) -> None:
        self.page.fill("#message", text)
        self.page.press("#message", "Enter")

    def wait_for_end(self, answers: int = 1) -> None:
        self.wait_for("(n) => document.querySelectorAll('.answer[aria-busy=false]').length === n", answers)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type == "error" and not message.text.startswith(_ANSWERED):
            self.said.append(message.text)

    def watch(self) -> None:
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.add_init_script(_WATCH_POLICY)


@contextmanager
def tab(browser: Browser, front: Front, **options: Any) -> Iterator[Tab]:
    """A window of its own, with nothing remembered; nothing may have gone wrong in it."""
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    opened = Tab(context.new_page(), front)
    opened.watch()
    yield opened
    context.close()
    assert opened.said == []


def written(folder: Path, *files: tuple[str, str, bytes]) -> None:
    for name, _, data in files:
        (folder / name).write_bytes(data)
