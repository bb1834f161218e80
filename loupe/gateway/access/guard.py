"""Who may ask, and from which other pages: keys (LOUPE_API_KEYS) and CORS (LOUPE_CORS_ORIGINS), both off unless set.

guard(app, settings)          # after what names a request and what answers errors

With keys, /predict and /model want one; the page, the probes and the descriptions do not. The log has its name.
"""

from __future__ import annotations

from pathlib import Path

from flask import Flask, Response, request

from loupe.errors import Unauthorized
from loupe.gateway.access.keys import Keys
from loupe.gateway.observe.record import in_hand
from loupe.gateway.settings import Settings

LOCKED = ("predict", "card")  # endpoints: an address can be written in several ways
REALM = 'Bearer realm="loupe"'
MAY_SEND = "Authorization, Content-Type, X-API-Key, X-Request-ID, X-Request-Timeout, traceparent, tracestate"
MAY_READ = "X-Request-ID, Retry-After"
MAY_ASK = "GET, HEAD, POST, OPTIONS"
REMEMBERED = 600  # seconds for which a browser need not ask again what it may do


def guard(app: Flask, settings: Settings) -> None:
    if settings.api_keys:
        _want_keys(app, Keys(Path(settings.api_keys), locked=True))
    if settings.cors_origins:
        _allow(app, settings.cors_origins)


def _want_keys(app: Flask, keys: Keys) -> None:
    @app.before_request
    def look_for_a_key() -> None:
        if (
            request.endpoint not in LOCKED or request.method == "OPTIONS"
        ):  # a browser asks with OPTIONS, and sends no key
            return
        given = _given()
        for key in given:
            name = keys.name_of(key)
            if name is not None:
                in_hand().key = name
                return
        raise Unauthorized(
            "This key is not known here; ask whoever runs this gateway for one."
            if given
            else "This needs a key; send it as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'."
        )

    @app.after_request
    def say_how(response: Response) -> Response:
        if response.status_code == Unauthorized.status:
            response.headers["WWW-Authenticate"] = REALM
        return response


def _given() -> list[str]:
    """A password for whatever stands before this gateway may be in Authorization; that is no key."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    keys = (key.strip() if scheme.lower() == "bearer" else "", request.headers.get("X-API-Key", "").strip())
    return [key for key in keys if key]


def _allow(app: Flask, origins: tuple[str, ...]) -> None:
    """Never with credentials: there are no cookies here, and a key is sent by who has it."""

    @app.after_request
    def tell_the_browser(response: Response) -> Response:
        if "*" not in origins:
            response.vary.add("Origin")
        origin = request.headers.get("Origin")
        if origin is None or not ("*" in origins or origin in origins):
            return response
        response.headers["Access-Control-Allow-Origin"] = "*" if "*" in origins else origin
        response.headers["Access-Control-Expose-Headers"] = MAY_READ
        if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
            response.headers["Access-Control-Allow-Methods"] = MAY_ASK
            response.headers["Access-Control-Allow-Headers"] = MAY_SEND
            response.headers["Access-Control-Max-Age"] = str(REMEMBERED)
        return response
