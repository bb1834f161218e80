"""GET /model for people, in a real Chromium: the sample, odd cards, two workers, keys; and JSON for programs."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from loupe.card import MAX_CONFUSION, Card
from loupe.errors import UserError
from loupe.gateway.access.keys import digest_of
from tests.support import backends, models
from tests.support.browsers import NARROW, WIDE, assert_accessible, opened
from tests.support.gateways import Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import ROOT, ModelServer, free_port, model_server, until

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
HEARD = """globalThis.heard = []; const alert = document.querySelector("#problem p");
    new MutationObserver(() => heard.push(alert.textContent)).observe(alert, {childList: true})"""
CRACKED = ROOT / "data" / "samples" / "cracked-1.jpg"


@pytest.fixture(scope="module")
def server(sample_models: Path) -> Iterator[ModelServer]:
    with model_server(sample_models, "tires") as running:
        yield running


@pytest.fixture(scope="module")
def here(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture(params=[NARROW, WIDE])
def page(request: pytest.FixtureRequest, here: Gateway, chromium: Browser) -> Iterator[Page]:
    with opened(chromium, f"http://127.0.0.1:{here.port}/model", request.param) as page:
        yield page


def table(page: Page, section: str) -> list[list[str]]:
    rows = page.locator(f"#{section} tbody tr")
    return [[text.strip() for text in rows.nth(n).locator("th, td").all_inner_texts()] for n in range(rows.count())]


def html(here: Gateway) -> str:
    answer = here.get("/model", Accept=BROWSER)
    assert answer.status == 200, answer.body
    return answer.body.decode()


# ------------------------------------------------------------------------------------------------------- the sample


@pytest.mark.parametrize("accept", [None, "*/*", "application/json", "application/json, text/html;q=0.9"])
def test_programs_get_the_card_as_json(here: Gateway, accept: str | None) -> None:
    answer = here.get("/model", **({"Accept": accept} if accept else {}))
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["Vary"] == "Accept"
    assert answer.json()["labels"] == ["cracked", "normal"]


def test_a_browser_gets_a_page(here: Gateway) -> None:
    answer = here.get("/model", Accept=BROWSER)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Vary"] == "Accept"
    assert "style=" not in answer.body.decode(), "the policy forbids it"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_what_the_card_says_and_is_accessible(page: Page, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme)
    expect(page.locator("h2")).to_have_text("tires, version 1")
    facts = page.locator(".facts").inner_text()
    assert re.search(r"accuracy\s+97\.5 %\s+of 120 test pictures", facts), facts
    assert re.search(r"precision\s+float32", facts)
    assert [row[:4] for row in table(page, "labels")] == [
        ["cracked", "170", "97 %", "98 %"], ["normal", "170", "98 %", "97 %"],
    ]  # fmt: skip
    assert table(page, "confusion") == [["cracked", "58", "2"], ["normal", "1", "59"]]
    bins = table(page, "reliability")
    assert sum(int(row[2]) for row in bins) == 120
    expect(page.locator("#reliability circle")).to_have_count(len(bins))
    expect(page.locator("#parity")).to_contain_text("60 validation pictures were answered by each way of serving")
    expect(page.locator("#versions li")).to_have_text(["1: served, and asked by this gateway"])
    assert_accessible(page)


def test_the_page_at_the_root_leads_to_it(here: Gateway, chromium: Browser) -> None:
    with opened(chromium, f"http://127.0.0.1:{here.port}/") as page:
        with page.context.expect_page() as opening:  # so that the list of this visit stays
            page.click("text=What this model is, and how good")
        card = opening.value
        expect(card.locator("h2")).to_have_text("tires, version 1")
        card.click("text=Try it")
        expect(card.locator("#drop")).to_be_visible()


# --------------------------------------------------------------------------------------------------- drift, versions


def ask(here: Gateway, requests: int) -> None:
    for _ in range(requests):
        assert here.post_files("/predict", *[CRACKED.read_bytes()] * 20).status == 200


def test_what_was_said_lately_is_compared_with_the_training_pictures(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}") as here:
        ask(here, 1)
        assert "Too few answers so far: 20, and from 100 on" in html(here)
        ask(here, 5)
        shown = html(here)
        assert re.search(r"<strong>\d+\.\d\d</strong>: the labels given lately are spread otherwise", shown), shown
        assert "the last 120 answers of this version" in shown
        assert "workers" not in shown


def test_two_workers_are_summed_where_metrics_are_on_and_told_apart_where_not(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}", LOUPE_WORKERS="2", LOUPE_METRICS_PORT=str(free_port())) as here:
        ask(here, 8)
        for _ in range(4):  # whichever of the two answers
            assert "the last 160 answers of this version" in html(here)
            assert "workers" not in html(here)
    with gateway(f"localhost:{server.port}", LOUPE_WORKERS="2") as here:
        assert "These are the answers of one of 2 workers" in html(here)


def test_all_versions_that_the_server_has_are_named(sample_models: Path, tmp_path: Path) -> None:
    for version in ("3", "5"):
        (tmp_path / "tires").mkdir(exist_ok=True)
        (tmp_path / "tires" / version).symlink_to(sample_models / "tires" / "1")
    (tmp_path / "config").write_text(
        f'model_config_list {{ config {{ name: "tires" base_path: "{tmp_path / "tires"}" model_platform: "tensorflow" '
        "model_version_policy { all {} } } }"
    )
    with (
        model_server(tmp_path, "tires", f"--model_config_file={tmp_path / 'config'}") as server,
        gateway(f"localhost:{server.port}") as here,
    ):
        assert re.findall(r"<li>(.+?)</li>", html(here)) == ["5: served, and asked by this gateway", "3: served"]


# -------------------------------------------------------------------------------------------------- keys and problems


def test_where_keys_are_on_the_page_asks_for_one_and_shows_the_model_then(
    server: ModelServer, chromium: Browser, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(f"page:{digest_of('loupe_page')}\n")
    with gateway(f"localhost:{server.port}", LOUPE_API_KEYS=str(tmp_path / "keys")) as here:
        refused = here.get("/model", Accept=BROWSER)
        assert refused.status == 401
        assert refused.headers["Content-Type"] == "text/html; charset=utf-8"
        assert refused.headers["WWW-Authenticate"] == 'Bearer realm="loupe"'
        assert "cracked" not in refused.body.decode()
        assert here.get("/model").json()["code"] == "unauthorized"
        with opened(chromium, f"http://127.0.0.1:{here.port}/model") as page:
            expect(page.locator("#problem")).to_contain_text("wants a key. Ask whoever runs it.")
            assert_accessible(page)
            page.fill("#key", "wrong")
            page.click("text=Use this key")
            expect(page.locator("#problem")).to_contain_text("not known")
            page.evaluate(HEARD)
            page.fill("#key", "wrong-too")
            page.click("text=Use this key")
            until(lambda: "not known" in page.evaluate("heard.at(-1) ?? ''"), "the second refusal to be heard")
            page.fill("#key", "loupe_page")
            page.keyboard.press("Enter")
            expect(page.locator("h2")).to_have_text("tires, version 1")
            expect(page.locator("h2")).to_be_focused()
            assert table(page, "confusion")[0] == ["cracked", "58", "2"]
            page.reload()  # this tab has the key now
            expect(page.locator("h2")).to_have_text("tires, version 1")


def test_a_model_server_that_is_gone_is_told_on_a_page_too(chromium: Browser) -> None:
    with gateway(f"localhost:{free_port()}") as here:
        answer = here.get("/model", Accept=BROWSER)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        with opened(chromium, f"http://127.0.0.1:{here.port}/model") as page:
            expect(page.locator("#problem")).to_contain_text("The model server does not answer; try again in a second.")
            expect(page.locator("#key-form")).to_have_count(0)


# --------------------------------------------------------------------------------------------------------- odd cards


ODD = [
    "<script>document.title='taken'</script>",
    "turned \u202egnp.exe",
    "日本語",
    "long " * 60,
    *(f"l{n}" for n in range(8)),
]


def test_a_card_that_somebody_filled_with_anything_is_shown_as_far_as_it_goes(chromium: Browser) -> None:
    size = len(ODD)
    card = models.card(
        labels=ODD,
        metrics={
            "accuracy": 0.5, "ece": "none", "images": float("nan"), "split": ["test"],
            "confusion": [[10**12] * size] * size, "reliability": [[0, 1, 0], [1, 0.0, 10**12]],
        },
        training={"images": {ODD[0]: "many", ODD[1]: -3, ODD[2]: 1e308}, "finished": 5},
        backbone={"name": {}}, parity={"images": True, "stages": 7}, precision=[],
    )  # fmt: skip
    with (
        backends.backend(lambda call, context: None, card, labels=size) as behind,
        gateway(f"localhost:{behind.port}") as here,
    ):
        assert here.post("/predict", encoded()).status == 200
        with opened(chromium, f"http://127.0.0.1:{here.port}/model", NARROW) as page:
            assert page.title() == "Loupe · the model tires"
            assert table(page, "labels")[0][:2] == [ODD[0], "–"]
            assert len(table(page, "confusion")) == size
            expect(page.locator("#parity")).to_contain_text("does not say")
            expect(page.locator("#versions")).to_contain_text("The model server does not say which it has.")
            expect(page.locator("#reliability circle")).to_have_count(2)
            assert_accessible(page)


def test_a_card_without_the_pictures_says_so() -> None:
    with (
        backends.backend(lambda call, context: None, models.card()) as behind,
        gateway(f"localhost:{behind.port}") as here,
    ):
        shown = html(here)
    assert "This card does not hold it" in shown
    assert "This card does not hold what it would be drawn from" in shown
    assert "<circle" not in shown


def test_a_precision_that_is_no_text_gets_no_box_and_titles_are_as_safe_as_labels() -> None:
    card = models.card(labels=["a\u202eb", "c" * 200], precision=[], metrics={"confusion": [[1, 2], [3, 4]]})
    with (
        backends.backend(lambda call, context: None, card) as behind,
        gateway(f"localhost:{behind.port}") as here,
    ):
        shown = html(here)
    assert "<dt>precision</dt>" not in shown
    assert 'title="1 of 3 a b were called a b"' in shown
    assert "c" * 81 not in shown


def card_with(labels: int = 2, **metrics: Any) -> Card:
    text = models.card(labels=[f"l{n}" for n in range(labels)], metrics=metrics)
    return Card.from_json(json.dumps(json.loads(text)))


@pytest.mark.parametrize(
    "confusion",
    [[], {}, "x", 1, [[1, 2]], [[1, 2], [3]], [[1, 2], [3, -4]], [[1, 2], [3, 4.5]], [[1, 2], [3, True]],
     [[1, 2], [3, 10**13]], [[1, 2], "34"]],
)  # fmt: skip
def test_a_confusion_that_is_no_table_of_its_labels_is_refused(confusion: Any) -> None:
    with pytest.raises(UserError, match="A card's confusion must be 2 rows of 2 counts"):
        card_with(confusion=confusion)


@pytest.mark.parametrize(
    "bins",
    [{}, "x", 1, [[0.5, 0.5]], [[0.5, 0.5, 1.5]], [[0.5, 0.5, -1]], [[1.5, 0.5, 1]], [[float("nan"), 0.5, 1]],
     [["0.5", 0.5, 1]], [[0.5, True, 1]], [[0.5, 0.5, 1]] * 101],
)  # fmt: skip
def test_a_reliability_that_is_no_list_of_bins_is_refused(bins: Any) -> None:
    with pytest.raises(UserError, match="A card's reliability must be a list of at most 100 bins"):
        card_with(reliability=bins)


def test_a_confusion_of_many_labels_is_refused_and_of_fewer_taken() -> None:
    for labels in (2, MAX_CONFUSION):
        table_ = [[0] * labels] * labels
        assert card_with(labels, confusion=table_).metrics["confusion"] == table_
    with pytest.raises(UserError, match="left out above 40 labels"):
        card_with(MAX_CONFUSION + 1, confusion=[[0] * 41] * 41)
