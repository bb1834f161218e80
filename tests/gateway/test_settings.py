from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from keras_image_helper.helper import preprocessors

from loupe.errors import UserError
from loupe.gateway.settings import PREPROCESSORS, SETTINGS, Settings
from tests.support.gateways import gateway, running
from tests.support.servers import ROOT, free_port, until


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


def test_the_preprocessors_are_those_of_keras_image_helper_rescale_and_none() -> None:
    assert set(PREPROCESSORS) == {*preprocessors, "rescale", "none"}
    assert Settings.from_environment({"LOUPE_PREPROCESS": "Xception"}).preprocess == "xception"


def test_an_unknown_preprocessor_names_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"one of xception, .*; did you mean inception_v3\?$"):
        Settings.from_environment({"LOUPE_PREPROCESS": "inceptionv3"})


@pytest.mark.parametrize("text", ["http://model:8500", "https://model:8500", "grpc://model:8500"])
def test_a_url_of_the_model_server_is_refused_with_what_it_should_be(text: str) -> None:
    with pytest.raises(UserError, match=r"TF_SERVING_HOST is .* localhost:8500: it is no URL\.$"):
        Settings.from_environment({"TF_SERVING_HOST": text})


@pytest.mark.parametrize("text", ["model:8500", "[::1]:8500", "dns:///model:8500"])
def test_the_model_server_may_be_named_in_every_way_that_grpc_knows(text: str) -> None:
    assert Settings.from_environment({"TF_SERVING_HOST": text}).target == text


def test_to_drain_for_no_time_is_allowed_and_said_to_be() -> None:
    assert [Settings.from_environment({"LOUPE_DRAIN": text}).stop_delay for text in ("0", "0.0", "2.5")] == [0, 0, 2.5]
    for text in ("-1", "3601", "nan", "soon"):
        with pytest.raises(UserError, match=f"LOUPE_DRAIN is '{text}', but must be seconds, from 0 to 3600"):
            Settings.from_environment({"LOUPE_DRAIN": text})


WAYS = pytest.mark.parametrize(
    ("command", "status", "name"),
    [(["gateway.py"], 2, "gateway.py: "), (["-m", "gunicorn", "gateway:app"], 1, "gateway: ")],
)


def refusal(command: list[str], **settings: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=settings, capture_output=True, text=True, timeout=60
    )
    assert done.stderr.count("\n") == 1, done.stderr
    return done.returncode, done.stderr


@WAYS
def test_a_broken_file_of_keys_is_told_together_with_every_other_wrong_setting(
    command: list[str], status: int, name: str, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text("anne")
    ended, said = refusal(command, LOUPE_DRAIN="-1", LOUPE_API_KEYS=str(tmp_path / "keys"), LOUPE_PRT="1")
    assert (ended, said.startswith(f"{name}Settings: LOUPE_DRAIN is '-1'")) == (status, True), said
    assert "LOUPE_API_KEYS: line 1 of" in said
    assert "LOUPE_PRT is not a setting" in said


@WAYS
@pytest.mark.parametrize("setting", ["LOUPE_PORT", "LOUPE_METRICS_PORT"])
def test_a_taken_port_stops_the_gateway_at_once_with_one_line(
    command: list[str], status: int, name: str, setting: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ended, said = refusal(command, **{"LOUPE_PORT": str(free_port()), setting: port})
    assert (ended, said) == (
        status, f"{name}Port {port} of {setting} cannot be used (Address already in use); choose another.\n"
    )  # fmt: skip


@WAYS
@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a..b", "http://localhost"])
def test_a_host_that_is_not_this_machine_is_named(command: list[str], status: int, name: str, host: str) -> None:
    ended, said = refusal(command, LOUPE_HOST=host, LOUPE_PORT=str(free_port()))
    assert ended == status
    assert said.startswith(f"{name}LOUPE_HOST is '{host}', which is no address of this machine")


def test_a_gateway_that_reads_its_settings_again_is_not_in_its_own_way() -> None:
    """SIGHUP: the same process, with its sockets. SIGUSR2: another, which is given them."""
    with gateway("localhost:1") as here:
        (worker,) = here.workers()
        here.process.send_signal(signal.SIGHUP)
        until(lambda: here.workers() not in ([], [worker]) and len(here.workers()) == 1, "the next worker")
        assert here.get("/healthz").status == 200
        old = here.workers()
        here.process.send_signal(signal.SIGUSR2)
        until(lambda: len(here.workers()) == 2, "the next gunicorn")
        (successor,) = set(here.workers()) - set(old)
        children = Path(f"/proc/{successor}/task/{successor}/children")
        try:
            until(lambda: children.exists() and children.read_text(), "its worker")
            assert "cannot be used" not in here.log.read_text()
        finally:
            os.kill(successor, signal.SIGTERM)


def test_a_port_given_to_gunicorn_itself_counts() -> None:
    other = free_port()
    command = [sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{other}", "gateway:app"]
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        running(command, ROOT, {"LOUPE_PORT": str(taken.getsockname()[1])}, other) as here,
    ):
        assert here.get("/healthz").status == 200


@pytest.mark.parametrize("command", [["gateway.py"], ["-m", "gunicorn", "gateway:app"]])
def test_a_wrong_setting_stops_the_gateway_with_one_line(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env={"LOUPE_PRT": "1"}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert done.stderr.count("\n") == 1
    assert "LOUPE_PRT is not a setting; did you mean LOUPE_PORT?" in done.stderr


def test_readme_lists_every_setting_with_its_default_and_no_other() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| `?([^`|]*)`? \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert {name: default.strip() for name, default in rows} == {
        name: setting.default or "nothing" for name, setting in SETTINGS.items()
    }
