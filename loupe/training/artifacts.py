"""Write what a training produces: the model, its card, metrics and report, and a closing table for the terminal.

suspects = write(run.staging, name, pipeline, result, findings, command, seconds)
print(summarize(result, pipeline, suspects, folder, seconds))
"""

from __future__ import annotations

import csv
import json
import shutil
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from loupe.card import MAX_CONFUSION, Card
from loupe.errors import ImageError, UserError
from loupe.gradcam import heatmaps
from loupe.images.api import decode
from loupe.progress import bar, clock
from loupe.training.data import record
from loupe.training.data.dataset import Dataset
from loupe.training.data.doctor import Findings
from loupe.training.data.label_errors import (
    describe,
    first_to_look_at,
    label_errors,
    out_of_fold,
    rather_wrong,
    second_opinion,
)
from loupe.training.data.names import printable, printable_path
from loupe.training.evaluate import heldout
from loupe.training.evaluate.evaluate import BATCH, Result
from loupe.training.evaluate.metrics import Evaluation, confidence_bins, merge_bins, softmax
from loupe.training.pipeline import TUNED_FILE, Pipeline, backbone_of
from loupe.training.report import render
from loupe.training.report.story import Story

LABEL_ERRORS = "label_errors.csv"  # of a run: labels that may be wrong
SHEET = 6  # pictures on the contact sheet
VIEWS = 7  # views of each


def write(
    staging: Path, name: str, pipeline: Pipeline, result: Result, findings: Findings, command: str, seconds: float
) -> int:
    """Write all files of a finished run into `staging`. `seconds` is the time that the training took so far. Return how
    many labels may be wrong."""
    data, settings = pipeline.data, pipeline.settings
    try:
        # The model, its card, and the pictures that an export is checked on.
        pipeline.model.save(staging / "model.keras")
        if result.calibration.familiarity:
            result.calibration.familiarity.save(staging / "familiarity.npz")
        (staging / "card.json").write_text(card(name, pipeline, result).to_json(), encoding="utf-8")
        heldout.write(staging / "pictures.json", data, result.heldout)
        # What --add goes on with: the data set, and the settings that a search chose.
        record.write(staging / "data.json", data)
        if pipeline.trials:
            shutil.copyfile(pipeline.tuned_path, staging / TUNED_FILE)
        # History and metrics, with the labels that look wrong.
        _write_table(staging / "history.csv", pipeline.history)
        with pipeline.timed("label check"):
            suspects, doubted = suspected_labels(pipeline, result)
        metrics = {
            **result.metrics,
            "seconds": {stage: round(duration, 1) for stage, duration in pipeline.seconds.items()},
        }
        metrics["label_errors"] = [_suspect(data, *suspect) for suspect in suspects]
        metrics["label_errors_expected_right"] = round(sum(1 - wrong for *_, wrong in suspects), 1)
        if suspects:
            by_doubt = sorted(metrics["label_errors"], key=lambda suspect: -float(suspect["score"]))
            _write_table(staging / LABEL_ERRORS, by_doubt)
        if pipeline.trials:
            metrics["trials"] = pipeline.trials
        (staging / "metrics.json").write_text(
            json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        # Predictions for a competition, if the data set asks for some.
        if any(file.path.exists() for file in data.predict):
            _write_submission(staging / "submission.csv", pipeline, result.calibration.temperature)
        # The report, from everything above.
        story = Story(
            name=name,
            dataset=data,
            predictions=result.predictions,
            split=result.split,
            model={
                "backbone": settings.backbone,
                "weights": Path(settings.weights).name,
                "parameters": pipeline.model.count_params(),
                "trained layers of the backbone": backbone_of(pipeline)["fine_tuned_layers"],
                "input": f"{data.pixels.shape[2]} × {data.pixels.shape[1]}",
            },
            history=pipeline.history,
            seconds=pipeline.seconds,
            command=command,
            settings=settings.shown(),
            hardware=pipeline.devices.describe(),
            versions={package: version(package) for package in ("tensorflow", "keras", "numpy", "pillow")},
            data={"folder": data.root.name, "fingerprint": data.digest[:16]},
            calibration=result.calibration,
            findings=findings,
            label_errors=suspects,
            doubted=doubted,
            heat=lambda pixels: heatmaps(pipeline.model, pixels),
            augmented=contact_sheet(pipeline),
            trials=pipeline.trials,
            total=seconds,
            notes=[*pipeline.notes, *result.calibration.notes],
        )
        with pipeline.timed("report"):
            render.write(staging, story)
    except OSError as error:
        raise UserError(
            f"The run cannot be written to {staging.parent} ({error.strerror or error}). Free it, then --resume."
        ) from error
    return len(suspects)


def card(name: str, pipeline: Pipeline, result: Result) -> Card:
    data, calibration = pipeline.data, result.calibration
    images = len(result.predictions.rows)
    # Everything a server must know of the model is copied into its card.
    return Card(
        name=name,
        labels=data.labels,
        height=data.pixels.shape[1],
        width=data.pixels.shape[2],
        backbone=backbone_of(pipeline),
        temperature=calibration.temperature,
        certain_at=calibration.certain_at,
        certain_note=calibration.certain_note,
        unfamiliar_below=calibration.unfamiliar_below,
        metrics={
            "split": result.split,
            "images": images,
            "accuracy": result.metrics["accuracy"],
            "commonest": max(result.metrics["images"][result.split].values()),
            "ece": result.metrics["ece"],
            **_measured(data, result),
        },
        training={
            "images": data.counts(data.train),
            "finished": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "seed": pipeline.settings.seed,
            "tensorflow": version("tensorflow"),
        },
    )


def _measured(data: Dataset, result: Result) -> dict[str, Any]:
    """Return what the card's two pictures are drawn from: which labels were given to which, and whether as many
    answers were right as their confidence says."""
    evaluation = Evaluation.of(result.predictions, data)
    bins = merge_bins(confidence_bins(evaluation.confidence, evaluation.right), max(5, len(evaluation.rows) // 50))
    reliability = [[round(each.confidence, 4), round(each.accuracy, 4), each.count] for each in bins]
    if len(data.labels) > MAX_CONFUSION:
        return {"reliability": reliability}
    return {"confusion": evaluation.confusion.tolist(), "reliability": reliability}


def suspected_labels(pipeline: Pipeline, result: Result) -> tuple[list[tuple[int, int, float]], list[tuple[int, int]]]:
    """Return (row, likelier class, probability that it is wrong) of each label that is rather wrong than right. Where
    there is none, return (row, likelier class) of the most doubtful as well.

    The features must not come from a network that was trained on these labels, nor from one with random weights. If
    they would, each picture is described without a network.
    """
    data = pipeline.data
    if pipeline.base and (pipeline.settings.weights == "none" or backbone_of(pipeline)["fine_tuned_layers"]):
        pipeline.notes.append("Labels were not checked again: the features of this backbone come from these labels.")
        return [], []
    if pipeline.frozen is None or pipeline.settings.weights == "none":
        features = describe(data.pixels)
    else:
        features = np.asarray(pipeline.frozen[np.arange(len(data.pictures))], np.float32)
    probabilities = out_of_fold(features, data.classes, pipeline.settings.seed)
    opinions = {
        int(row): opinion
        for some in (result.heldout, result.predictions)
        for row, opinion in zip(some.rows, some.probabilities, strict=True)
    }
    suspects = label_errors(probabilities, data.classes)
    listed = rather_wrong(second_opinion(rather_wrong(suspects), opinions))
    doubted = [] if listed else first_to_look_at(suspects, opinions)
    return (
        [(suspect.row, suspect.suggested, suspect.wrong) for suspect in listed],
        [(suspect.row, suspect.suggested) for suspect in doubted],
    )


def contact_sheet(pipeline: Pipeline) -> Any:
    """Return some training pictures as they are and as training saw them, [pictures, views, H, W, 3]."""
    if pipeline.augment.augmentation.is_none:
        return None
    rows = pipeline.data.train[:: max(1, len(pipeline.data.train) // SHEET)][:SHEET]
    if pipeline.base and (pipeline.settings.views == 1 or not all(map(pipeline.data.has_pixels, rows))):
        return None  # nothing was varied, or the pictures are gone
    pixels = pipeline.data.pixels[rows]
    views = [np.asarray(pixels, np.float32), *(pipeline.augment(pixels, number) for number in range(VIEWS))]
    return np.clip(np.stack(views, axis=1), 0, 255).astype(np.uint8)


def summarize(result: Result, pipeline: Pipeline, suspects: int, folder: Path, seconds: float) -> str:
    """Return the lines that the terminal shows at the end of a training. `suspects` labels may be wrong."""
    metrics, calibration = result.metrics, result.calibration
    pictures = len(result.predictions.rows)
    # Accuracy and calibration.
    before = f" ({metrics['ece_before']:.3f} before temperature {calibration.temperature:.2f})"
    lines = [
        f"\naccuracy           {metrics['accuracy']:.1%} of {pictures} {result.split} pictures",
        f"calibration error  {metrics['ece']:.3f}{before if calibration.temperature != 1 else ''}",
    ]
    # A warning if always guessing one class would do as well.
    commonest = max(metrics["images"][result.split].values()) / pictures
    if metrics["accuracy"] <= commonest:
        lines.append(f"                   no better than always saying the most frequent class ({commonest:.1%})")
    if calibration.certain_at is not None:
        lines.append(f"certain from       {calibration.certain_at:.3f}")
    if calibration.certain_note:
        lines.append(f"certain            {calibration.certain_note}")
    lines += [f"note               {note}" for note in (*pipeline.notes, *calibration.notes)]
    # Labels that a person should look at.
    if suspects:
        lines.append(
            f"labels             {suspects} may be wrong: the report shows them, {folder / LABEL_ERRORS} lists them"
        )
    # Where the time went, and where the files are.
    durations = ", ".join(
        f"{stage} {clock(duration)}" for stage, duration in pipeline.seconds.items() if duration >= 0.5
    )
    lines += [
        f"time               {clock(seconds)} ({durations})",
        f"run                {folder}",
        f"report             {folder / 'report.html'}",
    ]
    return "\n".join(lines)


def _suspect(data: Dataset, row: int, likelier: int, wrong: float) -> dict[str, Any]:
    """Return one suspected label as metrics.json stores it."""
    path = data.pictures[row].file.path
    relative = path.relative_to(data.root) if path.is_relative_to(data.root) else path
    return {
        "file": printable_path(relative),
        "label": data.labels[data.classes[row]],
        "likelier": data.labels[likelier],
        "score": round(float(wrong), 4),
    }


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors="replace") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else [])
        writer.writeheader()
        writer.writerows(rows)


def _write_submission(path: Path, pipeline: Pipeline, temperature: float) -> None:
    """Write submission.csv: every row that is asked for, in its order.

    A row holds a label, or a probability for each class that has a column. A row whose picture is missing or cannot be
    read gets the classes' shares of the training pictures, because no row may be missing.
    """
    data, submission = pipeline.data, pipeline.data.submission
    # The scores, and those of a row without a picture.
    counts = np.bincount(data.classes[data.train], minlength=len(data.labels))
    class_shares = counts / counts.sum()
    scores = _scores(pipeline, temperature)
    # The header and the ids.
    columns = submission.columns if submission else ()
    class_index = {label: number for number, label in enumerate(data.labels)}
    header = (submission.id_column, *(columns or (submission.label_column,))) if submission else ("Id", "label")
    ids = submission.ids if submission else [file.id for file in data.predict]
    # One line for each id.
    with path.open("w", newline="", encoding="utf-8", errors="replace") as table:
        writer = csv.writer(table)
        writer.writerow(header)
        for picture_id in ids:
            score = scores.get(picture_id, class_shares)
            if columns:
                indices = [class_index.get(printable(column)) for column in columns]
                writer.writerow(
                    [picture_id, *(0.0 if index is None else round(float(score[index]), 6) for index in indices)]
                )
            else:
                writer.writerow([picture_id, data.labels[int(score.argmax())]])
    # A note on rows that have no picture.
    missing = sum(picture_id not in scores for picture_id in ids)
    note = f"; {missing} have no readable picture and say what is most frequent" if missing else ""
    print(f"submission: {len(ids):,} rows{note}")


def _scores(pipeline: Pipeline, temperature: float) -> dict[str, Any]:
    """Return the class probabilities of each picture that could be read, by its id."""
    _, height, width, _ = pipeline.data.pixels.shape
    scores: dict[str, Any] = {}
    files = pipeline.data.predict
    with bar("predicting", len(files)) as step:
        for start in range(0, len(files), BATCH):
            decoded: dict[str, Any] = {}
            for file in files[start : start + BATCH]:
                with suppress(ImageError, OSError):  # the doctor has listed them already
                    decoded[file.id] = decode(file.path.read_bytes(), height, width)
            if decoded:
                logits = pipeline.model.predict_on_batch(np.stack(list(decoded.values())).astype(np.float32))
                scores |= dict(zip(decoded, softmax(logits / temperature), strict=True))
            step(BATCH)
    return scores
