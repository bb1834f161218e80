"""Answer gRPC calls, all of PredictionService and GetModelStatus, on proto.py's messages and no generated code.

    server, port = service.start(Answers(versions), flags)
    server.stop(grace=10).wait()

Other methods are UNIMPLEMENTED. More calls at once than `--grpc_max_threads` are RESOURCE_EXHAUSTED. gRPC itself counts
a call until its thread has returned from sending the answer, when the caller may have asked again long since: on a busy
machine it would refuse as many callers as there are threads. Here a call counts until its answer is computed, and
threads that only return are allowed in addition.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any

import grpc

import proto
from loupe.engines.refused import Refused, say
from loupe.errors import UserError
from loupe.modelserver.answers import Answers
from loupe.modelserver.flags import Flags

MAX_MESSAGE = 1024  # characters; a longer one is cut, as by TensorFlow Serving: gRPC itself ends at about 8 KiB
HEALTH, SERVING = "grpc.health.v1.Health", b"\x08\x01"  # HealthCheckResponse with status SERVING


def start(answers: Answers, flags: Flags) -> tuple[grpc.Server, int]:
    """Start the server. Return it and its port."""
    options = [
        ("grpc.so_reuseport", 0),  # else a second server on the same port would silently share the calls
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        *flags.channel_arguments,
    ]
    max_calls = 4 * flags.threads  # with threads that only return
    pool = ThreadPoolExecutor(max_calls, thread_name_prefix="grpc")
    server = grpc.server(pool, handlers(answers, flags), options=options, maximum_concurrent_rpcs=max_calls)
    try:
        port = server.add_insecure_port(f"{flags.address}:{flags.port}")
    except RuntimeError as error:
        raise UserError(f"port {flags.port} cannot be listened on; choose another with --port") from error
    server.start()
    return server, port


def handlers(answers: Answers, flags: Flags) -> list[grpc.GenericRpcHandler]:
    slots = BoundedSemaphore(flags.threads)
    services: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for method, function in (
        (proto.PREDICT, answers.predict),
        (proto.METHODS["Classify"], answers.classify),
        (proto.METHODS["Regress"], answers.regress),
        (proto.METHODS["MultiInference"], answers.multi_inference),
        (proto.GET_MODEL_METADATA, answers.metadata),
        (proto.GET_MODEL_STATUS, answers.status),
    ):
        services.setdefault(method.service, {})[method.name] = _handler(method, function, slots)
    if flags.enable_grpc_healthcheck_service:
        services[HEALTH] = {"Check": grpc.unary_unary_rpc_method_handler(_health)}
    return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]


def _handler(method: proto.Method, function: Callable[[Any], Any], slots: BoundedSemaphore) -> grpc.RpcMethodHandler:
    def handle(request: Any, context: grpc.ServicerContext) -> Any:
        if not slots.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        try:
            return function(request)
        except Refused as error:
            text = str(error)
            context.abort(error.code, text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}...TRUNCATED")
        except Exception as error:
            say(f"{method.name} failed: {error!r}")
            context.abort(grpc.StatusCode.INTERNAL, f"{method.name} failed inside the server; its log says why")
        finally:
            slots.release()

    return grpc.unary_unary_rpc_method_handler(
        handle,
        request_deserializer=method.request.FromString,
        response_serializer=method.response.SerializeToString,
    )


def _health(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer SERVING for the server as a whole, whatever its model's state, as TensorFlow Serving does."""
    if request:
        context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
    return SERVING
