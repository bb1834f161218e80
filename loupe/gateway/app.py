"""The Flask application: the gateway's addresses (docs/architecture.md, contract 2) and its error handlers.

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

from loupe.errors import (
    BadRequest,
    Busy,
    ClientGone,
    InternalError,
    MethodNotAllowed,
    ModelError,
    NotFound,
    Problem,
    Stopping,
    without_traceback,
)
from loupe.gateway.access.guard import add_access_checks
from loupe.gateway.decoding import DecodeMemory
from loupe.gateway.docs.page import add_docs
from loupe.gateway.feedback import Corrections
from loupe.gateway.model.client import ModelClient
from loupe.gateway.model.readiness import Readiness
from loupe.gateway.model_page import Told, model_page, problem_page, wants_page
from loupe.gateway.observe import metrics, recorder, tracing
from loupe.gateway.observe.record import current_entry, stopping
from loupe.gateway.predictions import Batch
from loupe.gateway.problems import HEADERS, render, to_json
from loupe.gateway.request.body import read_pictures
from loupe.gateway.request.deadline import HEADER, check_caller, read_deadline
from loupe.gateway.request.schema import read_query
from loupe.gateway.settings import Settings
from loupe.prediction import decide

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
SAMPLES_MODEL = "tires"  # the only model whose page offers the sample pictures

_encode_json = json.JSONEncoder(separators=(",", ":")).encode


class _App(Flask):
    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return `func` itself. Flask calls this several times a request, and no function here is a coroutine."""
        return func


def create_app(settings: Settings) -> Flask:
    # Each request is recorded, whatever comes of it, so recording is added first.
    app = _App("loupe", root_path=str(Path(__file__).parent), static_folder="page")
    app.wsgi_app = _add_headers(app.wsgi_app)  # type: ignore[method-assign]
    model, memory = ModelClient(settings), DecodeMemory(settings.decode_memory)
    tracing.start()
    _add_recording(app, settings)
    _add_health(app, model, settings)
    _add_model(app, model, settings)
    _add_feedback(app, model, settings, memory)
    _add_page(app, settings)
    add_docs(app, settings, sorted(path.name for path in SAMPLES.glob("*.jpg")))
    _add_errors(app, settings)
    add_access_checks(app, settings)

    @app.post("/predict")
    def predict() -> Response:
        # The caller's limits and options. The deadline may have passed while the request waited for a thread.
        started = time.monotonic()
        caller_deadline = read_deadline(request.headers.get(HEADER))
        check_caller(caller_deadline)
        options = read_query(request.args)
        entry = current_entry()
        # The pictures, as bytes. If reading or fetching fails, its time is recorded all the same.
        try:
            sent = read_pictures(request.environ, settings)
            entry.pictures = len(sent.items)
            batch = Batch(sent, settings, memory, caller_deadline)
            batch.fetch_urls()
        finally:
            fetched = time.monotonic()
            entry.add_stage("fetch", started, fetched - started)
        # The model's answer, and what follows from it for each picture.
        answer = model.predict(batch.pixels, heatmaps=options.heatmap == 1, caller_deadline=caller_deadline)
        details = {
            "model": {"name": settings.model, "version": answer.version},
            "timings_ms": {
                "fetch": round((fetched - started) * 1000),  # reading the request and fetching what is a URL
                "decode": round(answer.prepare_seconds * 1000),
                "model": round(answer.model_seconds * 1000),
            },
            "request_id": entry.request_id,
        }
        predictions = decide(answer.card, answer.probabilities, answer.familiarity)
        recorder.record_answer(entry, answer.version, answer.card, predictions)
        results = batch.results(answer, predictions, options.top or None, options.heatmap == 1)
        if not sent.is_batch:
            return _json_response({**_result_json(results[0]), **details})
        return _json_response({"predictions": [_result_json(result) for result in results], **details})

    return app


def _json_response(value: dict[str, Any]) -> Response:
    return Response(_encode_json(value) + "\n", content_type="application/json")


def _result_json(result: dict[str, Any] | Problem) -> dict[str, Any]:
    return {"error": to_json(result)} if isinstance(result, Problem) else result


def _add_headers(wsgi: Callable[..., Any]) -> Callable[..., Any]:
    """Add the security headers below Flask, whose own way (after_request) is slower."""
    added = list(HEADERS.items())

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            return start_response(status, headers + added, *more)

        return wsgi(environ, start)

    return answer


def _add_recording(app: Flask, settings: Settings) -> None:
    # Before a request: begin its entry. On the metrics port, answer it here.
    @app.before_request
    def begin() -> Response | None:
        current = request._get_current_object()  # type: ignore[attr-defined]
        entry = recorder.begin(
            current.method, current.path, current.remote_addr or "", current.headers,
            arrived_at=current.environ.get("loupe.arrived_at", 0.0), size=current.environ.get("loupe.bytes", 0),
            client_left=current.environ.get("loupe.client_left", lambda: False),
        )  # fmt: skip
        if current.environ["SERVER_PORT"] != str(settings.metrics_port):
            return None
        entry.counted = False
        if current.path == "/healthz":
            return None
        if current.path != "/metrics":
            raise NotFound("There is nothing at this address; on this port GET /metrics.")
        if current.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{current.method} is not answered here; GET /metrics.")
        return Response(metrics.scrape(), content_type=metrics.CONTENT_TYPE)

    # After it: end the entry, and name its id.
    @app.after_request
    def end(response: Response) -> Response:
        entry = current_entry()
        response.headers["X-Request-ID"] = entry.request_id
        recorder.end(entry, response.status_code)
        return response


def _add_health(app: Flask, model: ModelClient, settings: Settings) -> None:
    readiness = Readiness(model.card, model.try_out, lambda: model.answered_at, lambda: model.failing_since)

    @app.get("/healthz")
    def healthz() -> Response:
        """Tell that this process is alive, without asking the model."""
        return _json_response({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        """Tell if /predict would answer now. A short failure of the model does not count (model/readiness.py)."""
        if stopping.is_set():
            raise Stopping("This gateway was told to stop; ask another.")
        return _json_response({"status": "ready", "model": {"name": settings.model, "version": readiness.version()}})


def _add_model(app: Flask, model: ModelClient, settings: Settings) -> None:
    @app.get("/model")
    def card() -> Response:
        """Answer the card: a page for browsers, JSON for all others."""
        version, model_card = model.card()
        if not wants_page():
            return _json_response({**model_card.to_dict(), "version": version})
        told = Told(version, model_card, versions(), metrics.recent(version))
        return Response(model_page(settings, told), content_type="text/html; charset=utf-8")

    def versions() -> list[tuple[int, str]] | None:
        try:
            return model.versions()
        except ModelError:  # it gave its card, so the page is worth showing without them
            return None

    @app.after_request
    def add_vary(response: Response) -> Response:
        if request.endpoint == "card":
            response.vary.add("Accept")
        return response


def _add_feedback(app: Flask, model: ModelClient, settings: Settings, memory: DecodeMemory) -> None:
    corrections = Corrections(settings, model, memory)

    @app.post("/feedback")
    def feedback() -> Response:
        """Keep a picture whose label was wrong, and say what the model makes of it (feedback.py)."""
        return _json_response(corrections.take(request.args, request.environ, request.headers.get(HEADER)))


def _add_page(app: Flask, settings: Settings) -> None:
    @app.get("/")
    def page() -> str:
        samples = sorted(path.name for path in SAMPLES.glob("*.jpg")) if settings.model == SAMPLES_MODEL else []
        return render_template(
            "index.html",
            samples=samples,
            model=settings.model,
            keys=bool(settings.api_keys),
            max_bytes=settings.max_bytes,
            feedback=bool(settings.feedback_dir),
        )

    @app.get("/samples/<name>")
    def sample(name: str) -> Response:
        return send_from_directory(SAMPLES, name)


def _add_errors(app: Flask, settings: Settings) -> None:
    # The gateway's own problems.
    @app.errorhandler(Problem)
    def answer_problem(problem: Problem) -> Response:
        entry = current_entry()
        entry.code = problem.code
        status, headers, body = render(without_traceback(problem), entry.request_id)
        response = _json_response(body)
        response.status_code = status
        response.headers.update(headers)
        if request.endpoint == "card" and wants_page():
            response.set_data(problem_page(settings, problem))
            response.content_type = "text/html; charset=utf-8"
        return response

    # Nobody reads this answer. It is recorded as those of clients that went away before their turn.
    @app.errorhandler(ClientGone)
    def answer_nobody(error: ClientGone) -> Response:
        without_traceback(error)
        current_entry().code = error.code
        return Response(status=error.status)

    # Flask's and Werkzeug's errors.
    @app.errorhandler(HTTPException)
    def answer_http(error: HTTPException) -> Response:
        response = answer_problem(_to_problem(without_traceback(error)))  # the request holds on to this error
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    # Want of memory passes.
    @app.errorhandler(MemoryError)
    def answer_no_memory(error: MemoryError) -> Response:
        without_traceback(error)  # whose frames hold what has come so far
        app.logger.error("request %s found no memory; lower LOUPE_THREADS or give more", current_entry().request_id)
        return answer_problem(Busy("There is no memory for it just now; try again in a second, or send less at once."))

    # Anything else is a fault of the gateway.
    @app.errorhandler(Exception)
    def answer_unexpected(error: Exception) -> Response:
        app.logger.exception("request %s failed", current_entry().request_id)
        return answer_problem(InternalError("Something went wrong here; the log of this service has it by request id."))


def _to_problem(error: HTTPException) -> Problem:
    if error.code == 404:
        return NotFound("There is nothing at this address; POST a picture to /predict.")
    if error.code == 405:
        return MethodNotAllowed(f"{request.method} is not answered here; POST a picture to /predict, GET the rest.")
    problem = BadRequest("The request could not be read; send it again with a usual client.")
    problem.status = error.code or 400
    return problem
