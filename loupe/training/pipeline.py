"""The order of a training: features once, head, fine-tuning, evaluation.

    pipeline = Pipeline(settings, data, devices, state=run.state, cache=Cache(…))
    finished = pipeline.train()             # False after Ctrl-C: the best state so far is there
    pipeline.model                          # from pixels to logits, in float32
    result = pipeline.evaluate()            # calibrated, and measured on the test pictures

With `base`, a finished run, only a head is trained: on that run's own backbone, whether it was trained whole, in part
or not at all. The features are that backbone's.

While the backbone is frozen nothing is trained on pixels: its features are computed once and cached. A head without a
hidden layer begins as the logistic regression of them, and is kept if no epoch is better. A network without trained
weights (a plain one, or a backbone with --weights none --fine-tune all) is trained whole, in one stage.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from loupe.card import Card
from loupe.errors import UserError
from loupe.images.decode import FIT, RESIZE
from loupe.training.data.dataset import Dataset
from loupe.training.evaluate.evaluate import Result, Trained, evaluate
from loupe.training.fit.augment import Augment, Augmentation, blend
from loupe.training.fit.batches import Batches, balanced
from loupe.training.fit.feature_cache import Cache
from loupe.training.fit.logistic import Start, solve_head
from loupe.training.fit.scaling import Scaled, Scaling, fold
from loupe.training.fit.stage import Outcome, Stage, fit
from loupe.training.network.backbones import build_trunk, cut, freeze, trunk_layers, with_head
from loupe.training.network.devices import POLICIES, Devices
from loupe.training.network.plain import fuse_norms
from loupe.training.settings import ALL, HEAD, TUNED, Settings

TRIAL_EPOCHS = 20  # of a trial and of its winner, unless --epochs says otherwise
TUNED_FILE = "tuned.json"  # what the search chose


class Pipeline:
    def __init__(
        self,
        settings: Settings,
        data: Dataset,
        devices: Devices,
        state: Path,
        cache: Cache,
        base: Path | None = None,
    ) -> None:
        self.base = base
        self.asked = settings  # what was given, where `settings` has a value for everything
        self.settings, self.data, self.devices, self.state, self.cache = settings.resolved, data, devices, state, cache
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.trials: list[dict[str, Any]] = []
        self.batch_size, self.head_epochs = self.settings.batch_size, self.settings.epochs
        self.notes: list[str] = [] if base else [*filter(None, [self.settings.learns_nothing])]
        self.features: Any = None  # pooled features of every picture; None once fine-tuning changed the backbone
        self.frozen: Any = None  # the same features, kept after fine-tuning: no label has changed them
        self.augment = Augment(augmentation(self.settings), self.settings.seed)

    def train(self) -> bool:
        if not len(self.data.validation):
            raise UserError(
                "No picture is left to choose the best state by. Give more pictures, or --validation SHARE."
            )
        keras.utils.set_random_seed(self.settings.seed)
        _, height, width, _ = self.data.pixels.shape
        with self.devices.scope():
            trunk = self._trunk(height, width)
            finished = self._from_scratch(trunk) if self._trains_from_scratch() else self._transfer(trunk)
            self.model = self._in_float32(height, width)
        return finished

    def evaluate(self) -> Result:
        # Features in half precision are not quite the served network's. With `base` they are taken all the same: they
        # may be all that is left of the pictures.
        served_features = self.features if self.devices.precision == "float32" or self.base else None
        with self.timed("measuring"):
            return evaluate(Trained(self.model, self.data, self.settings.seed, self.settings.certain, served_features))

    def _trains_from_scratch(self) -> bool:
        return not self.base and self.settings.fine_tune == ALL and self.settings.weights == "none"

    def _trunk(self, height: int, width: int) -> keras.Model:
        keras.utils.set_random_seed(self.settings.seed)  # the weights must not depend on what was built before
        weights = str(self.base) if self.base else self.settings.weights
        return build_trunk(self.settings.backbone, height, width, weights)

    def _with_new_head(self, trunk: keras.Model) -> keras.Model:
        keras.utils.set_random_seed(self.settings.seed)
        settings = self.settings
        return with_head(trunk, len(self.data.labels), settings.head or 0, settings.dropout or 0.0)

    # ------------------------------------------------------------------ stages

    def _from_scratch(self, trunk: keras.Model) -> bool:
        self.model = self._with_new_head(trunk)
        self.tuned_layers = freeze(self.model, ALL, keep_norms=False)
        if self.devices.precision == "bfloat16" and not self.devices.strategy:
            fuse_norms(self.model)
        settings = self.settings
        stage = self._stage("train", settings.epochs, settings.lr)
        outcome = self._fit(self.model, stage, self._varied_batches(stage), self._validation_batches(self.data.pixels))
        return outcome.finished

    def _transfer(self, trunk: keras.Model) -> bool:
        """Train a head on cached features, then fine-tune the last layers if asked for."""
        # The frozen backbone's features of every picture, computed once.
        trunk.trainable = False
        pooled = keras.Model(trunk.input, keras.layers.GlobalAveragePooling2D(name="pool")(trunk.output))
        if self.settings.tune:
            self._tune()
        with self.timed("features"):
            self.features = self.frozen = self._cached_features(pooled, self.data, self.settings.views)
        outcome = self._train_head(trunk)
        # Fine-tuning, if it is asked for.
        if self.base:
            self._note_augmentation()
        if self.base or not outcome.finished or not self.settings.fine_tune:
            return outcome.finished
        return self._fine_tune(outcome.best_loss)

    def _train_head(self, trunk: keras.Model) -> Outcome:
        """Train the head on scaled features, and fold the scaling into it."""
        # Without a hidden layer it begins as the logistic regression.
        settings, scaling = self.settings, Scaling.of(self.features, self.data.train)
        scaled = Scaled(self.features, scaling)
        start = self._logistic(scaled, settings.views) if not settings.head or self._searches_head else None
        self._set_head(trunk, start)
        self.history += [start.row] if start else []
        # Train it. One with a hidden layer has to learn for a while before it can be compared.
        stage = self._stage("head", self.head_epochs, settings.lr)
        batches = self._training_batches(scaled, stage, size=self.batch_size, views=settings.views)
        baseline_loss = start.row["val_loss"] if start and not settings.head else math.inf
        _, head = cut(self.model, 0)
        outcome = self._fit(head, stage, batches, self._validation_batches(scaled), baseline_loss)
        # What wins on the validation pictures is kept.
        if start and outcome.best_loss >= start.row["val_loss"]:
            which = "The head that fine-tuning starts from" if settings.fine_tune and not self.base else "The head"
            self.notes.append(
                f"{which} is a logistic regression (C {start.strength:g}): no epoch of training was better on the "
                "validation pictures."
            )
            outcome.best_loss = start.row["val_loss"]
            if settings.head:
                self.settings = replace(settings, head=0)
                self._set_head(trunk, start)
                _, head = cut(self.model, 0)
        fold(head, scaling)
        return outcome

    def _set_head(self, trunk: keras.Model, start: Start | None) -> None:
        """Put a new head on the backbone. It begins at `start` if it has no hidden layer."""
        self.model = self._with_new_head(trunk)
        self.tuned_layers = freeze(self.model, 0)
        if start and not self.settings.head:
            self.model.get_layer("logits").set_weights([start.kernel, start.bias])

    @property
    def _searches_head(self) -> bool:
        return bool(self.settings.tune) and self.asked.head is None

    def _logistic(self, scaled: Scaled, views: int, side: int | None = None) -> Start | None:
        """Return the logistic regression on these features, or None if they hold no usable numbers."""
        stage = self._stage("head", self.head_epochs, self.settings.lr)
        batches = self._training_batches(scaled, stage, views=views)
        path = self.state / f"logistic-{side or self.data.pixels.shape[1]}-{views}.npz"
        with self.timed("logistic"):
            start = solve_head(batches, self._validation_batches(scaled), path)
        return start if math.isfinite(start.row["val_loss"]) else None

    def _note_augmentation(self) -> None:
        if self.settings.views > 1:
            self.notes.append(f"Corrections were varied as the run's pictures: {self.settings.views} views of each.")
        elif not self.augment.augmentation.is_none:
            self.notes.append(
                "The run's augmentation varied pixels; the new head learnt from features of the pictures as they are."
            )

    def _fine_tune(self, head_loss: float) -> bool:
        """Train the last layers of the backbone. The head alone is kept if this does not beat `head_loss`."""
        # Split the network below the first layer that is trained.
        settings = self.settings
        self.tuned_layers = freeze(self.model, settings.fine_tune or 0)
        stage = self._stage("fine-tune", settings.fine_tune_epochs, settings.fine_tune_lr)
        front, back = cut(self.model, settings.fine_tune or 0)
        # Without augmentation, cache what the frozen front gives; otherwise train on pixels.
        if self.augment.augmentation.is_none and len(front.layers) > 2:  # not worth it if `front` is the scaling alone
            try:
                with self.timed("boundary"):
                    boundary_features = self._cached_features(front, self.data, 1)
            except KeyboardInterrupt:
                return False  # the trained head remains
            outcome = self._fit(
                back,
                stage,
                self._training_batches(boundary_features, stage),
                self._validation_batches(boundary_features),
                head_loss,
            )
        else:
            outcome = self._fit(
                self.model, stage, self._varied_batches(stage), self._validation_batches(self.data.pixels), head_loss
            )
        # Note which of both is kept.
        if outcome.best_loss < head_loss:
            self.features = None  # they belong to the backbone before fine-tuning
        else:
            self.tuned_layers = 0
            self.notes.append("Fine-tuning found nothing better than the head alone, which is kept.")
        return outcome.finished

    def _tune(self) -> None:
        """Replace head, rate, dropout and decay by those of the best trial, but for those that are given.

        Ctrl-C ends the search, and the best settings so far are trained. A resumed run keeps what the search chose.
        """
        if self.base or self.tuned_path.exists():
            tuned = json.loads(self.tuned_path.read_text())
        else:
            tuned = self._search()
            self.tuned_path.with_suffix(".part").write_text(json.dumps(tuned))
            self.tuned_path.with_suffix(".part").replace(self.tuned_path)
        self.trials, self.notes = tuned["trials"], [*self.notes, *tuned["notes"]]
        self.settings = replace(self.settings, **tuned["settings"])
        self.batch_size = tuned["batch_size"]  # this and the epochs as the search tried it
        self.head_epochs = tuned.get("epochs", TRIAL_EPOCHS)
        summary = ", ".join(f"{name} {value:g}" for name, value in tuned["settings"].items())
        print(f"tuned     {summary}; its head learns for {self.head_epochs} epochs in batches of {self.batch_size}")

    @property
    def tuned_path(self) -> Path:
        return (self.base or self.state) / TUNED_FILE

    def _search(self) -> dict[str, Any]:
        """Search on features, at the size of --tune-size if given. Return what tuned.json stores."""
        from loupe.training.tune.search import search
        from loupe.training.tune.trial import solved

        # Features at the size of the search.
        settings = self.settings
        side = settings.tune_size or self.data.pixels.shape[1]
        data = self.data if side == self.data.pixels.shape[1] else self.data.resized(side, side, self.state)
        with self.timed("features for tuning"):
            trunk = self._trunk(side, side)
            pooled = keras.Model(trunk.input, keras.layers.GlobalAveragePooling2D(name="pool")(trunk.output))
            features = self._cached_features(pooled, data, 1)
        # The logistic regression of them, which the search has to beat.
        scaled = Scaled(features, Scaling.of(features, data.train))
        start = self._logistic(scaled, 1, side) if self._searches_head or not settings.head else None
        # Search on training and validation pictures.
        examples = [(scaled[rows].astype(np.float16), data.classes[rows]) for rows in (data.train, data.validation)]
        given = {name: value for name in TUNED if (value := getattr(self.asked, name)) is not None}
        epochs = self.asked.epochs or TRIAL_EPOCHS
        with self.timed("tuning"):
            best = search(
                examples[0],
                examples[1],
                len(data.labels),
                settings.tune,
                settings.seed,
                self.state / "tuning.journal",
                epochs=epochs,
                batch_size=self.asked.batch_size,
                optimizer=settings.optimizer,
                schedule=settings.schedule,
                class_weights=dict(enumerate(self._class_weights())) if settings.class_weights else None,
                label_smoothing=settings.label_smoothing,
                given=given,
                first={name: getattr(settings, name) for name in TUNED} | {"head": HEAD},
                logistic=solved(start.row) if start else None,
            )
        if not best.finished:
            print(
                f"interrupted        the best of {len(best.trials)} trials is trained now; Ctrl-C again ends that, too"
            )
        # What the run stores of it.
        chosen = {"head": 0} if best.is_logistic else {name: getattr(best, name) for name in TUNED}
        trials = [dict(trial) for trial in best.trials]
        return {
            "settings": chosen,
            "batch_size": best.batch_size,
            "epochs": epochs,
            "trials": trials,
            "notes": best.notes,
        }

    # ------------------------------------------------------------------ parts of a stage

    def _stage(self, name: str, epochs: int | None, lr: float | None) -> Stage:
        assert epochs is not None and lr is not None, "resolved"
        settings = self.settings
        return Stage(
            name,
            epochs,
            lr,
            settings.seed,
            settings.optimizer,
            settings.decay or 0.0,
            settings.schedule,
            settings.patience,
            settings.ema,
        )

    def _fit(
        self, model: keras.Model, stage: Stage, batches: Batches, validation: Batches, baseline_loss: float = math.inf
    ) -> Outcome:
        with self.timed(stage.name):
            outcome = fit(model, stage, batches, validation, self.state / f"{stage.name}.npz", baseline_loss)
        self.history += outcome.history
        if math.isinf(outcome.best_loss) and not outcome.finished:
            raise KeyboardInterrupt  # before the end of the first epoch there is nothing to keep
        if math.isinf(outcome.best_loss):
            (self.state / f"{stage.name}.npz").unlink(missing_ok=True)  # no resumed run could use it
            raise UserError("The loss became no number at all: try again with a lower --lr.")
        return outcome

    def _training_batches(self, source: Any, stage: Stage, size: int | None = None, **options: Any) -> Batches:
        weights = self._class_weights() if self.settings.class_weights else None
        return Batches(
            source,
            self.data.classes,
            self.data.train,
            len(self.data.labels),
            size or self.settings.batch_size or 32,
            seed=stage.seed,
            smoothing=self.settings.label_smoothing,
            weights=weights,
            **options,
        )

    def _varied_batches(self, stage: Stage) -> Batches:
        return self._training_batches(
            self.data.pixels, stage, vary=None if self.augment.augmentation.is_none else self._vary_batch
        )

    def _vary_batch(self, pixels: Any, shares: Any, number: int) -> tuple[Any, Any]:
        varied, alpha = self.augment(pixels, number), self.settings.mixup
        return blend(varied, shares, alpha, self.settings.seed, number) if alpha else (varied, shares)

    def _validation_batches(self, source: Any) -> Batches:
        return Batches(source, self.data.classes, self.data.validation, len(self.data.labels), 64)

    def _class_weights(self) -> Any:
        return balanced(self.data.classes[self.data.train], len(self.data.labels))

    def _cached_features(self, front: keras.Model, data: Dataset, views: int) -> Any:
        """Return `front`'s features of every picture, from the cache where it has them. With several views the arrays
        of all views follow one another."""
        # Everything that the features depend on, but for weights and pictures.
        dependencies = {
            "network": self.settings.backbone,
            "layers": len(front.layers),  # how deep it is cut
            "pixels": (RESIZE, FIT),
            "height": data.pixels.shape[1],
            "width": data.pixels.shape[2],
            "precision": self.devices.precision,
        }
        ids = [picture.sha256 for picture in data.pictures]
        count = len(ids)

        def pixels(rows: Sequence[int]) -> Any:
            if rows[-1] < count:
                return data.pixels[list(rows)]
            # one by one: a view must not depend on which other views are missing
            return np.concatenate(
                [data.pixels[[row]] if row < count else self.augment(data.pixels[[row % count]], row) for row in rows]
            )

        # Give each view of a training picture an id of its own.
        if views > 1:  # only training pictures are varied; every view of the others is the picture itself
            variation = json.dumps([vars(self.augment.augmentation), self.settings.seed], default=str)
            train_rows = set(data.train.tolist())
            for view in range(1, views):
                view_ids = (
                    hashlib.sha256(f"{picture_id} {variation} {view}".encode()).hexdigest()
                    for picture_id in ids[:count]
                )
                ids += [view_id if row in train_rows else ids[row] for row, view_id in enumerate(view_ids)]
        # Compute what is missing, and say so on the terminal.
        cached = self.cache.features(front, pixels, ids, dependencies)
        origin = (
            f"{cached.computed:,} computed in {cached.seconds:.0f} s" if cached.computed else "all kept from before"
        )
        location = (
            f"{self.cache.folder} ({self.cache.size() / 1e6:,.0f} MB)"
            if cached.folder
            else "no cache: too large for it"
        )
        print(f"features  {len(ids):,} pictures × {' × '.join(map(str, cached.array.shape[1:]))}: {origin}; {location}")
        return cached.array

    def _in_float32(self, height: int, width: int) -> keras.Model:
        """Return the network as it is served: in float32 on one device, whatever it was trained in."""
        if self.devices.precision == "float32" and not self.devices.strategy:
            return self.model
        weights = self.model.get_weights()
        keras.config.set_dtype_policy("float32")
        settings = replace(self.settings, weights="none")
        trunk = build_trunk(settings.backbone, height, width)
        model = self._with_new_head(trunk)
        model.set_weights(weights)
        keras.config.set_dtype_policy(POLICIES[self.devices.precision])
        return model

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - started


def augmentation(settings: Settings) -> Augmentation:
    return Augmentation(
        flip=settings.flip,
        rotation=settings.rotation,
        zoom=settings.zoom,
        shear=settings.shear,
        shift=settings.shift,
        brightness=settings.brightness,
        contrast=settings.contrast,
        colour=settings.colour,
        erasing=settings.erasing,
        mixup=settings.mixup,
    )


def backbone_of(pipeline: Pipeline) -> dict[str, Any]:
    """Return the backbone as the card describes it."""
    if pipeline.base:
        return Card.read(pipeline.base / "card.json").backbone  # it is as it was
    settings = pipeline.settings
    layers = min(pipeline.tuned_layers, len(trunk_layers(pipeline.model)))
    return {"name": settings.backbone, "weights": Path(settings.weights).name, "fine_tuned_layers": layers}
