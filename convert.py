"""Export a finished run as the SavedModel that TensorFlow Serving and Loupe's own model server serve.

    python convert.py runs/tires                    # → models/tires/<next version>/
    python convert.py runs/tires --models /srv/models

A server that watches the folder takes the new version by itself. Nothing is published unless it loads the way
TensorFlow Serving loads it and answers what the trained model answers.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from loupe.errors import UserError
from loupe.scripts import Parser, run_script


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("run", type=Path, help="the folder of a finished run: it holds model.keras and card.json")
    parser.add_argument("--models", type=Path, default=Path("models"), help="where versions are published (models)")
    arguments = parser.read()
    if not arguments.run.is_dir():
        raise UserError(f"There is no run at {arguments.run}. `python train.py` makes one, runs/tires.")
    for needed in ("card.json", "model.keras"):
        if not (arguments.run / needed).is_file():
            raise UserError(f"{arguments.run} holds no {needed}: it is no finished run. Let its training end first.")

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # its notices of deprecation, too
    from loupe.export.publish import publish  # TensorFlow takes seconds to load: only once the arguments are right

    print(f"published {publish(arguments.run, arguments.models)}")


if __name__ == "__main__":
    run_script(main)
