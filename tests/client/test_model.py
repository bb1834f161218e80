"""`import loupe`: one object for a model in this process, behind a gateway, and at a server over gRPC and REST."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import loupe
from loupe.errors import (
    FetchFailed,
    ImageError,
    LoupeError,
    ModelGone,
    ModelUnavailable,
    ModelUnfit,
    PictureUnreadable,
    RefusedURL,
    Unauthorized,
    UnsupportedImage,
    UserError,
)
from loupe.gateway.access.keys import digest_of
from tests.support import models
from tests.support.gateways import Gateway, gateway, internet
from tests.support.pictures import encoded, picture
from tests.support.servers import ROOT, ModelServer, free_port, meanwhile, model_server, until

SAMPLES = ROOT / "data" / "samples"
CRACKED, NORMAL = SAMPLES / "cracked-1.jpg", SAMPLES / "normal-1.jpg"
WAYS = ("in process", "gateway", "grpc", "rest")


@pytest.fixture(scope="module")
def behind(sample_models: Path) -> Iterator[ModelServer]:
    with model_server(sample_models, "tires", f"--rest_api_port={free_port()}") as running:
        yield running


@pytest.fixture(scope="module")
def here(behind: ModelServer) -> Iterator[Gateway]:
    with gateway(f"localhost:{behind.port}") as running:
        yield running


@pytest.fixture(scope="module")
def ways(sample_models: Path, behind: ModelServer, here: Gateway) -> Iterator[dict[str, loupe.Model]]:
    opened = {
        "in process": loupe.load(sample_models / "tires"),
        "gateway": loupe.connect(f"http://localhost:{here.port}"),
        "grpc": loupe.connect(f"grpc://localhost:{behind.port}", model="tires"),
        "rest": loupe.connect(f"http://localhost:{behind.rest_port}", model="tires"),
    }
    yield opened
    for model in opened.values():
        model.close()


@pytest.fixture(params=WAYS)
def model(request: pytest.FixtureRequest, ways: dict[str, loupe.Model]) -> loupe.Model:
    return ways[request.param]


def test_every_way_gives_the_same_result(ways: dict[str, loupe.Model]) -> None:
    results = {way: model.predict(CRACKED) for way, model in ways.items()}
    first = results["in process"]
    assert (first.label, first.certain, first.reason, first.version) == ("cracked", True, None, 1)
    assert first.confidence == first.scores["cracked"] > 0.99
    assert list(first.scores) == ["cracked", "normal"]
    assert first.heatmap is not None
    for way, result in results.items():
        assert (result.name, result.label, result.certain, result.version) == (str(CRACKED), "cracked", True, 1), way
        assert result.scores == pytest.approx(first.scores, abs=2e-6), way
        assert result.card == first.card, way
        assert result.heatmap is not None and result.heatmap.size == (224, 224), way
        difference = np.asarray(result.heatmap, np.int16) - np.asarray(first.heatmap, np.int16)
        assert np.abs(difference).max() <= 1, way


def test_whatever_holds_a_picture_is_taken(model: loupe.Model) -> None:
    image = Image.open(NORMAL)
    pixels = np.asarray(image)
    png = encoded(image, "PNG")
    given: list[Any] = [str(NORMAL), NORMAL, NORMAL.read_bytes(), bytearray(NORMAL.read_bytes()), image, pixels, png]
    results = [model.predict(each) for each in given]
    assert {result.label for result in results} == {"normal"}
    assert max(result.confidence for result in results) - min(result.confidence for result in results) < 0.02
    together = model.predict(given)
    assert [result.confidence for result in together] == pytest.approx([each.confidence for each in results], abs=1e-5)
    assert [result.name for result in together] == [
        str(NORMAL), str(NORMAL), "picture 3", "picture 4", str(NORMAL), "picture 6", "picture 7"
    ]  # fmt: skip
    stacked = model.predict(np.stack([pixels, pixels]))
    assert [result.label for result in stacked] == ["normal", "normal"]


def test_grey_and_transparent_arrays_are_pictures_too(model: loupe.Model) -> None:
    grey = np.asarray(Image.open(NORMAL).convert("L"))
    clear = np.asarray(Image.open(NORMAL).convert("RGBA"))
    for array in (grey, grey[:, :, None], clear):
        assert model.predict(array).label == "normal"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (np.zeros((8, 8, 3), np.float32), "uint8"),
        (np.zeros((3, 8, 8), np.uint8), "channels last"),
        (np.zeros((0, 8, 3), np.uint8), r"\[0, 8, 3\]"),
        (42, "int is no picture"),
        ([None], "NoneType is no picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_what_to_give(model: loupe.Model, given: Any, text: str) -> None:
    with pytest.raises(UserError, match=text):
        model.predict(given)


def test_the_orientation_of_a_pil_image_is_obeyed(model: loupe.Model) -> None:
    turned = Image.open(NORMAL).transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # shown, it is turned by a quarter clockwise
    file = io.BytesIO()
    turned.save(file, "PNG", exif=exif)
    by_bytes = model.predict(file.getvalue())
    by_image = model.predict(Image.open(file))
    assert by_image.confidence == pytest.approx(by_bytes.confidence, abs=1e-6)
    assert by_bytes.confidence == pytest.approx(model.predict(encoded(Image.open(NORMAL), "PNG")).confidence, abs=0.02)


def test_a_list_keeps_its_order_over_many_batches(model: loupe.Model) -> None:
    files = [CRACKED if number % 3 else NORMAL for number in range(18)]
    labels = [result.label for result in model.predict(files, heatmaps=False, top=1)]
    assert labels == [file.name.split("-")[0] for file in files]
    assert model.predict([]) == []


def test_one_bad_picture_of_many_is_named_or_stands_in_its_place(model: loupe.Model, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    (tmp_path / "drawing.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    given = [CRACKED, tmp_path / "bad.jpg", tmp_path / "gone.jpg", tmp_path / "drawing.svg", tmp_path, NORMAL]
    with pytest.raises(ImageError, match="bad.jpg: These bytes are not a picture"):
        model.predict(given)
    answers = model.predict(given, return_errors=True)
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == [
        "Result", "ImageError", "PictureUnreadable", "UnsupportedImage", "PictureUnreadable", "Result"
    ]  # fmt: skip
    assert "is a folder" in str(answers[4])
    with pytest.raises(PictureUnreadable, match="No such file"):
        model.predict(tmp_path / "gone.jpg")
    with pytest.raises(UnsupportedImage):
        model.predict(tmp_path / "drawing.svg")


def test_nothing_but_bad_pictures_gives_each_its_error(model: loupe.Model) -> None:
    answers = model.predict([b"no picture", b"neither"], return_errors=True)
    assert [type(answer) for answer in answers] == [ImageError, ImageError]


def test_an_address_is_fetched(ways: dict[str, loupe.Model], here: Gateway) -> None:
    def site(path: str, write: Any) -> None:
        found = path == "/tire.jpg"
        body = CRACKED.read_bytes() if found else b""
        write(f"HTTP/1.1 {200 if found else 404} OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with internet(site) as port:
        address = f"http://127.0.0.1:{port}/tire.jpg"
        for way, model in ways.items():
            if way == "gateway":  # which does not fetch from this machine
                with pytest.raises(RefusedURL, match="not public"):
                    model.predict(address)
                continue
            result = model.predict(address)
            assert (result.label, result.name) == ("cracked", address)
            with pytest.raises(FetchFailed, match="404"):
                model.predict(f"http://127.0.0.1:{port}/none.jpg")
    with pytest.raises(FetchFailed, match="could not be fetched"):
        ways["in process"].predict(f"http://127.0.0.1:{free_port()}/gone.jpg")


def test_a_gateway_fetches_addresses_of_a_list_itself(behind: ModelServer) -> None:
    def site(path: str, write: Any) -> None:
        body = (SAMPLES / path.strip("/")).read_bytes()
        write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    with (
        internet(site) as port,
        gateway(f"localhost:{behind.port}", LOUPE_FETCH_ALLOW="127.0.0.1") as here,
        loupe.connect(f"http://localhost:{here.port}") as model,
    ):
        given = [f"http://127.0.0.1:{port}/cracked-2.jpg", NORMAL, f"http://127.0.0.1:{port}/normal-2.jpg", b"none"]
        answers = model.predict(given, return_errors=True)
    assert [getattr(answer, "label", None) for answer in answers] == ["cracked", "normal", "normal", None]


def test_a_gateway_that_takes_less_at_once_gets_smaller_forms(behind: ModelServer) -> None:
    with (
        gateway(f"localhost:{behind.port}", LOUPE_MAX_IMAGES="3", LOUPE_MAX_BYTES="60000") as here,
        loupe.connect(f"http://localhost:{here.port}") as model,
    ):
        large = encoded(picture(900, 900), "PNG")
        assert len(large) > 60_000
        answers = model.predict([CRACKED] * 10 + [large] + [NORMAL] * 4, return_errors=True)
    labels = [getattr(answer, "label", type(answer).__name__) for answer in answers]
    assert labels == ["cracked"] * 10 + ["TooLarge"] + ["normal"] * 4


def test_a_key_is_sent_and_its_lack_is_told(behind: ModelServer, tmp_path: Path) -> None:
    key, listed = "loupe_anne", tmp_path / "keys"
    listed.write_text(f"anne:{digest_of(key)}\n")
    with gateway(f"localhost:{behind.port}", LOUPE_API_KEYS=str(listed)) as here:
        with pytest.raises(Unauthorized, match="key"):
            loupe.connect(f"http://localhost:{here.port}")
        with loupe.connect(f"http://localhost:{here.port}", key=key) as model:
            assert model.predict(CRACKED).label == "cracked"


def test_many_threads_may_ask_one_model(model: loupe.Model) -> None:
    labels: list[str] = []

    def ask() -> None:
        for file in (CRACKED, NORMAL) * 2:
            labels.append(model.predict(file).label)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(labels) == ["cracked"] * 8 + ["normal"] * 8


@pytest.mark.parametrize("way", ["gateway", "grpc", "rest"])
def test_a_new_version_is_used_while_it_is_asked(way: str, tmp_path: Path) -> None:
    """Of another size, while two threads ask: nothing fails, and in the end the new one answers."""
    home = tmp_path / "models" / "tires"
    models.write(home / "1", seed=1)
    with (
        model_server(home.parent, "tires", f"--rest_api_port={free_port()}") as server,
        gateway(f"localhost:{server.port}") as here,
        loupe.connect(
            {
                "gateway": f"http://localhost:{here.port}",
                "grpc": f"grpc://localhost:{server.port}",
                "rest": f"http://localhost:{server.rest_port}",
            }[way],
            model=None if way == "gateway" else "tires",
        ) as model,
    ):
        image, failures = encoded(), list[Exception]()
        versions: list[int] = []

        def ask() -> None:
            try:
                versions.append(model.predict(image).version)
            except LoupeError as error:
                failures.append(error)

        with meanwhile(ask, threads=2):
            until(lambda: 1 in versions, "version 1 to answer")
            models.write(tmp_path / "new", seed=2, side=48, text=models.card(input=_size(48)))
            shutil.move(tmp_path / "new", home / "2")
            until(lambda: 2 in versions, "version 2 to answer")
        assert failures == []
        assert model.version == 2
        assert model.card.height == 48


def _size(side: int) -> dict[str, Any]:
    return {"height": side, "width": side, "resize": "bilinear-antialiased", "fit": "stretch"}


def test_a_server_that_goes_away_and_comes_back_is_waited_for(sample_models: Path) -> None:
    port = free_port()
    with model_server(sample_models, "tires", f"--port={port}") as first:
        model = loupe.connect(f"grpc://localhost:{port}", model="tires", patience=30)
        assert model.predict(CRACKED).label == "cracked"
        first.stop()
    answers: list[str] = []
    thread = threading.Thread(target=lambda: answers.append(model.predict(CRACKED).label))
    thread.start()
    with model_server(sample_models, "tires", f"--port={port}"):
        thread.join(60)
    assert answers == ["cracked"]
    model.close()


def test_a_server_that_stays_away_is_told(sample_models: Path) -> None:
    with model_server(sample_models, "tires", f"--rest_api_port={free_port()}") as server:
        opened = [
            loupe.connect(f"grpc://localhost:{server.port}", model="tires", patience=0.2),
            loupe.connect(f"http://localhost:{server.rest_port}", model="tires", patience=0.2),
        ]
    for model in opened:
        with pytest.raises(ModelUnavailable, match="does not answer"):
            model.predict(CRACKED)


def test_a_model_without_a_card_needs_its_labels(tmp_path: Path) -> None:
    models.write_plain(tmp_path / "zoo" / "1")
    labels, red = ("red", "green", "blue", "none"), Image.new("RGB", (40, 40), (255, 0, 0))
    told = {"labels": labels, "preprocess": "rescale"}
    with pytest.raises(ModelUnfit, match="set labels"):
        loupe.load(tmp_path / "zoo")
    with model_server(tmp_path, "zoo", f"--rest_api_port={free_port()}") as server:
        grpc, rest = f"grpc://localhost:{server.port}", f"http://localhost:{server.rest_port}"
        with pytest.raises(ModelUnfit, match="labels names 2 labels, and the model gives 4"):
            loupe.connect(grpc, model="zoo", labels=("a", "b"), preprocess="rescale")
        answers = [
            loupe.load(tmp_path / "zoo", **told).predict(red),  # type: ignore[arg-type]
            loupe.connect(grpc, model="zoo", **told).predict(red),  # type: ignore[arg-type]
            loupe.connect(rest, model="zoo", **told).predict(red),  # type: ignore[arg-type]
        ]
    for answer in answers:
        assert (answer.label, answer.certain, answer.heatmap) == ("red", None, None)
        assert answer.scores == pytest.approx(answers[0].scores, abs=1e-5)
        assert sum(answer.scores.values()) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("address", "options", "text"),
    [
        ("models/tires", {}, "To load a folder: loupe.load"),
        ("ftp://host", {}, "is no address"),
        ("grpc://localhost:8500", {}, "Which model"),
        ("grpc://localhost", {"model": "tires"}, "names no port"),
        ("http://", {}, "is no server's address"),
        ("http://localhost:99999", {}, "is no address"),
        ("http://localhost:9/predict?x=1", {}, "without more"),
        ("http://localhost:9", {"key": "…"}, "This is no key"),
    ],
)
def test_an_address_that_cannot_be_is_explained(address: str, options: dict[str, str], text: str) -> None:
    with pytest.raises(UserError, match=text):
        loupe.connect(address, **options)  # type: ignore[arg-type]


def test_a_wrong_server_is_told_from_the_right_one(behind: ModelServer, here: Gateway) -> None:
    with pytest.raises(UserError, match="is a TensorFlow Serving; name its model"):
        loupe.connect(f"http://localhost:{behind.rest_port}")
    with pytest.raises(ModelGone, match="serves no such model"):
        loupe.connect(f"grpc://localhost:{behind.port}", model="nix")
    with pytest.raises(ModelGone, match="serves no such model"):
        loupe.connect(f"http://localhost:{behind.rest_port}", model="nix")
    nobody = free_port()
    for address in (f"http://localhost:{nobody}", f"grpc://localhost:{nobody}"):
        with pytest.raises(ModelUnavailable, match="does not answer"):
            loupe.connect(address, model="tires")


def test_a_folder_without_a_model_is_explained(tmp_path: Path, sample_models: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        loupe.load(tmp_path / "nix")
    with pytest.raises(UserError, match="holds no version"):
        loupe.load(tmp_path)
    with pytest.raises(UserError, match="no version 7; there are: 1"):
        loupe.load(sample_models / "tires", version=7)
    shutil.copytree(sample_models / "tires" / "1", tmp_path / "bad" / "1")
    (tmp_path / "bad" / "1" / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be loaded"):
        loupe.load(tmp_path / "bad")
    assert loupe.load(sample_models / "tires" / "1").version == 1


def test_a_notebook_shows_a_result_with_its_picture(model: loupe.Model, tmp_path: Path) -> None:
    file = tmp_path / "<b>tire.jpg"
    shutil.copy(CRACKED, file)
    html = model.predict(file)._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 1
    assert html.count("data:image/png;base64,") == 1
    assert "cracked" in html and "certain" in html
    assert "&lt;b&gt;tire" in html and "<b>tire" not in html
    results = model.predict([file, b"none", NORMAL], return_errors=True)
    assert results._repr_html_().count("data:image/jpeg") == 2
    assert "not a picture" in results._repr_html_()
    file.unlink()
    assert "No such file" in results._repr_html_(), "a picture that is gone does not spoil the sheet"


def test_a_model_says_what_it_is(model: loupe.Model) -> None:
    assert repr(model).startswith("<loupe.Model tires, version 1, by ")
    assert repr(model).endswith(": cracked, normal>")
    assert model.labels == ("cracked", "normal")


def test_the_documented_example_is_true() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "doctest", "loupe/client/__init__.py"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_import_loupe_is_light_and_asking_loads_no_tensorflow(sample_models: Path) -> None:
    code = f"""
import sys, loupe
assert not {{"numpy", "PIL", "grpc", "openvino"}} & set(sys.modules), "import loupe alone"
assert {{"load", "connect", "Model", "Result"}} <= set(dir(loupe))
assert loupe.load({str(sample_models / "tires")!r}).predict({str(CRACKED)!r}).label == "cracked"
print([name for name in ("tensorflow", "keras", "flask", "rich") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout.strip(), done.stderr) == ("[]", ""), done.stderr


def test_what_loupe_lacks_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nix'"):
        _ = loupe.nix
    assert os.path.basename(loupe.__file__) == "__init__.py"  # noqa: PTH119


class Numpyish:
    """As tensors of other libraries look from outside."""

    def numpy(self) -> None: ...


@pytest.mark.parametrize(
    "given", [None, np.zeros((8, 8, 3), np.float32), Image.new("F", (8, 8)), Image.new("RGB", (0, 8)), Numpyish()]
)
def test_what_is_no_picture_stands_in_its_place_among_others(model: loupe.Model, given: Any) -> None:
    answers = model.predict([CRACKED, given], return_errors=True)
    assert answers[0].label == "cracked"
    assert isinstance(answers[1], PictureUnreadable)
    with pytest.raises(PictureUnreadable, match="no picture"):
        model.predict([CRACKED, given])


def test_open_files_and_arrays_of_paths_are_taken_and_tables_are_not(ways: dict[str, loupe.Model]) -> None:
    model = ways["in process"]
    with CRACKED.open("rb") as file:
        result = model.predict(file)
    assert (result.label, result.name) == ("cracked", str(CRACKED))
    assert model.predict(io.BytesIO(NORMAL.read_bytes())).label == "normal"
    assert [each.label for each in model.predict(np.array([str(CRACKED), str(NORMAL)]))] == ["cracked", "normal"]
    with pytest.raises(UserError, match="dict is no picture"):
        model.predict({"a": CRACKED})
    with pytest.raises(UserError, match="takes many"):
        next(model.stream("photo.jpg"))


def test_sixteen_bits_are_scaled_and_not_cut(ways: dict[str, loupe.Model]) -> None:
    model = ways["in process"]
    grey = np.asarray(Image.open(CRACKED).convert("L")).astype(np.uint16) * 257
    eight = model.predict(Image.open(CRACKED).convert("L"))
    for image in (Image.fromarray(grey), Image.fromarray(grey.astype(np.int32))):
        assert image.mode in ("I;16", "I")
        assert model.predict(image).confidence == pytest.approx(eight.confidence, abs=1e-3)


def test_a_pipe_is_no_picture_and_is_not_waited_for(ways: dict[str, loupe.Model], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.jpg")
    with pytest.raises(PictureUnreadable, match="no file"):
        ways["in process"].predict(tmp_path / "f.jpg")
    with pytest.raises(PictureUnreadable, match="no file"):
        ways["in process"].predict("/dev/zero")


def test_what_was_answered_is_given_before_an_error_of_whoever_gives_the_pictures(ways: dict[str, loupe.Model]) -> None:
    def pictures() -> Iterator[Path]:
        yield from [CRACKED] * 61
        raise RuntimeError("the list ends here")

    labels = []
    with pytest.raises(RuntimeError, match="ends here"):
        for _, answer in ways["in process"].stream(pictures()):
            labels.append(getattr(answer, "label", None))
    assert labels == ["cracked"] * 61


def test_a_closed_model_says_so_and_one_without_its_server_can_be_looked_at(sample_models: Path) -> None:
    with model_server(sample_models, "tires") as server:
        model = loupe.connect(f"grpc://localhost:{server.port}/tires", patience=0.1)
        assert model.predict(CRACKED).label == "cracked"
    assert "does not answer" in repr(model)
    model.close()
    for ask in (lambda: model.predict(CRACKED), lambda: model.card):
        with pytest.raises(UserError, match="was closed"):
            ask()
    assert "was closed" in repr(model)


def test_waiting_for_a_server_ends_when_nobody_wants_the_rest(sample_models: Path) -> None:
    with model_server(sample_models, "tires") as server:
        model = loupe.connect(f"grpc://localhost:{server.port}/tires", patience=60)
        answers = model.stream([CRACKED] * 1000)
        next(answers)
    waiting = threading.Timer(0.5, answers.close)  # as Ctrl-C does: the generator is closed while its threads wait
    began = time.monotonic()
    waiting.start()
    waiting.join(30)
    assert time.monotonic() - began < 30
    model.close()


@pytest.mark.parametrize("top", [0, -1, 1.5, "2"])
def test_a_top_that_is_none_is_refused(model: loupe.Model, top: Any) -> None:
    with pytest.raises(UserError, match="top must be"):
        model.predict(CRACKED, top=top)


def test_a_sheet_of_many_shows_the_first_and_stays_a_sheet_when_it_is_cut(ways: dict[str, loupe.Model]) -> None:
    results = ways["in process"].predict([CRACKED] * 70, heatmaps=False)
    assert results._repr_html_().count("<img") == 60
    assert "and 10 more" in results._repr_html_()
    assert results[:2]._repr_html_().count("<img") == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [({"engine": "numpy"}, "no engine 'numpy'"), ({"preprocess": "foo", "labels": "a,b"}, "unknown to keras")],
)
def test_options_that_are_unknown_are_refused_when_loading(tmp_path: Path, options: Any, text: str) -> None:
    models.write_plain(tmp_path / "zoo" / "1")
    with pytest.raises(LoupeError, match=text):
        loupe.load(tmp_path / "zoo", **options)
