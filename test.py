"""Does it answer? A smoke check of whatever runs at an address, and a quick
load check. Standard library alone: copy this file to wherever it is needed.

    python3 test.py                # a cracked and a normal sample, to localhost
    python3 test.py --url https://tires.example.org picture.jpg
    python3 test.py --load 1000    # a thousand pictures, 8 at a time

Prints label, confidence and time for each picture. With --load it prints the
rate, the latencies with a histogram, and the reasons of what failed. A picture
that the gateway refuses (503) is counted and not sent again; its connection
waits as Retry-After says, at most 5 s, before it sends the next. No proxy that
the environment names is used.

Exit status: 0 if all were answered, and the samples rightly; 1 if not, with the
reason; 130 after Ctrl-C, which prints what there is of a load so far.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import socket
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

SAMPLES = Path(__file__).resolve().parent / "data" / "samples"
EXPECTED = {SAMPLES / "cracked-1.jpg": "cracked", SAMPLES / "normal-1.jpg": "normal"}
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
NO_LOUPE = "the answer is not one of a Loupe gateway; is --url right?"

# Of a load.
MOST_PICTURES, MOST_AT_ONCE = 100_000, 64
STAGES = ("fetch", "decode", "model")
LONGEST_WAIT = 5.0  # seconds that Retry-After may ask for
RETRY_PAUSE = 0.5  # seconds between two attempts to connect
GIVE_UP = 6  # failures of each connection in a row, no answer between them, and no more is sent
BAR = 40  # columns
MOST_ROWS = 16  # of the histogram, unless latencies are further apart than it has limits for
REASONS_SHOWN = 8

Request = tuple[str, bytes]  # content type and body


class Failure(Exception):
    """An answer is missing; the message says why."""


def main() -> int:
    arguments = read_arguments()
    address = arguments.url.rstrip("/") + "/predict"
    pictures: list[str | Path] = arguments.pictures or list(EXPECTED)
    headers = {"X-API-Key": arguments.key} if arguments.key else {}
    if arguments.load:
        return check_load(address, pictures, headers, arguments)
    answered = [check(address, picture, headers, arguments.timeout) for picture in pictures]
    return 0 if all(answered) else 1


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("pictures", nargs="*", metavar="image or URL", help="instead of the two samples")
    add("--url", type=web_address, default="http://localhost:9696", help="of the gateway (http://localhost:9696)")
    add("--timeout", type=number(0.001, 3600), default=30, metavar="S", help="seconds for each answer (30)")
    add("--key", type=api_key, help="an API key, where the gateway wants one")
    group = parser.add_argument_group("load check", "Send many pictures, over connections that stay open.")
    add = group.add_argument
    add("--load", type=number(1, MOST_PICTURES, int), metavar="N", help=f"so many pictures, at most {MOST_PICTURES:,}")
    add(
        "--at-once",
        type=number(1, MOST_AT_ONCE, int),
        default=8,
        metavar="N",
        help=f"on their way at a time (8, at most {MOST_AT_ONCE})",
    )
    add("--for", type=number(0.1, 86_400), default=600, dest="seconds", metavar="S", help="send none after S (600)")
    return parser.parse_args()


def number(low: float, high: float, kind: type = float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        with suppress(ValueError):
            if low <= kind(text) <= high:
                return kind(text)
        whole = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"{whole} from {low:,} to {high:,}, not {text!r}")

    return read


def web_address(text: str) -> str:
    with suppress(ValueError):
        parts = urllib.parse.urlsplit(text)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return text
    raise argparse.ArgumentTypeError(f"http://HOST:PORT or https://HOST, not {text!r}")


def api_key(text: str) -> str:
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise argparse.ArgumentTypeError("this is no key: letters, digits, dashes and underscores, in one line")
    return text


# ------------------------------------------------------------------------------------------------------- smoke check


def check(address: str, picture: str | Path, headers: dict[str, str], timeout: float) -> bool:
    """Ask for one picture and print the answer. Return True if there is one, and it is the expected one."""
    # Ask.
    name = picture if isinstance(picture, str) else picture.name
    started = time.monotonic()
    try:
        answer = ask(address, as_request(picture), headers, timeout)
        label, confidence, model = answer["label"], answer["confidence"], answer["model"]
        summary = f"{label:<12} {confidence:6.1%}   {(time.monotonic() - started) * 1000:5.0f} ms"
        summary += f"   {model['name']}, version {model['version']}"
    except Failure as failure:
        print(f"FAILED  {name}: {failure}", file=sys.stderr)
        return False
    except (KeyError, TypeError, ValueError):
        print(f"FAILED  {name}: {NO_LOUPE}", file=sys.stderr)
        return False
    # Compare the label, where one is expected.
    expected = EXPECTED.get(picture) if isinstance(picture, Path) else None
    if expected not in (None, label):
        print(f"FAILED  {name}: {summary}: it should be {expected}", file=sys.stderr)
        return False
    print(f"ok      {name:<20} {summary}")
    return True


def ask(address: str, picture: Request, headers: dict[str, str], timeout: float) -> Any:
    content_type, body = picture
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    for name, value in headers.items():
        request.add_unredirected_header(name, value)  # the key is for this gateway alone
    try:
        with DIRECT.open(request, timeout=timeout) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise Failure(f"{error.code} {detail(error.read(), str(error.reason))}") from error
    except ValueError as error:
        raise Failure("the answer is not JSON; is --url a Loupe gateway?") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise Failure(f"{address} does not answer ({reason}); start it with `make up`") from error


def as_request(picture: str | Path) -> Request:
    """Return content type and body: JSON for a URL; for a file a form, as a browser sends it."""
    if isinstance(picture, str) and picture.startswith(("http://", "https://")):
        return "application/json", json.dumps({"url": picture}).encode()
    try:
        data = Path(picture).read_bytes()
    except OSError as error:
        raise Failure(f"cannot be read ({error.strerror}); name an image file or an http(s) URL") from error
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="picture"\r\n\r\n'
    return f"multipart/form-data; boundary={boundary}", head.encode() + data + f"\r\n--{boundary}--\r\n".encode()


def detail(body: bytes, otherwise: str) -> str:
    try:
        return str(json.loads(body)["detail"])
    except (ValueError, KeyError, TypeError):
        return otherwise


# -------------------------------------------------------------------------------------------------------- load check


def check_load(address: str, pictures: list[str | Path], headers: dict[str, str], arguments: argparse.Namespace) -> int:
    """Send the pictures again and again, and print what came of it. Return the exit status."""
    try:
        requests = [as_request(picture) for picture in pictures]
    except Failure as failure:
        print(f"FAILED  {failure}", file=sys.stderr)
        return 1
    load = Load(address, requests, headers, arguments)
    interrupted = False
    try:
        load.run(progress=sys.stderr.isatty())
    except KeyboardInterrupt:
        interrupted = True
    for line in report(load, interrupted):
        print(line)
    if interrupted:
        return 130
    return 0 if len(load.latencies) == load.wanted else 1


class Load:
    """What is to be sent, and what came of it. Its threads, each with a connection of its own, share it."""

    def __init__(
        self, address: str, requests: list[Request], headers: dict[str, str], arguments: argparse.Namespace
    ) -> None:
        self.place = urllib.parse.urlsplit(address)
        self.requests, self.headers = requests, headers
        self.wanted, self.at_once = arguments.load, min(arguments.at_once, arguments.load)
        self.timeout, self.seconds = float(arguments.timeout), float(arguments.seconds)
        # What came of it, under the lock.
        self.lock = threading.Lock()
        self.began, self.took = 0.0, 0.0  # seconds until the last of them came
        self.sent = 0
        self.latencies: list[float] = []  # seconds, of those that were answered
        self.stages: dict[str, list[float]] = {stage: [] for stage in STAGES}  # milliseconds
        self.refused: Counter[str] = Counter()  # how many, by the reason
        self.failed: Counter[str] = Counter()
        self.failed_in_a_row = 0
        self.ended_early = ""
        self.is_over = threading.Event()  # what is on its way is given up
        self.connections: list[http.client.HTTPConnection] = []

    def run(self, progress: bool) -> None:
        """Send them all. However it ends, no connection stays open."""
        self.began = time.monotonic()
        self.connections = [self.connection() for _ in range(self.at_once)]
        threads = [threading.Thread(target=self.work, args=(one,), daemon=True) for one in self.connections]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads) and self.has_time():
                time.sleep(0.05)
                if progress:
                    print(f"\r{self.progress():<79}", end="", file=sys.stderr, flush=True)
        finally:
            self.end(threads)
            if progress:
                print(f"\r{'':<79}\r", end="", file=sys.stderr, flush=True)

    def end(self, threads: list[threading.Thread]) -> None:
        """Give up what is on its way: its connection is cut, which wakes the thread that waits for an answer."""
        self.is_over.set()
        for connection in self.connections:
            if connection.sock:
                with suppress(OSError):
                    socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)  # not ssl's: it is for one thread
        deadline = time.monotonic() + 1
        for thread in threads:
            if thread.ident:
                thread.join(max(0, deadline - time.monotonic()))

    def has_time(self) -> bool:
        """False once what is on its way had its time as well."""
        passed = time.monotonic() - self.began
        if passed > self.seconds:
            self.send_no_more(f"the {self.seconds:g} s of --for are over")
        return passed < self.seconds + self.timeout

    def connection(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self.place.scheme == "https" else http.client.HTTPConnection
        return kind(str(self.place.hostname), self.place.port, timeout=self.timeout)

    def work(self, connection: http.client.HTTPConnection) -> None:
        while (request := self.next()) is not None:
            pause = self.send(connection, *request)
            self.is_over.wait(pause)
        connection.close()

    def next(self) -> Request | None:
        with self.lock:
            if self.is_over.is_set() or self.ended_early or self.sent == self.wanted:
                return None
            self.sent += 1
            return self.requests[(self.sent - 1) % len(self.requests)]

    def send(self, connection: http.client.HTTPConnection, content_type: str, body: bytes) -> float:
        """Send one picture, and note what came of it. Return the seconds to wait before the next."""
        # Ask, and read the answer to its end.
        began = time.monotonic()
        try:
            response = self.exchange(connection, body, {"Content-Type": content_type, **self.headers})
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            self.note_failure(self.reason(error))
            return RETRY_PAUSE
        # Sort it: answered, refused or failed.
        seconds = time.monotonic() - began
        if response.status == 503:
            self.note(self.refused, detail(answer, response.reason))
            return waiting_time(response.getheader("Retry-After") or "")
        if response.status != 200:
            self.note_failure(f"{response.status} {detail(answer, response.reason)}")
        elif not self.note_answer(answer, seconds):
            self.note_failure(NO_LOUPE)
        return 0

    def exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: dict[str, str]
    ) -> http.client.HTTPResponse:
        """Send over a connection that may have been closed meanwhile: then once more, over a new one."""
        was_open = connection.sock is not None
        try:
            with suppress(BrokenPipeError):  # refused before all of it was sent: the answer is there to be read
                connection.request("POST", self.place.path, body, headers)
            return connection.getresponse()
        except ConnectionError:
            connection.close()
            if not was_open or self.is_over.is_set():
                raise
        connection.request("POST", self.place.path, body, headers)
        return connection.getresponse()

    def reason(self, error: Exception) -> str:
        if isinstance(error, socket.timeout):  # another than TimeoutError before Python 3.10
            return f"no answer within {self.timeout:g} s"
        return str(getattr(error, "strerror", None) or error or type(error).__name__)

    def note_answer(self, body: bytes, seconds: float) -> bool:
        """Note the answer's times. Return False if it is none."""
        try:
            answer = json.loads(body)
            answer["label"]
            timings = {stage: float(answer["timings_ms"][stage]) for stage in STAGES}
        except (ValueError, KeyError, TypeError):
            return False
        with self.lock:
            self.failed_in_a_row = 0
            self.latencies.append(seconds)
            for stage, milliseconds in timings.items():
                self.stages[stage].append(milliseconds)
            self.took = time.monotonic() - self.began
        return True

    def note_failure(self, reason: str) -> None:
        if self.is_over.is_set():
            return  # it was we who closed the connection
        self.note(self.failed, reason)
        with self.lock:
            self.failed_in_a_row += 1
            in_a_row = self.failed_in_a_row
        if in_a_row >= GIVE_UP * self.at_once:
            self.send_no_more(f"given up after {in_a_row} failures in a row")

    def note(self, counts: Counter[str], reason: str) -> None:
        with self.lock:
            counts[reason] += 1
            self.took = time.monotonic() - self.began

    def send_no_more(self, reason: str) -> None:
        with self.lock:
            if self.sent < self.wanted:
                self.ended_early = self.ended_early or reason

    def progress(self) -> str:
        with self.lock:
            answered, refused, failed = len(self.latencies), sum(self.refused.values()), sum(self.failed.values())
        rate = answered / max(time.monotonic() - self.began, 0.001)
        text = f"{answered + refused + failed:,} of {self.wanted:,}   {rate:.0f} a second"
        text += f"   {refused:,} refused" * bool(refused)
        return text + f"   {failed:,} failed" * bool(failed)


def waiting_time(retry_after: str) -> float:
    return min(int(retry_after), LONGEST_WAIT) if retry_after.isdecimal() else RETRY_PAUSE


# ------------------------------------------------------------------------------------------------------------ report


def report(load: Load, interrupted: bool) -> list[str]:
    """Return the lines: how many a second, what came of them, how long they took, and what that time is made of."""
    # How many were answered, and why the others were not.
    answered = len(load.latencies)
    rate = answered / load.took if load.took else 0.0
    lines = [
        f"{answered:,} of {load.wanted:,} answered in {load.took:.1f} s, {load.at_once} at once: {rate:.1f} a second"
    ]
    not_done = load.wanted - answered
    for name, counts in (("refused", load.refused), ("failed", load.failed)):
        if count := sum(counts.values()):
            lines += [f"{name:<11}{count:,}", *reasons(counts)]
            not_done -= count
    if not_done:
        lines.append(f"not done   {not_done:,}: {'interrupted' if interrupted else load.ended_early or 'out of time'}")
    if not answered:
        return lines
    # How long answers took.
    milliseconds = sorted(seconds * 1000 for seconds in load.latencies)
    p50, p90, p99 = (percentile(milliseconds, percent) for percent in (50, 90, 99))
    lines.append(f"latency    p50 {spell(p50)}   p90 {spell(p90)}   p99 {spell(p99)}   worst {spell(milliseconds[-1])}")
    medians = (f"{stage} {spell(percentile(sorted(load.stages[stage]), 50))}" for stage in STAGES)
    lines.append(f"of that    {'   '.join(medians)}   (medians)")
    return [*lines, "", *histogram(milliseconds, {"p50": p50, "p99": p99})]


def reasons(counts: Counter[str]) -> list[str]:
    lines = []
    for reason, count in counts.most_common(REASONS_SHOWN):
        text = "".join(letter if letter.isprintable() else "?" for letter in reason)
        lines.append(f"{count:>8,} x {text if len(text) < 69 else text[:66] + '...'}")
    if len(counts) > REASONS_SHOWN:
        lines.append(f"{'':>8} and {len(counts) - REASONS_SHOWN} other reasons")
    return lines


def histogram(values: list[float], marks: dict[str, float]) -> list[str]:
    """Return a row for each range of milliseconds: how many of the sorted values lie there, a bar, and the marks."""
    edges = limits(values[0], values[-1])
    last = len(edges) - 2

    def row_of(value: float) -> int:
        return min(max(bisect_right(edges, value) - 1, 0), last)

    counts = Counter(map(row_of, values))
    fancy = can_show("█▏–◂")
    rows = []
    for row in range(last + 1):
        here = ", ".join(name for name, value in marks.items() if row_of(value) == row)
        text = f"{spell(edges[row]):>7} {'–' if fancy else '-'} {spell(edges[row + 1]):<7}{counts[row]:>8,}  "
        text += bar(counts[row] / max(counts.values()), fancy)
        rows.append((text + (f" {'◂' if fancy else '<'} {here}" if here else "")).rstrip())
    return rows


def limits(low: float, high: float) -> list[float]:
    """Return round limits from `low` or less to above `high`, in milliseconds: even steps where these are near each
    other, and else ever wider ones."""
    low, high = max(low, 0.01), max(high, 0.01)
    if high < 4 * low:
        least = max((high - low) / 12, low / 50)  # so that three digits tell the limits from each other
        step = next(step for step in (m * 10.0**k for k in range(-3, 9) for m in (1, 2, 5)) if step >= least)
        first, last = math.floor(low / step), math.floor(high / step) + 1
        return [index * step for index in range(first, last + 1)]
    edges: list[float] = []
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5)):
        every = [m * 10.0**k for k in range(-3, 9) for m in steps]
        first = max(index for index, edge in enumerate(every) if edge <= low)
        last = next(index for index, edge in enumerate(every) if edge > high)
        edges = every[first : last + 1]
        if len(edges) <= MOST_ROWS:
            break
    return edges


def bar(share: float, fancy: bool) -> str:
    """Return a bar; of a share above zero something is seen."""
    if not fancy:
        return "#" * math.ceil(share * BAR)
    whole, eighths = divmod(math.ceil(share * BAR * 8), 8)
    return "█" * whole + " ▏▎▍▌▋▊▉"[eighths].strip()


def can_show(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeError:
        return False
    return True


def percentile(ordered: list[float], percent: float) -> float:
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def spell(milliseconds: float) -> str:
    """Return three digits and their unit: 0.4 ms, 12.5 ms, 1.5 s."""
    if milliseconds < 999.5:
        return f"{milliseconds:.3g} ms"
    return f"{milliseconds / 1000:.3g} s" if milliseconds < 999_500 else f"{milliseconds / 1000:.0f} s"


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
