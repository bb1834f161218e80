"""The HTTP service: POST a picture, or its URL, to /predict and get a label; GET / is a page to try it on.

    gunicorn gateway:app       # as gunicorn.conf.py and the environment say
    python gateway.py          # the same

    curl -F file=@data/samples/cracked-1.jpg http://localhost:9696/predict
    curl http://localhost:9696/predict -H 'Content-Type: application/json' \\
        -d '{"url": "https://…/tire.jpg"}'

It asks the model MODEL_NAME (tires) at TF_SERVING_HOST (localhost:8500); README lists every setting.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path

from loupe import feedback
from loupe.cli import Parser, run_script
from loupe.gateway.access import keys
from loupe.gateway.door.ports import check_ports
from loupe.gateway.settings import Settings


def main() -> None:
    Parser(__doc__).read()  # no flags: settings come from the environment, as they do under gunicorn
    settings = Settings.from_environment(os.environ, checks={"api_keys": keys.check, "feedback_dir": feedback.check})
    if not find_spec("gunicorn"):
        raise ModuleNotFoundError(name="gunicorn")
    check_ports(settings)
    if settings.feedback_dir:
        os.environ["LOUPE_FEEDBACK_DIR"] = settings.feedback_dir  # as it was meant where this was started
    os.chdir(Path(__file__).resolve().parent)
    os.execv(sys.executable, [sys.executable, "-m", "gunicorn", "--config", "gunicorn.conf.py", "gateway:app"])


if __name__ == "__main__":
    run_script(main)
else:
    from loupe.gateway.app import create_app

    app = create_app(Settings.from_environment(os.environ))
