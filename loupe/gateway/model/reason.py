"""What a model server says of a failure, for everybody to read: its first line, without paths and addresses.

public_reason(error.details())      # "Could not find variable dense/kernel. This could mean that …"
"""

from __future__ import annotations

import re

LONGEST = 160  # characters
_PRIVATE = re.compile(
    r"""
    \w+://\S+                                   # a URL
    | (?<![\w.]) ~?/[^\s'",;:)\]]+              # an absolute path; the name of a variable, as block14/beta, stays
    | \b[A-Za-z]:\\\S+                          # Windows's
    | \b\d+(\.\d+){3}(:\d+)?                    # an address
    | \[[0-9a-f.]*:[0-9a-f.]*:[0-9a-f:.]*\](:\d+)?
    """,
    re.VERBOSE,
)


def public_reason(text: str | None) -> str:
    lines = (line.strip() for line in (text or "").splitlines())
    line = next(filter(None, lines), "no reason given")
    line = _PRIVATE.sub("…", "".join(letter for letter in line if letter.isprintable())).rstrip(".")
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
