"""Check API keys (LOUPE_API_KEYS) and answer CORS requests (LOUPE_CORS_ORIGINS). Both are off unless set.

add_access_checks(app, settings)          # after recording and the error handlers

With keys on, /predict, /model and /feedback need one; the page, the probes and the descriptions do not. The log shows
the key's name.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request

from loupe.errors import Unauthorized
from loupe.gateway.access.keys import Keys
from loupe.gateway.observe.record import current_entry
from loupe.gateway.settings import Settings

NEED_KEY = ("predict", "card", "feedback")  # Flask endpoints, not paths: a path can be written in several ways
CHALLENGE = 'Bearer realm="loupe"'
ALLOWED_HEADERS = "Authorization, Content-Type, X-API-Key, X-Request-ID, X-Request-Timeout, traceparent, tracestate"
EXPOSED_HEADERS = "X-Request-ID, Retry-After"
ALLOWED_METHODS = "GET, HEAD, POST, OPTIONS"
PREFLIGHT_SECONDS = 600  # for which a browser may keep the answer to a preflight request


def add_access_checks(app: Flask, settings: Settings) -> None:
    if settings.api_keys:
        _require_keys(app, Keys(Path(settings.api_keys), lock_on_error=True))
    if settings.cors_origins:
        _allow_origins(app, settings.cors_origins)


def _require_keys(app: Flask, keys: Keys) -> None:
    # Before a request: look for a known key, and note its name for the log.
    @app.before_request
    def check_key() -> None:
        # A preflight request (OPTIONS) carries no key.
        if request.endpoint not in NEED_KEY or request.method == "OPTIONS":
            return
        sent = _sent_keys()
        for key in sent:
            name = keys.name_of(key)
            if name is not None:
                current_entry().key = name
                return
        raise Unauthorized(
            "This key is not known here; ask whoever runs this gateway for one."
            if sent
            else "This needs a key; send it as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'."
        )

    # After it: HTTP wants WWW-Authenticate with every 401.
    @app.after_request
    def add_challenge(response: Response) -> Response:
        if response.status_code == Unauthorized.status:
            response.headers["WWW-Authenticate"] = CHALLENGE
        return response


def _sent_keys() -> list[str]:
    """Return the keys in the headers. Authorization may hold a password for a proxy instead, which is left out."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    keys = (key.strip() if scheme.lower() == "bearer" else "", request.headers.get("X-API-Key", "").strip())
    return [key for key in keys if key]


def _allow_origins(app: Flask, origins: tuple[str, ...]) -> None:
    """Allow requests from pages of these origins, without credentials: no cookies are used, and keys are headers."""

    @app.after_request
    def add_cors_headers(response: Response) -> Response:
        if "*" not in origins:
            response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is None or not ("*" in origins or origin in origins):
            return response
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
        response.headers["Access-Control-Expose-Headers"] = EXPOSED_HEADERS
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers["Access-Control-Allow-Methods"] = ALLOWED_METHODS
            response.headers["Access-Control-Allow-Headers"] = ALLOWED_HEADERS
            response.headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response
