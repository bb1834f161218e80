"""Whether this process is on its way out: set by the worker when it is told to stop, read by /readyz."""

from __future__ import annotations

import threading

stopping = threading.Event()
