"""What a training leaves behind: the model, its card, its figures, its report, and a closing table.

write(run.part, name, pipeline, result, findings, command)
print(closing(result, pipeline, folder, seconds))
"""

from __future__ import annotations

import csv
import json
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from loupe.card import Card
from loupe.errors import ImageError, UserError
from loupe.gradcam import heatmaps
from loupe.images.api import decode
from loupe.training.data.dataset import Dataset
from loupe.training.data.doctor import Findings
from loupe.training.data.label_errors import describe, label_errors, out_of_fold
from loupe.training.data.names import printable, shown
from loupe.training.evaluate import heldout
from loupe.training.evaluate.evaluate import BATCH, Result
from loupe.training.evaluate.metrics import softmax
from loupe.training.pipeline import Pipeline, backbone_of
from loupe.training.progress import bar, clock
from loupe.training.report import render
from loupe.training.report.story import Story

SHEET = 6  # pictures on the contact sheet
VIEWS = 7  # views of each


def write(
    part: Path, name: str, pipeline: Pipeline, result: Result, findings: Findings, command: str, seconds: float
) -> None:
    """`seconds`: that all of it took so far."""
    data, chosen = pipeline.data, pipeline.settings
    try:
        pipeline.model.save(part / "model.keras")
        if result.calibration.familiarity:
            result.calibration.familiarity.save(part / "familiarity.npz")
        (part / "card.json").write_text(card(name, pipeline, result).to_json(), encoding="utf-8")
        heldout.write(part / "pictures.json", data, result.held)
        _write_table(part / "history.csv", pipeline.history)
        with pipeline.timed("label check"):
            suspects = suspected_labels(pipeline)
        metrics = {**result.metrics, "seconds": {stage: round(took, 1) for stage, took in pipeline.seconds.items()}}
        metrics["label_errors"] = [_suspect(data, *suspect) for suspect in suspects]
        if pipeline.trials:
            metrics["trials"] = pipeline.trials
        (part / "metrics.json").write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if data.predict:
            _write_submission(part / "submission.csv", pipeline, result.calibration.temperature)
        told = Story(
            name=name,
            dataset=data,
            predictions=result.predictions,
            split=result.split,
            model={
                "backbone": chosen.backbone,
                "weights": Path(chosen.weights).name,
                "parameters": pipeline.model.count_params(),
                "trained layers of the backbone": backbone_of(pipeline)["fine_tuned_layers"],
                "input": f"{data.pixels.shape[2]} × {data.pixels.shape[1]}",
            },
            history=pipeline.history,
            seconds=pipeline.seconds,
            command=command,
            settings=chosen.shown(),
            hardware=pipeline.devices.describe(),
            versions={package: version(package) for package in ("tensorflow", "keras", "numpy", "pillow")},
            data={"folder": data.root.name, "fingerprint": data.digest[:16]},
            calibration=result.calibration,
            findings=findings,
            label_errors=suspects,
            heat=lambda pixels: heatmaps(pipeline.model, pixels),
            augmented=contact_sheet(pipeline),
            trials=pipeline.trials,
            total=seconds,
            notes=[*pipeline.notes, *result.calibration.notes],
        )
        with pipeline.timed("report"):
            render.write(part, told)
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {part.parent} ({error.strerror or error}). Free it, then --resume."
        ) from error


def card(name: str, pipeline: Pipeline, result: Result) -> Card:
    data, fitted = pipeline.data, result.calibration
    images = len(result.predictions.rows)
    return Card(
        name=name,
        labels=data.labels,
        height=data.pixels.shape[1],
        width=data.pixels.shape[2],
        backbone=backbone_of(pipeline),
        temperature=fitted.temperature,
        certain_at=fitted.certain_at,
        unfamiliar_below=fitted.unfamiliar_below,
        metrics={
            "split": result.split,
            "images": images,
            "accuracy": result.metrics["accuracy"],
            "ece": result.metrics["ece"],
        },
        training={
            "images": data.counts(data.train),
            "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seed": pipeline.settings.seed,
            "tensorflow": version("tensorflow"),
        },
    )


def suspected_labels(pipeline: Pipeline) -> list[tuple[int, int, float]]:
    """(row, likelier class, how sure): judged by features that never saw the label. A network that was trained on the
    very labels is no honest judge, and random weights are a poor one, so then the pictures are described without."""
    data = pipeline.data
    if pipeline.frozen is None or pipeline.settings.weights == "none":
        features = describe(data.pixels)
    else:
        features = np.asarray(pipeline.frozen[np.arange(len(data.pictures))], np.float32)
    doubts = label_errors(out_of_fold(features, data.classes, pipeline.settings.seed), data.classes)
    return [(doubt.row, doubt.suggested, 1 - doubt.score) for doubt in doubts if doubt.likely]


def contact_sheet(pipeline: Pipeline) -> Any:
    """[pictures, views, H, W, 3]: some training pictures as they are, and as training saw them."""
    if pipeline.augment.augmentation.is_none:
        return None
    rows = pipeline.data.train[:: max(1, len(pipeline.data.train) // SHEET)][:SHEET]
    pixels = pipeline.data.pixels[rows]
    views = [np.asarray(pixels, np.float32), *(pipeline.augment(pixels, number) for number in range(VIEWS))]
    return np.clip(np.stack(views, axis=1), 0, 255).astype(np.uint8)


def closing(result: Result, pipeline: Pipeline, folder: Path, seconds: float) -> str:
    metrics, fitted = result.metrics, result.calibration
    count = len(result.predictions.rows)
    lines = [
        f"\n{result.split} accuracy".ljust(20) + f"{metrics['accuracy']:.1%} of {count} pictures",
        f"calibration error  {metrics['ece']:.3f} ({metrics['ece_before']:.3f} before temperature "
        f"{fitted.temperature:.2f})",
    ]
    commonest = max(metrics["images"][result.split].values()) / count
    if metrics["accuracy"] <= commonest:
        lines.append(f"                   no better than always saying the most frequent class ({commonest:.1%})")
    if fitted.certain_at is not None:
        lines.append(f"certain from       {fitted.certain_at:.3f}")
    lines += [f"note               {note}" for note in (*pipeline.notes, *fitted.notes)]
    took = ", ".join(f"{stage} {clock(time)}" for stage, time in pipeline.seconds.items() if time >= 0.5)
    lines += [
        f"time               {clock(seconds)} ({took})",
        f"run                {folder}",
        f"report             {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def _suspect(data: Dataset, row: int, instead: int, sure: float) -> dict[str, Any]:
    path = data.pictures[row].file.path
    inside = path.relative_to(data.root) if path.is_relative_to(data.root) else path
    return {
        "file": shown(inside),
        "label": data.labels[data.classes[row]],
        "likelier": data.labels[instead],
        "score": round(float(sure), 4),
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _write_submission(path: Path, pipeline: Pipeline, temperature: float) -> None:
    """Every row that is asked for, in its order: a label, or a probability for each class that has a column. One whose
    picture is missing or cannot be read gets the classes' shares of training: a row must not be missing."""
    data, asked = pipeline.data, pipeline.data.submission
    counts = np.bincount(data.classes[data.train], minlength=len(data.labels))
    usual = counts / counts.sum()
    scores = _scores(pipeline, temperature)
    columns = asked.columns if asked else ()
    place = {label: number for number, label in enumerate(data.labels)}
    header = (asked.id_column, *(columns or (asked.label_column,))) if asked else ("Id", "label")
    ids = asked.ids if asked else [file.id for file in data.predict]
    with path.open("w", newline="", encoding="utf-8", errors="replace") as table:
        writer = csv.writer(table)
        writer.writerow(header)
        for name in ids:
            score = scores.get(name, usual)
            if columns:
                cells = [place.get(printable(column)) for column in columns]
                writer.writerow([name, *(0.0 if at is None else round(float(score[at]), 6) for at in cells)])
            else:
                writer.writerow([name, data.labels[int(score.argmax())]])
    without = sum(name not in scores for name in ids)
    note = f"; {without} have no readable picture and say what is most frequent" if without else ""
    print(f"submission: {len(ids):,} rows{note}")


def _scores(pipeline: Pipeline, temperature: float) -> dict[str, Any]:
    """The probabilities of each picture that could be read, by its id."""
    _, height, width, _ = pipeline.data.pixels.shape
    scores: dict[str, Any] = {}
    files = pipeline.data.predict
    with bar("predicting", len(files)) as step:
        for start in range(0, len(files), BATCH):
            pixels: dict[str, Any] = {}
            for file in files[start : start + BATCH]:
                with suppress(ImageError, OSError):  # the doctor has told which these are
                    pixels[file.id] = decode(file.path.read_bytes(), height, width)
            if pixels:
                logits = pipeline.model.predict_on_batch(np.stack(list(pixels.values())).astype(np.float32))
                scores |= dict(zip(pixels, softmax(logits / temperature), strict=True))
            step(BATCH)
    return scores
