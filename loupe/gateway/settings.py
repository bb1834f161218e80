"""Read the gateway's settings from the environment: their names, defaults and checks. They are read once, at start.

    settings = Settings.from_environment(os.environ)      # one UserError that names all mistakes

When the gateway starts, `checks` are passed for settings that name files, so that a broken file of keys, say, is
reported as well. Workers do not pass them: one that is started later must not fail because of it.

A test compares README's table of settings with SETTINGS below.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loupe.errors import UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Those of keras-image-helper, and `rescale` for 0…1. Listed here so that neither it nor numpy is loaded for settings.
PREPROCESSORS = ("xception", "resnet50", "vgg16", "inception_v3", "rescale", "none")
LOG_FORMATS = ("json", "text")
ANSWER_SECONDS = 30.0  # for requests still being answered when the gateway stops


@dataclass(frozen=True)
class Setting:
    field: str
    default: str
    read: Callable[[str], Any]  # text → value; its ValueError says what the text must be


def _whole_number(least: int, most: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        if not text.strip().isdecimal() or not least <= int(text) <= most:
            raise ValueError(f"a whole number from {least} to {most}")
        return int(text)

    return read


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value <= 3600:
        raise ValueError("seconds, more than 0 and at most 3600")
    return value


def _seconds_or_none(text: str) -> float:
    try:
        return 0.0 if float(text) == 0 else _seconds(text)
    except ValueError:
        raise ValueError("seconds, from 0 to 3600") from None


def _name(text: str) -> str:
    if not text.strip() or any(letter in text for letter in "/\\\0 "):
        raise ValueError("a name without slash or space")
    return text


def _model_servers(text: str) -> str:
    if re.match(r"(?!dns:///)\w+://", text):
        raise ValueError("host:port of the model server's gRPC, such as localhost:8500: it is no URL")
    for host, port in _hosts_and_ports(text):
        if not host or "/" in host or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError("host:port, or several of them with commas between")
    return text


def _hosts_and_ports(text: str) -> list[tuple[str, str]]:
    """Split a list of host:port. It may begin as gRPC's names do, though that changes nothing."""
    words = re.sub(r"^(dns:///|ipv[46]:)", "", text).split(",")
    pairs = [word.strip().rpartition(":") for word in words]
    return [(host.removeprefix("[").removesuffix("]"), port) for host, _, port in pairs]


def _addresses(text: str) -> tuple[str | Network, ...]:
    """Read host names and networks, comma separated."""
    allowed: list[str | Network] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            allowed.append(ipaddress.ip_network(word))
        except ValueError:
            if "/" in word or ":" in word or "*" in word:
                raise ValueError("host names and networks such as 10.1.0.0/16, comma separated, no ports") from None
            allowed.append(word.lower().rstrip("."))
    return tuple(allowed)


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(word for word in (word.strip().lower() for word in text.split(",")) if word)
    if not all(re.fullmatch(r"https?://[^\s/,*@?#]+", origin) or origin == "*" for origin in origins):
        raise ValueError("origins such as https://app.example.org, comma separated, without a path; or *")
    return origins


def _labels(text: str) -> tuple[str, ...]:
    labels = tuple(word.strip() for word in text.split(",")) if text.strip() else ()
    if labels and (len(labels) < 2 or not all(labels) or len(set(labels)) < len(labels)):
        raise ValueError("two labels or more, comma separated, none empty and all different")
    return labels


def _preprocessor(text: str) -> str:
    name = text.strip().lower()
    if name and name not in PREPROCESSORS:
        suggestions = difflib.get_close_matches(name, PREPROCESSORS, 1)
        raise ValueError(
            f"one of {', '.join(PREPROCESSORS)}" + (f"; did you mean {suggestions[0]}?" if suggestions else "")
        )
    return name


def _folder(text: str) -> str:
    """Return the absolute path: a process that is started from this one may work in another folder."""
    return str(Path(text).absolute()) if text else ""


def _log_format(text: str) -> str:
    if text.strip() not in LOG_FORMATS:
        raise ValueError(" or ".join(LOG_FORMATS))
    return text.strip()


SETTINGS = {
    "TF_SERVING_HOST": Setting("target", "localhost:8500", _model_servers),
    "MODEL_NAME": Setting("model", "tires", _name),
    "LOUPE_HOST": Setting("host", "127.0.0.1", str),
    "LOUPE_PORT": Setting("port", "9696", _whole_number(1, 65535)),
    "LOUPE_METRICS_PORT": Setting("metrics_port", "0", _whole_number(0, 65535)),
    "LOUPE_WORKERS": Setting("workers", "1", _whole_number(1, 256)),
    "LOUPE_THREADS": Setting("threads", "8", _whole_number(1, 1024)),
    "LOUPE_FETCHES": Setting("fetches", "8", _whole_number(1, 1024)),
    "LOUPE_MODEL_CALLS": Setting("model_calls", "32", _whole_number(1, 1024)),
    "LOUPE_MAX_WAIT": Setting("max_wait", "3", _seconds),
    "LOUPE_READ_TIMEOUT": Setting("read_timeout", "30", _seconds),
    "LOUPE_DRAIN": Setting("stop_delay", "0", _seconds_or_none),
    "LOUPE_MAX_BYTES": Setting("max_bytes", "10000000", _whole_number(1, 1 << 31)),
    "LOUPE_BODY_MEMORY": Setting("body_memory", "268435456", _whole_number(1, 1 << 40)),
    "LOUPE_MAX_IMAGES": Setting("max_images", "32", _whole_number(1, 1024)),
    "LOUPE_MAX_PIXELS": Setting("max_pixels", "200000000", _whole_number(1, 1 << 40)),
    "LOUPE_DECODE_MEMORY": Setting("decode_memory", "640000000", _whole_number(1, 1 << 40)),
    "LOUPE_DECODE_TIMEOUT": Setting("decode_timeout", "10", _seconds),
    "LOUPE_MODEL_TIMEOUT": Setting("model_timeout", "10", _seconds),
    "LOUPE_FETCH_TIMEOUT": Setting("fetch_timeout", "10", _seconds),
    "LOUPE_FETCH_ALLOW": Setting("fetch_allow", "", _addresses),
    "LOUPE_API_KEYS": Setting("api_keys", "", str.strip),
    "LOUPE_FEEDBACK_DIR": Setting("feedback_dir", "", _folder),
    "LOUPE_FEEDBACK_MAX": Setting("feedback_max", "10000", _whole_number(1, 1_000_000)),
    "LOUPE_FEEDBACK_BYTES": Setting("feedback_bytes", "1000000000", _whole_number(1, 1 << 50)),
    "LOUPE_CORS_ORIGINS": Setting("cors_origins", "", _origins),
    "LOUPE_LABELS": Setting("labels", "", _labels),
    "LOUPE_PREPROCESS": Setting("preprocess", "", _preprocessor),
    "LOUPE_LOG_FORMAT": Setting("log_format", "json", _log_format),
}

RETIRED = {"LOUPE_QUEUE": "the queue is bounded by time now, LOUPE_MAX_WAIT"}  # accepted, and without an effect


@dataclass(frozen=True)
class Settings:
    target: str  # host:port of the model server's gRPC, or several
    model: str
    host: str
    port: int
    metrics_port: int  # 0: no metrics
    workers: int
    threads: int  # in each worker
    fetches: int  # requests that fetch URLs at a time, in each worker: they have threads of their own
    model_calls: int  # calls in flight to one model server, of each worker; fewer where that one refuses them
    max_wait: float  # seconds that a request may expect to wait for its turn
    read_timeout: float  # seconds within which a whole request must arrive
    stop_delay: float  # seconds to go on answering after SIGTERM; /readyz says not ready meanwhile
    max_bytes: int  # of a request's body, and of a fetched picture
    body_memory: int  # bytes of bodies that a worker gathers at a time
    max_images: int  # in one request
    max_pixels: int  # of all pictures of a request, as they are decoded
    decode_memory: int  # bytes that pictures take while they are decoded at a time, in each worker
    decode_timeout: float  # processor seconds for all pictures of a request to be decoded
    model_timeout: float  # seconds for all calls to the model server for one request together
    fetch_timeout: float  # seconds for all URLs of a request together, host name look-ups included
    fetch_allow: tuple[str | Network, ...]  # hosts fetched from although not public, and on any port
    api_keys: str  # the file with their hashes; empty: no key is needed
    feedback_dir: str  # where corrections are kept; empty: they are not taken
    feedback_max: int  # pictures that may wait there for a review
    feedback_bytes: int  # which they may have together, notes included
    cors_origins: tuple[str, ...]  # sites whose pages may ask; "*": any site
    labels: tuple[str, ...]  # for a model without a card, in the order of its outputs
    preprocess: str  # for a float32 model without a card: one of PREPROCESSORS
    log_format: str  # one of LOG_FORMATS

    @property
    def model_servers(self) -> list[tuple[str, int]]:
        """Host and port of each model server that is named; a name may have many addresses."""
        return [(host, int(port)) for host, port in _hosts_and_ports(self.target)]

    @property
    def grace(self) -> float:
        """Seconds from SIGTERM until requests that are still being answered are given up."""
        return ANSWER_SECONDS + self.stop_delay

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, checks: Mapping[str, Callable[[Any], None]] | None = None
    ) -> Settings:
        """Read all settings. `checks` has functions for some fields, which raise a UserError if the value is wrong."""
        # Read each setting.
        values: dict[str, Any] = {}
        mistakes: list[str] = []
        for name, setting in SETTINGS.items():
            text = environment.get(name) or setting.default
            try:
                values[setting.field] = setting.read(text)
            except ValueError as error:
                mistakes.append(f"{name} is {text!r}, but must be {error}")
        # Look for misspelt names.
        for name in sorted(environment):
            if name.startswith("LOUPE_") and name not in SETTINGS and name not in RETIRED:
                suggestions = difflib.get_close_matches(name, SETTINGS, 1)
                mistakes.append(
                    f"{name} is not a setting" + (f"; did you mean {suggestions[0]}?" if suggestions else "")
                )
        # Check what no setting can check alone.
        if values.get("metrics_port") and values["metrics_port"] == values.get("port"):
            mistakes.append("LOUPE_METRICS_PORT must be another than LOUPE_PORT")
        for field, check in (checks or {}).items():
            try:
                if field in values:
                    check(values[field])
            except UserError as error:
                mistakes.append(str(error).rstrip("."))
        # Report all mistakes at once.
        if mistakes:
            raise UserError(
                "Settings: " + "; ".join(mistakes).rstrip("?") + ("?" if mistakes[-1].endswith("?") else ".")
            )
        return cls(**values)
