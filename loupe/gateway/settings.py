"""Every setting of the gateway: its name in the environment, its default, its check. Read once, at start.

    settings = Settings.from_environment(os.environ)      # UserError naming all that is wrong at once

Whoever starts the gateway passes check_keys=keys.check, and is told of a broken file of keys, too. Workers do not: one
that takes another's place later must not fail by it.

README's table of settings is held to SETTINGS below by a test.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from loupe.errors import UserError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# keras-image-helper's, and one for 0…1: named here so that reading the settings loads neither it nor numpy.
PREPROCESSORS = ("xception", "resnet50", "vgg16", "inception_v3", "rescale")
LOG_FORMATS = ("json", "text")
ANSWER_SECONDS = 30.0  # for requests in flight when the gateway stops


@dataclass(frozen=True)
class Setting:
    field: str
    default: str
    read: Callable[[str], Any]  # text → value; ValueError says what it should have been


def _whole(least: int, most: int) -> Callable[[str], int]:
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


def _host_and_port(text: str) -> str:
    if re.match(r"(?!dns|ipv4|ipv6|xds)\w+://", text):  # those are ways in which gRPC itself writes addresses
        raise ValueError("host:port of the model server's gRPC, such as localhost:8500: it is no URL")
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError("host:port")
    return text


def _addresses(text: str) -> tuple[str | Network, ...]:
    """Host names and networks, comma separated."""
    found: list[str | Network] = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        try:
            found.append(ipaddress.ip_network(word))
        except ValueError:
            if "/" in word or ":" in word or "*" in word:
                raise ValueError("host names and networks such as 10.1.0.0/16, comma separated, no ports") from None
            found.append(word.lower().rstrip("."))
    return tuple(found)


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
        near = difflib.get_close_matches(name, PREPROCESSORS, 1)
        raise ValueError(f"one of {', '.join(PREPROCESSORS)}" + (f"; did you mean {near[0]}?" if near else ""))
    return name


def _log_format(text: str) -> str:
    if text.strip() not in LOG_FORMATS:
        raise ValueError(" or ".join(LOG_FORMATS))
    return text.strip()


SETTINGS = {
    "TF_SERVING_HOST": Setting("target", "localhost:8500", _host_and_port),
    "MODEL_NAME": Setting("model", "tires", _name),
    "LOUPE_HOST": Setting("host", "127.0.0.1", str),
    "LOUPE_PORT": Setting("port", "9696", _whole(1, 65535)),
    "LOUPE_METRICS_PORT": Setting("metrics_port", "0", _whole(0, 65535)),
    "LOUPE_WORKERS": Setting("workers", "1", _whole(1, 256)),
    "LOUPE_THREADS": Setting("threads", "8", _whole(1, 1024)),
    "LOUPE_QUEUE": Setting("queue", "16", _whole(0, 4096)),
    "LOUPE_READ_TIMEOUT": Setting("read_timeout", "30", _seconds),
    "LOUPE_DRAIN": Setting("drain", "0", _seconds_or_none),
    "LOUPE_MAX_BYTES": Setting("max_bytes", "10000000", _whole(1, 1 << 31)),
    "LOUPE_MAX_IMAGES": Setting("max_images", "32", _whole(1, 1024)),
    "LOUPE_MODEL_TIMEOUT": Setting("model_timeout", "10", _seconds),
    "LOUPE_FETCH_TIMEOUT": Setting("fetch_timeout", "10", _seconds),
    "LOUPE_FETCH_ALLOW": Setting("fetch_allow", "", _addresses),
    "LOUPE_API_KEYS": Setting("api_keys", "", str.strip),
    "LOUPE_CORS_ORIGINS": Setting("cors_origins", "", _origins),
    "LOUPE_LABELS": Setting("labels", "", _labels),
    "LOUPE_PREPROCESS": Setting("preprocess", "", _preprocessor),
    "LOUPE_LOG_FORMAT": Setting("log_format", "json", _log_format),
}


@dataclass(frozen=True)
class Settings:
    target: str  # of the model server's gRPC
    model: str
    host: str
    port: int
    metrics_port: int  # 0: none
    workers: int
    threads: int  # a worker
    queue: int  # requests that may wait for one of these threads
    read_timeout: float  # seconds for all of a request to arrive
    drain: float  # seconds to go on answering, not ready, when told to stop
    max_bytes: int  # of a request's body, and of a picture that is fetched
    max_images: int  # a request
    model_timeout: float  # seconds, all questions to the model server for one request together
    fetch_timeout: float  # seconds for all pictures of a request, from looking names up to the last byte
    fetch_allow: tuple[str | Network, ...]  # fetched from although not public, and on any port
    api_keys: str  # the file they are in; empty: none are wanted
    cors_origins: tuple[str, ...]  # whose pages may ask; "*": everybody's
    labels: tuple[str, ...]  # of a model without a card, in its order
    preprocess: str  # for a float32 model without a card: one of PREPROCESSORS
    log_format: str  # one of LOG_FORMATS

    @property
    def grace(self) -> float:
        """Seconds from being told to stop until what is still in hand is given up."""
        return ANSWER_SECONDS + self.drain

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, check_keys: Callable[[str], None] | None = None
    ) -> Settings:
        values: dict[str, Any] = {}
        wrong: list[str] = []
        for name, setting in SETTINGS.items():
            text = environment.get(name) or setting.default
            try:
                values[setting.field] = setting.read(text)
            except ValueError as error:
                wrong.append(f"{name} is {text!r}, but must be {error}")
        for name in sorted(environment):
            if name.startswith("LOUPE_") and name not in SETTINGS:
                near = difflib.get_close_matches(name, SETTINGS, 1)
                wrong.append(f"{name} is not a setting" + (f"; did you mean {near[0]}?" if near else ""))
        if values.get("metrics_port") and values["metrics_port"] == values.get("port"):
            wrong.append("LOUPE_METRICS_PORT must be another than LOUPE_PORT")
        if check_keys and "api_keys" in values:
            try:
                check_keys(values["api_keys"])
            except UserError as error:
                wrong.append(str(error).rstrip("."))
        if wrong:
            raise UserError("Settings: " + "; ".join(wrong).rstrip("?") + ("?" if wrong[-1].endswith("?") else "."))
        return cls(**values)
