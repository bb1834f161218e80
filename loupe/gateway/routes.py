"""The gateway's addresses (contract 2), and how its errors look.

app = create_app(Settings.from_environment(os.environ))
"""

from __future__ import annotations

import re
import time
import uuid
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, jsonify, render_template, request, send_from_directory
from werkzeug.exceptions import HTTPException

from loupe.errors import BadRequest, InternalError, MethodNotAllowed, NotFound, Problem, Stopping
from loupe.gateway.bodies import read
from loupe.gateway.client import ModelClient
from loupe.gateway.life import stopping
from loupe.gateway.predictions import Batch
from loupe.gateway.problems import HEADERS, as_json
from loupe.gateway.settings import Settings

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "samples"
SAMPLES_OF = "tires"  # the model that the sample pictures are for
_REQUEST_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


def create_app(settings: Settings) -> Flask:
    app = Flask("loupe", root_path=str(Path(__file__).parent), static_folder="page")
    app.json.sort_keys = False  # type: ignore[attr-defined]  # scores stand in order, best first
    model = ModelClient(settings)
    _add_health(app, model, settings)
    _add_page(app, settings)
    _add_errors(app)

    @app.post("/predict")
    def predict() -> Response:
        started = time.monotonic()
        top, heatmaps = _top(), _flag("heatmap")
        sent = read(request, settings)
        batch = Batch(sent, settings)
        batch.gather()
        fetched = time.monotonic()
        answer = model.predict(batch.pixels, heatmaps=heatmaps)
        about = {
            "model": {"name": settings.model, "version": answer.version},
            "timings_ms": {
                "fetch": round((fetched - started) * 1000),  # reading the request and fetching what is a URL
                "decode": round(answer.prepare_seconds * 1000),
                "model": round(answer.model_seconds * 1000),
            },
            "request_id": g.request_id,
        }
        results = batch.results(answer, top, heatmaps)
        if not sent.many:
            return jsonify({**_plain(results[0]), **about})
        return jsonify({"predictions": [_plain(result) for result in results], **about})

    return app


def _plain(result: dict[str, Any] | Problem) -> dict[str, Any]:
    return {"error": as_json(result)} if isinstance(result, Problem) else result


def _top() -> int | None:
    text = request.args.get("top")
    if text is None:
        return None
    if not re.fullmatch("0*[1-9][0-9]{0,4}", text):
        raise BadRequest("top must be a whole number, at least 1: how many labels to list.")
    return int(text)


def _flag(name: str) -> bool:
    text = request.args.get(name, "0")
    if text not in ("0", "1"):
        raise BadRequest(f"{name} must be 0 or 1.")
    return text == "1"


def _add_health(app: Flask, model: ModelClient, settings: Settings) -> None:
    @app.get("/healthz")
    def healthz() -> Response:
        """Is this process alive? Never asks the model."""
        return jsonify({"status": "ok"})

    @app.get("/readyz")
    def readyz() -> Response:
        """Would /predict answer now?"""
        if stopping.is_set():
            raise Stopping("This gateway was told to stop; ask another.")
        version, _ = model.card()
        return jsonify({"status": "ready", "model": {"name": settings.model, "version": version}})

    @app.get("/model")
    def card() -> Response:
        version, found = model.card()
        return jsonify({**found.to_dict(), "version": version})


def _add_page(app: Flask, settings: Settings) -> None:
    @app.get("/")
    def page() -> str:
        samples = sorted(path.name for path in SAMPLES.glob("*.jpg")) if settings.model == SAMPLES_OF else []
        return render_template("index.html", samples=samples, model=settings.model)

    @app.get("/samples/<name>")
    def sample(name: str) -> Response:
        return send_from_directory(SAMPLES, name)


def _add_errors(app: Flask) -> None:
    @app.before_request
    def name_the_request() -> None:
        given = request.headers.get("X-Request-ID", "")
        g.request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex

    @app.after_request
    def add_headers(response: Response) -> Response:
        response.headers.update({**HEADERS, "X-Request-ID": g.request_id})
        return response

    @app.errorhandler(Problem)
    def answer_problem(problem: Problem) -> Response:
        response = jsonify({**as_json(problem), "request_id": g.request_id})
        response.status_code, response.mimetype = problem.status, "application/problem+json"
        if problem.retry_after is not None:
            response.headers["Retry-After"] = str(problem.retry_after)
        return response

    @app.errorhandler(HTTPException)
    def answer_http(error: HTTPException) -> Response:
        response = answer_problem(_from_http(error))
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
    problem = BadRequest("The request could not be read.")
    problem.status = error.code or 400
    return problem
