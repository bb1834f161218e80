"""Make an API key: `python -m loupe.gateway.keys NAME >> keys.txt`. The code is in access/keys.py."""

from loupe.cli import run_script
from loupe.gateway.access.keys import main

if __name__ == "__main__":
    run_script(main)
