"""Model servers of a fixed service time, each a process of its own, on loopback addresses of their own.

    with replicas(4, seconds=0.1) as servers:        # 127.0.0.2 to 127.0.0.5, all on one port
        with gateway(target(servers)) as here: ...
        servers[0].kill()

Each computes one call at a time, which takes `seconds` and no processor; whoever comes meanwhile waits in turn. The
card and the status are given at once. Each gives its own label, whatever the picture, so an answer of the gateway tells
which of them it comes from. A picture of another size than the version wants is answered with the label `misfit`:
TensorFlow Serving does not check sizes either.

    with replicas(1, 0, port, first=3, fails="INTERNAL"): ...      # each picture is refused with this code
    with replicas(1, 0, port, first=3, state="LOADING"): ...       # no version is ready; UNKNOWN: nor the model known
    with replicas(1, 0.1, threads=8): ...                          # it computes eight at a time, and refuses the ninth

With `threads` calls of all kinds count, as in TensorFlow Serving, and refusals come at once.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from loupe import proto
from tests.support.servers import PATIENCE, ROOT, free_port

MOST = 32
MOST_CALLS = 64  # that wait in one of them
MISFIT = "misfit"
LABELS = [*(f"replica {number}" for number in range(MOST)), MISFIT]
STATES = {name: number for number, name in proto.STATES.items()}


@dataclass(frozen=True)
class Replica:
    pid: int
    address: str  # host:port
    label: str

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def stop(self) -> None:
        """Make it silent: it takes connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)


@contextmanager
def replicas(
    count: int,
    seconds: float,
    port: int = 0,
    first: int = 0,
    version: int = 1,
    fails: str = "",
    state: str = "AVAILABLE",
    threads: int = 0,
) -> Iterator[list[Replica]]:
    """Start so many, numbered from `first`, and wait until all of them listen."""
    options = map(str, (first, count, port or free_port(), seconds, version, fails, state, threads))
    command = [sys.executable, "-m", "tests.support.replicas", *options]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdin and parent.stdout
        started = [parent.stdout.readline().split() for _ in range(count)]
        try:
            numbered = sorted((int(number), int(pid), address) for number, pid, address in started)
            yield [Replica(pid, address, LABELS[number]) for number, pid, address in numbered]
        finally:
            parent.stdin.close()  # it kills all of them, and ends
            parent.wait(PATIENCE)


def target(servers: list[Replica]) -> str:
    """Return the TF_SERVING_HOST of all of them."""
    return ",".join(server.address for server in servers)


def side(version: int) -> int:
    return 16 + 16 * version


def card(version: int = 1) -> str:
    size = {"height": side(version), "width": side(version), "resize": "bilinear-antialiased", "fit": "stretch"}
    return json.dumps({"loupe": 1, "name": "tires", "labels": LABELS, "input": size, "precision": "float32"})


def serve(address: str, number: int, seconds: float, version: int, fails: str, state: str, threads: int) -> None:
    text = card(version)
    scores = np.eye(len(LABELS), dtype=np.float32)
    turn = threading.Semaphore(threads or 1)
    slots = threading.Semaphore(threads or MOST_CALLS)

    def admitted(behaviour: Any) -> Any:
        """Count a call until its answer is computed, as loupe/modelserver/service.py does, and refuse one too many."""

        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            if not slots.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
            try:
                return behaviour(request, context)
            finally:
                slots.release()

        return handle

    # The two calls that the gateway makes.
    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        answer = proto.PredictResponse(model_spec=proto.model_spec("tires", version))
        asked = request.model_spec.version.value
        if state != "AVAILABLE":
            context.abort(grpc.StatusCode.NOT_FOUND, "Servable not found for request: Latest(tires)")
        if asked not in (0, version):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Specific(tires, {asked})")
        if request.model_spec.signature_name == "describe":
            answer.outputs["card"].CopyFrom(proto.to_tensor([text]))
            return answer
        if fails:
            context.abort(grpc.StatusCode[fails], "as the test says")
        with turn:
            time.sleep(seconds)
        count, height, *_ = (dim.size for dim in request.inputs["image"].tensor_shape.dim)
        row = scores[number if height == side(version) else LABELS.index(MISFIT)]
        answer.outputs["probabilities"].CopyFrom(proto.to_tensor(np.tile(row, (count, 1))))
        return answer

    def status(request: Any, context: grpc.ServicerContext) -> Any:
        answer = proto.GetModelStatusResponse()
        if state not in STATES:
            context.abort(grpc.StatusCode.NOT_FOUND, "Could not find any versions of model tires")
        answer.model_version_status.add(version=version, state=STATES[state])
        return answer

    # Listen until it is killed.
    server = grpc.server(ThreadPoolExecutor(MOST_CALLS))
    for method, behaviour in ((proto.PREDICT, predict), (proto.GET_MODEL_STATUS, status)):
        handler = grpc.unary_unary_rpc_method_handler(
            admitted(behaviour), method.request.FromString, method.response.SerializeToString
        )
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(method.service, {method.name: handler})])
    server.add_insecure_port(address)
    server.start()
    os.write(1, f"{number} {os.getpid()} {address}\n".encode())  # at once: others write there, too
    server.wait_for_termination()


def main(first: int, count: int, port: int, seconds: float, version: int, fails: str, state: str, threads: int) -> None:
    """Fork one process for each, before gRPC starts a thread in this one: imports take longer than all else."""
    children = []
    for number in range(first, first + count):
        child = os.fork()
        if not child:
            serve(f"127.0.0.{number + 2}:{port}", number, seconds, version, fails, state, threads)
        children.append(child)
    sys.stdin.read()  # until whoever started this closes it, or is gone
    for child in children:
        os.kill(child, signal.SIGKILL)  # a zombie if it was killed before, and nobody else's number
        os.waitpid(child, 0)


if __name__ == "__main__":
    first, count, port, seconds, version, fails, state, threads = sys.argv[1:]
    main(int(first), int(count), int(port), float(seconds), int(version), fails, state, int(threads))
