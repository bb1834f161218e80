"""Compute calls that wait at the same time together, as TensorFlow Serving does with --enable_batching.

    open_engine = batching.batched(chooser("auto", options), Batching(max_batch_size=8))
    open_engine(model).run("serving_default", {"image": pixels}, ["probabilities"], deadline)

A batch is made when a thread is free for it, of what waits then: calls of the same signature whose inputs differ in
nothing but their number of rows. A call waits for others only if `batch_timeout_micros` says so, and never beyond a
deadline in its batch. So a single caller is computed at once, and a batch is only ever as large as the queue had
become anyway. A call whose deadline is over is not computed. If a batch fails, its calls are computed one by one, so
that a bad one fails alone. Messages are TensorFlow Serving's. Not covered: splitting a call that is larger than a
batch, and padding of other dimensions.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from grpc import StatusCode

from loupe.engines.engine import Engine, Opener, out_of_time
from loupe.engines.refused import Refused, invalid
from loupe.engines.savedmodel import Array, SavedModel
from loupe.engines.turns import seconds_until
from loupe.modelserver.config import Batching

Key = tuple[object, ...]


@dataclass(eq=False)  # a call is only ever itself: arrays cannot be compared as a whole
class _Call:
    """A call that waits to be computed, and then its outputs or its error."""

    key: Key
    rows: int
    signature: str
    inputs: Mapping[str, Array]
    outputs: Sequence[str]
    deadline: float | None
    queued: float = field(default_factory=time.monotonic)
    done: threading.Event = field(default_factory=threading.Event)
    result: dict[str, Array] | None = None
    error: BaseException | None = None

    def finish(self, result: dict[str, Array] | None = None, error: BaseException | None = None) -> None:
        self.result, self.error = result, error
        self.done.set()

    @property
    def is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline


def batched(open_engine: Opener, batching: Batching) -> Opener:
    """Return an opener whose engines compute in batches."""
    return lambda model: BatchedEngine(model, open_engine(model), batching)


class BatchedEngine:
    def __init__(self, model: SavedModel, engine: Engine, batching: Batching) -> None:
        self.name = engine.name
        self.precision = engine.precision
        self.at_once = engine.at_once
        self._engine = engine
        self._batching = batching
        self._waiting: deque[_Call] = deque()
        self._changed = threading.Condition()
        self._closed = False
        threads = batching.num_batch_threads or engine.at_once
        self._threads = [threading.Thread(target=self._work, name="batches", daemon=True) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def run(
        self, signature: str, inputs: Mapping[str, Array], outputs: Sequence[str], deadline: float | None = None
    ) -> dict[str, Array]:
        call = _Call(_key(signature, inputs, outputs), _rows(inputs), signature, inputs, outputs, deadline)
        self._enqueue(call)
        if not call.done.wait(seconds_until(deadline)):
            with self._changed:
                if call in self._waiting:  # else it is being computed: nobody reads its result
                    self._waiting.remove(call)
            raise out_of_time()
        if call.error:
            raise call.error
        assert call.result is not None
        return call.result

    def run_examples(
        self, examples: Array, outputs: Mapping[str, Sequence[str]], deadline: float | None = None
    ) -> dict[str, dict[str, Array]]:
        return self._engine.run_examples(examples, outputs, deadline)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        self._engine.close()

    def _enqueue(self, call: _Call) -> None:
        most = self._batching.max_batch_size
        if call.rows > most:
            raise invalid(f"Task size {call.rows} is larger than maximum input batch size {most}")
        with self._changed:
            queued = sum(other.rows for other in self._waiting)
            capacity = self._batching.max_enqueued_batches * most - queued
            if call.rows > capacity:
                raise Refused(
                    StatusCode.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"task size is {call.rows} but scheduling capacity is only {capacity} "
                    f"(num_enqueued_batches={-(-queued // most)}, "
                    f"max_enqueued_batches={self._batching.max_enqueued_batches}, "
                    f"open_batch_size={queued % most}, max_execution_batch_size={most})",
                )
            self._waiting.append(call)
            self._changed.notify()

    # ------------------------------------------------------------------------------------------------ in its threads

    def _work(self) -> None:
        while batch := self._next_batch():
            self._compute(batch)
            del batch  # its arrays, which are large, while this thread waits

    def _next_batch(self) -> list[_Call]:
        """Wait for calls, and take those that are computed next. Return none once the engine is closed."""
        with self._changed:
            while True:
                # Drop calls that are too late.
                for call in [call for call in self._waiting if call.is_late]:
                    self._waiting.remove(call)
                    call.finish(error=out_of_time())
                if not self._waiting:
                    if self._closed:
                        return []
                    self._changed.wait()
                    continue
                # Take the oldest, and others like it.
                batch = self._like_the_oldest()
                patience = self._patience(batch)
                if patience <= 0 or self._closed:
                    for call in batch:
                        self._waiting.remove(call)
                    return batch
                self._changed.wait(patience)

    def _like_the_oldest(self) -> list[_Call]:
        oldest = self._waiting[0]
        batch, rows = [oldest], oldest.rows
        for call in list(self._waiting)[1:]:
            if call.key == oldest.key and rows + call.rows <= self._batching.max_batch_size:
                batch.append(call)
                rows += call.rows
        return batch

    def _patience(self, batch: list[_Call]) -> float:
        """Return for how many seconds the batch may wait to become larger."""
        if sum(call.rows for call in batch) >= self._batching.max_batch_size:
            return 0.0
        ends = [batch[0].queued + self._batching.batch_timeout_micros / 1e6]
        ends += [call.deadline for call in batch if call.deadline is not None]
        return min(ends) - time.monotonic()

    def _compute(self, batch: list[_Call]) -> None:
        try:
            results = self._together(batch)
        except Refused as error:
            if len(batch) == 1:
                batch[0].finish(error=error)
            else:
                for call in batch:
                    self._compute([call])
            return
        except Exception as error:
            for call in batch:
                call.finish(error=Refused(StatusCode.INTERNAL, f"the batch could not be computed: {error!r}"))
            return
        for call, result in zip(batch, results, strict=True):
            call.finish(result)

    def _together(self, batch: list[_Call]) -> list[dict[str, Array]]:
        """Compute the calls as one. Return each one's outputs."""
        # Join the rows, and add copies of the first up to an allowed number.
        rows = sum(call.rows for call in batch)
        padded = min((size for size in self._batching.allowed_batch_sizes if size >= rows), default=rows) if rows else 0
        inputs = {}
        for alias in batch[0].inputs:
            arrays = [call.inputs[alias] for call in batch if call.rows] or [batch[0].inputs[alias]]
            arrays += [arrays[0][:1]] * (padded - rows)
            inputs[alias] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
        # Compute, until the last of them is too late.
        deadlines = [call.deadline for call in batch if call.deadline is not None]
        deadline = max(deadlines) if len(deadlines) == len(batch) else None
        first = batch[0]
        outputs = self._engine.run(first.signature, inputs, first.outputs, deadline)
        # Split the outputs by rows.
        for array in outputs.values():
            if not array.ndim:
                raise invalid("Batched output tensor has 0 dimensions")
            if len(array) != padded:
                raise invalid(
                    "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension sizes of the "
                    "input tensors"
                )
        results, start = [], 0
        for call in batch:
            results.append({alias: array[start : start + call.rows] for alias, array in outputs.items()})
            start += call.rows
        return results


def _rows(inputs: Mapping[str, Array]) -> int:
    """Return the number of rows that all inputs have."""
    if not all(array.ndim for array in inputs.values()):
        raise invalid("Batching session Run() input tensors must have at least one dimension")
    rows = {len(array) for array in inputs.values()}
    if len(rows) != 1:
        raise invalid("Batching session Run() input tensors must have equal 0th-dimension size")
    return rows.pop()


def _key(signature: str, inputs: Mapping[str, Array], outputs: Sequence[str]) -> Key:
    """Return what calls must have in common to be computed together."""
    return signature, *((alias, array.dtype.str, array.shape[1:]) for alias, array in inputs.items()), tuple(outputs)
