"""The order of a training: features once, head, fine-tuning, and at the end what it is worth.

    pipeline = Pipeline(settings, data, devices, state=run.state, cache=Cache(…))
    finished = pipeline.train()             # False after Ctrl-C: what is best so far is there
    pipeline.model                          # from pixels to logits, in float32
    result = pipeline.evaluate()            # calibrated, and measured on the test pictures

While the backbone is frozen nothing is trained on pixels: its features are computed once and kept. A network that has
learnt nothing before (a plain one, or one without weights that is to be trained whole) is trained in one stage.
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

from loupe.errors import UserError
from loupe.images.decode import FIT, RESIZE
from loupe.training.data.dataset import Dataset
from loupe.training.evaluate.evaluate import Result, Trained, evaluate
from loupe.training.fit.augment import Augment, Augmentation, blend
from loupe.training.fit.batches import Batches, balanced
from loupe.training.fit.feature_cache import Cache
from loupe.training.fit.stage import Outcome, Stage, fit
from loupe.training.network.backbones import build_trunk, cut, freeze, trunk_of, with_head
from loupe.training.network.devices import POLICIES, Devices
from loupe.training.network.plain import fuse_norms
from loupe.training.settings import ALL, Settings

TRIAL_EPOCHS = 20
TUNED = ("lr", "head", "dropout", "decay")


class Pipeline:
    def __init__(self, settings: Settings, data: Dataset, devices: Devices, state: Path, cache: Cache) -> None:
        self.settings, self.data, self.devices, self.state, self.cache = settings.resolved, data, devices, state, cache
        self.history: list[dict[str, Any]] = []
        self.seconds: dict[str, float] = {}
        self.trials: list[dict[str, Any]] = []
        self.batch_size, self.head_epochs = self.settings.batch_size, self.settings.epochs
        self.notes: list[str] = []
        self.features: Any = None  # pooled, of every picture, as long as the backbone is what they came from
        self.frozen: Any = None  # the same, also after fine-tuning: what a label could not change
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
            finished = self._from_scratch(trunk) if self._learns_whole() else self._transfer(trunk)
            self.model = self._in_float32(height, width)
        return finished

    def evaluate(self) -> Result:
        served_features = self.features if self.devices.precision == "float32" else None
        with self.timed("measuring"):
            return evaluate(Trained(self.model, self.data, self.settings.seed, self.settings.certain, served_features))

    def _learns_whole(self) -> bool:
        return self.settings.fine_tune == ALL and self.settings.weights == "none"

    def _trunk(self, height: int, width: int) -> keras.Model:
        keras.utils.set_random_seed(self.settings.seed)  # the same weights whatever was built before
        return build_trunk(self.settings.backbone, height, width, self.settings.weights)

    def _headed(self, trunk: keras.Model) -> keras.Model:
        keras.utils.set_random_seed(self.settings.seed)
        chosen = self.settings
        return with_head(trunk, len(self.data.labels), chosen.head or 0, chosen.dropout)

    # ------------------------------------------------------------------ stages

    def _from_scratch(self, trunk: keras.Model) -> bool:
        self.model = self._headed(trunk)
        self.tuned_layers = freeze(self.model, ALL, keep_norms=False)
        if self.devices.precision == "bfloat16" and not self.devices.strategy:
            fuse_norms(self.model)
        chosen = self.settings
        stage = self._stage("train", chosen.epochs, chosen.lr)
        outcome = self._fit(self.model, stage, self._varied(stage), self._plain(self.data.pixels))
        return outcome.finished

    def _transfer(self, trunk: keras.Model) -> bool:
        trunk.trainable = False
        pooled = keras.Model(trunk.input, keras.layers.GlobalAveragePooling2D(name="pool")(trunk.output))
        if self.settings.tune:
            self._tune()
        with self.timed("features"):
            self.features = self.frozen = self._kept(pooled, self.data, self.settings.views)
        self.model = self._headed(trunk)
        self.tuned_layers = freeze(self.model, 0)
        _, head = cut(self.model, 0)
        stage = self._stage("head", self.head_epochs, self.settings.lr)
        if self.trials:
            stage = replace(stage, schedule="cosine", optimizer="adamw", ema=0.0)  # as it was tried
        batches = self._batches(self.features, stage, size=self.batch_size, views=self.settings.views)
        outcome = self._fit(head, stage, batches, self._plain(self.features))
        if not outcome.finished or not self.settings.fine_tune:
            return outcome.finished
        return self._fine_tune(outcome.best)

    def _fine_tune(self, best: float) -> bool:
        chosen = self.settings
        self.tuned_layers = freeze(self.model, chosen.fine_tune or 0)
        stage = self._stage("fine-tune", chosen.fine_tune_epochs, chosen.fine_tune_lr)
        front, back = cut(self.model, chosen.fine_tune or 0)
        if self.augment.augmentation.is_none and len(front.layers) > 2:  # with the scaling alone, pixels are smaller
            try:
                with self.timed("boundary"):
                    kept = self._kept(front, self.data, 1)
            except KeyboardInterrupt:
                return False  # the head is there
            outcome = self._fit(back, stage, self._batches(kept, stage), self._plain(kept), best)
        else:
            outcome = self._fit(self.model, stage, self._varied(stage), self._plain(self.data.pixels), best)
        if outcome.best < best:
            self.features = None  # the backbone is no longer what they came from
        else:
            self.tuned_layers = 0
            self.notes.append("Fine-tuning found nothing better than the head alone, which is kept.")
        return outcome.finished

    def _tune(self) -> None:
        """The winner's head, rate, dropout and decay in place of those asked for; searched at another size if so.
        Ctrl-C ends the search, and the best so far is trained; a run that goes on keeps to what it chose."""
        kept = self.state / "tuned.json"
        if kept.exists():
            found = json.loads(kept.read_text())
        else:
            found = self._search()
            kept.with_suffix(".part").write_text(json.dumps(found))
            kept.with_suffix(".part").replace(kept)
        self.trials, self.notes = found["trials"], [*self.notes, *found["notes"]]
        self.settings = replace(self.settings, **found["settings"])
        self.batch_size, self.head_epochs = found["batch_size"], TRIAL_EPOCHS  # as it was tried
        told = ", ".join(f"{name} {value:g}" for name, value in found["settings"].items())
        print(f"tuned     {told}; its head learns for {TRIAL_EPOCHS} epochs in batches of {self.batch_size}")

    def _search(self) -> dict[str, Any]:
        from loupe.training.tune.search import search

        chosen = self.settings
        side = chosen.tune_size or self.data.pixels.shape[1]
        data = self.data if side == self.data.pixels.shape[1] else self.data.resized(side, side, self.state)
        with self.timed("features for tuning"):
            trunk = self._trunk(side, side)
            pooled = keras.Model(trunk.input, keras.layers.GlobalAveragePooling2D(name="pool")(trunk.output))
            features = self._kept(pooled, data, 1)
        sets = [(np.asarray(features[rows]), data.classes[rows]) for rows in (data.train, data.validation)]
        with self.timed("tuning"):
            best = search(
                sets[0],
                sets[1],
                len(data.labels),
                chosen.tune,
                chosen.seed,
                self.state / "tuning.journal",
                epochs=TRIAL_EPOCHS,
                class_weights=dict(enumerate(self._weights())) if chosen.class_weights else None,
                label_smoothing=chosen.label_smoothing,
                first={name: getattr(chosen, name) or 0.0 for name in TUNED},
            )
        found = {name: getattr(best, name) for name in TUNED}
        trials = [dict(trial) for trial in best.trials]
        return {"settings": found, "batch_size": best.batch_size, "trials": trials, "notes": best.notes}

    # ------------------------------------------------------------------ what a stage is made of

    def _stage(self, name: str, epochs: int | None, lr: float | None) -> Stage:
        assert epochs is not None and lr is not None, "resolved"
        chosen = self.settings
        return Stage(
            name, epochs, lr, chosen.seed, chosen.optimizer, chosen.decay, chosen.schedule, chosen.patience, chosen.ema
        )

    def _fit(
        self, model: keras.Model, stage: Stage, batches: Batches, validation: Batches, enough: float = math.inf
    ) -> Outcome:
        with self.timed(stage.name):
            outcome = fit(model, stage, batches, validation, self.state / f"{stage.name}.npz", enough)
        self.history += outcome.history
        if math.isinf(outcome.best) and not outcome.finished:
            raise KeyboardInterrupt  # before the first epoch's end: there is nothing to keep
        if math.isinf(outcome.best):
            (self.state / f"{stage.name}.npz").unlink(missing_ok=True)  # nothing to go on with
            raise UserError("The loss became no number at all: try again with a lower --lr.")
        return outcome

    def _batches(self, source: Any, stage: Stage, size: int | None = None, **more: Any) -> Batches:
        weights = self._weights() if self.settings.class_weights else None
        return Batches(
            source,
            self.data.classes,
            self.data.train,
            len(self.data.labels),
            size or self.settings.batch_size or 32,
            seed=stage.seed,
            smoothing=self.settings.label_smoothing,
            weights=weights,
            **more,
        )

    def _varied(self, stage: Stage) -> Batches:
        return self._batches(self.data.pixels, stage, vary=None if self.augment.augmentation.is_none else self._vary)

    def _vary(self, pixels: Any, shares: Any, number: int) -> tuple[Any, Any]:
        varied, alpha = self.augment(pixels, number), self.settings.mixup
        return blend(varied, shares, alpha, self.settings.seed, number) if alpha else (varied, shares)

    def _plain(self, source: Any) -> Batches:
        return Batches(source, self.data.classes, self.data.validation, len(self.data.labels), 64)

    def _weights(self) -> Any:
        return balanced(self.data.classes[self.data.train], len(self.data.labels))

    def _kept(self, front: keras.Model, data: Dataset, views: int) -> Any:
        """`front`'s features of every picture; with more views, as many arrays one behind the other."""
        about = {
            "network": self.settings.backbone,
            "layers": len(front.layers),  # up to where
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
            # one by one: what a view is must not depend on which others were missing
            return np.concatenate([self.augment(data.pixels[[row % count]], row) for row in rows])

        if views > 1:  # of training pictures; of the others each view is the picture as it is
            how = json.dumps([vars(self.augment.augmentation), self.settings.seed], default=str)
            learnt = set(data.train.tolist())
            for view in range(1, views):
                varied = (hashlib.sha256(f"{name} {how} {view}".encode()).hexdigest() for name in ids[:count])
                ids += [other if row in learnt else ids[row] for row, other in enumerate(varied)]
        kept = self.cache.features(front, pixels, ids, about)
        told = f"{kept.computed:,} computed in {kept.seconds:.0f} s" if kept.computed else "all kept from before"
        where = (
            f"{self.cache.folder} ({self.cache.size() / 1e6:,.0f} MB)" if kept.place else "no cache: too large for it"
        )
        print(f"features  {len(ids):,} pictures × {' × '.join(map(str, kept.array.shape[1:]))}: {told}; {where}")
        return kept.array

    def _in_float32(self, height: int, width: int) -> keras.Model:
        """Learnt in a shorter type or on several devices, served in float32 and from one."""
        if self.devices.precision == "float32" and not self.devices.strategy:
            return self.model
        values = self.model.get_weights()
        keras.config.set_dtype_policy("float32")
        plain = replace(self.settings, weights="none")
        trunk = build_trunk(plain.backbone, height, width)
        model = self._headed(trunk)
        model.set_weights(values)
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
    """As the card names it."""
    chosen = pipeline.settings
    layers = min(pipeline.tuned_layers, len(trunk_of(pipeline.model)))
    return {"name": chosen.backbone, "weights": Path(chosen.weights).name, "fine_tuned_layers": layers}
