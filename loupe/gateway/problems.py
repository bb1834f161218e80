"""Turn a problem into an HTTP answer, application/problem+json (RFC 9457). Also the headers that protect browsers."""

from __future__ import annotations

import http
import json
from typing import Any

from loupe.errors import AllFailed, Problem

HEADERS = {  # sent with every answer
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",  # requests allowed by LOUPE_CORS_ORIGINS still work
    "Permissions-Policy": "camera=(self), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",  # for browsers that do not know frame-ancestors
}

MEANINGS = {  # code → what happened, and what to do
    "bad_request": "The request itself is wrong; its detail says what to send instead.",
    "refused_url": "The URL's host is unknown, or not public; upload the picture instead.",
    "unauthorized": "No key came with it, or one that is not known; send a key as Authorization: Bearer KEY.",
    "not_found": "There is nothing at this address; POST a picture to /predict.",
    "method_not_allowed": "The address is right and the method is not; the header Allow names those that are.",
    "request_timeout": "The request did not come to its end in time; send it again, faster or smaller.",
    "too_large": "The body is larger than this gateway takes; send fewer pictures at once, or smaller ones.",
    "unsupported_body": "A body of this type is not read; send JSON, a form with files, or a picture's bytes.",
    "unsupported_image": "A picture of a format that is not opened; convert it to JPEG, PNG or WebP.",
    "broken_image": "The bytes are no picture, or part of one; send it again, whole.",
    "too_many_pixels": "The picture, or those of the request together, have more pixels than are decoded; send less.",
    "too_slow_to_decode": "The pictures of the request take too long to decode; send fewer at once, or smaller ones.",
    "fetch_failed": "The picture's server did not give it; check the URL, or upload the picture.",
    "all_failed": "Of many pictures none could be used; errors says why of each, in their order.",
    "feedback_full": "As many corrections wait as may be; whoever runs this gateway has to review them first.",
    "feedback_unwritable": "Corrections cannot be kept now; tell whoever runs this gateway, whose log says why.",
    "head_too_large": "The address or the headers are too long; send a URL in the body.",
    "internal_error": "A fault of the gateway; its log has it by the request's id.",
    "model_unfit": "The model's answer or card is not one that this gateway understands; tell whoever runs it.",
    "busy": "As much is in hand as may be; try again after Retry-After.",
    "stopping": "This gateway is about to end; ask another.",
    "model_unavailable": "The model server does not answer now, or is changing versions; try again after Retry-After.",
    "model_too_slow": "The model did not answer in time; send fewer pictures at once, or try again.",
    "out_of_time": "The time that X-Request-Timeout gave was over; give more, or send fewer pictures at once.",
}


def to_json(problem: Problem) -> dict[str, Any]:
    title = http.HTTPStatus(problem.status).phrase
    body = {
        "type": "about:blank",
        "title": title,
        "status": problem.status,
        "code": problem.code,
        "detail": str(problem),
    }
    return {**body, "errors": [to_json(each) for each in problem.problems]} if isinstance(problem, AllFailed) else body


def whole_answer(problem: Problem, request_id: str) -> tuple[int, dict[str, str], bytes]:
    """Return status, all headers and the body's bytes, for what no application answers. The connection ends with it."""
    status, headers, body = render(problem, request_id)
    data = json.dumps(body).encode()
    return status, {**headers, **HEADERS, "Content-Length": str(len(data)), "Connection": "close"}, data


def render(problem: Problem, request_id: str) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Return status, headers (without HEADERS) and body."""
    headers = {"Content-Type": "application/problem+json", "X-Request-ID": request_id}
    if problem.retry_after is not None:
        headers["Retry-After"] = str(problem.retry_after)
    return problem.status, headers, {**to_json(problem), "request_id": request_id}
