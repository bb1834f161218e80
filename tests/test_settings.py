from __future__ import annotations

import re
import subprocess
import sys

import pytest
from keras_image_helper.helper import preprocessors

from loupe.errors import UserError
from loupe.gateway.settings import PREPROCESSORS, SETTINGS, Settings
from tests.servers import ROOT


def test_without_any_the_defaults_stand() -> None:
    settings = Settings.from_environment({"PATH": "/bin", "TF_SERVING_HOST": ""})
    assert (settings.target, settings.model, settings.port) == ("localhost:8500", "tires", 9696)


def test_every_wrong_setting_is_named_at_once_with_what_it_should_be() -> None:
    wrong = {
        "TF_SERVING_HOST": "nowhere",
        "MODEL_NAME": "../x",
        "LOUPE_PORT": "70000",
        "LOUPE_MODEL_TIMEOUT": "-1",
        "LOUPE_FETCH_ALLOW": "10.0.0.0/99",
        "LOUPE_TREADS": "4",
    }
    with pytest.raises(UserError) as error:
        Settings.from_environment(wrong)
    for name in wrong:
        assert name in str(error.value)
    assert "did you mean LOUPE_THREADS?" in str(error.value)


def test_a_network_and_a_host_can_be_allowed() -> None:
    allowed = Settings.from_environment({"LOUPE_FETCH_ALLOW": "10.1.0.0/16, Pictures.Intranet,::1"}).fetch_allow
    assert [str(entry) for entry in allowed] == ["10.1.0.0/16", "pictures.intranet", "::1/128"]


def test_labels_keep_their_order_and_lose_their_blanks() -> None:
    assert Settings.from_environment({"LOUPE_LABELS": " worn, new tire ,Ärger"}).labels == ("worn", "new tire", "Ärger")
    assert Settings.from_environment({"LOUPE_LABELS": " "}).labels == ()


@pytest.mark.parametrize("text", ["one", "a,,b", "a,b,", "a,b, a", ","])
def test_labels_that_are_too_few_empty_or_equal_are_refused(text: str) -> None:
    with pytest.raises(UserError, match="LOUPE_LABELS is .* but must be two labels or more"):
        Settings.from_environment({"LOUPE_LABELS": text})


def test_the_preprocessors_are_those_of_keras_image_helper_and_rescale() -> None:
    assert set(PREPROCESSORS) == {*preprocessors, "rescale"}
    assert Settings.from_environment({"LOUPE_PREPROCESS": "Xception"}).preprocess == "xception"


def test_an_unknown_preprocessor_names_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"one of xception, .*; did you mean inception_v3\?$"):
        Settings.from_environment({"LOUPE_PREPROCESS": "inceptionv3"})


@pytest.mark.parametrize("command", [["gateway.py"], ["-m", "gunicorn", "gateway:app"]])
def test_a_wrong_setting_stops_the_gateway_with_one_line(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={"LOUPE_PRT": "1"}, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "LOUPE_PRT is not a setting; did you mean LOUPE_PORT?" in done.stderr


def test_readme_lists_every_setting_with_its_default_and_no_other() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `?([^`|]*)`? \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: default.strip() for name, default in rows} == {
        name: setting.default or "nothing" for name, setting in SETTINGS.items()
    }
