"""The model server's error: a gRPC status and TensorFlow Serving's words for it.

    raise Refused(StatusCode.NOT_FOUND, "Servable not found for request: Latest(nope)")

The same error is answered over gRPC and over REST, and kept for a model that does not load.
"""

from __future__ import annotations

import sys

from grpc import StatusCode

from loupe.errors import LoupeError

HTTP_STATUS = {  # of any other code: 500
    StatusCode.INVALID_ARGUMENT: 400,
    StatusCode.FAILED_PRECONDITION: 400,
    StatusCode.OUT_OF_RANGE: 400,
    StatusCode.UNAUTHENTICATED: 401,
    StatusCode.PERMISSION_DENIED: 403,
    StatusCode.NOT_FOUND: 404,
    StatusCode.ALREADY_EXISTS: 409,
    StatusCode.ABORTED: 409,
    StatusCode.RESOURCE_EXHAUSTED: 429,
    StatusCode.CANCELLED: 499,
    StatusCode.UNIMPLEMENTED: 501,
    StatusCode.UNAVAILABLE: 503,
    StatusCode.DEADLINE_EXCEEDED: 504,
}
BY_NUMBER: dict[int, StatusCode] = {code.value[0]: code for code in StatusCode}


class Refused(LoupeError):
    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code

    @property
    def number(self) -> int:
        number: int = self.code.value[0]
        return number


def invalid(text: str) -> Refused:
    return Refused(StatusCode.INVALID_ARGUMENT, text)


def say(text: str) -> None:
    """Log one event as one line on stderr."""
    print("loupe.modelserver:", " ".join(text.split()), file=sys.stderr, flush=True)
