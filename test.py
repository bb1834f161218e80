"""Does it answer? A smoke check of whatever runs at an address. Standard library alone.

    python3 test.py                                        # a cracked and a normal sample, to http://localhost:9696
    python3 test.py --url https://tires.example.org picture.jpg https://example.org/other.jpg

Prints label, confidence and time for each picture; exit status 1, with the reason, where an answer is missing or wrong.
"""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).resolve().parent / "data" / "samples"
EXPECTED = {SAMPLES / "cracked-1.jpg": "cracked", SAMPLES / "normal-1.jpg": "normal"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://localhost:9696", help="where the gateway is (http://localhost:9696)")
    parser.add_argument("--timeout", type=float, default=30, help="seconds for each answer (30)")
    parser.add_argument("pictures", nargs="*", metavar="image or URL", help="instead of the two samples")
    arguments = parser.parse_args()
    failed = 0
    pictures: list[str | Path] = arguments.pictures or list(EXPECTED)
    for picture in pictures:
        failed += not check(arguments.url.rstrip("/") + "/predict", picture, arguments.timeout)
    return 1 if failed else 0


def check(address: str, picture: str | Path, timeout: float) -> bool:
    """Ask for one picture and print the answer. Return True if there is one, and it is the expected one."""
    # Ask.
    name = picture if isinstance(picture, str) else picture.name
    started = time.monotonic()
    try:
        answer = ask(address, picture, timeout)
        label, confidence, model = answer["label"], answer["confidence"], answer["model"]
        summary = f"{label:<12} {confidence:6.1%}   {(time.monotonic() - started) * 1000:5.0f} ms"
        summary += f"   {model['name']}, version {model['version']}"
    except Failure as failure:
        print(f"FAILED  {name}: {failure}", file=sys.stderr)
        return False
    except (KeyError, TypeError, ValueError):
        print(f"FAILED  {name}: the answer is not one of a Loupe gateway; is --url right?", file=sys.stderr)
        return False
    # Compare the label, where one is expected.
    expected = EXPECTED.get(picture) if isinstance(picture, Path) else None
    if expected not in (None, label):
        print(f"FAILED  {name}: {summary}: it should be {expected}", file=sys.stderr)
        return False
    print(f"ok      {name:<20} {summary}")
    return True


def ask(address: str, picture: str | Path, timeout: float) -> Any:
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        content_type, body = "application/json", json.dumps({"url": picture}).encode()
    else:
        content_type, body = as_upload(Path(picture))
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Failure(f"{error.code} {detail(error)}") from error
    except ValueError as error:
        raise Failure("the answer is not JSON; is --url a Loupe gateway?") from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise Failure(f"{address} does not answer ({reason}); start it with `make up`") from error


def as_upload(path: Path) -> tuple[str, bytes]:
    """Return content type and body of a form with one file, as a browser sends it."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise Failure(f"cannot be read ({error.strerror}); name an image file or an http(s) URL") from error
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n\r\n'
    return f"multipart/form-data; boundary={boundary}", head.encode() + data + f"\r\n--{boundary}--\r\n".encode()


def detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return str(error.reason)


class Failure(Exception):
    """An answer is missing; the message says why."""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
