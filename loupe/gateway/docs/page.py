"""/openapi.json, and /docs: the same for people, written out here so that it needs no script and no other host.

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

from loupe.gateway.docs.openapi import FRONT, HOST, document, every_problem
from loupe.gateway.problems import MEANINGS
from loupe.gateway.settings import Settings

Object = dict[str, Any]

_ANYWHERE = tuple(one.code for one in FRONT)


def add_docs(app: Flask, settings: Settings, samples: Sequence[str]) -> None:
    described = document(settings, samples, keys=bool(settings.api_keys))
    text = msgspec.json.encode(described)
    etag = hashlib.sha256(text).hexdigest()[:16]

    @app.get("/openapi.json")
    def openapi() -> Response:
        response = Response(text, mimetype="application/json")
        response.set_etag(etag)
        response.headers["Cache-Control"] = "no-cache"  # kept, and asked about: settings may change with a restart
        response.make_conditional(request)
        return response

    @app.get("/docs")
    def docs() -> str:
        return render_template(
            "docs.html",
            model=settings.model,
            info=described["info"],
            operations=list(operations(described)),
            schemas=described["components"]["schemas"],
            schemes=described["components"].get("securitySchemes"),
            kind=kind,
            prose=prose,
            codes=_codes(),
            example=lambda answer: json.dumps(answer, indent=2),  # Jinja's own would sort it
            here=lambda source: source.replace(HOST, request.host_url.rstrip("/")),
        )


def operations(described: Object) -> Iterator[Object]:
    """Each address and method, with what the template would otherwise have to look up."""
    for path, methods in described["paths"].items():
        for method, operation in methods.items():
            ok, *failures = operation["responses"].items()
            yield {
                **operation,
                "path": path,
                "method": method.upper(),
                "ok": ok[1],
                "failures": list(_failures(failures, but=() if method == "post" else _ANYWHERE)),
            }


def _failures(answers: list[tuple[str, Object]], but: tuple[str, ...]) -> Iterator[tuple[str, list[str]]]:
    """Statuses with their codes; what any address can say is not said again for each."""
    for status, answer in answers:
        narrowed = answer["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]
        codes = [code for code in narrowed["code"]["enum"] if code not in but]
        if codes:
            yield status, codes


def _codes() -> list[tuple[int, str, str]]:
    found = {(one.status, one.code): MEANINGS.get(one.code, "") for one in every_problem()}
    return sorted((status, code, meaning) for (status, code), meaning in found.items())


def prose(text: str) -> Markup:
    """`code` in a description becomes <code>."""
    parts = [f"<code>{escape(part)}</code>" if n % 2 else escape(part) for n, part in enumerate(text.split("`"))]
    return Markup("").join(Markup(part) for part in parts)


def kind(schema: Object) -> Markup:
    """A schema in a few words; other shapes are linked to."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return Markup('<a href="#{0}">{0}</a>').format(name)
    if "anyOf" in schema:
        return Markup(" or ").join(kind(one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return Markup(" or ").join(Markup("<code>{}</code>").format(value) for value in values)
    if schema.get("type") == "array" and schema["items"].get("format") == "binary":
        return Markup("{} to {} files of {}").format(schema["minItems"], schema["maxItems"], kind(schema["items"]))
    if schema.get("type") == "array":
        return Markup("list of {}{}").format(kind(schema["items"]), _limits(schema, "Items", ""))
    if isinstance(schema.get("additionalProperties"), dict):
        return Markup("{} by name").format(kind(schema["additionalProperties"]))
    if schema.get("format") == "binary":
        return Markup("at most {:,} bytes").format(schema["maxLength"]) if "maxLength" in schema else Markup("bytes")
    words = {"string": "text", "integer": "whole number", "boolean": "true or false"}
    named = words.get(schema.get("type", ""), schema.get("type", "anything"))
    return Markup("{}{}{}").format(named, _limits(schema, "Length", " characters"), _limits(schema, "imum", ""))


def _limits(schema: Object, of: str, unit: str) -> str:
    least, most = schema.get(f"min{of}"), schema.get(f"max{of}")
    if of == "imum" and "exclusiveMinimum" in schema:
        return f", more than {schema['exclusiveMinimum']}" + (f", at most {most:,}" if most is not None else "")
    if most is not None:
        return f", {least} to {most:,}{unit}" if least is not None else f", at most {most:,}{unit}"
    return f", at least {least}{unit}" if least is not None and (least, of) != (1, "Length") else ""
