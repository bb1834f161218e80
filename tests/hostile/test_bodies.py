"""Bodies as no honest client sends them, and as some honest ones do: JSON, base64, forms with files."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path

import pytest

from tests.support.gateways import Gateway
from tests.support.hostile import PICTURE, answered, check_problem, in_time, refused
from tests.support.pace import seconds

B64 = base64.b64encode(PICTURE).decode()
URL = "http://example.org/x.jpg"


# ------------------------------------------------------------------------------------------------------------ JSON

NO_QUESTION: dict[str, str | bytes] = {
    text[:60]: text
    for text in (
        "",
        " ",
        "{",
        "[]",
        "3",
        "null",
        "true",
        '"url"',
        "NaN",
        "nonsense",
        "{}",
        '{"url"}',
        "{url: 1}",
        "{'url': 'x'}",
        '{"url": null}',
        '{"url": 3}',
        '{"url": 1e999}',
        '{"url": true}',
        '{"url": ["x"]}',
        '{"url": {"a": 1}}',
        '{"url": ""}',
        '{"url": NaN}',
        '{"url": Infinity}',
        '{"urls": []}',
        '{"urls": null}',
        '{"urls": "http://x"}',
        '{"urls": {"0": "x"}}',
        '{"urls": [3]}',
        '{"urls": [null]}',
        '{"urls": [["http://x"]]}',
        '{"urls": ["http://x", null]}',
        '{"urls": [""]}',
        '{"b64": null}',
        '{"b64": 3}',
        '{"b64": ""}',
        '{"b64": []}',
        '{"b64": "%%%"}',
        '{"b64": "a"}',
        '{"b64": "é"}',
        '{"url": "http://x", "b64": "aa"}',
        '{"url": "http://x", "urls": ["http://x"]}',
        '{"URL": "http://x"}',
        '{"url": "http://x"} {}',
        '{"url": "http://x"},',
        '{"url": "http://x\n"}',
        '[{"url": "http://x"}]',
    )
}
NO_QUESTION |= {
    "a hundred thousand lists": "[" * 100_000,
    "a hundred thousand lists in an answer": '{"url": ' + "[" * 100_000 + "]" * 100_000 + "}",
    "a hundred thousand objects": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "a number without end": '{"url": ' + "9" * 1_000_000 + "}",
    "a number beside it without end": '{"x": -' + "9" * 1_000_000 + "}",
    "an exponent without end": '{"url": 1e' + "9" * 100_000 + "}",
    "a text without end": '{"url": "' + "a" * 9_000_000,
    "a million keys": "{" + ",".join(f'"{n}":{n}' for n in range(500_000)) + "}",
    "half of a letter": '{"url": "http://example.org/\\ud800"}',
    "letters that are none": b'{"url": "http://example.org/\xff\xfe"}',
    "a NUL": '{"url": "http://example.org/\\u0000"}',
    "UTF-16 that is cut": '{"url": "x"}'.encode("utf-16")[:-1],
    "a picture as JSON": PICTURE,
    "33 URLs": json.dumps({"urls": [URL] * 33}),
    "a million URLs": json.dumps({"urls": ["http://a/"] * 700_000}),
    "a URL of 100 kB": json.dumps({"url": "http://example.org/" + "a" * 100_000}),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_QUESTION)
def test_json_that_is_no_question_is_a_bad_request(here: Gateway, name: str) -> None:
    """Hostile inputs 1, 2, 4 and 9."""
    refused(lambda: here.post("/predict", NO_QUESTION[name], "application/json"), 400, "bad_request")


MANY: dict[str, bytes] = {  # of 8 to 10 MB each; unbounded, they took up to 3.5 s of processor time and 420 MB
    "URLs": b'{"urls": [' + b'"a",' * 2_400_000 + b'"a"]}',
    "lists": b'{"a": "", "b": "", "x": [' + b"[]," * 3_200_000 + b"1]}",
    "objects": b'{"a": "", "b": "", "x": [' + b"{}," * 3_200_000 + b"1]}",
    "objects in objects": b'{"a": "", "b": "", "x": ' + b'{"":' * 2_000_000,
    "numbers": b'{"a": "", "b": "", "x": [' + b"1e999," * 1_600_000 + b"1]}",
    "keys": b"{" + b",".join(b'"%x":1' % number for number in range(900_000)) + b"}",
    "one key": b"{" + b'"":1,' * 1_900_000 + b'"":1}',
    "digits": b'{"a": "", "b": "", "x": [' + (b"9" * 4_000 + b",") * 2_390 + b"1]}",
}


@pytest.mark.timing
@pytest.mark.parametrize("name", MANY)
def test_json_of_millions_costs_little_before_it_is_refused(here: Gateway, name: str) -> None:
    """Hostile input 40."""
    (worker,) = here.workers()
    forget_peak(worker)
    held, spent = memory(worker, "VmRSS"), processor_seconds(worker)
    refused(lambda: here.post("/predict", MANY[name], "application/json"), 400, "bad_request")
    assert processor_seconds(worker) - spent < seconds(0.3)
    assert memory(worker, "VmHWM") - held < 60, "MB; three times the body is 30"


def test_base64_of_nine_megabytes_is_answered(here: Gateway) -> None:
    text = base64.b64encode(PICTURE + bytes(6_900_000 - len(PICTURE))).decode()
    answered(lambda: here.post_json("/predict", {"b64": text}))
    answered(lambda: here.post_json("/predict", {"b64": "data:image/jpeg;base64," + text}))


def processor_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(process: int, line: str) -> float:
    """Return this line of the process's status in MB."""
    return int(Path(f"/proc/{process}/status").read_text().split(f"{line}:")[1].split()[0]) / 1000


def forget_peak(process: int) -> None:
    Path(f"/proc/{process}/clear_refs").write_text("5")  # VmHWM is counted from now on


@pytest.mark.parametrize("letter", ["\r", "\n", "\0", " ", "\\", "\t", "\x7f", "\x1b", "\u2028", "\u202e", "é", "１"])
@pytest.mark.parametrize("place", ["http://example.org/a{}b", "http://example{}.org/", "{}http://example.org/"])
def test_a_url_of_letters_that_no_url_has_is_a_bad_request(here: Gateway, letter: str, place: str) -> None:
    """Hostile inputs 4. What honest people paste, with blanks about it or in their own letters, may be fetched."""
    url = place.format(letter)
    answer = in_time(lambda: here.post_json("/predict", {"url": url}))
    allowed = {400, 422} if letter in "é１" and not url.startswith(letter) else {400}
    assert answer.status in allowed
    refused(lambda: answer, answer.status)


def test_what_stands_in_the_json_beside_the_question_changes_nothing(here: Gateway) -> None:
    refused(lambda: here.post("/predict", '{"url": "ftp://x/", "url": "gopher://x/"}', "application/json"), 400)
    for more in ('"x": 1', '"x": {"__proto__": {}}', '"top": -1', '"heatmap": "no"'):
        answer = in_time(lambda more=more: here.post("/predict", f'{{"b64": "{B64}", {more}}}', "application/json"))  # type: ignore[misc]
        assert answer.status in (200, 400)
        if answer.status == 400:
            refused(lambda answer=answer: answer, 400, "bad_request")  # type: ignore[misc]


HONEST_JSON: dict[str, tuple[str | bytes, str]] = {
    "plain": (f'{{"b64": "{B64}"}}', "application/json"),
    "with a charset": (f'{{"b64": "{B64}"}}', "application/json; charset=utf-8"),
    "a type in capitals": (f'{{"b64": "{B64}"}}', "Application/JSON;charset=UTF-8"),
    "blanks and lines": (f'\r\n\t {{\n  "b64" : "{B64}"\n}}\n\n', "application/json"),
    "escapes": ('{"\\u0062\\u00364": "' + B64.replace("/", "\\/") + '"}', "application/json"),
    "a data URI": (f'{{"b64": "data:image/jpeg;base64,{B64}"}}', "application/json"),
    "a data URI without a type": (f'{{"b64": "data:;base64,{B64}"}}', "application/json"),
}


@pytest.mark.parametrize("name", HONEST_JSON)
def test_json_that_is_odd_and_honest_is_answered(here: Gateway, name: str) -> None:
    answered(lambda: here.post("/predict", *HONEST_JSON[name]))


UNSURE_JSON: dict[str, str | bytes] = {  # a picture or a refusal; which of them is a matter of taste
    "a byte order mark": b"\xef\xbb\xbf" + f'{{"b64": "{B64}"}}'.encode(),
    "UTF-16": f'{{"b64": "{B64}"}}'.encode("utf-16"),
    "base64 in lines": json.dumps({"b64": base64.encodebytes(PICTURE).decode()}),
    "base64 for URLs": json.dumps({"b64": base64.urlsafe_b64encode(PICTURE).decode()}),
    "base64 without its end": json.dumps({"b64": B64.rstrip("=")}),
    "base64 and more": json.dumps({"b64": B64 + "===="}),
    "null beside it": f'{{"b64": "{B64}", "url": null}}',
    "the same twice": f'{{"b64": "{B64}", "b64": "{B64}"}}',
    "a data URI as URL": json.dumps({"url": f"data:image/jpeg;base64,{B64}"}),
}


@pytest.mark.parametrize("name", UNSURE_JSON)
def test_json_that_few_would_send_is_answered_or_refused_in_plain_words(here: Gateway, name: str) -> None:
    answer = in_time(lambda: here.post("/predict", UNSURE_JSON[name], "application/json"))
    print(name, answer.status, answer.body[:200])
    if answer.status == 200:
        answered(lambda: answer)
    else:
        refused(lambda: answer, 400, "bad_request")


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain", "text/xml", "application/xml", "text/html", "application/x-www-form-urlencoded", "audio/x",
        "multipart/mixed",
        "multipart/related; boundary=x", "video/mp4", "application/pdf", "application/zip", "nonsense", "x" * 4000,
        "application/x-protobuf", "message/rfc822", "image", "/", "*/*", "application/json-seq",
    ],
)  # fmt: skip
def test_a_body_of_another_kind_is_refused(here: Gateway, kind: str) -> None:
    """Hostile inputs 1."""
    refused(lambda: here.post("/predict", b'{"url": "http://x"}', kind), 415, "unsupported_body")


@pytest.mark.parametrize(
    "kind", ["image/jpeg", "image/png", "IMAGE/JPEG; q=1", "image/*", "image/x", "application/octet-stream", ""]
)
def test_a_picture_under_any_pictures_type_is_answered(here: Gateway, kind: str) -> None:
    """Hostile inputs 24, for what is sent: bytes decide, not labels."""
    answered(lambda: here.post("/predict", PICTURE, kind or None))


# ----------------------------------------------------------------------------------------------------------- forms

FORM = "multipart/form-data; boundary="


def part(data: bytes, about: bytes = b'form-data; name="file"; filename="a.jpg"', more: bytes = b"") -> bytes:
    return b"Content-Disposition: " + about + b"\r\n" + more + b"\r\n" + data


def form(*parts: bytes, edge: bytes = b"x", end: bytes = b"--\r\n") -> bytes:
    return b"".join(b"--" + edge + b"\r\n" + one + b"\r\n" for one in parts) + b"--" + edge + end


def nested(depth: int) -> bytes:
    inner = part(PICTURE)
    for level in range(depth):
        edge = b"n%d" % level
        inner = part(
            form(inner, edge=edge),
            b'form-data; name="files"',
            b"Content-Type: multipart/mixed; boundary=" + edge + b"\r\n",
        )
    return inner


NO_FORM: dict[str, tuple[bytes, str, int]] = {
    "empty": (b"", FORM + "x", 400),
    "no boundary": (form(part(PICTURE)), "multipart/form-data", 400),
    "an empty boundary": (form(part(PICTURE), edge=b""), FORM, 400),
    "another boundary": (form(part(PICTURE)), FORM + "y", 400),
    "a boundary of kilobytes": (form(part(PICTURE), edge=b"b" * 3000), FORM + "b" * 3000, 400),
    "a boundary of strange letters": (form(part(PICTURE)), FORM + '"\x01\x02"'.replace("\x01", "é"), 400),
    "an end alone": (b"--x--\r\n", FORM + "x", 400),
    "boundaries alone": (b"--x\r\n" * 50_000, FORM + "x", 400),
    "no end": (b"--x\r\n" + part(PICTURE), FORM + "x", 400),
    "cut in a head": (b'--x\r\nContent-Disposition: form-data; name="fi', FORM + "x", 400),
    "cut in a boundary": (form(part(PICTURE))[:-4], FORM + "x", 400),
    "no head": (form(b"\r\n" + PICTURE), FORM + "x", 400),
    "another disposition": (form(part(PICTURE, b"attachment")), FORM + "x", 400),
    "no name": (form(part(b"text", b"form-data")), FORM + "x", 400),
    "texts alone": (form(part(b"b", b'form-data; name="a"')), FORM + "x", 400),
    "a URL as text": (form(part(b"http://example.org/", b'form-data; name="url"')), FORM + "x", 400),
    "both a file and a URL": (form(part(PICTURE), part(b"http://x/", b'form-data; name="url"')), FORM + "x", 400),
    "a URL and then a file": (form(part(b"http://x/", b'form-data; name="url"'), part(PICTURE)), FORM + "x", 400),
    "a file and URLs": (form(part(PICTURE), part(b"http://x/", b'form-data; name="urls"')), FORM + "x", 400),
    "33 files": (form(*[part(PICTURE)] * 33), FORM + "x", 400),
    "a thousand parts": (form(*[part(b"x")] * 1000), FORM + "x", 413),
    "a thousand texts": (form(*[part(b"x", b'form-data; name="a"')] * 1000), FORM + "x", 413),
    "a head without an end": (b"--x\r\n" + b"A: b\r\n" * 500_000, FORM + "x", 400),
    "a long header": (form(part(PICTURE, more=b"X: " + b"y" * 5_000_000 + b"\r\n")), FORM + "x", 400),
    "nine megabytes of a text": (form(part(b"y" * 9_000_000, b'form-data; name="a"')), FORM + "x", 400),
    "a file of nothing": (form(part(b"")), FORM + "x", 422),
    "files of nothing": (form(part(b""), part(b"")), FORM + "x", 422),
    "a file of nonsense": (form(part(b"nonsense")), FORM + "x", 422),
    "forms in a form": (form(nested(3)), FORM + "x", 400),
    "a hundred forms in a form": (form(nested(100)), FORM + "x", 400),
    "almost boundaries": (form(part(b"\r\n--x" * 1_800_000)), FORM + "x" * 9, 400),
    "line ends": (form(part(b"\r\n" * 4_500_000)), FORM + "x", 422),
    "carriage returns": (form(part(b"\r" * 9_000_000)), FORM + "x", 422),
    "dashes": (form(part(b"\r\n--" * 2_000_000)), FORM + "x", 422),
}


@pytest.mark.parametrize("name", NO_FORM)
def test_a_form_that_brings_no_picture_is_refused(here: Gateway, name: str) -> None:
    """Hostile inputs 3, 6 and 9."""
    body, kind, status = NO_FORM[name]
    answer = in_time(lambda: here.post("/predict", body, kind.encode().decode("latin-1")))
    allowed = {status, 413} if name in ("boundaries alone", "a head without an end", "a long header") else {status}
    if name in ("nine megabytes of a text", "almost boundaries"):
        allowed |= {413}
    assert answer.status in allowed, (answer.status, answer.body)
    refused(lambda: answer, answer.status)


HONEST_FORMS: dict[str, tuple[bytes, str]] = {
    "plain": (form(part(PICTURE)), FORM + "x"),
    "a type alone": (form(b"Content-Type: image/jpeg\r\n\r\n" + PICTURE), FORM + "x"),
    "a name that climbs": (form(part(PICTURE, b'form-data; name="file"; filename="../../x"')), FORM + "x"),
    "an absolute name": (form(part(PICTURE, b'form-data; name="f"; filename="/etc/passwd"')), FORM + "x"),
    "a name from Windows": (form(part(PICTURE, b'form-data; name="f"; filename="C:\\a\\b.jpg"')), FORM + "x"),
    "a name in UTF-8": (form(part(PICTURE, 'form-data; name="f"; filename="Bär 車.jpg"'.encode())), FORM + "x"),
    "a name in both ways": (
        form(part(PICTURE, b"form-data; name=f; filename=a.jpg; filename*=UTF-8''B%C3%A4r.jpg")),
        FORM + "x",
    ),
    "a name in the new way": (form(part(PICTURE, b"form-data; name=f; filename*=UTF-8''B%C3%A4r.jpg")), FORM + "x"),
    "a quote in a name": (form(part(PICTURE, b'form-data; name="f"; filename="a\\"b.jpg"')), FORM + "x"),
    "a long name": (form(part(PICTURE, b'form-data; name="f"; filename="' + b"a" * 3000 + b'.jpg"')), FORM + "x"),
    "an empty field name": (form(part(PICTURE, b'form-data; name=""; filename="a"')), FORM + "x"),
    "a type that lies": (form(part(PICTURE, more=b"Content-Type: text/html\r\n")), FORM + "x"),
    "small letters": (form(part(PICTURE).replace(b"Content-Disposition", b"content-disposition")), FORM + "x"),
    "a quoted boundary": (form(part(PICTURE), edge=b"a b:c=d"), FORM + '"a b:c=d"'),
    "the longest boundary": (form(part(PICTURE), edge=b"b" * 70), FORM + "b" * 70),
    "a boundary of dashes": (form(part(PICTURE), edge=b"-" * 40 + b"7"), FORM + "-" * 40 + "7"),
    "a charset behind it": (form(part(PICTURE)), FORM + "x; charset=utf-8"),
    "words before and after": (b"for old mail\r\n" + form(part(PICTURE)) + b"and after", FORM + "x"),
    "no line end at the end": (form(part(PICTURE), end=b"--"), FORM + "x"),
    "a text beside it": (form(part(b"secret", b'form-data; name="csrf"'), part(PICTURE)), FORM + "x"),
    "a boundary in the picture": (form(part(PICTURE + b"\r\n-x--x\n--x\r")), FORM + "x"),
    "a length of its own": (form(part(PICTURE, more=b"Content-Length: 3\r\n")), FORM + "x"),
}


@pytest.mark.parametrize("name", HONEST_FORMS)
def test_a_form_that_is_odd_and_honest_is_answered(here: Gateway, name: str) -> None:
    """Hostile inputs 7."""
    body, kind = HONEST_FORMS[name]
    answered(lambda: here.post("/predict", body, kind))


def test_base64_of_another_kind_is_told_of_all_that_it_should_be(here: Gateway) -> None:
    unpadded, folded = base64.b64encode(b"abcd").decode().rstrip("="), base64.encodebytes(PICTURE).decode()
    for text in ("-_-_", unpadded, folded):
        detail = here.post_json("/predict", {"b64": text}).json()["detail"]
        assert "letters, digits, + and /, padded with = at the end, no line breaks" in detail


def test_a_picture_in_a_forms_base64_is_read_or_called_broken(here: Gateway) -> None:
    """No browser sends it any more; RFC 7578 calls it deprecated."""
    body = form(part(base64.encodebytes(PICTURE), more=b"Content-Transfer-Encoding: base64\r\n"))
    answer = in_time(lambda: here.post("/predict", body, FORM + "x"))
    assert answer.status in (200, 400, 422)
    if answer.status != 200:
        refused(lambda: answer, answer.status)


@pytest.mark.parametrize("size", [10_000_001, 12_000_000])
def test_a_body_over_the_limit_is_refused_however_it_comes(here: Gateway, size: int) -> None:
    """Hostile inputs 5 and 9b: never a picture that was cut off, although what fits would be one."""
    large = PICTURE + b"\0" * (size - len(PICTURE))
    pieces = [large[at : at + 100_000] for at in range(0, size, 100_000)]
    refused(lambda: here.post("/predict", large, "image/jpeg"), 413, "too_large")
    refused(lambda: here.post("/predict", iter(pieces), "image/jpeg"), 413, "too_large")
    refused(lambda: here.post_files("/predict", large), 413, "too_large")
    refused(lambda: here.post("/predict", b" " * size, "application/json"), 413, "too_large")
    whole = large[:9_999_000]
    answered(lambda: here.post("/predict", whole, "image/jpeg"))
    answered(lambda: here.post("/predict", iter([whole[:5_000_000], whole[5_000_000:]]), "image/jpeg"))


def test_a_bad_picture_among_good_ones_has_its_own_problem(here: Gateway) -> None:
    answer = here.post_files("/predict", PICTURE, b"", b"nonsense", b"%PDF-1.4", PICTURE)
    assert answer.status == 200
    first, empty, nonsense, pdf, last = answer.json()["predictions"]
    assert first["label"] == last["label"]
    check_problem(empty["error"], 422, "broken_image")
    check_problem(nonsense["error"], 422, "broken_image")
    check_problem(pdf["error"], 415, "unsupported_image")
