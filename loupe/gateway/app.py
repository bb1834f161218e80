"""The gateway's addresses (contract 2), and how its errors look.

app = create_app(Settings.from_environment(os.environ))
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, render_template, request, send_from_directory
from werkzeug.exceptions import HTTPException

from loupe.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, Problem, Stopping, without_traceback
from loupe.gateway.access.guard import guard
from loupe.gateway.docs.page import add_docs
from loupe.gateway.model.client import ModelClient
from loupe.gateway.model.readiness import Readiness
from loupe.gateway.observe import metrics, recorder, tracing
from loupe.gateway.observe.record import in_hand, stopping
from loupe.gateway.predictions import Batch, judge
from loupe.gateway.problems import HEADERS, as_json, rendered
from loupe.gateway.request.body import read
from loupe.gateway.request.deadline import HEADER, check_deadline, read_deadline
from loupe.gateway.request.schema import query
from loupe.gateway.settings import Settings

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
SAMPLES_OF = "tires"  # the model that the sample pictures are for

_encoded = json.JSONEncoder(separators=(",", ":")).encode


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Asked for every function that a request goes through; none of them is a coroutine."""
        return func


def create_app(settings: Settings) -> Flask:
    app = _App("loupe", root_path=str(Path(__file__).parent), static_folder="page")
    app.wsgi_app = _with_headers(app.wsgi_app)  # type: ignore[method-assign]
    model = ModelClient(settings)
    tracing.start()
    _add_records(app, settings)  # first: whatever comes after it, and its answer, is recorded
    _add_health(app, model, settings)
    _add_page(app, settings)
    add_docs(app, settings, sorted(path.name for path in SAMPLES.glob("*.jpg")))
    _add_errors(app)
    guard(app, settings)

    @app.post("/predict")
    def predict() -> Response:
        started = time.monotonic()
        until = read_deadline(request.headers.get(HEADER))
        check_deadline(until)  # spent while it waited for its turn?
        asked = query(request.args)
        entry = in_hand()
        try:
            sent = read(request.environ, settings)
            entry.pictures = len(sent.items)
            batch = Batch(sent, settings, until)
            batch.gather()
        finally:  # what it took to fail is told, too
            fetched = time.monotonic()
            entry.stage("fetch", started, fetched - started)
        answer = model.predict(batch.pixels, heatmaps=asked.heatmap == 1, until=until)
        about = {
            "model": {"name": settings.model, "version": answer.version},
            "timings_ms": {
                "fetch": round((fetched - started) * 1000),  # reading the request and fetching what is a URL
                "decode": round(answer.prepare_seconds * 1000),
                "model": round(answer.model_seconds * 1000),
            },
            "request_id": entry.request_id,
        }
        predictions = judge(answer)
        recorder.answered(entry, answer.version, answer.card, predictions)
        results = batch.results(answer, predictions, asked.top or None, asked.heatmap == 1)
        if not sent.many:
            return _json({**_plain(results[0]), **about})
        return _json({"predictions": [_plain(result) for result in results], **about})

    return app


def _json(value: dict[str, Any]) -> Response:
    return Response(_encoded(value) + "\n", content_type="application/json")


def _plain(result: dict[str, Any] | Problem) -> dict[str, Any]:
    return {"error": as_json(result)} if isinstance(result, Problem) else result


def _with_headers(wsgi: Callable[..., Any]) -> Callable[..., Any]:
    """Those of every answer, past Flask, which would look through all of them for each."""
    fixed = list(HEADERS.items())

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *how: Any) -> Any:
            return start_response(status, headers + fixed, *how)

        return wsgi(environ, start)

    return answer


def _add_records(app: Flask, settings: Settings) -> None:
    @app.before_request
    def begin() -> Response | None:
        asked = request._get_current_object()  # type: ignore[attr-defined]
        entry = recorder.begin(asked.method, asked.path, asked.remote_addr or "", asked.headers)
        if asked.environ["SERVER_PORT"] != str(settings.metrics_port):
            return None
        entry.counted = False
        if asked.path == "/healthz":
            return None
        if asked.path != "/metrics":
            raise NotFound("There is nothing at this address; on this port GET /metrics.")
        if asked.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{asked.method} is not answered here; GET /metrics.")
        return Response(metrics.scrape(), content_type=metrics.KIND)

    @app.after_request
    def end(response: Response) -> Response:
        entry = in_hand()
        response.headers["X-Request-ID"] = entry.request_id
        recorder.end(entry, response.status_code)
        return response


def _add_health(app: Flask, model: ModelClient, settings: Settings) -> None:
    readiness = Readiness(model.card, lambda: model.answered_at)

    @app.get("/healthz")
    def healthz() -> Response:
        """Is this process alive? Never asks the model."""
        return _json({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        """Would /predict answer now? Not taken back for a moment's silence of the model."""
        if stopping.is_set():
            raise Stopping("This gateway was told to stop; ask another.")
        return _json({"status": "ready", "model": {"name": settings.model, "version": readiness.version()}})

    @app.get("/model")
    def card() -> Response:
        version, found = model.card()
        return _json({**found.to_dict(), "version": version})


def _add_page(app: Flask, settings: Settings) -> None:
    @app.get("/")
    def page() -> str:
        samples = sorted(path.name for path in SAMPLES.glob("*.jpg")) if settings.model == SAMPLES_OF else []
        return render_template("index.html", samples=samples, model=settings.model, keys=bool(settings.api_keys))

    @app.get("/samples/<name>")
    def sample(name: str) -> Response:
        return send_from_directory(SAMPLES, name)


def _add_errors(app: Flask) -> None:
    @app.errorhandler(Problem)
    def answer_problem(problem: Problem) -> Response:
        entry = in_hand()
        entry.code = problem.code
        status, headers, body = rendered(without_traceback(problem), entry.request_id)
        response = _json(body)
        response.status_code = status
        response.headers.update(headers)
        return response

    @app.errorhandler(HTTPException)
    def answer_http(error: HTTPException) -> Response:
        response = answer_problem(_from_http(without_traceback(error)))  # its request keeps the error
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def answer_unexpected(error: Exception) -> Response:
        app.logger.exception("request %s failed", in_hand().request_id)
        return answer_problem(InternalError("Something went wrong here; the log of this service has it by request id."))


def _from_http(error: HTTPException) -> Problem:
    if error.code == 404:
        return NotFound("There is nothing at this address; POST a picture to /predict.")
    if error.code == 405:
        return MethodNotAllowed(f"{request.method} is not answered here; POST a picture to /predict, GET the rest.")
    problem = BadRequest("The request could not be read; send it again with a usual client.")
    problem.status = error.code or 400
    return problem
