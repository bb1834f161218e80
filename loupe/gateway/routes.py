"""The gateway's addresses (contract 2), and how its errors look.

app = create_app(Settings.from_environment(os.environ))
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, render_template, request, send_from_directory
from werkzeug.exceptions import HTTPException

from loupe.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, Problem, Stopping, bare
from loupe.gateway import deadlines, metrics, operate, tracing
from loupe.gateway.bodies import read
from loupe.gateway.client import ModelClient
from loupe.gateway.docs import add_docs
from loupe.gateway.guard import guard
from loupe.gateway.life import stopping
from loupe.gateway.predictions import Batch, judge
from loupe.gateway.problems import HEADERS, as_json, rendered
from loupe.gateway.readiness import Readiness
from loupe.gateway.settings import Settings
from loupe.gateway.shapes import query

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
SAMPLES_OF = "tires"  # the model that the sample pictures are for


def create_app(settings: Settings) -> Flask:
    app = Flask("loupe", root_path=str(Path(__file__).parent), static_folder="page")
    app.json.sort_keys = False  # type: ignore[attr-defined]  # scores stand in order, best first
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
        until = deadlines.read(request.headers.get(deadlines.HEADER))
        deadlines.check(until)  # spent while it waited for its turn?
        asked = query(request.args)
        try:
            sent = read(request, settings)
            g.entry.pictures = len(sent.items)
            batch = Batch(sent, settings, until)
            batch.gather()
        finally:  # what it took to fail is told, too
            fetched = time.monotonic()
            g.entry.stage("fetch", started, fetched - started)
        answer = model.predict(batch.pixels, heatmaps=asked.heatmap == 1, until=until)
        about = {
            "model": {"name": settings.model, "version": answer.version},
            "timings_ms": {
                "fetch": round((fetched - started) * 1000),  # reading the request and fetching what is a URL
                "decode": round(answer.prepare_seconds * 1000),
                "model": round(answer.model_seconds * 1000),
            },
            "request_id": g.request_id,
        }
        predictions = judge(answer)
        operate.answered(g.entry, answer, predictions)
        results = batch.results(answer, predictions, asked.top or None, asked.heatmap == 1)
        if not sent.many:
            return jsonify({**_plain(results[0]), **about})
        return jsonify({"predictions": [_plain(result) for result in results], **about})

    return app


def _plain(result: dict[str, Any] | Problem) -> dict[str, Any]:
    return {"error": as_json(result)} if isinstance(result, Problem) else result


def _add_records(app: Flask, settings: Settings) -> None:
    @app.before_request
    def begin() -> Response | None:
        g.entry = operate.begin(request.method, request.path, request.remote_addr or "", request.headers)
        g.request_id = g.entry.request_id
        if request.environ["SERVER_PORT"] != str(settings.metrics_port):
            return None
        g.entry.counted = False
        if request.path == "/healthz":
            return None
        if request.path != "/metrics":
            raise NotFound("There is nothing at this address; on this port GET /metrics.")
        if request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{request.method} is not answered here; GET /metrics.")
        return Response(metrics.scrape(), content_type=metrics.KIND)

    @app.after_request
    def end(response: Response) -> Response:
        g.entry.key = g.get("key_name")
        operate.end(g.entry, response.status_code)
        return response


def _add_health(app: Flask, model: ModelClient, settings: Settings) -> None:
    readiness = Readiness(model.card, lambda: model.answered_at)

    @app.get("/healthz")
    def healthz() -> Response:
        """Is this process alive? Never asks the model."""
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        """Would /predict answer now? Not taken back for a moment's silence of the model."""
        if stopping.is_set():
            raise Stopping("This gateway was told to stop; ask another.")
        return jsonify({"status": "ready", "model": {"name": settings.model, "version": readiness.version()}})

    @app.get("/model")
    def card() -> Response:
        version, found = model.card()
        return jsonify({**found.to_dict(), "version": version})


def _add_page(app: Flask, settings: Settings) -> None:
    @app.get("/")
    def page() -> str:
        samples = sorted(path.name for path in SAMPLES.glob("*.jpg")) if settings.model == SAMPLES_OF else []
        return render_template("index.html", samples=samples, model=settings.model, keys=bool(settings.api_keys))

    @app.get("/samples/<name>")
    def sample(name: str) -> Response:
        return send_from_directory(SAMPLES, name)


def _add_errors(app: Flask) -> None:
    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update({**HEADERS, "X-Request-ID": g.request_id})
        return response

    @app.errorhandler(Problem)
    def answer_problem(problem: Problem) -> Response:
        g.entry.code = problem.code
        status, headers, body = rendered(bare(problem), g.request_id)
        response = jsonify(body)
        response.status_code = status
        response.headers.update(headers)
        return response

    @app.errorhandler(HTTPException)
    def answer_http(error: HTTPException) -> Response:
        response = answer_problem(_from_http(bare(error)))  # its request keeps the error
        for name, value in error.get_headers():
            if name == "Allow":
                response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def answer_unexpected(error: Exception) -> Response:
        app.logger.exception("request %s failed", g.request_id)
        return answer_problem(InternalError("Something went wrong here; the log of this service has it by request id."))


def _from_http(error: HTTPException) -> Problem:
    if error.code == 404:
        return NotFound("There is nothing at this address; POST a picture to /predict.")
    if error.code == 405:
        return MethodNotAllowed(f"{request.method} is not answered here; POST a picture to /predict, GET the rest.")
    problem = BadRequest("The request could not be read; send it again with a usual client.")
    problem.status = error.code or 400
    return problem
