"""Parse a script's flags, and run its main function with readable errors.

    parser = Parser(__doc__)                        # shown by --help, its paragraphs as wide as the terminal
    parser.add_argument("--port", …)
    arguments = parser.read()
    …
    run_script(main, "nothing is kept: the same command begins again")      # said after Ctrl-C

An unknown flag gives one line that names the nearest known one. An error meant for people gives one line and status 2.
Ctrl-C gives status 130; a KeyboardInterrupt with a text of its own says more exactly what was kept and how to go on.
"""

from __future__ import annotations

import argparse
import difflib
import re
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import NoReturn

from loupe.errors import LoupeError, UserError

WIDEST = 100  # columns; longer lines are hard to read
NARROWEST = 20
ALIKE = 0.6  # share of letters; below it another flag is not what was meant
OTHER_WORDS = {  # a flag, and what Keras, PyTorch and other programs call it
    "--backbone": "model arch architecture network base-model",
    "--batch-size": "batch bs",
    "--class-weights": "class-weight balanced",
    "--decay": "weight-decay wd l2",
    "--fine-tune": "unfreeze finetune trainable",
    "--fine-tune-lr": "finetune-lr fine-tune-learning-rate",
    "--flip": "horizontal-flip vertical-flip random-flip hflip",
    "--labels": "classes class-names label-names",
    "--lr": "learning-rate learningrate",
    "--model-name": "model",
    "--models": "output export-dir model-dir",
    "--patience": "early-stopping early-stop",
    "--preprocess": "preprocessing preprocess-input rescale scale normalize",
    "--size": "image-size img-size imgsz input-size target-size input-shape",
    "--test": "test-split test-size",
    "--to": "format tflite onnx openvino litert",
    "--validation": "validation-split val-split val valid",
    "--weights": "pretrained checkpoint init",
}


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
            near = _meant(unknown[0].partition("=")[0], known)
            self.error(f"{unknown[0]!r} is no flag of this script" + (f"; did you mean {near}?" if near else ""))
        return arguments

    def error(self, message: str) -> NoReturn:
        if without_value := re.fullmatch(r"argument (\S+): expected (one|\d+) arguments?", message):
            flag, count = without_value.groups()
            message = f"{flag} needs {'a value' if count == 'one' else f'{count} values'} after it"
        raise UserError(f"{message.rstrip('.?')}{'?' if message.endswith('?') else '.'} --help lists all flags.")


def _meant(flag: str, known: list[str]) -> str | None:
    """Return the known flag that is another's word for this one, else the one that is written nearly so."""
    word = flag.lstrip("-").lower().replace("_", "-")
    named = next((name for name, words in OTHER_WORDS.items() if name in known and word in words.split()), None)
    words = {name.lstrip("-"): name for name in known}
    return named or next((words[near] for near in difflib.get_close_matches(word, words, 1, ALIKE)), None)


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


def run_script(main: Callable[[], int | None], after_interrupt: str = "") -> None:
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
    except KeyboardInterrupt as error:
        said = str(error) or after_interrupt
        print(f"\n{name}: interrupted{'; ' * bool(said)}{said}", file=sys.stderr)
        status = 130
    sys.exit(status)
