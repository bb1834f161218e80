"""Read the flags: TensorFlow Serving's, by its names and with its defaults, and two of our own (`engine`, `address`).

    flags = flags.parse(["--port=8500", "--model_name=tires", "--model_base_path=models/tires"])

Both `--flag=value` and `--flag value` are read; a switch is `--flag` or `--flag=true`. A flag that TensorFlow Serving
has and this server ignores gives a warning, so that dockerfiles and manifests for it still start; an unknown one is an
error. `--model_config_file` is an error too: without it another model than the one meant would be served. Differences:
`--port=0` picks a free port (there it turns gRPC off); a negative polling interval is refused.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields

from loupe.engines.choose import CHOICES
from loupe.engines.refused import say
from loupe.errors import UserError

TRUE, FALSE = ("true", "t", "1", "yes", "y"), ("false", "f", "0", "no", "n")
# Flags of TensorFlow Serving that have no effect here: switches, and those that take a value.
IGNORED_SWITCHES = """
    enable_batching enable_per_model_batching_parameters allow_version_labels_for_unavailable_models
    force_allow_any_version_labels_for_unavailable_models flush_filesystem_caches use_alts_credentials
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model
    enable_signature_method_name_check xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    skip_initialize_tpu
"""
IGNORED_VALUES = """
    batching_parameters_file model_config_file_poll_wait_seconds num_load_threads
    num_unload_threads tensorflow_session_config_file platform_config_file per_process_gpu_memory_fraction
    num_request_iterations_for_warmup monitoring_config_file num_tflite_pools num_tflite_interpreters_per_pool
    thread_pool_factory_config_file
"""
# If these were ignored, another model would be served, or the same one to the wrong callers.
REFUSED_FLAGS = {
    "model_config_file": "give --model_name and --model_base_path instead",
    "ssl_config_file": "this server speaks plain text only; put a proxy in front of it",
    "grpc_socket_path": "give --port instead",
}


@dataclass(frozen=True)
class Flags:
    port: int = 8500
    rest_api_port: int = 0  # 0: no REST
    address: str = "0.0.0.0"
    rest_api_timeout_in_ms: int = 30_000
    rest_api_num_threads: int = 0  # 0: four for each CPU
    rest_api_enable_cors_support: bool = False
    engine: str = "auto"
    model_name: str = "default"
    model_base_path: str = ""
    saved_model_tags: str = "serve"
    file_system_poll_wait_seconds: int = 1  # 0: look once
    max_num_load_retries: int = 5
    load_retry_interval_micros: int = 60_000_000
    grpc_max_threads: int = 0  # 0: four for each CPU
    grpc_channel_arguments: str = ""
    enable_grpc_healthcheck_service: bool = False
    enable_serialization_as_tensor_content: bool = False
    tensorflow_session_parallelism: int = 0
    tensorflow_intra_op_parallelism: int = 0
    tensorflow_inter_op_parallelism: int = 0
    mixed_precision: str = ""
    enable_model_warmup: bool = True  # replay assets.extra/tf_serving_warmup_requests before a version is served

    @property
    def threads(self) -> int:
        return self.grpc_max_threads or 4 * cpu_count()

    @property
    def rest_threads(self) -> int:
        return self.rest_api_num_threads or 4 * cpu_count()

    @property
    def channel_arguments(self) -> list[tuple[str, int | str]]:
        pairs = [pair.partition("=") for pair in self.grpc_channel_arguments.split(",") if pair]
        return [(key, int(value) if value.lstrip("-").isdigit() else value) for key, _, value in pairs]


TYPES = {field.name: str(field.type) for field in fields(Flags)}


def parse(arguments: Sequence[str]) -> Flags:
    """Return the flags. Raises UserError with all that is wrong at once."""
    values: dict[str, int | str | bool] = {}
    errors: list[str] = []
    words = list(arguments)
    # Read one flag after the other, and collect the errors.
    while words:
        name, equals, text = words.pop(0).partition("=")
        try:
            key = _known(name)
            switch = key in IGNORED_SWITCHES.split() or TYPES.get(key) == "bool"
            if not equals:
                text = "true" if switch else _next(name, words)
            if key in TYPES:
                values[key] = _value(name, TYPES[key], text)
            elif not (switch and text.lower() in FALSE):
                say(f"{name} has no effect here")
        except UserError as error:
            errors.append(str(error))
    # Check them together.
    flags = Flags(**values)  # type: ignore[arg-type]
    errors += _conflicts(flags)
    if errors:
        raise UserError("; ".join(errors))
    return flags


def _known(name: str) -> str:
    key = name.removeprefix("--")
    if key in REFUSED_FLAGS:
        raise UserError(f"{name} is not read here: {REFUSED_FLAGS[key]}")
    known = {*TYPES, *IGNORED_SWITCHES.split(), *IGNORED_VALUES.split()}
    if key == name or key not in known:
        near = difflib.get_close_matches(key, known, 1, 0)[0]
        raise UserError(f"unknown flag {name}; the nearest is --{near}")
    return key


def _next(name: str, words: list[str]) -> str:
    if not words or words[0].startswith("--"):
        raise UserError(f"{name} needs a value: {name}=…")
    return words.pop(0)


def _value(name: str, type_name: str, text: str) -> int | str | bool:
    if type_name == "str":
        return text
    if type_name == "bool":
        if text.lower() not in TRUE + FALSE:
            raise UserError(f"{name} is true or false, not {text!r}")
        return text.lower() in TRUE
    try:
        return int(text)
    except ValueError as error:
        raise UserError(f"{name} is a whole number, not {text!r}") from error


def _conflicts(flags: Flags) -> list[str]:
    errors = []
    if not flags.model_base_path:
        errors.append("--model_base_path is missing: the folder that holds the model's numbered versions")
    if flags.engine not in CHOICES:
        errors.append(f"--engine is one of {', '.join(CHOICES)}, not {flags.engine!r}")
    if flags.mixed_precision not in ("", "bfloat16"):
        errors.append(f"--mixed_precision is bfloat16 or nothing, not {flags.mixed_precision!r}")
    for key in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, key) <= 65535:
            errors.append(f"--{key} is from 0 to 65535, not {getattr(flags, key)}")
    if flags.port and flags.port == flags.rest_api_port:
        errors.append("--rest_api_port must differ from --port")
    if flags.rest_api_timeout_in_ms < 1:
        errors.append("--rest_api_timeout_in_ms must be positive")
    for key in ("file_system_poll_wait_seconds", "max_num_load_retries", "grpc_max_threads", "rest_api_num_threads"):
        if getattr(flags, key) < 0:
            errors.append(f"--{key} must not be negative")
    return errors


def cpu_count() -> int:
    """Return how many CPUs this process may run on, as TensorFlow Serving counts them; macOS only knows how many there
    are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
