"""Parse a script's flags, and run its main function with readable errors.

    parser = Parser(__doc__)                        # shown by --help, its paragraphs as wide as the terminal
    parser.add_argument("--port", …)
    arguments = parser.read()
    …
    run_script(main)

An unknown flag gives one line that names the nearest known one. An error meant for people gives one line and status 2;
Ctrl-C gives status 130.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from loupe.errors import LoupeError, UserError

WIDEST = 100  # columns; longer lines are hard to read
NARROWEST = 20


class Parser(argparse.ArgumentParser):
    """`usage` where there are too many flags to name them all in it, `prog` where it is no file that is run."""

    def __init__(self, doc: str | None, usage: str | None = None, prog: str | None = None) -> None:
        super().__init__(
            prog, usage, fill(doc or ""), formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
        )

    def read(self) -> argparse.Namespace:
        arguments, unknown = self.parse_known_args()
        if unknown and not unknown[0].startswith("-"):
            self.error(f"{unknown[0]!r} is one argument too many")
        if unknown:
            known = [flag for action in self._actions for flag in action.option_strings]
            near = difflib.get_close_matches(unknown[0].partition("=")[0], known, 1, 0)[0]
            self.error(f"{unknown[0]!r} is no flag of this script; did you mean {near}?")
        return arguments

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message.rstrip('.?')}{'?' if message.endswith('?') else '.'} --help lists all flags.")


def fill(doc: str) -> str:
    """Wrap the paragraphs of a docstring to the terminal's width. One with indented lines, as commands are, stays."""
    width = min(max(shutil.get_terminal_size().columns - 2, NARROWEST), WIDEST)  # 2: as argparse does
    paragraphs = doc.strip().split("\n\n")
    return "\n\n".join(
        paragraph
        if paragraph.startswith(" ") or "\n " in paragraph
        else textwrap.fill(" ".join(paragraph.split()), width, break_long_words=False, break_on_hyphens=False)
        for paragraph in paragraphs
    )


def plain(text: str, longest: int | None = None) -> str:
    """Return the text as one harmless line for a terminal: control characters, and those that turn text around, are
    escaped."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:longest])
    return shown if len(text) <= len(text[:longest]) else f"{shown}… ({len(text)} characters)"


def run_script(main: Callable[[], int | None]) -> None:
    name = sys.argv[0].rsplit("/", 1)[-1]
    try:
        status = main() or 0
    except LoupeError as error:
        print(f"{name}: {plain(str(error))}", file=sys.stderr)  # the error may quote a file of unknown origin
        status = 2
    except ModuleNotFoundError as error:
        if not error.name or error.name.split(".")[0] in ("loupe", "data"):
            raise
        print(
            f"{name}: {error.name} is not installed for this Python. `make up` sets up serving, `make train` training, "
            f"`make check` the rest, all in .venv; then run it as .venv/bin/python {name}",
            file=sys.stderr,
        )
        status = 2
    except KeyboardInterrupt:
        print(f"\n{name}: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
