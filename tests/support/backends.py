"""A gRPC server that answers as the test says: what no model server can be made to do on purpose.

with backend(lambda call, context: time.sleep(1)) as behind:      # call counts the predictions asked, from 1
    behind.remaining                                              # of each, seconds that its deadline left
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np

from loupe import proto
from tests.support import models
from tests.support.servers import free_port


@dataclass
class Backend:
    port: int = 0
    remaining: list[float] = field(default_factory=list)


@contextmanager
def backend(
    behave: Callable[[int, Any], object], card: str = models.card(), threads: int = 16, labels: int = models.CLASSES
) -> Iterator[Backend]:
    """Version 1 of a model that finds all labels alike; its card is always given at once."""
    behind = Backend()

    def predict(request: Any, context: grpc.ServicerContext) -> Any:
        answer = proto.PredictResponse(model_spec=proto.model_spec("tires", 1))
        if request.model_spec.signature_name == "describe":
            answer.outputs["card"].CopyFrom(proto.to_tensor([card]))
            return answer
        behind.remaining.append(context.time_remaining())
        behave(len(behind.remaining), context)
        count = request.inputs["image"].tensor_shape.dim[0].size
        answer.outputs["probabilities"].CopyFrom(proto.to_tensor(np.full((count, labels), 1 / labels, np.float32)))
        return answer

    server = grpc.server(ThreadPoolExecutor(threads), options=[("grpc.max_receive_message_length", -1)])
    handler = grpc.unary_unary_rpc_method_handler(
        predict, proto.PREDICT.request.FromString, proto.PREDICT.response.SerializeToString
    )
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(proto.PREDICT.service, {"Predict": handler})])
    behind.port = server.add_insecure_port(f"localhost:{free_port()}")
    server.start()
    try:
        yield behind
    finally:
        server.stop(0).wait()
