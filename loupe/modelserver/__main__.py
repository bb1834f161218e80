"""A model server that takes TensorFlow Serving's flags and answers as it does.

    python -m loupe.modelserver --port=8500 --rest_api_port=8501 \\
        --model_name=tires --model_base_path=models/tires

The base path holds numbered folders, each a SavedModel; the newest is served, and a newer one as soon as it is there.
`--model_config_file` serves several models, as TensorFlow Serving does. Only this machine is listened to, unless
`--address=0.0.0.0` says otherwise: whoever reaches the ports may ask, and may have other folders served.
Ports stay closed until each model has loaded; then one line on stdout says which. SIGTERM and Ctrl-C let calls in
flight end first, for 10 s at most (TensorFlow Serving cuts them off); a second signal does not wait.
Exit status: 0 after a signal, 2 with one line on stderr for a flag, a port or a model that cannot be used.
"""

from __future__ import annotations

import os
import sys
from dataclasses import fields

from loupe.cli import fill
from loupe.engines.refused import say
from loupe.errors import UserError
from loupe.modelserver import flags


def main(arguments: list[str]) -> None:
    if "--help" in arguments or "--version" in arguments:
        print(usage() if "--help" in arguments else "Loupe's model server, compatible with TensorFlow Serving 2.20")
        return
    settings = flags.parse(arguments, os.environ)
    from loupe.modelserver.server import serve  # numpy and much else: a wrong flag should be said at once

    serve(settings)


def usage() -> str:
    lines = "\n".join(f"  --{field.name}={field.default}" for field in fields(flags.Flags))
    return f"{fill(__doc__ or '')}\n\nFlags and defaults:\n{lines}"


if __name__ == "__main__":
    status = 0
    try:
        main(sys.argv[1:])
    except UserError as problem:
        say(str(problem))
        status = 2
    sys.stdout.flush()
    # Not sys.exit: it would wait for threads that hold an unfinished call or load.
    os._exit(status)
