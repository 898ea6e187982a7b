"""Checkpoints while a training runs, and what it takes to go on in the middle of an epoch."""

from __future__ import annotations

import collections
import time

import keras
import numpy as np

from multigrid import report
from multigrid.training import run_state
from multigrid.training.processes import is_first, process_count
from multigrid.training.run_state import Position, RunState

MINUTES = 10.0  # of an epoch that may be lost

# What Keras' callbacks know of the past, and Keras does not save: attributes, plain values all. Callbacks that are no
# part of Keras name theirs in REMEMBERED.
_OF_KERAS = {
    keras.callbacks.EarlyStopping: ("wait", "best", "best_epoch", "stopped_epoch"),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
}


class TrainingInterrupted(Exception):  # noqa: N818 - not an error
    """A signal asked for an end in the middle of an epoch; everything is saved."""


class Checkpoints(keras.callbacks.Callback):
    """Saves the state of the run at the end of every epoch, every ten minutes within one, and before a signal ends it.

    The last of a training's callbacks, so that it sees what the others did. Where several processes train, the first
    one writes, and a signal ends no epoch before its end: the others would wait for this process.

    Args:
        folder: of the run; states go to `checkpoints/`, the figures of all epochs to `results.csv`.
        stage: number of the stage that `fit` is called for.
        end_epoch: of that stage.
        signals: a `StopSignals`.
        others: the callbacks before this one.
        rows: of results.csv, one an epoch so far; grows.
        resumed: the state that this call of `fit` goes on from, or None.

    Attributes:
        state: the last one saved, or None.
        ended: whether a signal or a callback other than early stopping asked for the end of the training.
    """

    def __init__(self, folder, stage: int, end_epoch: int, signals, others, rows: list, resumed: RunState | None):
        super().__init__()
        self.folder, self.stage, self.end_epoch = folder, stage, end_epoch
        self.signals, self.others, self.rows, self.resumed = signals, others, rows, resumed
        self.skipped = resumed.position.step if resumed else 0
        self.state, self.ended = None, False

    def on_train_begin(self, logs=None):
        if self.resumed:
            remember(self.others, self.resumed.callbacks)  # Keras' own forget everything when a training begins

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch, self.saved = epoch, time.monotonic()  # an epoch that goes on is the only one of its `fit`
        if self.skipped:
            self.resumed.restore_metrics(self.model)
            remember(self.others, self.resumed.callbacks)

    def on_train_batch_end(self, batch, logs=None):
        done = self.skipped + batch + 1
        if self.skipped + self.params["steps"] == done:
            return  # the epoch ends and is saved in a moment
        if self.signals.received and process_count() == 1:
            self._save(Position(self.stage, self.epoch, done))
            raise TrainingInterrupted(f"in epoch {self.epoch + 1}, after step {done}")
        if is_first() and time.monotonic() - self.saved > 60.0 * MINUTES:
            self._save(Position(self.stage, self.epoch, done))
            self.saved = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        self.rows.append({"epoch": epoch, **{name: float(logs[name]) for name in sorted(logs)}})
        if is_first():
            report.write_csv(self.folder / "results.csv", self.rows)
        stopped_early = any(getattr(callback, "stopped_epoch", 0) > 0 for callback in self.others)
        if stopped_early or epoch + 1 == self.end_epoch:
            _keep_averages(self.others)
        self._save(Position(self.stage, epoch + 1, stopped_early=stopped_early))
        asked = bool(self.signals.received) or any(getattr(callback, "over", False) for callback in self.others)
        self.ended = asked or (self.model.stop_training and not stopped_early)
        if self.skipped or self.signals.received:
            self.model.stop_training = True

    def _save(self, position: Position) -> None:
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.state = run_state.capture(self.model, position, _memory(self.others), self.rows)
        if is_first():
            run_state.save_state(self.folder / "checkpoints", self.state)


class RestOfEpoch(keras.utils.PyDataset):
    """The batches of one epoch from a given one on, for an epoch of `fit`.

    Args:
        data: a dataset of batches.
        first: the first batch to give, below `len(data)`.
    """

    def __init__(self, data, first: int):
        super().__init__(workers=data.workers, max_queue_size=data.max_queue_size)
        self.data, self.first = data, first
        # Keras takes the shapes that may differ from the first two batches that it sees before the epoch: they are
        # those of the whole epoch then, whose sizes are made to differ
        self._begun = len(self) == 1

    def __len__(self) -> int:
        return len(self.data) - self.first

    def __getitem__(self, index: int):
        return self.data[index + (self.first if self._begun else 0)]

    @property
    def num_batches(self) -> int:
        """How many are left."""
        return len(self)

    @property
    def epoch(self) -> int:
        """The epoch of the data; setting it begins the rest of that epoch."""
        return getattr(self.data, "epoch", 0)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        if hasattr(self.data, "epoch"):
            self.data.epoch = epoch
        self._begun = True

    def files(self, index: int) -> list[str]:
        """The image files of a batch."""
        return self.data.files(index + self.first) if hasattr(self.data, "files") else []


def _memory(callbacks) -> dict:
    """What the callbacks know, as plain values: "EarlyStopping 0" -> attributes."""
    return {
        key: {name: _plain(getattr(callback, name)) for name in _remembered(callback)}
        for key, callback in _numbered(callbacks)
    }


def remember(callbacks, memory: dict) -> None:
    """Gives callbacks back what they knew when a state was saved.

    Args:
        callbacks: any; those without a memory are left alone.
        memory: `RunState.callbacks`.
    """
    for key, callback in _numbered(callbacks):
        for name, value in memory.get(key, {}).items():
            setattr(callback, name, value)


def _numbered(callbacks):
    """("EarlyStopping 0", callback), … of those with a memory."""
    seen = collections.Counter()
    for callback in callbacks:
        if _remembered(callback):
            name = type(callback).__name__
            yield f"{name} {seen[name]}", callback
            seen[name] += 1


def _remembered(callback) -> tuple:
    return getattr(callback, "REMEMBERED", _OF_KERAS.get(type(callback), ()))


def _plain(value):
    if value is None or isinstance(value, bool | int | str):
        return value
    return np.asarray(value, "float64").tolist()


def _keep_averages(callbacks) -> None:
    """Sees that a stage that ends early leaves the averaged weights, as one that ends in time does."""
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.SwapEMAWeights) and callback._ema_weights_in_model:
            callback._finalize_ema_values()
