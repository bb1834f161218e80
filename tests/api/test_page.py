"""The page, in a real Chromium, against the sample model: the ways that pictures come in, and what is shown of them."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.support.browsers import NARROW, WIDE, assert_accessible, drop, opened
from tests.support.gateways import Gateway, gateway
from tests.support.servers import ROOT, model_server, until

SAMPLES = ROOT / "data" / "samples"
CRACKED, NORMAL = SAMPLES / "cracked-1.jpg", SAMPLES / "normal-1.jpg"


@pytest.fixture(scope="module")
def here(sample_models: Path) -> Iterator[Gateway]:
    with model_server(sample_models, "tires") as server, gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture
def address(here: Gateway) -> str:
    return f"http://127.0.0.1:{here.port}/"


@pytest.fixture
def page(address: str, chromium: Browser) -> Iterator[Page]:
    with opened(chromium, address) as page:
        yield page


@pytest.fixture(params=[NARROW, WIDE])
def either(request: pytest.FixtureRequest, address: str, chromium: Browser) -> Iterator[Page]:
    """The page on a telephone and on a large screen."""
    with opened(chromium, address, request.param) as page:
        yield page


def labels(page: Page) -> dict[str, str]:
    """What each picture of the list was called, by its name."""
    cards = page.locator("#list > li")
    pairs = [
        (cards.nth(n).locator("h3").text_content() or "", cards.nth(n).locator(".label").text_content() or "")
        for n in range(cards.count())
    ]
    return dict(pairs)


def await_answers(page: Page, count: int) -> None:
    expect(page.locator("#list > .answered")).to_have_count(count, timeout=30_000)


# -------------------------------------------------------------------------------------------------------- ways in


def test_many_chosen_files_are_shown_and_classified_each_with_its_own_card(either: Page) -> None:
    either.set_input_files("#file", sorted(SAMPLES.glob("*.jpg")))
    await_answers(either, 6)
    assert labels(either) == {path.name: path.name.split("-")[0] for path in sorted(SAMPLES.glob("*.jpg"))}
    assert list(labels(either)) == sorted(labels(either)), "in the order they were chosen"
    expect(either.locator("#counts")).to_have_text("6 pictures: 6 answered")
    expect(either.locator(".preview")).to_have_count(6)
    assert either.evaluate("[...document.querySelectorAll('.heat')].every(heat => heat.naturalWidth === 224)")
    assert_accessible(either)


def test_files_and_a_folder_can_be_dropped_and_what_is_no_picture_in_it_is_left_out(
    either: Page, tmp_path: Path
) -> None:
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    shutil.copy(CRACKED, tmp_path / "photos" / "deep" / "a.jpg")
    shutil.copy(NORMAL, tmp_path / "photos" / "b.jpg")
    (tmp_path / "photos" / "notes.txt").write_text("of 2026")
    (tmp_path / "photos" / ".hidden.jpg").write_bytes(b"")
    drop(either, "#drop", [CRACKED, tmp_path / "photos"])
    await_answers(either, 3)
    assert labels(either) == {"photos/b.jpg": "normal", "photos/deep/a.jpg": "cracked", "cracked-1.jpg": "cracked"}
    expect(either.locator("#problem")).to_contain_text("2 files that are no pictures were left out.")


def test_a_folder_can_be_chosen(page: Page) -> None:
    page.set_input_files("#folder", SAMPLES)
    await_answers(page, 6)
    assert "samples/cracked-1.jpg" in labels(page)


def test_a_picture_can_be_pasted_and_so_can_addresses(either: Page) -> None:
    either.context.grant_permissions(["clipboard-read", "clipboard-write"])
    either.evaluate(
        """async (address) => {
            const image = await createImageBitmap(await (await fetch(address)).blob());
            const canvas = new OffscreenCanvas(image.width, image.height);
            canvas.getContext("2d").drawImage(image, 0, 0);
            await navigator.clipboard.write([new ClipboardItem({"image/png": canvas.convertToBlob()})]);
        }""",
        "/samples/cracked-1.jpg",
    )
    either.keyboard.press("Control+V")
    await_answers(either, 1)
    assert list(labels(either).values()) == ["cracked"]
    either.focus("#file")
    either.evaluate("navigator.clipboard.writeText('http://127.0.0.1/a.jpg\\nhttp://127.0.0.1/b.jpg')")
    either.keyboard.press("Control+V")
    expect(either.locator("#list > .failed h3")).to_have_text(["http://127.0.0.1/a.jpg", "http://127.0.0.1/b.jpg"])


def test_addresses_are_asked_for_one_a_line_and_each_has_its_own_error(either: Page) -> None:
    either.fill("#url", "http://127.0.0.1/x.jpg\nhttp://10.0.0.1/y.jpg\nnonsense")
    either.click("text=Classify")
    expect(either.locator("#list > .failed .state")).to_contain_text(["not public", "not public"])
    expect(either.locator("#problem")).to_contain_text("“nonsense” cannot be asked for")
    assert either.input_value("#url") == ""


def test_a_sample_is_one_click(either: Page) -> None:
    either.click("[data-sample$='normal-1.jpg']")
    await_answers(either, 1)
    either.click("[data-sample$='cracked-2.jpg']")
    await_answers(either, 2)
    assert list(labels(either).items()) == [("cracked-2.jpg", "cracked"), ("normal-1.jpg", "normal")], (
        "the newest on top"
    )
    if either.evaluate("innerWidth") == WIDE:  # where there is a mouse, it can be dragged as well
        either.drag_and_drop("[data-sample$='normal-3.jpg'] img", "#drop")
        await_answers(either, 3)
        assert labels(either)["normal-3.jpg"] == "normal"


# ---------------------------------------------------------------------------------------------------------- shown


def test_a_card_tells_times_model_and_version_and_its_heat_map_has_a_slider(page: Page) -> None:
    page.set_input_files("#file", [CRACKED, NORMAL])
    await_answers(page, 2)
    card = page.locator("#list > li").first
    expect(card.locator(".about")).to_contain_text("tires, version 1 · ")
    expect(card.locator(".about")).to_contain_text("ms in the model")
    expect(card.locator(".scores li")).to_have_count(2)
    expect(card.locator(".heat")).to_have_css("opacity", "0.7")
    card.locator("input[type=range]").fill("25")
    for heat in page.locator(".heat").all():
        expect(heat).to_have_css("opacity", "0.25")
    assert page.locator("input[type=range]").last.input_value() == "25"


def test_its_commands_can_be_pasted_into_a_terminal_and_into_python(page: Page, address: str, tmp_path: Path) -> None:
    for name in ("plain.jpg", 'it\'s; "one", two.jpg', " spaced.jpg"):
        shutil.copy(CRACKED, tmp_path / name)
        page.set_input_files("#file", tmp_path / name)
        card = page.locator("#list > .answered").first
        expect(card.locator("h3")).to_have_text(name)
        card.locator("summary", has_text="The same call").click()
        expect(card.locator("pre")).to_have_count(2)
        curl, python = card.locator("pre").all_inner_texts()
        done = subprocess.run(f"{curl} -s", shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert json.loads(done.stdout)["label"] == "cracked", curl
        assert python.splitlines()[2] == f'model = loupe.connect("{address[:-1]}")'
        assert python.splitlines()[3] == f"model.predict({json.dumps(name)}).label"
        compile(python, "shown", "exec")
    page.click("[data-sample$='cracked-2.jpg']")
    await_answers(page, 4)
    page.locator("#list summary", has_text="The same call").first.click()
    shown = page.locator("#list > li").first.locator("pre")
    expect(shown).to_have_count(2)
    curl, python = shown.all_inner_texts()
    done = subprocess.run(curl, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout)["label"] == "cracked", curl
    assert python.startswith(f"# first, in a terminal: curl -O {address}samples/cracked-2.jpg\n")
    compile(python, "shown", "exec")
    page.fill("#url", "http://127.0.0.1/it's.jpg")
    page.keyboard.press("Enter")
    card = page.locator("#list > .failed")
    card.locator("summary", has_text="The same call").click()
    command = shlex.split(card.locator("pre").first.inner_text())
    assert json.loads(command[-1]) == {"url": "http://127.0.0.1/it's.jpg"}


def answering(**entries: Any) -> Any:
    """An answer that the sample model cannot give; tests/api/test_openapi.py holds the shape to the gateway's."""
    scores = {f"label {n}": round(0.4 / 2**n, 6) for n in range(12)}
    answer = {
        "label": "label 0", "confidence": 0.4, "certain": None, "reason": None, "scores": scores, "heatmap": None,
        "model": {"name": "many", "version": 7}, "timings_ms": {"fetch": 1, "decode": 2, "model": 3}, "request_id": "a",
    }  # fmt: skip
    return lambda route: route.fulfill(json=answer | entries)


@pytest.mark.parametrize(
    ("entries", "badge", "doubt"),
    [
        ({"certain": True}, "certain", ""),
        ({"certain": False, "reason": "below_threshold"}, "not certain", "less confident than an answer has to be"),
        ({"certain": False, "reason": "unfamiliar"}, "like nothing the model knows", "unlike those it was trained on"),
        ({"certain": None}, "certainty unknown", "nothing to judge by"),
    ],
)
def test_how_certain_it_is_is_said_in_plain_words(page: Page, entries: Any, badge: str, doubt: str) -> None:
    page.route("**/predict*", answering(**entries))
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    expect(page.locator(".badge")).to_have_text(badge)
    expect(page.locator(".doubt")).to_contain_text(doubt)
    expect(page.locator(".heat-switch")).to_be_hidden()


def test_the_best_few_labels_are_shown_and_all_on_demand(page: Page) -> None:
    page.route("**/predict*", answering())
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    expect(page.locator(".scores li")).to_have_count(3)
    page.click("text=Show all 12")
    expect(page.locator(".scores li")).to_have_count(12)
    expect(page.locator(".scores li").last).to_contain_text("< 0.1 %")


def test_a_browser_without_a_preview_for_a_file_says_so_and_asks_all_the_same(page: Page, tmp_path: Path) -> None:
    (tmp_path / "odd.heic").write_bytes(b"\0\0\0\x18ftypheic")
    page.set_input_files("#file", tmp_path / "odd.heic")
    expect(page.locator(".failed .state")).to_be_visible()
    expect(page.locator("figcaption")).to_be_empty()
    expect(page.locator(".failed .again")).to_be_hidden()
    page.route("**/predict*", answering())
    page.set_input_files("#file", tmp_path / "odd.heic")
    expect(page.locator(".answered figcaption")).to_contain_text("No preview")


# ------------------------------------------------------------------------------------------------------- the list


def downloaded(page: Page, button: str) -> str:
    with page.expect_download() as waiting:
        page.click(button)
    return Path(waiting.value.path()).read_text(encoding="utf-8-sig")


def test_the_list_can_be_downloaded_and_no_name_becomes_a_formula(page: Page, tmp_path: Path) -> None:
    names = ["=1+1.jpg", "+a.jpg", "-b.jpg", "@c.jpg", 'a "quoted", name.jpg', "x;=1.jpg", 'y,"+1.jpg', "z\t @1.jpg"]
    for name in names:
        shutil.copy(CRACKED, tmp_path / name)
    (tmp_path / "none.jpg").write_text("no picture")
    page.set_input_files("#file", [*(tmp_path / name for name in names), tmp_path / "none.jpg"])
    await_answers(page, 8)
    expect(page.locator("#list > .failed")).to_have_count(1)
    text = downloaded(page, "#as-csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    safe = [*(f"'{name}" for name in names[:4]), names[4], "x;'=1.jpg", "y,'\"+1.jpg", "z\t' @1.jpg"]
    assert [row["picture"] for row in rows] == [*safe, "none.jpg"]
    assert [row["label"] for row in rows] == ["cracked"] * 8 + [""]
    for separator in ",;\t":
        cells = [cell.strip() for row in csv.reader(io.StringIO(text), delimiter=separator) for cell in row]
        assert [cell for cell in cells if cell.startswith(("=", "+", "-", "@"))] == []
    assert rows[0]["certain"] == "true"
    assert "not a picture" in rows[8]["problem"]
    entries = json.loads(downloaded(page, "#as-json"))
    assert [entry["picture"] for entry in entries] == [*names, "none.jpg"]
    assert entries[0]["scores"]["cracked"] > 0.9
    assert "heatmap" not in entries[0]
    assert "not a picture" in entries[8]["problem"]


def test_the_list_can_be_cleared_and_leaves_no_picture_in_memory(page: Page) -> None:
    page.add_init_script(
        "globalThis.alive = new Set();"
        "const make = URL.createObjectURL, end = URL.revokeObjectURL;"
        "URL.createObjectURL = (blob) => { const url = make(blob); alive.add(url); return url; };"
        "URL.revokeObjectURL = (url) => { alive.delete(url); end(url); };"
    )
    page.reload()
    page.set_input_files("#file", sorted(SAMPLES.glob("*.jpg")))
    await_answers(page, 6)
    expect(page.locator(".preview[src]")).to_have_count(6)
    assert page.evaluate("alive.size") == 6
    page.once("dialog", lambda dialog: dialog.dismiss())
    page.click("#clear")
    await_answers(page, 6)
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    expect(page.locator("#visit")).to_be_hidden()
    until(lambda: page.evaluate("alive.size === 0"), "the last picture to be forgotten")
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)


# -------------------------------------------------------------------------------------------------------- for all


def test_everything_can_be_done_by_keyboard_alone(either: Page) -> None:
    def press_until(selector: str) -> None:
        for _ in range(40):
            if either.evaluate("(selector) => document.activeElement.matches(selector)", selector):
                assert (
                    either.evaluate(
                        "getComputedStyle(document.activeElement.closest('#drop, .button') ?? document.activeElement)"
                        ".outlineStyle"
                    )
                    != "none"
                ), f"{selector} shows that it has the focus"
                return
            either.keyboard.press("Tab")
        raise AssertionError(f"{selector} is never reached")

    either.route("**/predict", lambda route: route.fulfill(status=502))  # the address, which may then be tried again
    press_until("#file")
    press_until("#url")
    either.keyboard.type("http://127.0.0.1/x.jpg")
    either.keyboard.press("Enter")
    expect(either.locator("#list > .failed")).to_have_count(1)
    press_until("[data-sample$='cracked-1.jpg']")
    either.keyboard.press("Enter")
    await_answers(either, 1)
    press_until("#as-csv")
    press_until("input[type=range]")
    either.keyboard.press("Home")
    expect(either.locator(".answered .heat")).to_have_css("opacity", "0")
    press_until(".call summary")
    either.keyboard.press("Enter")
    expect(either.locator(".answered .call pre").first).to_be_visible()
    press_until(".again")
    either.keyboard.press("Enter")
    expect(either.locator("#list > .failed")).to_have_count(1)
    expect(either.locator(".failed .again")).to_be_focused()


def test_a_screen_reader_is_told_what_came_of_it_and_not_every_step(page: Page) -> None:
    page.evaluate(
        "globalThis.spoken = []; new MutationObserver(() => spoken.push(document.getElementById('spoken').textContent))"
        ".observe(document.getElementById('spoken'), {childList: true})"
    )
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    until(
        lambda: re.fullmatch(
            r"cracked-1\.jpg: cracked, .* % confident, certain\. 1 picture: 1 answered",
            page.evaluate("spoken.at(-1) ?? ''"),
        ),
        "a word on the picture",
    )
    page.set_input_files("#file", sorted(SAMPLES.glob("*.jpg")) * 3)
    await_answers(page, 19)
    until(lambda: page.evaluate("spoken.at(-1).endsWith('19 pictures: 19 answered')"), "a word on all of them")
    assert page.evaluate("spoken.length") <= 6


def test_a_screen_reader_is_told_why_a_picture_failed_and_again_if_it_fails_alike(page: Page) -> None:
    page.set_input_files("#file", [CRACKED, NORMAL])
    await_answers(page, 2)
    page.route("**/predict", lambda route: route.fulfill(status=500, json={"detail": "It broke."}))
    page.evaluate(
        "globalThis.spoken = []; new MutationObserver(() => spoken.push(document.getElementById('spoken').textContent))"
        ".observe(document.getElementById('spoken'), {childList: true})"
    )
    page.fill("#url", "www.example.com/a.jpg")
    page.keyboard.press("Enter")
    told = "https://www.example.com/a.jpg: It broke. 3 pictures: 2 answered, 1 failed"
    until(lambda: page.evaluate("(told) => spoken.some(text => text.trim() === told)", told), "a word on it")
    page.evaluate("spoken = []")
    page.click(".again")
    until(lambda: page.evaluate("(told) => spoken.some(text => text.trim() === told)", told), "the same word again")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_the_light_and_in_the_dark(either: Page, scheme: Any, tmp_path: Path) -> None:
    either.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert_accessible(either)
    (tmp_path / "none.jpg").write_text("no picture")
    either.set_input_files("#file", [CRACKED, tmp_path / "none.jpg"])
    await_answers(either, 1)
    expect(either.locator("#list > .failed")).to_have_count(1)
    for summary in either.locator("summary:visible").all():
        summary.click()
    either.fill("#url", "nonsense")
    either.click("text=Classify")
    expect(either.locator("#problem")).to_be_visible()
    assert_accessible(either)
    ground = either.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(28, 25, 23)") == (scheme == "dark")


# ------------------------------------------------------------------------------------------------------ correct me


def offering_corrections(page: Page, answer: Any, status: int = 200) -> list[Any]:
    """The page as it is where corrections are kept, and `answer` to each; what was sent. The address itself is tested
    elsewhere; the request that comes here is what that test sends."""
    sent: list[Any] = []

    def keep(route: Route) -> None:
        sent.append((route.request.url, route.request.headers, route.request.post_data_buffer))
        kind = "application/json" if status == 200 else "application/problem+json"
        route.fulfill(status=status, content_type=kind, body=json.dumps(answer))

    def with_feedback(route: Route) -> None:
        body = route.fetch().text()
        assert "</form>" in body
        route.fulfill(body=body.replace("</form>", '<p id="feedback">kept</p></form>', 1), content_type="text/html")

    page.route("**/feedback*", keep)
    page.route("http://*/", with_feedback)
    page.reload()
    return sent


def test_a_wrong_answer_can_be_corrected_where_that_is_kept(either: Page) -> None:
    sent = offering_corrections(either, {"kept": True, "label": "normal"})
    either.set_input_files("#file", CRACKED)
    await_answers(either, 1)
    either.click("text=Wrong? It is …")
    either.select_option(".correct select", "normal")
    assert_accessible(either)
    either.click(".correct button")
    expect(either.locator(".correct p")).to_have_text("Kept as normal. Thank you.")
    [(url, headers, body)] = sent
    assert url.endswith("/feedback?label=normal")
    assert headers["content-type"].startswith("multipart/form-data")
    assert b'name="file"; filename="cracked-1.jpg"' in body  # Playwright leaves the file's bytes out
    assert list(csv.DictReader(io.StringIO(downloaded(either, "#as-csv"))))[0]["corrected to"] == "normal"


def test_a_correction_that_was_kept_before_or_is_refused_says_so(page: Page) -> None:
    offering_corrections(page, {"kept": False, "label": "normal"})
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    page.click("text=Wrong? It is …")
    page.click(".correct button")
    expect(page.locator(".correct p")).to_have_text("This picture was corrected before. Thank you.")
    page.unroute("**/feedback*")
    offering_corrections(page, {"detail": "There is no room for more corrections."}, status=507)
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    page.click("text=Wrong? It is …")
    page.click(".correct button")
    expect(page.locator(".correct p")).to_have_text("There is no room for more corrections.")


def test_nothing_can_be_corrected_where_nothing_is_kept(page: Page) -> None:
    page.set_input_files("#file", CRACKED)
    await_answers(page, 1)
    expect(page.locator(".correct")).to_be_hidden()
