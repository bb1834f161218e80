"""Models that Loupe did not make, behind a real gateway and a real model server."""

from __future__ import annotations

import functools
import io
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from keras_image_helper import create_preprocessor
from PIL import Image

from loupe import proto
from loupe.cardless import foreign_card
from loupe.engines import savedmodel
from loupe.errors import ModelUnfit
from loupe.gateway.settings import PREPROCESSORS
from loupe.images.api import decode
from tests.support import models
from tests.support.gateways import Answer, Gateway, gateway
from tests.support.pictures import encoded, picture
from tests.support.servers import ModelServer, free_port, meanwhile, model_server, until

HEIGHT, WIDTH = models.FOREIGN_SIZE
LABELS = ("ant", "bee", "cat", "dog")
NAMED = {"LOUPE_LABELS": ",".join(LABELS)}


def noise(width: int = 201, height: int = 133) -> Image.Image:
    """Every pixel differs from its neighbours: nearest and any other resize give other numbers."""
    return Image.fromarray(np.random.default_rng(5).integers(0, 256, (height, width, 3)).astype(np.uint8))


def by_the_helper(name: str, image: Image.Image) -> np.ndarray[Any, Any]:
    """What the usual gateway sends of such a picture: keras-image-helper alone, from a file's bytes."""
    if name in ("rescale", "none"):
        size = create_preprocessor("xception", target_size=(WIDTH, HEIGHT)).resize_image(image)
        return np.asarray(size, np.float32)[None] / (255 if name == "rescale" else 1)
    return np.asarray(create_preprocessor(name, target_size=(WIDTH, HEIGHT)).convert_to_tensor(image))


def softmax(rows: Any) -> Any:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def expected(pixels: np.ndarray[Any, Any], classes: int = 4) -> Any:
    return softmax(models.foreign_logits(pixels, classes))[0]


def scores(answer: Answer) -> np.ndarray[Any, Any]:
    assert answer.status == 200, answer.body
    found = answer.json()["scores"]
    return np.array([found[label] for label in LABELS])


def post(here: Gateway, image: Image.Image, kind: str = "PNG", query: str = "", **options: Any) -> Answer:
    return here.post("/predict" + query, encoded(image, kind, **options), f"image/{kind.lower()}")


@pytest.fixture(scope="module")
def giving_probabilities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    folder = tmp_path_factory.mktemp("probabilities")
    models.write_foreign(folder / "zoo" / "1", softmax=True)
    with model_server(folder, "zoo") as server:
        yield server


@pytest.fixture(scope="module")
def logits_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("logits")
    models.write_foreign(folder / "zoo" / "1")
    with (
        model_server(folder, "zoo") as server,
        gateway(f"localhost:{server.port}", "zoo", LOUPE_PREPROCESS="xception", **NAMED) as here,
    ):
        yield here


# ------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in ("inception_v3", "vgg16"))) for n in PREPROCESSORS]
)
def test_a_float32_model_gets_exactly_the_pixels_that_keras_image_helper_makes(
    name: str, giving_probabilities: ModelServer
) -> None:
    file = encoded(noise(), "JPEG", quality=90)
    wanted = {other: expected(by_the_helper(other, Image.open(io.BytesIO(file)))) for other in PREPROCESSORS}
    with gateway(f"localhost:{giving_probabilities.port}", "zoo", LOUPE_PREPROCESS=name, **NAMED) as here:
        assert here.get("/readyz").status == 200
        got = scores(here.post("/predict", file, "image/jpeg"))
    near = {other for other, numbers in wanted.items() if np.abs(numbers - got).max() < 1e-4}
    twins = [{"xception", "inception_v3"}, {"resnet50", "vgg16"}, {"rescale"}, {"none"}]
    assert near in twins
    assert name in near


def test_logits_become_probabilities_and_the_rest_of_the_answer_is_as_ever(logits_here: Gateway) -> None:
    answer = post(logits_here, noise(), query="?heatmap=1&top=4")
    assert np.allclose(scores(answer), expected(by_the_helper("xception", noise())), atol=1e-4)
    body = answer.json()
    assert (body["certain"], body["reason"], body["heatmap"]) == (None, None, None)
    assert body["label"] == max(body["scores"], key=body["scores"].get)
    assert body["model"] == {"name": "zoo", "version": 1}


def test_a_batch_answers_each_as_if_alone_and_a_broken_picture_spoils_no_other(logits_here: Gateway) -> None:
    images = [noise(), noise(90, 301), picture()]
    answer = logits_here.post_files(
        "/predict", encoded(images[0], "PNG"), b"no picture", *[encoded(i, "PNG") for i in images[1:]]
    )
    found = answer.json()["predictions"]
    assert found.pop(1)["error"]["code"] == "broken_image"
    for image, one in zip(images, found, strict=True):
        assert one["scores"] == post(logits_here, image).json()["scores"]


def test_rows_that_sum_to_one_by_chance_are_still_logits_once_others_did_not(tmp_path: Path) -> None:
    """`write_plain` answers with the mean colour: of pure red that looks like certainty."""
    models.write_plain(tmp_path / "zoo" / "1")
    settings = {"LOUPE_PREPROCESS": "rescale", **NAMED}
    with model_server(tmp_path, "zoo") as server, gateway(f"localhost:{server.port}", "zoo", **settings) as here:
        post(here, Image.new("RGB", (9, 9), "white"))
        red = scores(post(here, Image.new("RGB", (9, 9), "red")))
    assert np.allclose(red, softmax(np.array([[1.0, 0, 0, 0]]))[0], atol=1e-5)


def test_a_uint8_model_needs_labels_alone_and_gets_loupes_own_pixels(tmp_path: Path) -> None:
    models.write_foreign(tmp_path / "zoo" / "1", dtype=tf.uint8)
    with model_server(tmp_path, "zoo") as server, gateway(f"localhost:{server.port}", "zoo", **NAMED) as here:
        got = scores(post(here, noise()))
        known = here.get("/model").json()
    assert np.allclose(got, expected(decode(encoded(noise(), "PNG"), HEIGHT, WIDTH)[None]), atol=1e-4)
    assert known["input"]["resize"] == "bilinear-antialiased"


def test_a_picture_is_upright_and_checked_before_the_helper_has_it(logits_here: Gateway) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = noise().transpose(Image.Transpose.ROTATE_90)  # 6: to be turned back by as much
    assert scores(post(logits_here, sideways, exif=exif)) == pytest.approx(scores(post(logits_here, noise())), abs=1e-5)
    veiled = noise().convert("RGBA")
    veiled.putalpha(0)
    white = Image.new("RGB", veiled.size, "white")
    assert scores(post(logits_here, veiled)) == pytest.approx(scores(post(logits_here, white)), abs=1e-5)
    assert post(logits_here, noise(), "TIFF").status == 415


def test_what_is_known_of_it_is_told(logits_here: Gateway) -> None:
    known = logits_here.get("/model").json()
    assert (known["loupe"], known["name"], known["version"]) == (None, "zoo", 1)
    assert known["labels"] == list(LABELS)
    assert known["input"] == {
        "name": "input_8", "dtype": "float32", "height": HEIGHT, "width": WIDTH,
        "resize": "nearest", "fit": "stretch", "preprocess": "xception",
    }  # fmt: skip
    assert (known["output"], known["heatmap"], known["certain_at"]) == ("dense_7", False, None)
    shown = logits_here.get("/model", Accept="text/html").body.decode()
    assert "This model has no card: Loupe did not make it." in shown
    assert "<bdi>bee</bdi>" in shown
    assert "certain from" not in shown
    assert "This card" not in shown, "there is none"


# ------------------------------------------------------------------------------------------------------- refused


def reason(here: Gateway) -> str:
    """Why it is not ready; /predict gives the same reason."""
    ready, predicted = here.get("/readyz"), post(here, noise())
    assert (ready.status, predicted.status) == (502, 502)
    assert ready.json()["code"] == predicted.json()["code"] == "model_unfit"
    assert ready.json()["detail"] == predicted.json()["detail"]
    return str(ready.json()["detail"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "does not describe itself"),
        (NAMED, "say in LOUPE_PREPROCESS"),
        ({"LOUPE_PREPROCESS": "xception"}, "name the model's 4 labels"),
        ({"LOUPE_LABELS": "a,b,c", "LOUPE_PREPROCESS": "xception"}, "names 3 labels, and the model gives 4"),
    ],
)
def test_settings_that_do_not_fit_the_model_are_named_and_it_is_not_served(
    settings: dict[str, str], words: str, giving_probabilities: ModelServer
) -> None:
    with gateway(f"localhost:{giving_probabilities.port}", "zoo", **settings) as here:
        assert words in reason(here)


def not_ready_for(here: Gateway, words: str) -> bool:
    return words in str(here.get("/readyz").json().get("detail"))


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"shape": (None, None, None, 3)}, "leaves the size of its pictures open"),
    ({"shape": (None, HEIGHT, WIDTH, 1)}, "takes input_8 float32 [-1, 24, 40, 1]"),
    ({"shape": (1, HEIGHT, WIDTH, 3)}, "takes input_8 float32 [1, 24, 40, 3]"),
    ({"dtype": tf.int32}, "takes input_8 int32"),
    ({"dtype": tf.uint8}, "unset LOUPE_PREPROCESS"),
    ({"inputs": 2}, "and input_9 float32 [-1, 24, 40, 3], and can be given one picture only"),
    ({"outputs": ("dense_7", "other")}, "dense_7 float32 [-1, 4] and other float32 [-1, 4]: more than one is"),
    ({"classes": 1}, "a sigmoid"),
    ({"classes": 5}, "names 4 labels, and the model gives 5"),
]


@pytest.mark.parametrize(("options", "words"), UNFIT)
def test_what_cannot_be_served_right_says_why(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    models.write_foreign(tmp_path / "1", **options)
    with pytest.raises(ModelUnfit, match=re.escape(words)):
        foreign_card("zoo", savedmodel.read(tmp_path / "1").signatures, LABELS, "xception")


@pytest.mark.parametrize("unfit", [UNFIT[-1:], pytest.param(UNFIT, marks=pytest.mark.slow)], ids=["one", "all"])
def test_every_version_that_cannot_be_served_right_says_why_and_the_next_good_one_is_served(
    tmp_path: Path, unfit: list[tuple[dict[str, Any], str]]
) -> None:
    models.write_foreign(tmp_path / "zoo" / "1")
    settings = {"LOUPE_PREPROCESS": "xception", **NAMED}
    with model_server(tmp_path, "zoo") as server, gateway(f"localhost:{server.port}", "zoo", **settings) as here:
        assert here.get("/readyz").status == 200
        for number, (options, words) in enumerate(unfit, 2):
            models.write_foreign(tmp_path / "next", **options)
            (tmp_path / "next").rename(tmp_path / "zoo" / str(number))
            until(functools.partial(not_ready_for, here, words), words)
            assert words in reason(here)
        models.write_foreign(tmp_path / "next")
        (tmp_path / "next").rename(tmp_path / "zoo" / "99")
        until(lambda: here.get("/readyz").status == 200, "the good version")
        assert np.allclose(scores(post(here, noise())), expected(by_the_helper("xception", noise())), atol=1e-4)


def test_a_model_without_the_signature_that_is_asked_is_refused() -> None:
    """TensorFlow Serving serves such a model; the one here does not even load it."""
    with pytest.raises(ModelUnfit, match="'zoo' has no signature serving_default"):
        foreign_card("zoo", {"classify": proto.Signature()}, LABELS, "xception")


# ------------------------------------------------------------------------------------------------------ versions


def answered_last(answers: list[Answer], version: int) -> bool:
    return answers[-1].status == 200 and answers[-1].json()["model"]["version"] == version


def test_a_new_version_under_load_of_another_size_and_kind_gives_no_wrong_answer(tmp_path: Path) -> None:
    home = tmp_path / "zoo"
    models.write_foreign(home / "1", softmax=True)
    models.write_foreign(tmp_path / "2", shape=(None, 16, 20, 3), outputs=("other",))
    carded = models.card(name="zoo", labels=["x", "y", "z"])
    models.write(tmp_path / "3", text=carded)
    models.write_foreign(tmp_path / "4", softmax=True)
    answers: list[Answer] = []
    settings = {"LOUPE_PREPROCESS": "xception", **NAMED}
    with model_server(tmp_path, "zoo") as server, gateway(f"localhost:{server.port}", "zoo", **settings) as here:
        with meanwhile(lambda: answers.append(post(here, noise())), threads=3):
            until(lambda: len(answers) > 20, "answers of version 1")
            for version in (2, 3, 4):
                (tmp_path / str(version)).rename(home / str(version))
                until(functools.partial(answered_last, answers, version), f"version {version}")
        log = here.log.read_text()
    assert {answer.status for answer in answers} == {200}
    bodies = [answer.json() for answer in answers]
    seen = {(body["model"]["version"], json.dumps(dict(sorted(body["scores"].items())))) for body in bodies}
    assert sorted(version for version, _ in seen) == [1, 2, 3, 4], "each version gave one answer all along"
    assert set(json.loads(dict(seen)[3])) == {"x", "y", "z"}
    small = create_preprocessor("xception", target_size=(20, 16)).convert_to_tensor(noise())
    assert list(json.loads(dict(seen)[2]).values()) == pytest.approx(list(expected(small)), abs=1e-4)
    assert log.count("LOUPE_LABELS and LOUPE_PREPROCESS are not used") == 1


def test_pictures_of_the_last_versions_size_are_prepared_again_where_the_server_checks_no_shapes() -> None:
    """TensorFlow Serving answers them: here version 2 comes after version 1 has told its size."""
    sizes, shapes = {1: (24, 40), 2: (16, 20)}, []

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        if request.model_spec.signature_name == "describe":
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, 'Serving signature key "describe" not found.')
        shapes.append(proto.to_array(request.inputs["x"]).shape[1:3])
        answer = proto.PredictResponse(model_spec=proto.model_spec("zoo", 2))
        answer.outputs["y"].CopyFrom(proto.to_tensor(np.eye(1, 4, dtype=np.float32)))
        return answer

    def metadata(request: Any, context: grpc.ServicerContext) -> Any:
        version = request.model_spec.version.value or (2 if shapes else 1)
        signatures = proto.SignatureMap()
        signature = signatures.signature_def["serving_default"]
        for info, shape in ((signature.inputs["x"], (-1, *sizes[version], 3)), (signature.outputs["y"], (-1, 4))):
            info.dtype = 1
            for side in shape:
                info.tensor_shape.dim.add(size=side)
        answer = proto.GetModelMetadataResponse(model_spec=proto.model_spec("zoo", version))
        answer.metadata["signature_def"].value = signatures.SerializeToString()
        return answer

    calls = {
        method.name: grpc.unary_unary_rpc_method_handler(
            call, method.request.FromString, method.response.SerializeToString
        )
        for method, call in ((proto.PREDICT, predict), (proto.GET_MODEL_METADATA, metadata))
    }
    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(proto.PREDICT.service, calls)])
    port = server.add_insecure_port(f"localhost:{free_port()}")
    server.start()
    try:
        with gateway(f"localhost:{port}", "zoo", LOUPE_PREPROCESS="xception", **NAMED) as here:
            assert post(here, noise()).json()["model"]["version"] == 2
    finally:
        server.stop(0).wait()
    assert shapes == [sizes[1], sizes[2]]


def test_a_card_wins_over_the_settings_and_a_log_line_says_so(tmp_path: Path) -> None:
    models.write(tmp_path / "tires" / "1")
    settings = {"LOUPE_LABELS": "a,b", "LOUPE_PREPROCESS": "vgg16"}
    with model_server(tmp_path, "tires") as server, gateway(f"localhost:{server.port}", **settings) as here:
        assert here.get("/readyz").status == 200
        assert set(post(here, noise()).json()["scores"]) == set(models.LABELS)
        assert here.log.read_text().count("LOUPE_LABELS and LOUPE_PREPROCESS are not used") == 1
