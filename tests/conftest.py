"""For every test: OpenVINO reports each import to its makers unless its telemetry cannot be imported."""

import sys

sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
