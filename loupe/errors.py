"""All errors that are meant for people, in one tree. The text is one line: what was wrong, and what to do next.

LoupeError
├── UserError               at a terminal: a flag, a folder, a port; printed without a traceback, exit status 2
│   ├── PictureUnreadable   a path that is no file, or cannot be read
│   └── NothingLearnt       a model that is no better than always saying the commonest class
├── ClientGone              who asked over HTTP is not there any more: recorded, and told to nobody
└── Problem                 over HTTP: owns its status and its code
    ├── BadRequest          400  the request itself
    │   └── RefusedURL      400  an address this gateway does not fetch from
    ├── Unauthorized        401  no key, or one that is not known
    ├── NotFound            404
    ├── MethodNotAllowed    405
    ├── TooSlow             408  a request that came byte by byte
    ├── TooLarge            413
    ├── UnsupportedBody     415  a body of a kind that is not read
    ├── HeadTooLarge        431
    ├── Busy                503  as much is in hand as may be
    ├── Stopping            503  told to end, and not ready for more
    ├── ImageError          422  the picture's bytes (training skips such a file)
    │   ├── UnsupportedImage 415
    │   ├── TooManyPixels   422
│   └── TooSlowToDecode 422  the pictures of a request take too long together
    ├── FetchFailed         422  the picture's server
    ├── AllFailed           422  of many pictures, none could be used
    ├── FeedbackFull        507  as many corrections wait as may be
    ├── FeedbackUnwritable  507  the corrections' folder cannot be written to
    ├── InternalError       500  a fault of our own
    ├── OutOfTime           504  the caller's own limit is over, wherever its time went
    └── ModelError          the model's side
        ├── ModelUnfit      502  its answer or card is not one this gateway understands
        ├── ModelUnavailable 503
        │   ├── ModelFull   503  it answers, and takes no more at a time
        │   └── ModelGone   503  it answers, and serves no such model or version
        └── ModelTooSlow    504
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar

E = TypeVar("E", bound=BaseException)


class LoupeError(Exception):
    pass


class UserError(LoupeError):
    pass


class PictureUnreadable(UserError):
    pass


class NothingLearnt(UserError):
    pass


class ClientGone(LoupeError):
    status, code = 499, "client_gone"  # as nginx has it


class Problem(LoupeError):
    """An error answered over HTTP. The message is public: it names no path, address or stack."""

    status = 500
    code = "internal_error"
    retry_after: int | None = None  # seconds


class BadRequest(Problem):
    status, code = 400, "bad_request"


class RefusedURL(BadRequest):
    code = "refused_url"


class Unauthorized(Problem):
    status, code = 401, "unauthorized"


class NotFound(Problem):
    status, code = 404, "not_found"


class MethodNotAllowed(Problem):
    status, code = 405, "method_not_allowed"


class TooSlow(Problem):
    status, code = 408, "request_timeout"


class HeadTooLarge(Problem):
    status, code = 431, "head_too_large"


class Busy(Problem):
    status, code = 503, "busy"

    def __init__(self, message: str, retry_after: float = 1) -> None:
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class Stopping(Problem):
    status, code, retry_after = 503, "stopping", 1


class TooLarge(Problem):
    status, code = 413, "too_large"


class UnsupportedBody(Problem):
    status, code = 415, "unsupported_body"


class ImageError(Problem):
    status, code = 422, "broken_image"


class UnsupportedImage(ImageError):
    status, code = 415, "unsupported_image"


class TooManyPixels(ImageError):
    code = "too_many_pixels"


class TooSlowToDecode(ImageError):
    code = "too_slow_to_decode"


class FetchFailed(Problem):
    status, code = 422, "fetch_failed"


class AllFailed(Problem):
    status, code = 422, "all_failed"

    def __init__(self, message: str, problems: Sequence[Problem]) -> None:
        """Take the message, and the problem of each picture in their order."""
        super().__init__(message)
        self.problems = problems


class FeedbackFull(Problem):
    status, code = 507, "feedback_full"


class FeedbackUnwritable(Problem):
    status, code = 507, "feedback_unwritable"


class InternalError(Problem):
    pass


class OutOfTime(Problem):
    status, code = 504, "out_of_time"


class ModelError(Problem):
    status, code = 502, "model_error"


class ModelUnfit(ModelError):
    code = "model_unfit"


class ModelUnavailable(ModelError):
    status, code, retry_after = 503, "model_unavailable", 1


class ModelFull(ModelUnavailable):
    pass


class ModelGone(ModelUnavailable):
    pass


class ModelTooSlow(ModelError):
    status, code = 504, "model_too_slow"


def without_traceback(error: E) -> E:
    """Return the error without its traceback and its causes. Their frames keep megabytes of data alive, and often the
    error itself: such a cycle stays in memory until the garbage collector runs."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
