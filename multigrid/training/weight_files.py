"""The weights that a run leaves: the best, the last, and those of every so many epochs."""

from __future__ import annotations

import math
import pathlib

import keras

from multigrid.config import TrainingConfig
from multigrid.models.weights import save_weights
from multigrid.prediction.run_folder import BEST, LAST

DEFAULTS = TrainingConfig()


class WeightFiles(keras.callbacks.Callback):
    """Writes best.weights.h5, last.weights.h5 and, if asked to, epoch-N.weights.h5; each appears whole or not at all.

    Args:
        folder: for the files.
        monitor: the figure in the logs that chooses the best; an epoch in which it is NaN was not measured.
        mode: "max" or "min".
        every: epochs from one epoch-N.weights.h5 to the next; None writes none.
        keep: how many of those stay, the newest.

    Attributes:
        best: the best figure so far, or None.
    """

    REMEMBERED = ("best",)

    def __init__(self, folder, monitor: str, mode: str, *, every: int | None = None, keep: int = DEFAULTS.keep_last):
        super().__init__()
        self.folder = pathlib.Path(folder)
        self.monitor, self.mode = monitor, mode
        self.every, self.keep = every, keep
        self.best = None

    def on_epoch_end(self, epoch, logs=None):
        if self.monitor not in logs:
            raise ValueError(f"monitor: expected one of {', '.join(logs)}, received {self.monitor!r}")
        save_weights(self.model, self.folder / pathlib.PurePath(LAST).name)
        value = float(logs[self.monitor])
        if self._is_better(value):
            save_weights(self.model, self.folder / pathlib.PurePath(BEST).name)
            self.best = value
        if self.every is not None and (epoch + 1) % self.every == 0:
            save_weights(self.model, self.folder / f"epoch-{epoch + 1:04d}.weights.h5")
            for old in sorted(self.folder.glob("epoch-*.weights.h5"))[: -self.keep]:
                old.unlink()

    def _is_better(self, value: float) -> bool:
        if self.best is None or math.isnan(self.best):  # something is better than nothing
            return True
        return value > self.best if self.mode == "max" else value < self.best
