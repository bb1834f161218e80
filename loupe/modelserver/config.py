"""Read TensorFlow Serving's configuration files, which are protobuf's text format: models, batching, monitoring.

    models = config.read_models(Path("models.config"))          # --model_config_file
    models = config.served_models(request.config)               # the same, as HandleReloadConfigRequest sends it

    model_config_list {
      config {
        name: "tires"
        base_path: "/models/tires"
        model_platform: "tensorflow"
        model_version_policy { specific { versions: 3 versions: 4 } }
        version_labels { key: "stable" value: 3 }
      }
    }

Not covered: custom_model_config, the deprecated model_type, and logging_config, which TensorFlow Serving has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loupe import files, proto
from loupe.engines.refused import invalid, say
from loupe.errors import LoupeError, UserError

MAX_BYTES = 1 << 20  # of a configuration file
PLATFORM = "tensorflow"
NO_EFFECT = ("pad_variable_length_inputs", "enable_large_batch_splitting", "max_execution_batch_size")
MAX_THREADS = 1024
DEFAULT_MONITORING_PATH = "/monitoring/prometheus/metrics"


@dataclass(frozen=True)
class VersionPolicy:
    """Which of the versions in a model's folder are served."""

    latest: int = 1  # that many of the newest
    all: bool = False
    specific: frozenset[int] = frozenset()

    def choose(self, numbers: list[int]) -> list[int]:
        """Return the versions to serve, of those that are there, newest first."""
        newest_first = sorted(numbers, reverse=True)
        if self.all:
            return newest_first
        if self.specific:
            return [number for number in newest_first if number in self.specific]
        return newest_first[: self.latest]

    @property
    def takes_newest(self) -> bool:
        return not self.all and not self.specific


@dataclass(frozen=True)
class ServedModel:
    """A model to serve."""

    name: str
    base: Path  # holds the numbered versions
    policy: VersionPolicy = VersionPolicy()
    labels: Mapping[str, int] = field(default_factory=dict)  # label → version


@dataclass(frozen=True)
class Batching:
    """TensorFlow Serving's batching parameters, with its defaults."""

    max_batch_size: int = 1000
    batch_timeout_micros: int = 0
    max_enqueued_batches: int = 10
    num_batch_threads: int = 0  # 0: as many as the engine computes at once
    allowed_batch_sizes: tuple[int, ...] = ()


def read_models(path: Path) -> list[ServedModel]:
    """Read a --model_config_file. Raises UserError if it cannot be used."""
    message = _read(path, proto.ModelServerConfig())
    if not message.HasField("model_config_list"):
        raise UserError(f"{path} has no model_config_list, the models to serve")
    try:
        return served_models(message)
    except LoupeError as error:
        raise UserError(f"{path}: {error}") from error


def served_models(message: Any) -> list[ServedModel]:
    """Return the models of a ModelServerConfig. Raises Refused in TensorFlow Serving's words."""
    if not message.HasField("model_config_list"):
        raise invalid(
            "ServerModelConfig type not supported by HandleReloadConfigRequest. Only ModelConfigList is currently "
            "supported"
        )
    entries = message.model_config_list.config
    names: set[str] = set()
    for entry in entries:
        if entry.name in names:
            raise invalid(f"Illegal to list model {entry.name} multiple times in config list")
        names.add(entry.name)
    for entry in entries:
        _check(entry)
    return [
        ServedModel(entry.name, Path(entry.base_path), _version_policy(entry), dict(entry.version_labels))
        for entry in entries
    ]


def read_batching(path: Path) -> Batching:
    """Read a --batching_parameters_file. Raises UserError if it cannot be used."""
    message = _read(path, proto.BatchingParameters())
    values = {
        name: getattr(message, name).value
        for name in ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
        if message.HasField(name)
    }
    for entry, _ in message.ListFields():
        if entry.name in NO_EFFECT:
            say(f"{path}: {entry.name} has no effect here")
    batching = Batching(**values, allowed_batch_sizes=tuple(message.allowed_batch_sizes))
    # TensorFlow Serving ends at these as well, later and in other words.
    for name in ("max_batch_size", "max_enqueued_batches", "num_batch_threads"):
        if name in values and values[name] < 1:
            raise UserError(f"{path}: {name} must be at least 1, not {values[name]}")
    if batching.num_batch_threads > MAX_THREADS:
        raise UserError(f"{path}: num_batch_threads must be at most {MAX_THREADS}, not {batching.num_batch_threads}")
    if batching.batch_timeout_micros < 0:
        raise UserError(f"{path}: batch_timeout_micros must not be negative")
    allowed = list(batching.allowed_batch_sizes)
    if allowed and (allowed != sorted(set(allowed)) or allowed[0] < 1):
        raise UserError(f"{path}: allowed_batch_sizes must be positive and each larger than the one before")
    if allowed and allowed[-1] != batching.max_batch_size:
        raise UserError(f"{path}: the last of allowed_batch_sizes must be max_batch_size, {batching.max_batch_size}")
    return batching


def read_monitoring(path: Path) -> str | None:
    """Read a --monitoring_config_file. Return the address of the metrics, or None if they are not wanted."""
    prometheus = _read(path, proto.MonitoringConfig()).prometheus_config
    address = prometheus.path or DEFAULT_MONITORING_PATH
    if not address.startswith("/") or address.lower().startswith("/v1/"):
        raise UserError(f"{path}: the path of the metrics begins with / and not with /v1/, unlike {address!r}")
    return address if prometheus.enable else None


def _check(entry: Any) -> None:
    if not Path(entry.base_path).is_absolute() or "\0" in entry.base_path:
        raise invalid(f"Expected model {entry.name} to have an absolute path or URI; got base_path()={entry.base_path}")
    if not entry.model_platform and not entry.model_type:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor ModelServerConfig::model_platform."
        )
    if entry.model_type:
        raise invalid("ModelServerConfig::model_type (deprecated) is not read here; give model_platform")
    if entry.model_platform != PLATFORM:
        raise invalid(f"Model {entry.name} requests unsupported platform {entry.model_platform}")


def _version_policy(entry: Any) -> VersionPolicy:
    policy = entry.model_version_policy
    if policy.HasField("all"):
        return VersionPolicy(all=True)
    if policy.HasField("specific"):
        return VersionPolicy(specific=frozenset(policy.specific.versions) or frozenset([-1]))  # none: nothing is served
    return VersionPolicy(latest=max(1, policy.latest.num_versions))


def _read(path: Path, message: Any) -> Any:
    from google.protobuf import text_format  # only where there is a file: a server should start quickly

    try:
        return text_format.Parse(files.read(path, MAX_BYTES).decode(), message)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    except (text_format.ParseError, ValueError) as error:
        name = message.DESCRIPTOR.name
        raise UserError(f"{path} is no {name} in protobuf's text format: {error}") from error
