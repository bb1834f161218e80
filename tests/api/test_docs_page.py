"""/docs in a real Chromium without any script, and the page where a key is wanted."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from loupe.gateway.access.keys import digest_of
from tests.support.gateways import Gateway, gateway
from tests.support.servers import ROOT, ModelServer, model_server

KEY = "loupe_page"
SAMPLE = ROOT / "data" / "samples" / "cracked-1.jpg"


@pytest.fixture(scope="module")
def server(sample_models: Path) -> Iterator[ModelServer]:
    with model_server(sample_models, "tires") as running:
        yield running


@pytest.fixture(scope="module")
def here(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}") as running:
        yield running


@pytest.fixture(scope="module")
def locked(server: ModelServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"page:{digest_of(KEY)}\n")
    with gateway(f"localhost:{server.port}", LOUPE_API_KEYS=str(file)) as running:
        yield running


@pytest.fixture
def docs(here: Gateway, chromium: Browser) -> Iterator[Page]:
    context = chromium.new_context(java_script_enabled=False, viewport={"width": 980, "height": 760})
    page = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))  # where a breach of the policy is told
    page.on("request", lambda request: asked.append(request.url))
    address = f"http://127.0.0.1:{here.port}"
    page.goto(f"{address}/docs")
    yield page
    assert [url for url in asked if not url.startswith(address)] == []
    assert said == []
    context.close()


def test_every_address_and_every_error_can_be_read_without_a_script(docs: Page, here: Gateway) -> None:
    described = here.get("/openapi.json").json()
    for path in described["paths"]:
        expect(docs.get_by_role("heading", name=path, exact=False).first).to_be_visible()
    text = docs.inner_text("main")
    for code in described["components"]["schemas"]["Fault"]["properties"]["code"]["enum"]:
        assert text.count(code) >= 1, code
    assert "At most 32 pictures and 10,000,000 bytes a request" in text
    assert "Undefined" not in text
    assert "{{" not in text


def test_each_link_within_it_leads_somewhere(here: Gateway) -> None:
    html = here.get("/docs").body.decode()
    ids = re.findall(r' id="([^"]+)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]+)"', html)) <= set(ids)


def test_it_looks_right_where_it_is_narrow_and_where_it_is_dark(docs: Page) -> None:
    assert docs.evaluate("getComputedStyle(document.querySelector('.address')).borderRadius") == "12px"
    light = docs.evaluate("getComputedStyle(document.body).backgroundColor")
    docs.emulate_media(color_scheme="dark")
    assert docs.evaluate("getComputedStyle(document.body).backgroundColor") != light
    docs.set_viewport_size({"width": 360, "height": 700})
    assert docs.evaluate("document.documentElement.scrollWidth") <= 360


def test_its_commands_can_be_pasted_into_a_terminal(here: Gateway, tmp_path: Path) -> None:
    commands = [one["source"] for one in here.get("/openapi.json").json()["paths"]["/predict"]["post"]["x-codeSamples"]]
    assert len(commands) == 4
    for name in ("picture.jpg", "1.jpg", "2.jpg"):
        shutil.copy(SAMPLE, tmp_path / name)
    for command in commands:
        command = command.replace("http://localhost:9696", f"http://127.0.0.1:{here.port}")
        assert shlex.split(command)[0] == "curl"
        command = command.replace("https://example.org", "https://example.invalid") + " -s -o answer -w '%{http_code}'"
        done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
        assert done.stdout == ("400" if "example.invalid" in command else "200"), command


def test_its_commands_carry_a_key_where_one_is_wanted(locked: Gateway, here: Gateway, tmp_path: Path) -> None:
    shutil.copy(SAMPLE, tmp_path / "picture.jpg")

    def commands(of: Gateway) -> list[str]:
        described = of.get("/openapi.json").json()["paths"]["/predict"]["post"]
        return [one["source"] for one in described["x-codeSamples"]]

    assert all("X-API-Key" not in command for command in commands(here))
    assert all(command.startswith("curl -H 'X-API-Key: …' ") for command in commands(locked))
    command = commands(locked)[0].replace("…", KEY).replace("http://localhost:9696", f"http://127.0.0.1:{locked.port}")
    done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert '"label":"cracked"' in done.stdout


def test_its_commands_name_the_address_and_the_scheme_that_the_caller_used(here: Gateway) -> None:
    """As docs/operating.md has nginx send it; nginx is on the same machine here."""
    sent = {"Host": "loupe.example.org", "X-Forwarded-Proto": "https"}
    assert "https://loupe.example.org/predict" in here.get("/docs", **sent).body.decode()
    assert "proxy_set_header X-Forwarded-Proto $scheme;" in (ROOT / "docs" / "operating.md").read_text()


def test_what_it_says_of_bodies_and_numbers_is_plain(docs: Page) -> None:
    text = docs.inner_text("main")
    assert "1 to 32 files of at most 10,000,000 bytes" in text
    assert "number, more than 0, at most 999,999,999" in text


def test_the_answer_that_it_shows_has_the_order_of_a_real_one(docs: Page, here: Gateway) -> None:
    shown = json.loads(docs.locator("#predict pre").last.inner_text())
    real = here.post("/predict", SAMPLE.read_bytes(), "image/jpeg").json()
    assert list(shown) == list(real)
    assert list(shown["timings_ms"]) == list(real["timings_ms"])


def test_every_line_of_its_list_of_addresses_looks_like_a_link(docs: Page) -> None:
    further = docs.locator("nav a.further")
    expect(further).to_have_count(2)
    for n in range(2):
        expect(further.nth(n)).to_have_css("text-decoration-line", "underline")
        assert further.nth(n).evaluate("e => getComputedStyle(e).color != getComputedStyle(document.body).color")


def test_the_page_asks_for_a_key_where_one_is_wanted_and_keeps_it_for_this_tab(
    locked: Gateway, chromium: Browser
) -> None:
    page = chromium.new_page()
    page.goto(f"http://127.0.0.1:{locked.port}")
    expect(page.locator("#key-form")).to_be_hidden()
    page.set_input_files("#file", SAMPLE)
    expect(page.locator("#problem")).to_contain_text("wants a key. Ask whoever runs it.")
    page.click("text=Use this key")
    expect(page.locator("#problem")).to_contain_text("There is no key yet")
    page.fill("#key", "wrong")
    page.click("text=Use this key")
    expect(page.locator("#problem")).to_contain_text("not known")
    for unsendable in ("schlüssel", "„loupe_page“", "two words", "loupe_\u200bpage"):
        page.fill("#key", unsendable)
        page.click("text=Use this key")
        expect(page.locator("#problem")).to_contain_text("This is no key")
        assert page.evaluate("sessionStorage.getItem('key')") is None, "and the wrong one is forgotten"
    page.fill("#key", KEY)
    page.click("text=Use this key")
    expect(page.locator(".label")).to_have_text("cracked")
    expect(page.locator("#key-form")).to_be_hidden()
    page.click("text=The same call")
    expect(page.locator(".call pre").first).to_contain_text("-H 'X-API-Key: …'")
    page.reload()
    page.set_input_files("#file", SAMPLE)
    expect(page.locator(".label")).to_have_text("cracked")
    other = chromium.new_context().new_page()
    other.goto(f"http://127.0.0.1:{locked.port}")
    other.set_input_files("#file", SAMPLE)
    expect(other.locator("#key-form")).to_be_visible()
    other.goto(f"http://127.0.0.1:{locked.port}/docs")
    expect(other.locator("main")).to_contain_text("This gateway wants a key")
