"""Answer gRPC calls on proto.py's messages and no generated code: TensorFlow Serving's two services, reflection, and
with --enable_grpc_healthcheck_service the standard health service.

    service = Service(Answers(models, metrics), flags)
    service.port
    service.stop(grace=10).wait()

More calls at once than `--grpc_max_threads` are RESOURCE_EXHAUSTED. gRPC itself counts a call until its thread has
returned from sending the answer, when the caller may have asked again long since: on a busy machine it would refuse as
many callers as there are threads. Here a call counts until its answer is computed, and calls that only return are
allowed in addition. Differences from TensorFlow Serving: a request of more than 256 MiB is refused, unless
`--grpc_channel_arguments=grpc.max_receive_message_length=…` says otherwise; health follows the models' state (there it
is always SERVING), and there is reflection, for grpcurl and the like.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from loupe import malloc, proto
from loupe.engines.refused import Refused, say
from loupe.errors import UserError
from loupe.modelserver.answers import Answers
from loupe.modelserver.flags import Flags

if TYPE_CHECKING:
    from loupe.modelserver.health import Health

MAX_REQUEST_BYTES = 256 << 20
MAX_MESSAGE = 1024  # characters; a longer one is cut, as by TensorFlow Serving: gRPC itself ends at about 8 KiB
MAX_STREAMS = 64  # of callers that watch the health, beside the calls
MAX_REFLECTIONS = 4  # at once: each holds a thread
FOR_EVER = 1e7  # seconds
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


class Service:
    """The gRPC server, listening."""

    def __init__(self, answers: Answers, flags: Flags) -> None:
        options = [
            ("grpc.so_reuseport", 0),  # else a second server on the same port would silently share the calls
            ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
            ("grpc.max_send_message_length", -1),
            *flags.channel_arguments,
        ]
        max_calls = 4 * flags.threads  # with calls that only return
        pool = ThreadPoolExecutor(max_calls, thread_name_prefix="grpc")
        self._server = grpc.server(
            pool,
            [*_handlers(answers, flags), _Reflection()],
            options=options,
            maximum_concurrent_rpcs=max_calls + MAX_STREAMS,
        )
        self.health: Health | None = None
        if flags.enable_grpc_healthcheck_service:
            from loupe.modelserver.health import Health

            self.health = Health(self._server)
        try:
            address = f"[{flags.address}]" if ":" in flags.address else flags.address
            self.port = self._server.add_insecure_port(f"{address}:{flags.port}")
        except RuntimeError as error:
            raise UserError(f"port {flags.port} cannot be listened on; choose another with --port") from error
        self._server.start()

    def stop(self, grace: float) -> threading.Event:
        """Take no more calls. Return what is set when those in flight have ended, or the grace has."""
        if self.health:
            self.health.stop()
        stopped: threading.Event = self._server.stop(grace)
        return stopped


class _Reflection(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Reflection of the services, imported when somebody asks for it: a server should start quickly."""

    def __init__(self) -> None:
        self._slots = threading.BoundedSemaphore(MAX_REFLECTIONS)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if handler_call_details.method != REFLECTION:
            return None
        from grpc_reflection.v1alpha import reflection, reflection_pb2

        names = {method.service for method in proto.METHODS.values()}
        servicer = reflection.ReflectionServicer([*names, reflection.SERVICE_NAME], pool=proto.POOL)

        def reflect(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            if not self._slots.acquire(blocking=False):
                context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"{MAX_REFLECTIONS} callers use reflection already")
            try:
                yield from servicer.ServerReflectionInfo(requests, context)
            finally:
                self._slots.release()

        return grpc.stream_stream_rpc_method_handler(
            reflect,
            reflection_pb2.ServerReflectionRequest.FromString,
            reflection_pb2.ServerReflectionResponse.SerializeToString,
        )


def _handlers(answers: Answers, flags: Flags) -> list[grpc.GenericRpcHandler]:
    slots = threading.BoundedSemaphore(flags.threads)
    functions = {
        "Predict": answers.predict,
        "Classify": answers.classify,
        "Regress": answers.regress,
        "MultiInference": answers.multi_inference,
        "GetModelMetadata": answers.metadata,
        "GetModelStatus": answers.status,
        "HandleReloadConfigRequest": answers.reload,
    }
    services: dict[str, dict[str, grpc.RpcMethodHandler]] = {}
    for method in proto.METHODS.values():
        services.setdefault(method.service, {})[method.name] = _handler(method, functions[method.name], slots)
    return [grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()]


def _deadline(context: grpc.ServicerContext) -> float | None:
    """Return until when the caller waits. For one who waits for ever gRPC gives a number of seconds, too: 2^63."""
    remaining = context.time_remaining()
    return None if remaining is None or remaining > FOR_EVER else time.monotonic() + remaining


def _handler(
    method: proto.Method, function: Callable[..., Any], slots: threading.BoundedSemaphore
) -> grpc.RpcMethodHandler:
    def handle(data: bytes, context: grpc.ServicerContext) -> Any:
        if not slots.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Server Threadpool Exhausted")
        request = None
        try:
            request = method.request.FromString(data)
            return function(request, _deadline(context))
        except Refused as error:
            text = str(error)
            context.abort(error.code, text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}...TRUNCATED")
        except proto.WireError:
            context.abort(grpc.StatusCode.INTERNAL, f"the request is no {method.request.DESCRIPTOR.full_name}")
        except MemoryError:
            say(f"{method.name} failed: out of memory")
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "the server has no memory for this request")
        except Exception as error:
            say(f"{method.name} failed: {error!r}")
            context.abort(grpc.StatusCode.INTERNAL, f"{method.name} failed inside the server; its log says why")
        finally:
            slots.release()
            # A large request came in many small pieces, whose memory would stay.
            if len(data) > malloc.LARGE:
                del request
                malloc.give_back()

    return grpc.unary_unary_rpc_method_handler(handle, response_serializer=method.response.SerializeToString)
