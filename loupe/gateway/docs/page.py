"""Serve /openapi.json, and /docs, the same for people. /docs is rendered here, without scripts from other hosts.

add_docs(app, settings, samples=["cracked-1.jpg"])
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from flask import Flask, Response, render_template, request
from markupsafe import Markup, escape

from loupe.gateway.docs.openapi import COMMON, HOST, document, every_problem
from loupe.gateway.problems import MEANINGS
from loupe.gateway.settings import Settings

Object = dict[str, Any]

_COMMON_CODES = tuple(problem.code for problem in COMMON)


def add_docs(app: Flask, settings: Settings, samples: Sequence[str]) -> None:
    # The document does not change while the gateway runs.
    spec = document(settings, samples, keys=bool(settings.api_keys))
    text = msgspec.json.encode(spec)
    etag = hashlib.sha256(text).hexdigest()[:16]

    # For programs.
    @app.get("/openapi.json")
    def openapi() -> Response:
        response = Response(text, mimetype="application/json")
        response.set_etag(etag)
        response.headers["Cache-Control"] = "no-cache"  # browsers must ask again: settings may change with a restart
        response.make_conditional(request)
        return response

    # For people.
    @app.get("/docs")
    def docs() -> str:
        return render_template(
            "docs.html",
            model=settings.model,
            info=spec["info"],
            operations=list(operations(spec)),
            schemas=spec["components"]["schemas"],
            schemes=spec["components"].get("securitySchemes"),
            schema_in_words=schema_in_words,
            mark_code=mark_code,
            codes=_codes(),
            example=lambda answer: json.dumps(answer, indent=2),  # Jinja's tojson would sort the keys
            here=lambda source: source.replace(HOST, request.host_url.rstrip("/")),
        )


def operations(spec: Object) -> Iterator[Object]:
    """Yield each operation with its path, method and answers, as the template needs them."""
    for path, methods in spec["paths"].items():
        for method, operation in methods.items():
            ok, *failures = operation["responses"].items()
            yield {
                **operation,
                "path": path,
                "method": method.upper(),
                "ok": ok[1],
                "failures": list(_failures(failures, except_codes=() if method == "post" else _COMMON_CODES)),
            }


def _failures(answers: list[tuple[str, Object]], except_codes: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Yield each status with its codes, without `except_codes`. Statuses without a code left are skipped."""
    for status, answer in answers:
        narrowed = answer["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]
        codes = [code for code in narrowed["code"]["enum"] if code not in except_codes]
        if codes:
            yield status, codes


def _codes() -> list[tuple[int, str, str]]:
    meanings = {(problem.status, problem.code): MEANINGS.get(problem.code, "") for problem in every_problem()}
    return sorted((status, code, meaning) for (status, code), meaning in meanings.items())


def mark_code(text: str) -> Markup:
    """Turn `code` in backticks into <code>."""
    pieces = [f"<code>{escape(piece)}</code>" if n % 2 else escape(piece) for n, piece in enumerate(text.split("`"))]
    return Markup("").join(Markup(piece) for piece in pieces)


def schema_in_words(schema: Object) -> Markup:
    """Describe a schema in a few words. References become links."""
    # References and choices.
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(schema_in_words(choice) for choice in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return Markup(" or ").join(Markup("<code>{}</code>").format(value) for value in values)
    # Lists, maps and files.
    if schema.get("type") == "array" and schema["items"].get("format") == "binary":
        return Markup("{} to {} files of {}").format(
            schema["minItems"], schema["maxItems"], schema_in_words(schema["items"])
        )
    if schema.get("type") == "array":
        return Markup("list of {}{}").format(schema_in_words(schema["items"]), _limits(schema, "Items", ""))
    if isinstance(schema.get("additionalProperties"), dict):
        return Markup("{} by name").format(schema_in_words(schema["additionalProperties"]))
    if schema.get("format") == "binary":
        return Markup("at most {:,} bytes").format(schema["maxLength"]) if "maxLength" in schema else Markup("bytes")
    # Plain types, with their limits.
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    type_name = words.get(schema.get("type", ""), schema.get("type", "anything"))
    return Markup("{}{}{}").format(type_name, _limits(schema, "Length", " characters"), _limits(schema, "imum", ""))


def _limits(schema: Object, suffix: str, unit: str) -> str:
    least, most = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if suffix == "imum" and "exclusiveMinimum" in schema:
        return f", more than {schema['exclusiveMinimum']}" + (f", at most {most:,}" if most is not None else "")
    if most is not None:
        return f", {least} to {most:,}{unit}" if least is not None else f", at most {most:,}{unit}"
    return f", at least {least}{unit}" if least is not None and (least, suffix) != (1, "Length") else ""
