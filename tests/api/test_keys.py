"""Keys: whom they let in, what they leave open, and a file that changes while the gateway runs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loupe.errors import UserError
from loupe.gateway.access.keys import Keys, digest_of
from tests.support.gateways import Answer, Gateway, gateway
from tests.support.pictures import encoded
from tests.support.servers import ROOT, ModelServer, until

PICTURE = encoded()
ANNE, BERT = "loupe_anne", "loupe_bert"


def line(name: str, key: str) -> str:
    return f"{name}:{digest_of(key)}\n"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys.txt"


@pytest.fixture(scope="module")
def here(server: ModelServer, file: Path) -> Iterator[Gateway]:
    file.write_text("# who may ask\n\n" + line("anne", ANNE) + line("bert", BERT))
    with gateway(f"localhost:{server.port}", LOUPE_API_KEYS=str(file)) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refused(answer: Answer) -> dict[str, Any]:
    assert answer.status == 401, answer.body
    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="loupe"'
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["code"], body["request_id"]) == ("unauthorized", answer.headers["X-Request-ID"])
    return body


def test_a_key_lets_in_either_way_it_is_sent(here: Gateway) -> None:
    for headers in (bearer(ANNE), bearer(BERT), {"X-API-Key": ANNE}, {"Authorization": f"bearer  {ANNE} "}):
        assert here.post("/predict", PICTURE, **headers).status == 200
        assert here.get("/model", **headers).status == 200
    proxied = {"Authorization": "Basic YTpi", "X-API-Key": BERT}
    assert here.post("/predict", PICTURE, **proxied).status == 200


def test_without_one_or_with_another_nothing_is_answered(here: Gateway, file: Path) -> None:
    hashed = digest_of(ANNE)
    for headers in (
        {}, bearer("loupe_annf"), bearer(ANNE + "x"), bearer(ANNE[:-1]), bearer(""), bearer("anne"), bearer(hashed),
        bearer(f"anne:{hashed}"), {"X-API-Key": "é\xff"}, {"X-API-Key": "x" * 4000}, {"Authorization": "Basic YTpi"},
        {"Authorization": ANNE}, {"Cookie": f"key={ANNE}"},
    ):  # fmt: skip
        assert ANNE not in str(refused(here.post("/predict", PICTURE, **headers)))
        refused(here.get("/model", **headers))
    refused(here.post(f"/predict?key={ANNE}", PICTURE))
    refused(here.post("/%70redict", PICTURE))  # the address, written in another way
    assert "needs a key" in refused(here.post("/predict", PICTURE))["detail"]


def test_the_page_the_probes_and_the_descriptions_need_none(here: Gateway) -> None:
    for path in ("/", "/healthz", "/readyz", "/docs", "/openapi.json", "/page/page.js", "/samples/normal-1.jpg"):
        assert here.get(path).status == 200, path
    assert b"curl -F file=@picture.jpg -H 'X-API-Key: " in here.get("/").body
    assert here.get("/predict").status == 405
    described = here.get("/openapi.json").json()
    assert set(described["components"]["securitySchemes"]) == {"bearer", "header"}
    operation = described["paths"]["/predict"]["post"]
    assert "security" in operation
    assert "401" in operation["responses"]
    assert "security" not in described["paths"]["/healthz"]["get"]


def test_a_gateway_without_keys_wants_none_and_describes_none(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}") as open_to_all:
        assert open_to_all.post("/predict", PICTURE, **bearer("whatever")).status == 200
        described = open_to_all.get("/openapi.json").json()
        assert "securitySchemes" not in described["components"]
        assert b"X-API-Key" not in open_to_all.get("/").body
        assert "401" not in described["paths"]["/predict"]["post"]["responses"]


def test_a_changed_file_is_obeyed_without_a_restart_and_a_broken_one_changes_nothing(
    server: ModelServer, tmp_path: Path
) -> None:
    """As a secret of Kubernetes changes: the name is a link, and what it leads to is exchanged as a whole."""
    for name, text in (
        ("one", line("anne", ANNE)), ("two", line("bert", BERT)), ("broken", "anne=" + ANNE), ("empty", ""),
        ("closed", "# nobody\n"),
    ):  # fmt: skip
        (tmp_path / name).write_text(text)
        os.utime(tmp_path / name, (1, 1))  # older than it is, and all of one age
    link = tmp_path / "keys"

    def lead_to(name: str) -> None:
        (tmp_path / "new").symlink_to(name)
        (tmp_path / "new").rename(link)

    lead_to("one")
    with gateway(f"localhost:{server.port}", LOUPE_API_KEYS=str(link)) as here:

        def let_in(key: str) -> bool:
            return here.post("/predict", PICTURE, **bearer(key)).status == 200

        assert (let_in(ANNE), let_in(BERT)) == (True, False)
        lead_to("two")
        until(lambda: let_in(BERT), "the new key")
        assert not let_in(ANNE)
        for name in ("broken", "empty", "nowhere"):
            lead_to(name)
            limit = time.monotonic() + 1.2  # a check and more
            while time.monotonic() < limit:
                assert (let_in(ANNE), let_in(BERT)) == (False, True)
        log = here.log.read_text()
        assert log.count("is not name:hash") == 1
        assert ANNE not in log, "a key in clear is not told to the log"
        lead_to("closed")
        until(lambda: not let_in(BERT), "that nobody is let in")


@pytest.mark.parametrize(
    ("text", "said"),
    [(None, "cannot be read"), ("", "is empty"), ("anne:abc", "line 1 of"), ("# x\n" + ANNE, "line 2 of")],
)
def test_a_file_that_is_none_stops_the_gateway_with_one_line(tmp_path: Path, text: str | None, said: str) -> None:
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn", "gateway:app"], cwd=ROOT, env={"LOUPE_API_KEYS": str(path)},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert said in done.stderr
    assert ANNE not in done.stderr


def test_a_worker_that_replaces_another_while_the_file_is_broken_lets_nobody_in(
    server: ModelServer, file: Path
) -> None:
    other = file.with_name("other.txt")
    other.write_text(line("anne", ANNE))
    with gateway(f"localhost:{server.port}", LOUPE_API_KEYS=str(other)) as here:
        (worker,) = here.workers()
        other.write_text("broken")
        os.kill(worker, 9)
        until(lambda: here.workers() not in ([], [worker]) and here.get("/healthz").status == 200, "the next worker")
        refused(here.post("/predict", PICTURE, **bearer(ANNE)))
        assert "is not name:hash" in here.log.read_text()
        assert "Nobody is let in until it is whole." in here.log.read_text()
        assert "The keys that were known stay." not in here.log.read_text()
        other.write_text(line("anne", ANNE))
        until(lambda: here.post("/predict", PICTURE, **bearer(ANNE)).status == 200, "the file")


def test_a_made_key_is_shown_once_and_its_line_lets_it_in(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "loupe.gateway.keys", "carla-2"]
    done = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60) for _ in range(2)]
    made = [one.stderr.splitlines()[0].rpartition(" ")[2] for one in done]
    assert len(set(made)) == 2
    assert all(len(key) > 40 and key not in one.stdout for key, one in zip(made, done, strict=True))
    (tmp_path / "keys").write_text("".join(one.stdout for one in done))
    assert [Keys(tmp_path / "keys").name_of(key) for key in (*made, "x")] == ["carla-2", "carla-2", None]
    wrong = subprocess.run([*command[:-1], "a:b"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)


def test_a_file_of_keys_that_is_too_large_or_no_text_is_refused(tmp_path: Path) -> None:
    for data in (b"#" * ((1 << 20) + 1), b"\xff\xfe"):
        (tmp_path / "keys").write_bytes(data)
        with pytest.raises(UserError, match="LOUPE_API_KEYS"):
            Keys(tmp_path / "keys")
