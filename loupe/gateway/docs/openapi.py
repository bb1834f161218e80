"""/openapi.json: what can be asked here and how it is answered, in OpenAPI 3.1.

    document(settings, samples=["cracked-1.jpg"])      # a dict; page.py shows it to people

Made from what the gateway itself goes by: the types that check requests (request/schema.py), the tree of errors
and the settings. An error class that is new to it is an answer of /predict until told otherwise here.
"""

from __future__ import annotations

import http
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from loupe import errors
from loupe.errors import Problem
from loupe.gateway.problems import MEANINGS
from loupe.gateway.request.schema import schemas
from loupe.gateway.settings import Settings

Object = dict[str, Any]

VERSION = "1"  # of what is described; it changes when a caller has to
HOST = "http://localhost:9696"  # in the examples; /docs puts its own in this place

FRONT = (errors.BadRequest, errors.TooSlow, errors.TooLarge, errors.HeadTooLarge, errors.Busy, errors.InternalError)
NOT_OF_PREDICT = (errors.NotFound, errors.MethodNotAllowed, errors.Stopping)
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "Authorization: Bearer KEY"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
ABOUT = (
    "Send a picture, or its address, and get a label. Every error is application/problem+json; its `code` is for "
    "programs and its `detail` for people. Every answer has an X-Request-ID, by which the log knows it."
)
REQUEST_ID = {
    "name": "X-Request-ID",
    "in": "header",
    "description": "Kept if it is 1 to 64 letters, digits, dots, dashes and underscores; made here otherwise.",
    "schema": {"type": "string"},
}
TIMEOUT: Object = {
    "name": "X-Request-Timeout",
    "in": "header",
    "description": "Seconds that the answer may take; it can only shorten what the gateway allows.",
    "schema": {"type": "number", "exclusiveMinimum": 0, "maximum": 999_999_999},
}
ANSWER = {
    "label": "cracked",
    "confidence": 0.97,
    "certain": True,
    "reason": None,
    "scores": {"cracked": 0.97, "normal": 0.03},
    "model": {"name": "tires", "version": 3},
    "timings_ms": {"fetch": 41, "decode": 3, "model": 38},
    "request_id": "6f1d2c",
}


def document(settings: Settings, samples: Sequence[str], *, keys: bool = False) -> Object:
    """`keys`: whether callers need one."""
    components: Object = {
        "schemas": _schemas(settings),
        "headers": {
            "RequestID": {"description": "The log knows it.", "required": True, "schema": {"type": "string"}},
            "RetryAfter": {
                "description": "Seconds to wait before trying again.",
                "required": True,
                "schema": {"type": "integer", "minimum": 1},
            },
        },
    }
    if keys:
        components["securitySchemes"] = SCHEMES
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loupe", "version": VERSION, "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": _paths(settings, samples, keys),
        "components": components,
    }


def _schemas(settings: Settings) -> Object:
    """Those of the types, and what types cannot say: a choice of keys, and limits that are settings."""
    found: Object = {name: dict(schema) for name, schema in schemas().items()}
    question = found["Question"]
    question["oneOf"] = [{"required": [name]} for name in question["properties"]]
    question["properties"]["urls"]["maxItems"] = settings.max_images
    del question["required"]
    found.pop("Query")
    codes = sorted({one.code for one in every_problem()})
    for name in ("Fault", "FaultAnswer"):
        found[name]["properties"]["code"]["enum"] = codes
    return found


def _paths(settings: Settings, samples: Sequence[str], keys: bool) -> Object:
    locked: tuple[type[Problem], ...] = (errors.Unauthorized,) if keys else ()
    model = tuple(every_problem(errors.ModelError))
    predict = [one for one in every_problem() if one not in NOT_OF_PREDICT and (keys or one is not errors.Unauthorized)]
    found = {
        "/predict": {"post": _predict(settings, predict, keys)},
        "/model": {
            "get": _get(
                "model", "What the model says of itself", _json("Its card", "CardAnswer"), (*FRONT, *model, *locked),
                "Its labels, the size of picture it takes, what it was trained on and how well it did.",
            )
        },
        "/healthz": {
            "get": _get(
                "healthz", "Is this process alive?", _json("It is", "Alive"), FRONT,
                "For a liveness probe. Never asks the model, and is answered however much is in hand.",
            )
        },
        "/readyz": {
            "get": _get(
                "readyz", "Would /predict answer now?", _json("It would", "Ready"), (*FRONT, *model, errors.Stopping),
                "For a readiness probe: asks the model, and says no while this gateway is told to stop.",
            )
        },
        "/": {"get": _get("page", "A page to try it on", _content("The page", "text/html", {"type": "string"}), FRONT)},
        "/docs": {
            "get": _get("docs", "This description, to read", _content("It", "text/html", {"type": "string"}), FRONT)
        },
        "/openapi.json": {
            "get": _get(
                "openapi", "This description, for programs",
                _content("It", "application/json", {"type": "object"}), FRONT,
            )
        },
    }  # fmt: skip
    if samples:
        found["/samples/{name}"] = {"get": _sample(samples)}
    if keys:
        for operation in (found["/predict"]["post"], found["/model"]["get"]):
            operation["security"] = [{name: []} for name in SCHEMES]
    return found


def _predict(settings: Settings, problems: Iterable[type[Problem]], keys: bool) -> Object:
    either = {"anyOf": [_ref("Answer"), _ref("Answers")]}
    ok = _content("What the model sees", "application/json", either)
    ok["content"]["application/json"]["example"] = ANSWER
    picture = {"type": "string", "format": "binary", "maxLength": settings.max_bytes}
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": picture, "minItems": 1, "maxItems": settings.max_images}},
        "required": ["file"],
    }
    return {
        "operationId": "predict",
        "summary": "Classify a picture, or several",
        "description": (
            f"At most {settings.max_images} pictures and {settings.max_bytes:,} bytes a request. JPEG, PNG, WebP, GIF, "
            "BMP and AVIF; the bytes decide, not the name or type they come with. A list of URLs, or more than one "
            "file, is answered by a list: each picture has its own answer or error, and the whole fails only if all "
            "of them do. A form's field may have any name."
        ),
        "parameters": [*_query(), TIMEOUT, REQUEST_ID],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": _ref("Question")},
                "multipart/form-data": {"schema": form},
                "image/*": {"schema": picture},
                "application/octet-stream": {"schema": picture},
            },
        },
        "responses": {"200": ok, **_failures(problems)},
        "x-codeSamples": _commands(keys),
    }


def _commands(keys: bool) -> list[Object]:
    key = "-H 'X-API-Key: …' " if keys else ""
    commands = {
        "A file": f"curl {key}-F file=@picture.jpg {HOST}/predict",
        "Several, the two likeliest labels of each": f"curl {key}-F a=@1.jpg -F b=@2.jpg '{HOST}/predict?top=2'",
        "A picture's address": (
            f"curl {key}{HOST}/predict -H 'Content-Type: application/json' \\\n"
            '     -d \'{"url": "https://example.org/tire.jpg"}\''
        ),
        "Bytes as they are, and where the model looked": (
            f"curl {key}'{HOST}/predict?heatmap=1' -H 'Content-Type: image/jpeg' \\\n     --data-binary @picture.jpg"
        ),
    }
    return [{"lang": "Shell", "label": label, "source": source} for label, source in commands.items()]


def _query() -> list[Object]:
    properties = schemas()["Query"]["properties"]
    found = []
    for name, described in properties.items():
        schema = dict(described)
        found.append({"name": name, "in": "query", "description": schema.pop("description"), "schema": schema})
    return found


def _get(name: str, summary: str, ok: Object, problems: Iterable[type[Problem]], description: str = "") -> Object:
    operation: Object = {"operationId": name, "summary": summary}
    if description:
        operation["description"] = description
    responses = {"200": ok, **_failures(problems)}
    return {**operation, "parameters": [REQUEST_ID], "responses": responses}


def _sample(samples: Sequence[str]) -> Object:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(samples)}}
    ok = _content("A JPEG", "image/jpeg", {"type": "string", "format": "binary"})
    operation = _get("sample", "One of the page's sample pictures", ok, (*FRONT, errors.NotFound))
    return {**operation, "parameters": [name, REQUEST_ID]}


def _ref(shape: str) -> Object:
    return {"$ref": f"#/components/schemas/{shape}"}


def _json(what: str, shape: str) -> Object:
    return _content(what, "application/json", _ref(shape))


def _content(what: str, kind: str, schema: Object) -> Object:
    return {
        "description": what,
        "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestID"}},
        "content": {kind: {"schema": schema}},
    }


def _failures(problems: Iterable[type[Problem]]) -> Object:
    """By status, with the codes that can come with it."""
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    found = {}
    for status, classes in sorted(by_status.items()):
        codes = list(dict.fromkeys(one.code for one in classes))
        narrowed = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
        answer = _content(
            f"{http.HTTPStatus(status).phrase}: " + " ".join(MEANINGS.get(code, code) for code in codes),
            "application/problem+json",
            {"allOf": [_ref("FaultAnswer"), narrowed]},
        )
        if all(one.retry_after is not None for one in classes):
            answer["headers"]["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
        if status == errors.Unauthorized.status:
            challenge = {"required": True, "schema": {"type": "string"}}
            answer["headers"]["WWW-Authenticate"] = challenge
        found[str(status)] = answer
    return found


def every_problem(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """In the order of the tree, without the two that only group others."""
    if root not in (Problem, errors.ModelError):
        yield root
    for below in root.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from every_problem(below)
