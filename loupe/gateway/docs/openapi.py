"""Make /openapi.json, the description of all addresses in OpenAPI 3.1.

    document(settings, samples=["cracked-1.jpg"])      # a dict; page.py shows it to people

It is made from the types that check requests (request/schema.py), the tree of errors and the settings. A new error
class is listed for /predict and /feedback unless it stands in NOT_FROM_PREDICT or NOT_FROM_FEEDBACK.
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

VERSION = "1"  # of the API; it changes when callers have to change
HOST = "http://localhost:9696"  # in the examples; /docs shows its own address instead

# The problems that any address may answer with.
COMMON = (errors.BadRequest, errors.TooSlow, errors.TooLarge, errors.HeadTooLarge, errors.Busy, errors.InternalError)
NOT_FROM_PREDICT = (
    errors.NotFound,
    errors.MethodNotAllowed,
    errors.Stopping,
    errors.FeedbackFull,
    errors.FeedbackUnwritable,
)
NOT_FROM_FEEDBACK = (errors.NotFound, errors.MethodNotAllowed, errors.Stopping, errors.AllFailed)
NEED_KEY = {"/predict", "/model", "/feedback"}
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
    """Make the document. `keys` is True if callers need an API key."""
    # Schemas, headers and security schemes that the addresses refer to.
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
    # The document around them.
    return {
        "openapi": "3.1.0",
        "info": {"title": "Loupe", "version": VERSION, "description": ABOUT},
        "servers": [{"url": "/"}],
        "paths": _paths(settings, samples, keys),
        "components": components,
    }


def _schemas(settings: Settings) -> Object:
    """Return the types' schemas, with what types cannot say: a choice of keys, limits from settings, error codes."""
    described: Object = {name: dict(schema) for name, schema in schemas().items()}
    question = described["Question"]
    question["oneOf"] = [{"required": [name]} for name in question["properties"]]
    question["properties"]["urls"]["maxItems"] = settings.max_images
    del question["required"]
    described.pop("Query")
    codes = sorted({problem.code for problem in every_problem()})
    for name in ("Fault", "FaultAnswer"):
        described[name]["properties"]["code"]["enum"] = codes
    return described


def _paths(settings: Settings, samples: Sequence[str], keys: bool) -> Object:
    # The problems that addresses can answer with.
    key_problems: tuple[type[Problem], ...] = (errors.Unauthorized,) if keys else ()
    model_problems = tuple(every_problem(errors.ModelError))
    possible = [problem for problem in every_problem() if keys or problem is not errors.Unauthorized]
    predict_problems = [problem for problem in possible if problem not in NOT_FROM_PREDICT]
    feedback_problems = [problem for problem in possible if problem not in NOT_FROM_FEEDBACK]
    # The addresses.
    paths = {
        "/predict": {"post": _post_predict(settings, predict_problems, keys)},
        "/model": {"get": _get_model((*COMMON, *model_problems, *key_problems))},
        "/healthz": {
            "get": _get(
                "healthz", "Is this process alive?", _json_answer("It is", "Alive"), COMMON,
                "For a liveness probe. Never asks the model, and is answered however much is in hand.",
            )
        },
        "/readyz": {
            "get": _get(
                "readyz", "Would /predict answer now?", _json_answer("It would", "Ready"),
                (*COMMON, *model_problems, errors.Stopping),
                "For a readiness probe: asks the model, and says no while this gateway is told to stop.",
            )
        },
        "/": {"get": _get("page", "A page to try it on", _answer("The page", "text/html", {"type": "string"}), COMMON)},
        "/docs": {
            "get": _get("docs", "This description, to read", _answer("It", "text/html", {"type": "string"}), COMMON)
        },
        "/openapi.json": {
            "get": _get(
                "openapi", "This description, for programs",
                _answer("It", "application/json", {"type": "object"}), COMMON,
            )
        },
    }  # fmt: skip
    # Those that only some gateways have, and the addresses that need a key.
    if samples:
        paths["/samples/{name}"] = {"get": _get_sample(samples)}
    if settings.feedback_dir:
        paths["/feedback"] = {"post": _post_feedback(settings, feedback_problems, keys)}
    if keys:
        for path in NEED_KEY & paths.keys():
            (operation,) = paths[path].values()
            operation["security"] = [{name: []} for name in SCHEMES]
    return paths


def _post_predict(settings: Settings, problems: Iterable[type[Problem]], keys: bool) -> Object:
    # The answer, and the form that may be sent.
    answers = {"anyOf": [_reference("Answer"), _reference("Answers")]}
    ok = _answer("What the model sees", "application/json", answers)
    ok["content"]["application/json"]["example"] = ANSWER
    picture = {"type": "string", "format": "binary", "maxLength": settings.max_bytes}
    form = {
        "type": "object",
        "properties": {"file": {"type": "array", "items": picture, "minItems": 1, "maxItems": settings.max_images}},
        "required": ["file"],
    }
    # The operation.
    return {
        "operationId": "predict",
        "summary": "Classify a picture, or several",
        "description": (
            f"At most {settings.max_images} pictures and {settings.max_bytes:,} bytes a request. JPEG, PNG, WebP, GIF, "
            "BMP and AVIF; the bytes decide, not the name or type they come with. A list of URLs, or more than one "
            "file, is answered by a list: each picture has its own answer or error, and the whole fails only if all "
            "of them do. A form's field may have any name."
        ),
        "parameters": [*_query_parameters(), TIMEOUT, REQUEST_ID],
        "requestBody": _body(_reference("Question"), form, picture),
        "responses": {"200": ok, **_failures(problems)},
        "x-codeSamples": _curl_examples(keys),
    }


def _post_feedback(settings: Settings, problems: Iterable[type[Problem]], keys: bool) -> Object:
    # The body: one picture, in the ways that /predict takes it.
    picture = {"type": "string", "format": "binary", "maxLength": settings.max_bytes}
    ways = {name: schema for name, schema in schemas()["Question"]["properties"].items() if name != "urls"}
    question = {"type": "object", "properties": ways, "oneOf": [{"required": [name]} for name in ways]}
    form = {"type": "object", "properties": {"file": picture}, "required": ["file"]}
    label = {"type": "string", "minLength": 1}
    key = "-H 'X-API-Key: …' " if keys else ""
    # The operation.
    return {
        "operationId": "feedback",
        "summary": "Say what a picture shows, where the answer was wrong",
        "description": (
            "Keeps the picture with its label for a review; the model learns nothing from it before. Sent again it "
            "changes nothing, and under another label it moves there, until it is reviewed."
        ),
        "parameters": [
            {
                "name": "label", "in": "query", "required": True, "schema": label,
                "description": "What it shows: one of the model's labels, as `/model` lists them.",
            },
            TIMEOUT, REQUEST_ID,
        ],
        "requestBody": _body(question, form, picture),
        "responses": {"200": _json_answer("Whether it is kept", "Kept"), **_failures(problems)},
        "x-codeSamples": [
            {
                "lang": "Shell", "label": "It is a cracked one",
                "source": f"curl {key}-F file=@picture.jpg '{HOST}/feedback?label=cracked'",
            }
        ],
    }  # fmt: skip


def _body(question: Object, form: Object, picture: Object) -> Object:
    """Return the ways in which pictures are sent, with the schema of each."""
    return {
        "required": True,
        "content": {
            "application/json": {"schema": question},
            "multipart/form-data": {"schema": form},
            "image/*": {"schema": picture},
            "application/octet-stream": {"schema": picture},
        },
    }


def _curl_examples(keys: bool) -> list[Object]:
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


def _query_parameters() -> list[Object]:
    properties = schemas()["Query"]["properties"]
    parameters = []
    for name, property_schema in properties.items():
        schema = dict(property_schema)
        parameters.append({"name": name, "in": "query", "description": schema.pop("description"), "schema": schema})
    return parameters


def _get(name: str, summary: str, ok: Object, problems: Iterable[type[Problem]], description: str = "") -> Object:
    operation: Object = {"operationId": name, "summary": summary}
    if description:
        operation["description"] = description
    responses = {"200": ok, **_failures(problems)}
    return {**operation, "parameters": [REQUEST_ID], "responses": responses}


def _get_model(problems: Iterable[type[Problem]]) -> Object:
    """Describe the one address that answers two ways: JSON, or a page for who accepts text/html rather than JSON."""
    operation = _get(
        "model", "What the model says of itself", _json_answer("Its card", "CardAnswer"), problems,
        "Its labels, the size of picture it takes, what it was trained on and how well it did. A caller that rather "
        "accepts text/html, as browsers do, gets a page of it: with the versions that are served, the labels given "
        "lately, and its errors in words, too.",
    )  # fmt: skip
    for response in operation["responses"].values():
        response["content"]["text/html"] = {"schema": {"type": "string"}}
        response["headers"]["Vary"] = {"schema": {"type": "string"}}
    return operation


def _get_sample(samples: Sequence[str]) -> Object:
    name = {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "enum": list(samples)}}
    ok = _answer("A JPEG", "image/jpeg", {"type": "string", "format": "binary"})
    operation = _get("sample", "One of the page's sample pictures", ok, (*COMMON, errors.NotFound))
    return {**operation, "parameters": [name, REQUEST_ID]}


def _reference(shape: str) -> Object:
    return {"$ref": f"#/components/schemas/{shape}"}


def _json_answer(description: str, shape: str) -> Object:
    return _answer(description, "application/json", _reference(shape))


def _answer(description: str, content_type: str, schema: Object) -> Object:
    return {
        "description": description,
        "headers": {"X-Request-ID": {"$ref": "#/components/headers/RequestID"}},
        "content": {content_type: {"schema": schema}},
    }


def _failures(problems: Iterable[type[Problem]]) -> Object:
    """Return one response for each status, with the codes that it may have."""
    # Problems by their status.
    by_status: dict[int, list[type[Problem]]] = {}
    for problem in problems:
        by_status.setdefault(problem.status, []).append(problem)
    # A response for each, with the headers that come with it.
    responses = {}
    for status, classes in sorted(by_status.items()):
        codes = list(dict.fromkeys(problem.code for problem in classes))
        narrower_schema = {"properties": {"status": {"const": status}, "code": {"enum": codes}}}
        response = _answer(
            f"{http.HTTPStatus(status).phrase}: " + " ".join(MEANINGS.get(code, code) for code in codes),
            "application/problem+json",
            {"allOf": [_reference("FaultAnswer"), narrower_schema]},
        )
        if all(problem.retry_after is not None for problem in classes):
            response["headers"]["Retry-After"] = {"$ref": "#/components/headers/RetryAfter"}
        if status == errors.Unauthorized.status:
            challenge = {"required": True, "schema": {"type": "string"}}
            response["headers"]["WWW-Authenticate"] = challenge
        responses[str(status)] = response
    return responses


def every_problem(root: type[Problem] = Problem) -> Iterator[type[Problem]]:
    """Yield each class of problem, in the order of the tree, without the two that only group others."""
    if root not in (Problem, errors.ModelError):
        yield root
    for child in root.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from every_problem(child)
