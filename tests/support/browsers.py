"""A page in a real Chromium, held to what every page of the gateway promises.

with opened(chromium, address, width=360) as page: ...      # at the end: nobody else was asked, nothing went wrong
assert_accessible(page)                                     # axe finds nothing serious
drop(page, "#drop", [path])                                 # files and folders, dropped by the browser itself
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page

NARROW, WIDE = 360, 1440
SERIOUS = ("serious", "critical")
ANSWERED = "the server responded with a status of"  # what a console says of every problem that is answered


@contextmanager
def opened(browser: Browser, address: str, width: int = WIDE, allow: str = ANSWERED, **options: Any) -> Iterator[Page]:
    """Open the address. `allow` is a text of the console that is no fault; options are Playwright's of a context."""
    context = browser.new_context(viewport={"width": width, "height": 800}, **options)
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    host = "/".join(address.split("/")[:3])
    page.goto(address)
    yield page
    assert [url for url in asked if not url.startswith((f"{host}/", "blob:", "data:"))] == []
    assert [text for text in said if allow not in text and ANSWERED not in text] == []
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth"), "nothing is cut off"
    context.close()


def assert_accessible(page: Page) -> None:
    script = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js").read_text(encoding="utf-8")
    page.evaluate(script)  # by the debugger, to which the page's policy does not apply
    found = page.evaluate("axe.run({resultTypes: ['violations']})")
    violations = [
        f"{each['id']} ({each['impact']}): {[node['html'] for node in each['nodes']]}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
    ]
    assert violations == []
    assert len(found["passes"]) > 10, "it did look"


def drop(page: Page, selector: str, paths: Sequence[Path]) -> None:
    """Drop files or folders on an element, as from a file manager."""
    box = page.locator(selector).bounding_box()
    assert box
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send(
            "Input.dispatchDragEvent",
            {"type": kind, "x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2, "data": data},
        )
    session.detach()
