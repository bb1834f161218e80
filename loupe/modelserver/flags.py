"""Read the flags: TensorFlow Serving's, by its names and with its defaults, and two of our own (`engine`, `address`).

    flags = flags.parse(["--port=8500", "--model_name=tires", "--model_base_path=models/tires"], os.environ)

Both `--flag=value` and `--flag value` are read; a switch is `--flag` or `--flag=true`. A flag that TensorFlow Serving
has and this server ignores gives a warning, so that dockerfiles and manifests for it still start; an unknown one is an
error. If no flag says what to serve and the environment has MODEL_BASE_PATH, it is read as TensorFlow Serving's image
reads it: MODEL_NAME (model) is the name, and the folder of that name there is the model's; REST is on port 8501.
Differences: only this machine is listened to unless `--address=0.0.0.0` says otherwise; `--port=0` picks a free port
(there it turns gRPC off); a negative polling interval is refused.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from loupe.engines import machine
from loupe.engines.choose import CHOICES
from loupe.engines.refused import say
from loupe.errors import UserError

TRUE, FALSE = ("true", "t", "1", "yes", "y"), ("false", "f", "0", "no", "n")
# Flags of TensorFlow Serving that have no effect here: switches, and those that take a value.
IGNORED_SWITCHES = """
    enable_per_model_batching_parameters flush_filesystem_caches
    remove_unused_fields_from_bundle_metagraph prefer_tflite_model
    enable_signature_method_name_check xla_cpu_compilation_enabled xla_gpu_compilation_enabled enable_profiler
    skip_initialize_tpu
"""
IGNORED_VALUES = """
    num_load_threads num_unload_threads tensorflow_session_config_file platform_config_file
    per_process_gpu_memory_fraction num_request_iterations_for_warmup num_tflite_pools num_tflite_interpreters_per_pool
    thread_pool_factory_config_file
"""
# If these were ignored, another model would be served, or the same one to the wrong callers.
REFUSED_FLAGS = {
    "ssl_config_file": "this server speaks plain text only; put a proxy in front of it",
    "grpc_socket_path": "give --port instead",
    "use_alts_credentials": "this server speaks plain text only; put a proxy in front of it",
}


@dataclass(frozen=True)
class Flags:
    port: int = 8500
    rest_api_port: int = 0  # 0: no REST
    address: str = "127.0.0.1"  # 0.0.0.0: every interface
    rest_api_timeout_in_ms: int = 30_000
    rest_api_num_threads: int = 0  # 0: four for each CPU
    rest_api_enable_cors_support: bool = False
    engine: str = "auto"
    model_name: str = "default"
    model_base_path: str = ""
    model_config_file: str = ""  # several models, their versions and labels; name and path above are not read then
    model_config_file_poll_wait_seconds: int = 0  # 0: read once
    allow_version_labels_for_unavailable_models: bool = False
    force_allow_any_version_labels_for_unavailable_models: bool = False
    enable_batching: bool = False
    batching_parameters_file: str = ""
    monitoring_config_file: str = ""  # says whether and where on the REST port metrics are
    saved_model_tags: str = "serve"
    file_system_poll_wait_seconds: int = 1  # 0: look until every model is loaded, and then no more
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
        return self.grpc_max_threads or 4 * machine.processors()

    @property
    def rest_threads(self) -> int:
        return self.rest_api_num_threads or 4 * machine.processors()

    @property
    def channel_arguments(self) -> list[tuple[str, int | str]]:
        pairs = [pair.partition("=") for pair in self.grpc_channel_arguments.split(",") if pair]
        return [(key, int(value) if value.lstrip("-").isdigit() else value) for key, _, value in pairs]


# The least of each is 0.
LARGEST = {
    "file_system_poll_wait_seconds": 1 << 20, "model_config_file_poll_wait_seconds": 1 << 20,
    "max_num_load_retries": 1 << 30, "load_retry_interval_micros": 1 << 40,
    "grpc_max_threads": 4096, "rest_api_num_threads": 4096,
    "tensorflow_session_parallelism": 4096, "tensorflow_intra_op_parallelism": 4096,
    "tensorflow_inter_op_parallelism": 4096,
}  # fmt: skip
BASE_PATH = "MODEL_BASE_PATH"  # in the environment
TYPES = {field.name: str(field.type) for field in fields(Flags)}


def parse(arguments: Sequence[str], environment: Mapping[str, str] | None = None) -> Flags:
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
    # What no flag says may stand in the environment, as for TensorFlow Serving's image.
    if not values.keys() & {"model_base_path", "model_config_file"} and (base := (environment or {}).get(BASE_PATH)):
        name = str(values.get("model_name") or (environment or {}).get("MODEL_NAME") or "model")
        values = {"rest_api_port": 8501, **values, "model_name": name, "model_base_path": f"{base}/{name}"}
    # Check them together.
    flags = Flags(**values)  # type: ignore[arg-type]
    errors += _conflicts(flags)
    if errors:
        raise UserError("; ".join(errors))
    if flags.monitoring_config_file and not flags.rest_api_port:
        say("--monitoring_config_file has no effect without --rest_api_port, where the metrics are")
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
    if not flags.model_base_path and not flags.model_config_file:
        errors.append(
            "--model_base_path is missing: the folder that holds the model's numbered versions; or give several models "
            "with --model_config_file"
        )
    if flags.batching_parameters_file and not flags.enable_batching:
        errors.append("--batching_parameters_file is set without --enable_batching")
    if flags.engine not in CHOICES:
        errors.append(f"--engine is one of {', '.join(CHOICES)}, not {flags.engine!r}")
    if flags.mixed_precision not in ("", "bfloat16"):
        errors.append(f"--mixed_precision is bfloat16 or nothing, not {flags.mixed_precision!r}")
    for key in ("port", "rest_api_port"):
        if not 0 <= getattr(flags, key) <= 65535:
            errors.append(f"--{key} is from 0 to 65535, not {getattr(flags, key)}")
    if flags.port and flags.port == flags.rest_api_port:
        errors.append("--rest_api_port must differ from --port")
    for key in ("address", "model_name", "saved_model_tags"):
        if not getattr(flags, key):
            errors.append(f"--{key} must not be empty")
    for key, value in flags.channel_arguments:
        if not key or (isinstance(value, int) and abs(value) >= 1 << 31):
            errors.append(f"--grpc_channel_arguments is a list of key=value, numbers below 2^31; {key}={value} is not")
    for key, most in LARGEST.items():
        if not 0 <= getattr(flags, key) <= most:
            errors.append(f"--{key} is from 0 to {most}, not {getattr(flags, key)}")
    if flags.rest_api_timeout_in_ms < 1:
        errors.append("--rest_api_timeout_in_ms must be positive")
    return errors
