"""The page, in a real Chromium, against the sample model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.gateways import Gateway, gateway
from tests.support.servers import ROOT, model_server

SAMPLES = ROOT / "data" / "samples"


@pytest.fixture(scope="module")
def here(sample_models: Path) -> Iterator[Gateway]:
    with model_server(sample_models, "tires") as server, gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture
def page(here: Gateway, chromium: Browser) -> Iterator[Page]:
    """The page is opened, and at the end nothing was asked of anybody else and nothing was written to the console."""
    context = chromium.new_context(viewport={"width": 980, "height": 760})
    opened = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda request: asked.append(request.url))
    address = f"http://127.0.0.1:{here.port}"
    opened.goto(address)
    yield opened
    assert [url for url in asked if not url.startswith((address, "blob:", "data:"))] == []
    assert [text for text in said if "the server responded with a status of" not in text] == []
    context.close()


def test_a_chosen_file_is_classified_and_shown_with_where_the_model_looked(page: Page) -> None:
    page.set_input_files("#file", SAMPLES / "cracked-1.jpg")
    expect(page.locator("#label")).to_have_text("cracked")
    expect(page.locator("#scores li")).to_have_count(2)
    expect(page.locator("#about")).to_contain_text("tires, version 1")
    expect(page.locator("#heat")).to_be_visible()
    assert page.evaluate("document.getElementById('heat').naturalWidth") == 224
    page.uncheck("#heat-on")
    expect(page.locator("#heat")).to_be_hidden()


def test_a_sample_is_one_click(page: Page) -> None:
    page.click("[data-sample$='normal-1.jpg']")
    expect(page.locator("#label")).to_have_text("normal")
    page.click("[data-sample$='cracked-2.jpg']")
    expect(page.locator("#label")).to_have_text("cracked")


def test_a_file_that_is_no_picture_is_explained_and_the_page_goes_on(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    page.set_input_files("#file", tmp_path / "bad.jpg")
    expect(page.locator("#problem")).to_contain_text("not a picture")
    page.set_input_files("#file", SAMPLES / "normal-1.jpg")
    expect(page.locator("#problem")).to_be_hidden()
    expect(page.locator("#label")).to_have_text("normal")


def test_an_address_that_is_not_public_is_explained(page: Page) -> None:
    page.fill("#url", "http://127.0.0.1/x.jpg")
    page.click("text=Classify")
    expect(page.locator("#problem")).to_contain_text("not public")


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (429, "Too many requests; try again in a moment."),
        (413, "The picture is too large for this service"),
        (502, "The answer was 502 Bad Gateway, and not the gateway's own"),
    ],
)
def test_an_answer_of_something_in_between_is_told_as_what_it_is(page: Page, status: int, text: str) -> None:
    html = f"<html><head><title>{status}</title></head><body><hr><center>nginx</center></body></html>"
    page.route("**/predict*", lambda route: route.fulfill(status=status, content_type="text/html", body=html))
    page.set_input_files("#file", SAMPLES / "normal-1.jpg")
    expect(page.locator("#problem")).to_contain_text(text)
    page.unroute("**/predict*")
    page.set_input_files("#file", SAMPLES / "normal-1.jpg")
    expect(page.locator("#label")).to_have_text("normal")


def test_it_can_be_used_by_keyboard_and_on_a_narrow_screen(page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 700})
    page.focus("[data-sample$='cracked-1.jpg']")
    page.keyboard.press("Enter")
    expect(page.locator("#label")).to_have_text("cracked")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
