"""Choose what to compute on: one or several GPUs, or the CPU.

    devices = prepare("auto")           # sets Keras's precision
    with devices.scope(): model = …     # several GPUs learn together (MirroredStrategy)

Several machines are not supported, because Keras's fit does not support them (keras#20585).
"""

from __future__ import annotations

import os
import platform
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclass(frozen=True)
class Devices:
    names: tuple[str, ...]
    precision: str  # float32, bfloat16 or float16
    strategy: Any = None

    def scope(self) -> AbstractContextManager[Any]:
        return self.strategy.scope() if self.strategy else nullcontext()

    def describe(self) -> dict[str, Any]:
        return {
            "devices": list(self.names),
            "precision": self.precision,
            "cpu": _cpu(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        }


def prepare(precision: str) -> Devices:
    gpus = tf.config.list_logical_devices("GPU")
    cpus = tf.config.list_logical_devices("CPU")
    devices = gpus if gpus else cpus  # there are several CPU devices only if a user has configured them
    if precision == "auto":
        precision = "float16" if gpus else "float32"
    keras.config.set_dtype_policy(POLICIES[precision])
    names = tuple(device.name for device in devices)
    return Devices(names, precision, tf.distribute.MirroredStrategy(list(names)) if len(names) > 1 else None)


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
