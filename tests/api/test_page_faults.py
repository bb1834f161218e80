"""The page when something goes wrong: no picture, no network, no gateway, a busy one, hundreds of files at once."""

from __future__ import annotations

import csv
import io
import re
import shutil
import signal
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.backends import backend
from tests.support.browsers import opened
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, ModelServer, model_server, until

SAMPLES = ROOT / "data" / "samples"
CRACKED, NORMAL = SAMPLES / "cracked-1.jpg", SAMPLES / "normal-1.jpg"
NO_NETWORK = "net::ERR_"  # what the console says of a request that nobody answered


@pytest.fixture(scope="module")
def server(sample_models: Path) -> Iterator[ModelServer]:
    with model_server(sample_models, "tires") as running:
        yield running


@pytest.fixture(scope="module")
def here(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture
def page(here: Gateway, chromium: Browser) -> Iterator[Page]:
    with opened(chromium, f"http://127.0.0.1:{here.port}/", allow=NO_NETWORK) as page:
        yield page


@contextmanager
def stopped(server: ModelServer) -> Iterator[None]:
    """The model server takes calls and answers none."""
    server.process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        server.process.send_signal(signal.SIGCONT)


def pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{n:03}.png" for n in range(count)]
    for n, path in enumerate(paths):
        path.write_bytes(encoded(picture(64, 48, seed=n), "PNG"))
    return paths


def cards(page: Page, state: str, count: int) -> None:
    expect(page.locator(f"#list > .{state}")).to_have_count(count, timeout=60_000)


# ------------------------------------------------------------------------------------------- errors of one picture


def test_a_file_that_is_no_picture_is_explained_beside_it_and_the_others_are_answered(
    page: Page, tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    page.set_input_files("#file", [CRACKED, tmp_path / "bad.jpg", NORMAL])
    cards(page, "answered", 2)
    failed = page.locator("#list > .failed")
    expect(failed.locator("h3")).to_have_text("bad.jpg")
    expect(failed.locator(".state")).to_contain_text("not a picture")
    expect(page.locator("#counts")).to_have_text("3 pictures: 2 answered, 1 failed")


def test_a_file_that_is_gone_is_told_from_a_gateway_that_is_gone(page: Page, tmp_path: Path) -> None:
    shutil.copy(CRACKED, tmp_path / "gone.jpg")
    page.route("**/predict*", lambda route: route.fulfill(status=502))
    page.set_input_files("#file", tmp_path / "gone.jpg")
    cards(page, "failed", 1)
    page.unroute("**/predict*")
    (tmp_path / "gone.jpg").unlink()
    page.click(".again")
    expect(page.locator(".failed .state")).to_contain_text("Is the file still there")
    expect(page.locator("#problem")).to_be_hidden()


def test_a_file_that_is_too_large_is_not_even_sent(page: Page, tmp_path: Path) -> None:
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(25_000_000)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_input_files("#file", tmp_path / "large.jpg")
    expect(page.locator(".failed .state")).to_contain_text("25,000,000 bytes, and at most 9,999,000 bytes are taken")
    assert [url for url in asked if "/predict" in url] == []
    expect(page.locator(".failed .again")).to_be_hidden()
    expect(page.locator("#again-all")).to_be_hidden()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_a_picture_is_shown_before_it_is_answered(page: Page, tmp_path: Path, kind: str) -> None:
    page.route("**/predict*", lambda route: None)
    file = tmp_path / f"picture.{kind.lower()}"
    file.write_bytes(encoded(picture(90, 60), kind))
    page.set_input_files("#file", file)
    expect(page.locator(".asking .preview[src]")).to_be_visible()
    until(lambda: page.evaluate("document.querySelector('.preview').naturalWidth") == 90, "the preview")


def test_a_small_file_of_too_many_pixels_is_decoded_by_nobody(page: Page, tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes(2501) * 20_000)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(png)
    page.evaluate(
        "globalThis.decoded = 0; const decode = createImageBitmap;"
        "globalThis.createImageBitmap = (...all) => { decoded++; return decode(...all); }; null"
    )
    page.set_input_files("#file", tmp_path / "bomb.png")
    expect(page.locator(".failed .state")).to_contain_text("too large")
    assert page.evaluate("decoded") == 0
    page.set_input_files("#file", CRACKED)
    cards(page, "answered", 1)
    expect(page.locator(".preview[src]")).to_have_count(1)
    assert page.evaluate("decoded") == 1
    expect(page.locator("figcaption", has_text="No preview")).to_have_count(0)


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
    page.set_input_files("#file", NORMAL)
    expect(page.locator(".failed .state")).to_contain_text(text)
    page.unroute("**/predict*")
    if status == 413:  # it would be again
        expect(page.locator(".again")).to_be_hidden()
        return
    page.click(".again")
    cards(page, "answered", 1)


@pytest.mark.parametrize("answer", ["null", "[]", '{"label": "cracked"}', "<html>", '{"label": 5, "scores": {}}'])
def test_an_answer_that_is_none_of_a_gateway_fills_no_card(page: Page, answer: str) -> None:
    page.route("**/predict*", lambda route: route.fulfill(content_type="application/json", body=answer))
    page.set_input_files("#file", NORMAL)
    expect(page.locator(".failed .state")).to_have_text("The answer is not one of a Loupe gateway.")
    for part in (".label", ".scores", ".about"):
        expect(page.locator(f"#list {part}")).to_be_hidden()


def test_a_detail_that_is_no_text_is_left_out(page: Page) -> None:
    page.route("**/predict*", lambda route: route.fulfill(status=500, json={"detail": {"a": 1}, "title": "Broken"}))
    page.set_input_files("#file", NORMAL)
    expect(page.locator(".failed .state")).to_have_text("Broken")


def test_a_sample_that_is_not_given_is_said(page: Page) -> None:
    page.route("**/samples/*", lambda route: route.fulfill(status=503, body="busy"))
    page.click("[data-sample$='normal-1.jpg']")
    expect(page.locator("#problem p")).to_have_text("The sample could not be loaded; try again.")
    expect(page.locator("#list > li")).to_have_count(0)


def test_a_page_that_did_not_load_whole_says_so_and_sends_nothing(here: Gateway, chromium: Browser) -> None:
    page = chromium.new_page()
    page.route("**/words.js", lambda route: route.fulfill(status=503))
    page.goto(f"http://127.0.0.1:{here.port}/")
    page.fill("#url", "http://127.0.0.1/x.jpg")
    expect(page.locator("text=Classify")).to_be_disabled()
    expect(page.locator("#not-loaded")).to_be_visible(timeout=8_000)
    assert page.input_value("#url") == "http://127.0.0.1/x.jpg"
    page.close()


def test_without_scripts_it_says_so_at_once(here: Gateway, chromium: Browser) -> None:
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{here.port}/")
    expect(page.locator(".warning:visible")).to_have_count(1)
    expect(page.locator(".warning:visible")).to_contain_text("needs scripts")
    context.close()


def test_a_browser_that_keeps_nothing_or_is_older_asks_all_the_same(here: Gateway, chromium: Browser) -> None:
    with opened(chromium, f"http://127.0.0.1:{here.port}/") as page:
        page.add_init_script(
            "delete AbortSignal.any;"
            "Object.defineProperty(window, 'sessionStorage', {get() { throw new Error('SecurityError'); }})"
        )
        page.reload()
        page.set_input_files("#file", NORMAL)
        cards(page, "answered", 1)


# ------------------------------------------------------------------------------------------------ errors of all


def test_without_a_network_nothing_is_lost_and_it_goes_on_by_itself(page: Page, tmp_path: Path) -> None:
    page.set_input_files("#file", pictures(tmp_path, 40))
    until(lambda: page.locator("#list > .answered").count() >= 5, "the first answers")
    page.context.set_offline(True)
    expect(page.locator("#problem")).to_contain_text("The network is gone. What is answered is kept, the rest waits.")
    cards(page, "asking", 0)
    rows = page.locator("#list > .answered").count()
    assert 5 <= rows < 40
    cards(page, "failed", 0)
    with page.expect_download() as waiting:
        page.click("#as-csv")
    table = list(csv.DictReader(io.StringIO(Path(waiting.value.path()).read_text(encoding="utf-8-sig"))))
    assert len(table) == 40
    assert len([row for row in table if row["label"]]) == rows
    page.context.set_offline(False)
    cards(page, "answered", 40)
    expect(page.locator("#problem")).to_be_hidden()


def test_a_gateway_that_goes_away_is_waited_for(server: ModelServer, chromium: Browser, tmp_path: Path) -> None:
    with gateway(f"localhost:{server.port}") as first:
        port = first.port
        context = opened(chromium, f"http://127.0.0.1:{port}/", allow=NO_NETWORK)
        page = context.__enter__()
        page.set_input_files("#file", CRACKED)
        cards(page, "answered", 1)
    page.set_input_files("#file", pictures(tmp_path, 4))
    expect(page.locator("#problem")).to_contain_text("The gateway does not answer. Is it still running?")
    cards(page, "waiting", 4)
    page.click("#go-on")
    expect(page.locator("#problem")).to_contain_text("The gateway does not answer")
    page.fill("#url", "nonsense")
    page.click("text=Classify")
    expect(page.locator("#problem")).to_contain_text("The gateway does not answer")
    expect(page.locator("#problem")).to_contain_text("“nonsense” cannot be asked for")
    page.fill("#url", "")
    page.set_input_files("#file", CRACKED)
    with gateway(f"localhost:{server.port}", LOUPE_PORT=str(port)):  # it goes on by itself
        cards(page, "answered", 6)
        expect(page.locator("#problem")).to_be_hidden()
    context.__exit__(None, None, None)


def test_a_busy_gateway_is_asked_again_when_it_said_so(chromium: Browser, tmp_path: Path) -> None:
    ends = threading.Event()
    patient = {"LOUPE_THREADS": "2", "LOUPE_MAX_WAIT": "1", "LOUPE_MODEL_TIMEOUT": "60"}
    with (
        backend(lambda *_: ends.wait(60)) as slow,
        gateway(f"localhost:{slow.port}", **patient) as here,
        opened(chromium, f"http://127.0.0.1:{here.port}/") as page,
        ThreadPoolExecutor(2) as others,
    ):
        waits: list[str | None] = []
        page.on("response", lambda it: waits.append(it.headers.get("retry-after")) if it.status == 503 else None)
        calls = [others.submit(here.post, "/predict", encoded()) for _ in range(2)]
        until(lambda: len(slow.remaining) == 2, "both threads to be taken")
        page.set_input_files("#file", pictures(tmp_path, 6))
        expect(page.locator(".asking .state", has_text=re.compile(r"Asked again in \d+ s"))).to_have_count(3)
        ends.set()
        assert [call.result().status for call in calls] == [200, 200]
        cards(page, "answered", 6)
        assert waits and all(wait and int(wait) >= 1 for wait in waits)


def test_one_picture_or_all_can_be_cancelled_and_asked_for_again(
    page: Page, server: ModelServer, tmp_path: Path
) -> None:
    with stopped(server):
        page.set_input_files("#file", pictures(tmp_path, 8))
        cards(page, "asking", 3)
        page.locator("#list > .asking").first.locator(".cancel").click()
        cards(page, "cancelled", 1)
        expect(page.locator("#list > li").first.locator(".again")).to_be_focused()
        cards(page, "asking", 3)
        page.click("#cancel-all")
        cards(page, "cancelled", 8)
        expect(page.locator("#counts")).to_have_text("8 pictures: 0 answered, 8 cancelled")
    page.click("#again-all")
    cards(page, "answered", 8)
    expect(page.locator("#again-all")).to_be_hidden()


def test_two_hundred_pictures_at_once_are_answered_a_few_at_a_time_and_stay_small(page: Page, tmp_path: Path) -> None:
    page.evaluate(
        "globalThis.busiest = 0; globalThis.open = 0; const send = fetch;"
        "globalThis.fetch = (...all) => {"
        "  busiest = Math.max(busiest, ++open);"
        "  return send(...all).finally(() => open--);"
        "}"
    )
    files = pictures(tmp_path, 198)
    for name in ("large-1.jpg", "large-2.jpg"):
        (tmp_path / name).write_bytes(encoded(picture(3000, 2000)))
    page.set_input_files("#file", [*files, tmp_path / "large-1.jpg", tmp_path / "large-2.jpg"])
    cards(page, "answered", 200)
    expect(page.locator(".preview[src]")).to_have_count(200)
    assert 1 <= page.evaluate("busiest") <= 3
    longest = "Math.max(...[...document.querySelectorAll('.preview')].map(image => image.naturalWidth))"
    until(lambda: page.evaluate(longest) == 640, "the last preview")
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    session.send("Performance.enable")
    metrics = {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}
    assert metrics["JSHeapUsedSize"] < 40e6
    assert metrics["Nodes"] < 40_000


def test_more_than_the_list_holds_is_named_and_left_out(page: Page, server: ModelServer, tmp_path: Path) -> None:
    path = pictures(tmp_path, 1)[0]
    with stopped(server):
        page.set_input_files("#file", [path] * 1003)
        expect(page.locator("#problem")).to_contain_text(
            "The list holds 1,000 pictures, so 3 pictures had no room on it."
        )
        page.click("#cancel-all")
        cards(page, "cancelled", 1000)
        page.on("dialog", lambda dialog: dialog.accept())
        page.click("#clear")
        expect(page.locator("#visit")).to_be_hidden()
