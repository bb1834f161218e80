"""Photographs on the page, by a camera that Chromium makes up, and where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browsers import NARROW, WIDE, assert_accessible, opened
from tests.support.gateways import Gateway, gateway
from tests.support.servers import model_server, until

FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]


@pytest.fixture(scope="module")
def here(sample_models: Path) -> Iterator[Gateway]:
    with model_server(sample_models, "tires") as server, gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture(params=[NARROW, WIDE])
def page(request: pytest.FixtureRequest, here: Gateway, chromium: Browser) -> Iterator[Page]:
    """In a browser of its own, since the camera is a flag of Chromium's."""
    browser = chromium.browser_type.launch(
        executable_path=request.getfixturevalue("chromium_path"), args=["--no-sandbox", "--disable-gpu", *FAKE_CAMERA]
    )
    with opened(browser, f"http://127.0.0.1:{here.port}/", request.param) as page:
        yield page
    browser.close()


def live_tracks(page: Page) -> int:
    return int(
        page.evaluate(
            "globalThis.stream = document.getElementById('viewfinder').srcObject ?? globalThis.stream,"
            "stream ? stream.getTracks().filter(track => track.readyState === 'live').length : -1"
        )
    )


def test_pictures_are_taken_one_after_the_other_and_the_camera_is_off_when_it_is_closed(page: Page) -> None:
    page.click("#camera-way")
    expect(page.locator("#shutter")).to_be_focused()
    assert_accessible(page)
    assert live_tracks(page) == 1
    page.keyboard.press("Enter")
    expect(page.locator("#camera-says")).to_contain_text("Picture 1 is taken")
    page.keyboard.press("Enter")
    expect(page.locator("#camera-says")).to_contain_text("Picture 2 is taken")
    page.keyboard.press("Escape")
    expect(page.locator("#camera")).to_be_hidden()
    until(lambda: live_tracks(page) == 0, "the camera to be off")  # the dialog's `close` comes after it is hidden
    expect(page.locator("#list > .answered h3")).to_have_text(["camera-2.jpg", "camera-1.jpg"])
    expect(page.locator("#camera-way")).to_be_focused()
    expect(page.locator("#list .call").first).to_be_hidden()  # there is no file to name


def test_a_key_is_asked_for_where_it_can_be_typed_in(page: Page) -> None:
    page.route("**/predict*", lambda route: route.fulfill(status=401, json={"code": "unauthorized"}))
    page.click("#camera-way")
    expect(page.locator("#shutter")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#camera")).to_be_hidden()
    expect(page.locator("#key")).to_be_focused()
    assert live_tracks(page) <= 0


def test_where_there_is_no_camera_it_says_so(here: Gateway, chromium: Browser) -> None:
    with opened(chromium, f"http://127.0.0.1:{here.port}/") as page:
        page.click("#camera-way")
        expect(page.locator("#camera-says")).to_have_text("There is no camera here.")
        page.click("#camera-close")
        expect(page.locator("#camera")).to_be_hidden()


def test_a_telephone_is_offered_its_own_camera(here: Gateway, chromium: Browser) -> None:
    with opened(chromium, f"http://127.0.0.1:{here.port}/", NARROW, has_touch=True, is_mobile=True) as page:
        expect(page.locator("#photo-way")).to_be_visible()
        expect(page.locator("#camera-way")).to_be_hidden()
        expect(page.locator("#photo")).to_have_attribute("capture", "environment")
        assert_accessible(page)
