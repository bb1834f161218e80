"""Make an API key: the key goes to the screen, once, and the line with its hash to the file of LOUPE_API_KEYS.

    python -m loupe.gateway.keys anne >> keys.txt
    LOUPE_API_KEYS=keys.txt python gateway.py

The key itself is kept nowhere: hand it to its owner. To take it back, remove its line; the gateway reads the file again
by itself. Two lines may have the same name: a new key beside the old one, until the old one is removed.
"""

from __future__ import annotations

import re
import secrets
import sys

from loupe.cli import Parser, run_script
from loupe.errors import UserError
from loupe.gateway.access.keys import digest_of

PREFIX = "loupe_"  # so that scanners find keys that were committed by mistake


def main() -> None:
    parser = Parser(__doc__, prog="python -m loupe.gateway.keys")
    parser.add_argument("name", help="whose key it is; letters, digits, dots, dashes and underscores")
    name = parser.read().name
    if not re.fullmatch(r"[\w.-]{1,64}", name, re.ASCII):
        raise UserError(f"A key's name is 1 to 64 letters, digits, dots, dashes and underscores: not {name!r}.")
    key = PREFIX + secrets.token_urlsafe(32)
    print(f"the key, shown this once: {key}\nthe line for the file:", file=sys.stderr, flush=True)
    print(f"{name}:{digest_of(key)}")


if __name__ == "__main__":
    run_script(main)
