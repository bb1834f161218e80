"""The gateway under gunicorn with a real model server behind it, over real sockets."""

from __future__ import annotations

import base64
import http.client
import io
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import proto
from loupe.errors import RefusedURL
from loupe.gateway.fetch import fetch
from loupe.gateway.settings import Settings
from tests import models
from tests.gateways import Gateway, gateway, internet
from tests.pictures import encoded, picture, png_that_declares
from tests.servers import ModelServer, free_port, model_server, until

PICTURE = encoded()
Write = Callable[[bytes], None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("models")
    models.write(made / "tires" / "1", seed=1)
    return made


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ModelServer]:
    with model_server(folder, "tires") as running:
        yield running


@pytest.fixture(scope="module")
def here(server: ModelServer) -> Iterator[Gateway]:
    """It may fetch from this machine, and nothing else about it is loosened."""
    with gateway(f"localhost:{server.port}", LOUPE_FETCH_ALLOW="127.0.0.1", LOUPE_FETCH_TIMEOUT="2") as running:
        yield running


@pytest.fixture(scope="module")
def strict(server: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{server.port}") as running:
        yield running


def site(path: str, write: Write) -> None:
    """All there is on the internet of these tests."""
    ok = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n"
    if path == "/tire.jpg":
        write(ok + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE)
    elif path.startswith("/moved/"):
        left = int(path.rsplit("/", 1)[1])
        target = f"/moved/{left - 1}" if left else "/tire.jpg"
        write(f"HTTP/1.1 302 Found\r\nLocation: {target}\r\nContent-Length: 0\r\n\r\n".encode())
    elif path.startswith("/to/"):
        write(f"HTTP/1.1 302 Found\r\nLocation: {path[4:]}\r\nContent-Length: 0\r\n\r\n".encode())
    elif path == "/to-no-url":
        write(b"HTTP/1.1 302 Found\r\nLocation: http://[/\r\nContent-Length: 0\r\n\r\n")
    elif path == "//twice?really":
        write(ok + f"Content-Length: {len(PICTURE)}\r\n\r\n".encode() + PICTURE)
    elif path == "/nowhere":
        write(b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n")
    elif path == "/silent":
        time.sleep(5)
    elif path == "/drip":
        write(ok + b"\r\n")
        for byte in PICTURE[:100]:
            write(bytes([byte]))
            time.sleep(0.3)
    elif path == "/drip-header":
        for byte in ok * 2:
            write(bytes([byte]))
            time.sleep(0.3)
    elif path == "/endless":
        write(ok + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(400):
            write(b"10000\r\n" + b"x" * 65536 + b"\r\n")
    elif path == "/gzip":
        write(ok + b"Content-Encoding: gzip\r\n\r\n" + PICTURE)
    elif path == "/short":
        write(ok + b"Content-Length: 100000\r\n\r\n" + PICTURE)
    elif path == "/html":
        write(ok.replace(b"text/plain", b"image/png") + b"\r\n<html>hello</html>")
    elif path == "/garbage":
        write(b"\0\1\2\3 this is not HTTP\r\n\r\n")
    else:
        write(f"HTTP/1.1 {path[1:]} Because\r\nContent-Length: 0\r\n\r\n".encode())


@pytest.fixture(scope="module")
def origin() -> Iterator[str]:
    with internet(site) as port:
        yield f"http://127.0.0.1:{port}"


def problem(answer: Any, status: int) -> dict[str, Any]:
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"].startswith("application/problem+json")
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["request_id"] == answer.headers["X-Request-ID"]
    assert body["detail"].endswith((".", "?"))
    assert not any(word in body["detail"] for word in ("/work", "/tmp", "Traceback", "127.0.0.1", "0x"))
    return body


# ------------------------------------------------------------------------------------------------ every way in


def test_a_picture_gets_the_same_scores_whichever_way_it_comes(here: Gateway, origin: str) -> None:
    answers = [
        here.post("/predict", PICTURE, "image/jpeg"),
        here.post("/predict", PICTURE),  # no type at all
        here.post("/predict", PICTURE, "application/octet-stream"),
        here.post_files("/predict", PICTURE),
        here.post_json("/predict", {"b64": base64.b64encode(PICTURE).decode()}),
        here.post_json("/predict", {"b64": "data:image/jpeg;base64," + base64.b64encode(PICTURE).decode()}),
        here.post_json("/predict", {"url": f"{origin}/tire.jpg"}),
        here.post_json("/predict", {"url": f"{origin}/moved/2"}),
    ]
    assert [answer.status for answer in answers] == [200] * 8
    assert len({json.dumps(answer.json()["scores"]) for answer in answers}) == 1
    body = answers[0].json()
    assert list(body) == ["label", "confidence", "certain", "reason", "scores", "model", "timings_ms", "request_id"]
    assert body["model"] == {"name": "tires", "version": 1}
    assert set(body["scores"]) == set(models.LABELS)
    assert body["scores"][body["label"]] == body["confidence"] == max(body["scores"].values())
    assert sum(body["scores"].values()) == pytest.approx(1, abs=1e-4)


def test_many_files_are_answered_in_order_and_a_bad_one_spoils_no_other(here: Gateway) -> None:
    other = encoded(picture(seed=7))
    answer = here.post_files("/predict", PICTURE, b"not a picture", other)
    assert answer.status == 200
    first, bad, last = answer.json()["predictions"]
    assert first["scores"] == here.post("/predict", PICTURE, "image/jpeg").json()["scores"]
    assert last["scores"] == here.post("/predict", other, "image/jpeg").json()["scores"]
    assert (bad["error"]["status"], bad["error"]["code"]) == (422, "broken_image")


def test_many_urls_are_answered_in_order(here: Gateway, origin: str) -> None:
    answer = here.post_json("/predict", {"urls": [f"{origin}/tire.jpg", f"{origin}/404"]}).json()
    assert "scores" in answer["predictions"][0]
    assert answer["predictions"][1]["error"]["code"] == "fetch_failed"


def test_when_all_of_many_fail_so_does_the_request(here: Gateway) -> None:
    assert problem(here.post_files("/predict", b"a", b"b"), 422)["code"] == "all_failed"


def test_top_lists_the_best_labels_first(here: Gateway) -> None:
    scores = here.post("/predict?top=2", PICTURE).json()["scores"]
    assert len(scores) == 2
    assert list(scores.values()) == sorted(scores.values(), reverse=True)


def test_a_heat_map_comes_as_a_picture_when_asked_for(here: Gateway) -> None:
    assert "heatmap" not in here.post("/predict", PICTURE).json()
    text = here.post("/predict?heatmap=1", PICTURE).json()["heatmap"]
    image = Image.open(io.BytesIO(base64.b64decode(text.removeprefix("data:image/png;base64,"))))
    assert (image.format, image.mode, image.size) == ("PNG", "RGBA", (models.SIDE, models.SIDE))
    alpha = np.asarray(image)[..., 3]
    assert alpha.max() > 200
    assert alpha.min() < 100


def test_the_model_page_is_the_card_with_its_version(here: Gateway) -> None:
    card = here.get("/model").json()
    assert (card["labels"], card["version"], card["name"]) == (models.LABELS, 1, "tires")


def test_a_callers_request_id_is_kept_and_a_strange_one_is_not(here: Gateway) -> None:
    assert here.post("/predict", PICTURE, **{"X-Request-ID": "abc-1"}).json()["request_id"] == "abc-1"
    assert here.post("/predict", PICTURE, **{"X-Request-ID": "<b>"}).json()["request_id"] != "<b>"


# ------------------------------------------------------------------------------------------------- bad requests


@pytest.mark.parametrize(
    "body",
    [
        "{", "[]", "3", "null", "{}", '{"url": null}', '{"url": 3}', '{"url": ["x"]}', '{"url": ""}', '{"urls": []}',
        '{"urls": "http://x"}', '{"urls": [3]}', '{"b64": 3}', '{"b64": "%%%"}', '{"url": "http://x", "b64": "aa"}',
    ],
)  # fmt: skip
def test_json_that_is_no_question_is_a_bad_request(here: Gateway, body: str) -> None:
    problem(here.post("/predict", body, "application/json"), 400)


def test_requests_that_make_no_sense_say_so(here: Gateway) -> None:
    problem(here.post("/predict", "a=b", "application/x-www-form-urlencoded"), 415)
    problem(here.post("/predict", "<x/>", "text/xml"), 415)
    problem(here.post_files("/predict", PICTURE, url="http://example.org/x.jpg"), 400)
    problem(here.post_files("/predict"), 400)
    problem(here.post("/predict", b"broken", "multipart/form-data; boundary=x"), 400)
    problem(here.post("/predict", '{"url": ' + "[" * 100_000, "application/json"), 400)
    problem(here.post("/predict", b""), 422)
    problem(here.post_json("/predict", {"urls": ["http://example.org/x.jpg"] * 33}), 400)
    problem(here.post_files("/predict", *[PICTURE] * 33), 400)
    problem(here.get("/nothing"), 404)
    assert "POST" in here.get("/predict").headers["Allow"]
    problem(here.get("/predict"), 405)
    for query in ("top=abc", "top=-1", "top=0", "top=1.5", "top=", "top=%EF%BC%93", "heatmap=yes"):
        problem(here.post(f"/predict?{query}", PICTURE), 400)


def test_a_body_over_the_limit_is_refused_however_it_comes(here: Gateway) -> None:
    large = b"x" * 10_000_001
    problem(here.post("/predict", large, "image/jpeg"), 413)
    problem(here.post_files("/predict", large), 413)
    problem(here.post_files("/predict", *[b"x"] * 1000), 413)
    problem(here.post("/predict", iter([PICTURE] + [b"\0" * 100_000] * 120), "image/jpeg"), 413)  # chunked
    assert here.post("/predict", iter([PICTURE]), "image/jpeg").status == 200  # chunked, and small


@pytest.mark.parametrize("chunks", [b"zz\r\n", b"-5\r\nabcde\r\n", b"5\r\nabc", b"5\r\nabcde\r\n", b"f" * 9000])
def test_a_body_whose_chunks_are_malformed_or_break_off_is_a_bad_request(here: Gateway, chunks: bytes) -> None:
    with socket.create_connection(("127.0.0.1", here.port), timeout=10) as connection:
        head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: image/jpeg\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection.sendall(head + chunks)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b" 400 " in answer.split(b"\r\n")[0]
    assert b"application/problem+json" in answer


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 422), (b"\0" * 50, 422), (PICTURE[:-400], 422), (encoded(kind="PNG")[:200], 422),
        (png_that_declares(50_000, 50_000), 422), (encoded(kind="TIFF"), 415), (b"%PDF-1.4", 415),
        (b"<svg></svg>", 415),
        (encoded(picture(1, 20_000)), 200), (encoded(picture(1, 1), "PNG"), 200), (encoded(picture(mode="CMYK")), 200),
    ],
)  # fmt: skip
def test_what_the_picture_is_decides(here: Gateway, data: bytes, status: int) -> None:
    answer = here.post("/predict", data, "image/png")
    assert answer.status == status
    if status != 200:
        problem(answer, status)


# ------------------------------------------------------------------------------------------------------ fetching

REFUSED = [
    "http://localhost/x", "http://127.0.0.1/", "http://[::1]/", "http://0.0.0.0/", "http://[::]/", "http://0177.0.0.1/",
    "http://2130706433/", "http://127.1/", "http://169.254.169.254/latest", "http://10.0.0.1/", "http://172.16.0.1/",
    "http://192.168.1.1/", "http://100.64.0.1/", "http://224.0.0.1/", "http://[::ffff:127.0.0.1]/", "http://[::127.0.0.1]/",
    "http://[64:ff9b::a00:1]/", "http://[2002:7f00:1::]/", "http://[fec0::1]/", "http://[fe80::1]/", "http://[fd00::1]/",
    "http://8.8.8.8:8501/", "http://metadata.google.internal/", "http://does-not-exist.invalid/",
]  # fmt: skip
MALFORMED = [
    "file:///etc/passwd", "ftp://example.org/x", "gopher://x/", "data:image/png;base64,aa", "http://", "//x/y",
    "nonsense",    "http://user:pw@example.org/", "http://example.org/a b", "http://example.org/\r\nX: y", "http://example.org/\0",
    "http://example.org\\@127.0.0.1/", "http://１２７.0.0.1/", "http://[::1", "http://x:99999/",
    "http://x/" + "a" * 100_000,
]  # fmt: skip


@pytest.mark.parametrize("url", REFUSED)
def test_what_is_not_public_gets_the_same_answer_as_what_does_not_exist(strict: Gateway, url: str) -> None:
    body = problem(strict.post_json("/predict", {"url": url}), 400)
    assert (body["code"], body["detail"]) == (
        "refused_url",
        "This URL is not fetched: its host is unknown or not public. Upload the picture instead.",
    )


@pytest.mark.parametrize("url", MALFORMED)
def test_a_url_that_is_none_is_a_bad_request(strict: Gateway, url: str) -> None:
    problem(strict.post_json("/predict", {"url": url}), 400)


def test_a_redirect_is_judged_like_the_first_address(here: Gateway, origin: str) -> None:
    for target in ("http://10.0.0.1/", "http://[::1]:8500/", "file:///etc/passwd"):
        problem(here.post_json("/predict", {"url": f"{origin}/to/{target}"}), 400)


@pytest.mark.parametrize(
    "path", ["/404", "/500", "/204", "/nowhere", "/to-no-url", "/moved/9", "/garbage", "/gzip", "/short", "/html"]
)
def test_what_the_pictures_server_does_is_the_callers_problem(here: Gateway, origin: str, path: str) -> None:
    problem(here.post_json("/predict", {"url": origin + path}), 422)


def test_a_path_is_asked_for_as_it_was_given(here: Gateway, origin: str) -> None:
    assert here.post_json("/predict", {"url": f"{origin}//twice?really#not"}).status == 200


def test_when_a_host_has_several_addresses_each_is_tried(monkeypatch: pytest.MonkeyPatch, origin: str) -> None:
    port = int(origin.rsplit(":", 1)[1])
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in ("127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    settings = Settings.from_environment({"LOUPE_FETCH_ALLOW": "127.0.0.0/8"})
    assert fetch(f"http://two.example:{port}/tire.jpg", settings) == PICTURE


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    with pytest.raises(RefusedURL):
        fetch("http://both.example/", Settings.from_environment({}))


@pytest.mark.parametrize("path", ["/silent", "/drip", "/drip-header", "/endless"])
def test_no_server_can_hold_the_gateway_beyond_the_deadline(here: Gateway, origin: str, path: str) -> None:
    started = time.monotonic()
    problem(here.post_json("/predict", {"url": origin + path}), 422)
    assert time.monotonic() - started < 4


# --------------------------------------------------------------------------------------------------- the model


def test_while_the_model_is_away_the_gateway_lives_and_finds_it_again(folder: Path) -> None:
    port = free_port()
    with gateway(f"localhost:{port}") as lonely:
        assert lonely.get("/healthz").status == 200
        assert problem(lonely.get("/readyz"), 503)["code"] == "model_unavailable"
        answer = lonely.post("/predict", PICTURE)
        problem(answer, 503)
        assert answer.headers["Retry-After"] == "1"
        for _ in range(2):  # there, then restarted
            with model_server(folder, "tires", f"--port={port}"):
                until(lambda: lonely.post("/predict", PICTURE).status == 200, "an answer", patience=2)
                assert lonely.get("/readyz").json()["model"]["version"] == 1
            problem(lonely.post("/predict", PICTURE), 503)


def test_another_model_under_the_same_number_brings_its_own_labels(tmp_path: Path) -> None:
    """A server restarted on another folder: its version 1 is not the one whose card was asked for before."""
    port = free_port()
    for place, labels in (("old", ["a", "b", "c"]), ("new", ["x", "y", "z"])):
        text = models.card(labels=labels, input={"height": 32 if place == "old" else 48, "width": 48})
        models.write(tmp_path / place / "tires" / "1", seed=1, side=48, text=text)
    with gateway(f"localhost:{port}") as here:
        seen = []
        for place in ("old", "new"):
            with model_server(tmp_path / place, "tires", f"--port={port}"):
                until(lambda: here.post("/predict", PICTURE).status != 503, "an answer", patience=5)
                seen.append(here.post("/predict", PICTURE))
    assert seen[0].status == 502, "its card says 32×48, and the model takes 48×48"
    assert set(seen[1].json()["scores"]) == {"x", "y", "z"}


def test_a_large_request_that_a_dying_server_refused_is_asked_once_more() -> None:
    """gRPC keeps 256 KiB of a call for trying again unless told otherwise; eight pictures are more than a megabyte."""
    asked: list[int] = []
    card = models.card(input={"height": 224, "width": 224})

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        answer = proto.PredictResponse(model_spec=proto.model_spec("tires", 1))
        if request.model_spec.signature_name == "describe":
            answer.outputs["card"].CopyFrom(proto.to_tensor([card]))
            return answer
        asked.append(request.ByteSize())
        if len(asked) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        answer.outputs["probabilities"].CopyFrom(proto.to_tensor(np.full((8, 3), 1 / 3, np.float32)))
        return answer

    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(
        predict, proto.PREDICT.request.FromString, proto.PREDICT.response.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(proto.PREDICT.service, {"Predict": handler})])
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        with gateway(f"localhost:{port}") as here:
            assert here.post_files("/predict", *[PICTURE] * 8).status == 200
    finally:
        server.stop(0).wait()
    assert len(asked) == 2
    assert asked[0] > 1_000_000


def test_another_models_name_is_said(server: ModelServer) -> None:
    with gateway(f"localhost:{server.port}", "cars") as wrong:
        assert "MODEL_NAME" in problem(wrong.get("/readyz"), 503)["detail"]


def test_a_model_that_does_not_describe_itself_is_refused_not_guessed(tmp_path: Path) -> None:
    models.write_plain(tmp_path / "plain" / "1")
    with model_server(tmp_path, "plain") as bare, gateway(f"localhost:{bare.port}", "plain") as here:
        assert problem(here.post("/predict", PICTURE), 502)["code"] == "model_unfit"


def test_a_new_version_under_load_with_other_labels_and_another_size_gives_no_wrong_answer(tmp_path: Path) -> None:
    models.write(tmp_path / "tires" / "1", seed=1)
    renamed = models.card(labels=["a", "b", "c"], input={"height": 48, "width": 48})
    models.write(tmp_path / "next", seed=2, side=48, text=renamed)
    answers: list[Any] = []
    enough = threading.Event()

    def ask(here: Gateway) -> None:
        while not enough.is_set():
            answers.append(here.post("/predict", PICTURE))

    with model_server(tmp_path, "tires") as server, gateway(f"localhost:{server.port}") as here:
        callers = [threading.Thread(target=ask, args=(here,)) for _ in range(4)]
        for caller in callers:
            caller.start()
        until(lambda: len(answers) > 20, "answers of version 1")
        (tmp_path / "next").rename(tmp_path / "tires" / "2")
        until(lambda: answers[-1].status == 200 and answers[-1].json()["model"]["version"] == 2, "version 2")
        shutil.move(tmp_path / "tires" / "2", tmp_path / "gone")  # and back
        until(lambda: answers[-1].status == 200 and answers[-1].json()["model"]["version"] == 1, "version 1 again")
        enough.set()
        for caller in callers:
            caller.join()
    assert {answer.status for answer in answers} == {200}
    seen = {(body["model"]["version"], json.dumps(dict(sorted(body["scores"].items()))))
            for body in (answer.json() for answer in answers)}  # fmt: skip
    assert len(seen) == 2, "each version gave one answer, with its own labels, all along"
    labels = {version: set(json.loads(scores)) for version, scores in seen}
    assert labels == {1: set(models.LABELS), 2: {"a", "b", "c"}}


# ------------------------------------------------------------------------------------------------- the process


def test_a_worker_maps_no_tensorflow_and_stays_small(here: Gateway) -> None:
    for _ in range(200):
        assert here.post("/predict", PICTURE).status == 200
    (worker,) = here.workers()
    maps = Path(f"/proc/{worker}/maps").read_text()
    assert "tensorflow" not in maps
    assert "openvino" not in maps
    assert "_multiarray_umath" in maps  # the check sees what is loaded
    status = Path(f"/proc/{worker}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 120_000, f"{resident} kB"  # about 75 MB here; the bound is for catching a TensorFlow


def test_a_stopped_gateway_answers_what_it_has_in_hand(server: ModelServer, origin: str) -> None:
    settings = {"LOUPE_FETCH_ALLOW": "127.0.0.1", "LOUPE_FETCH_TIMEOUT": "1.5"}
    with gateway(f"localhost:{server.port}", **settings) as here:
        got: list[Any] = []
        caller = threading.Thread(target=lambda: got.append(here.post_json("/predict", {"url": f"{origin}/silent"})))
        caller.start()
        time.sleep(0.5)
        here.process.terminate()
        caller.join()
        problem(got[0], 422)
        assert here.process.wait(5) == 0


def test_every_answer_carries_the_headers_that_keep_a_browser_safe(here: Gateway) -> None:
    for path in ("/", "/nothing", "/healthz", "/page/page.js"):
        headers = here.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_samples_are_served_and_nothing_beside_them(here: Gateway) -> None:
    assert here.get("/samples/cracked-1.jpg").body[:2] == b"\xff\xd8"
    for path in ("/samples/../tires.py", "/samples/%2e%2e/tires.py", "/samples/..%2ftires.py"):
        assert here.get(path).status == 404


def test_a_client_that_leaves_does_no_harm(here: Gateway) -> None:
    for _ in range(20):
        connection = http.client.HTTPConnection("127.0.0.1", here.port)
        connection.request("POST", "/predict", PICTURE)
        connection.close()
    assert here.post("/predict", PICTURE).status == 200
