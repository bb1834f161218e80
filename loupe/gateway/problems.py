"""How an error looks over HTTP: application/problem+json (RFC 9457); and the headers that keep a browser safe."""

from __future__ import annotations

import http
from typing import Any

from loupe.errors import Problem

HEADERS = {  # of every answer
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def as_json(problem: Problem) -> dict[str, Any]:
    title = http.HTTPStatus(problem.status).phrase
    return {
        "type": "about:blank",
        "title": title,
        "status": problem.status,
        "code": problem.code,
        "detail": str(problem),
    }
