"""Types of the requests and answers. They check requests, and /openapi.json is made from them.

    options = read_query(request.args)               # Query(top=3, heatmap=0); BadRequest
    question = read_question(request.get_data())     # Question(url="https://…"); BadRequest

Unknown keys are ignored. A key that is given twice is refused: a proxy in front may have checked only the first value.
So is JSON of more than MAX_VALUES values, before it is parsed: millions of tiny ones would take seconds, and 400 MB.

The names and docstrings of the Struct classes are published: they stand in /openapi.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from loupe.errors import BadRequest
from loupe.gateway.request.fetch import MAX_URL

EXAMPLE = 'send {"url": "https://…"}, {"urls": [...]} or {"b64": "…"}'
MAX_TOP = 99_999
MAX_VALUES = 20_000  # of a JSON body, however nested; with LOUPE_MAX_IMAGES at its most, 1,024 URLs of 19 commas each
BYTE_ORDER_MARK = b"\xef\xbb\xbf"  # some editors begin a file with it

# ----------------------------------------------------------------------------------------------------------- sent

Address = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL,
        description="Where the picture is: http or https, a public host, ports 80 and 443.",
        examples=["https://example.org/tire.jpg"],
    ),
]
# No max_length here: a URL of a list that is too long is an error of its own picture, not of the whole request.
ListedAddress = Annotated[str, Meta(min_length=1, examples=["https://example.org/tire.jpg"])]
Base64 = Annotated[
    str,
    Meta(min_length=1, description="The picture's bytes in base64, padded, no line breaks; a data: URL is taken too."),
]


class Question(Struct):
    """One of url, urls and b64."""

    url: Address | UnsetType = UNSET
    urls: Annotated[list[ListedAddress], Meta(min_length=1, description="Answered in this order.")] | UnsetType = UNSET
    b64: Base64 | UnsetType = UNSET


class Query(Struct):
    top: Annotated[int, Meta(ge=1, le=MAX_TOP, description="How many labels to list, the best first.")] | UnsetType = (
        UNSET
    )
    heatmap: Annotated[Literal[0, 1], Meta(description="1 adds a picture of where the model looked.")] = 0


_QUERY = {
    "top": "top must be a whole number, at least 1: how many labels to list.",
    "heatmap": "heatmap must be 0 or 1.",
}
_questions = msgspec.json.Decoder(Question)


def read_query(arguments: Any) -> Query:
    """Read the query from werkzeug's `request.args`, in which a name may stand several times."""
    given: dict[str, int | str] = {}
    for name in _QUERY:
        values = arguments.getlist(name)
        if len(values) > 1:
            raise BadRequest(f"{name} is given more than once; give it once.")
        if values:
            text = values[0]
            given[name] = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text
    try:
        return msgspec.convert(given, Query)
    except msgspec.ValidationError as error:
        raise BadRequest(next(text for name, text in _QUERY.items() if f"$.{name}" in str(error))) from None


def read_label(arguments: Any) -> str:
    """Read the label of a correction from werkzeug's `request.args`."""
    labels: list[str] = arguments.getlist("label")
    if len(labels) != 1 or not labels[0]:
        raise BadRequest("Say once what the picture shows: POST it to /feedback?label=LABEL.")
    return labels[0]


def read_question(body: bytes) -> Question:
    """Read the JSON body. Refuse it unless it has exactly one of url, urls and b64."""
    body = body.removeprefix(BYTE_ORDER_MARK)
    _check_values(body)
    try:
        question = _questions.decode(body)
        if body.count(b'"') > 4 or b"\\" in body:  # more than one key and one text
            # This also checks the text of unknown keys. Their numbers stay text: reading long ones takes long.
            json.loads(body, object_pairs_hook=_refuse_repeated_key, parse_int=str, parse_float=str)
    except msgspec.ValidationError as error:
        raise BadRequest(_explain(str(error))) from None
    except (msgspec.DecodeError, ValueError, RecursionError):  # no JSON, no UTF-8, too deep
        raise BadRequest(f"The body is not a JSON object; {EXAMPLE}.") from None
    given = sum(value is not UNSET for value in (question.url, question.urls, question.b64))
    if given != 1:
        raise BadRequest(f"{'More than one' if given else 'None'} of url, urls and b64 is given; {EXAMPLE}.")
    return question


def _check_values(body: bytes) -> None:
    """Refuse more than MAX_VALUES values. msgspec would check the length of a list after it has made all of it."""
    # Each value but the first has one of these before it. A plain b64 has no comma: that is seen faster than counted.
    is_plain = b"," not in body and b"[" not in body
    if not is_plain and sum(body.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise BadRequest(f"The JSON has more than {MAX_VALUES:,} values; {EXAMPLE}.")


def _explain(error: str) -> str:
    """Turn msgspec's error, which is about types, into one about what to send."""
    if "$.urls[" in error:
        return f"each of urls must be a text that is not empty; {EXAMPLE}."
    if "$.urls" in error:
        return "urls must be a list of one or more URLs."
    if f"<= {MAX_URL}" in error:
        return f"The URL is too long; at most {MAX_URL:,} characters are taken. Upload the picture."
    for name in ("url", "b64"):
        if f"$.{name}" in error:
            return f"{name} must be a text that is not empty; {EXAMPLE}."
    return f"The body is not a JSON object; {EXAMPLE}."


def _refuse_repeated_key(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            raise BadRequest(f"The key {key[:40]!r} is given twice; {EXAMPLE}.")
        seen.add(key)


# -------------------------------------------------------------------------------------------------------- answered

Share = Annotated[float, Meta(ge=0, le=1)]
Milliseconds = Annotated[int, Meta(ge=0)]
RequestId = Annotated[str, Meta(description="Also in the header X-Request-ID, and in the log.")]


class Served(Struct):
    name: str
    version: int


class Timings(Struct):
    fetch: Annotated[Milliseconds, Meta(description="Reading the request, and fetching what is a URL.")]
    decode: Milliseconds
    model: Milliseconds


class Prediction(Struct, omit_defaults=True):
    """What the model says of one picture."""

    label: Annotated[str, Meta(description="The likeliest.")]
    confidence: Annotated[Share, Meta(description="The label's score.")]
    certain: Annotated[bool | None, Meta(description="null: the model's card has nothing to judge it by.")]
    reason: Annotated[
        Literal["below_threshold", "unfamiliar"] | None,
        Meta(description="Why the answer is not certain; unfamiliar: like nothing that the model was trained on."),
    ]
    scores: Annotated[dict[str, Share], Meta(description="By label, the best first.")]
    heatmap: (
        Annotated[
            str | None,
            Meta(description="With heatmap=1: a PNG as data: URL, to lay over the picture; null if there is none."),
        ]
        | UnsetType
    ) = UNSET


class Answer(Prediction, kw_only=True):
    """The answer to one picture."""

    model: Served
    timings_ms: Timings
    request_id: RequestId


class Fault(Struct):
    """An error, as RFC 9457 has it."""

    type: Literal["about:blank"]
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    code: Annotated[str, Meta(description="For programs: it stays when the words change.")]
    detail: Annotated[str, Meta(description="For people: what was wrong, and what to do.")]


class FailedPrediction(Struct):
    """One of many pictures could not be used."""

    error: Fault


class FaultAnswer(Fault):
    """The answer to a request that failed."""

    request_id: RequestId
    errors: (
        Annotated[list[Fault], Meta(description="With all_failed: what was wrong with each picture, in their order.")]
        | UnsetType
    ) = UNSET


_EITHER = {"anyOf": [{"$ref": f"#/components/schemas/{shape.__name__}"} for shape in (Prediction, FailedPrediction)]}


class Answers(Struct):
    """The answer to a list of URLs or to several files, in the order they came."""

    predictions: list[Annotated[Any, Meta(extra_json_schema=_EITHER)]]
    model: Served
    timings_ms: Timings
    request_id: RequestId


class Predicted(Struct):
    """What the model says of a picture that is corrected."""

    label: str
    confidence: Share
    certain: bool | None
    reason: Literal["below_threshold", "unfamiliar"] | None


class Kept(Struct):
    """The answer to a correction."""

    kept: Annotated[bool, Meta(description="false: this picture was kept under this label before, or reviewed.")]
    label: Annotated[str, Meta(description="What the picture is said to be.")]
    predicted: Predicted
    model: Served
    request_id: RequestId


class Alive(Struct):
    status: Literal["ok"]


class Ready(Struct):
    status: Literal["ready"]
    model: Served


class Input(Struct):
    height: Annotated[int, Meta(ge=1)]
    width: Annotated[int, Meta(ge=1)]
    resize: str
    fit: str


class CardAnswer(Struct):
    """What the model says of itself."""

    name: str
    version: int
    labels: Annotated[list[str], Meta(min_length=2)]
    input: Input
    loupe: Annotated[int | None, Meta(description="The card's format; null of a model that Loupe did not make.")]
    heatmap: bool
    backbone: dict[str, Any]
    precision: str | None
    temperature: float
    certain_at: Annotated[Share | None, Meta(description="Below it an answer is not certain.")]
    certain_note: Annotated[str | None, Meta(description="Why there is none, though training was asked for one.")]
    unfamiliar_below: Share | None
    metrics: dict[str, Any]
    training: dict[str, Any]
    parity: dict[str, Any] | None


TYPES = (Question, Query, Answer, Answers, Kept, Prediction, FailedPrediction, FaultAnswer, Alive, Ready, CardAnswer)


def schemas() -> Mapping[str, Any]:
    """Return the JSON Schema of each type, by its name."""
    _, components = msgspec.json.schema_components(TYPES, ref_template="#/components/schemas/{name}")
    return components
