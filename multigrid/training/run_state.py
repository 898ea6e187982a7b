"""All that a training needs to go on as if nothing had happened, in one file; a torn file is recognised.

The file is NumPy's `.npz`, whose zip archive keeps a checksum of every member: arrays for the tensors, and JSON for the
rest.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pathlib
import random
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field

import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.report import replacing

DAMAGED = ".damaged"  # added to the name of a file that cannot be read
KEPT = 2  # files: the newest, and the one before it should that be torn
_FIGURES = "figures"
_TORN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Position:
    """How far a training is."""

    stage: int = 0
    epoch: int = 0  # whole epochs done
    step: int = 0  # batches done of the next one
    stopped_early: bool = False  # whether nothing more is to come of the stage

    def begins_stage(self, stages) -> bool:
        """Whether nothing of its stage is done."""
        return self.step == 0 and self.epoch == stages[self.stage].first_epoch

    def ends_stage(self, stages) -> bool:
        """Whether its stage is over."""
        return self.stopped_early or self.epoch >= stages[self.stage].end_epoch

    @property
    def name(self) -> str:
        """Of the file; later ones sort behind earlier ones."""
        return f"epoch-{self.epoch:05d}-step-{self.step:07d}.npz"


@dataclass(frozen=True)
class RunState:
    """A moment of a training."""

    position: Position
    tensors: dict[str, np.ndarray] = field(repr=False)  # "model/0", …, "optimizer/0", …, and of the metrics
    callbacks: dict  # what they know: "EarlyStopping 0" -> attributes; "random" -> the global generators
    rows: list  # of results.csv

    def restore_weights(self, detector: keras.Model) -> None:
        """Gives the detector its weights and BatchNorm statistics back.

        Raises:
            InputError: the detector has variables of other shapes.
        """
        self._restore("model", detector.variables)

    def restore_optimizer(self, detector: keras.Model) -> None:
        """Gives the optimizer its slots, averages and counters back."""
        detector.optimizer.build(detector.trainable_variables)
        self._restore("optimizer", detector.optimizer.variables)

    def restore_metrics(self, detector: keras.Model) -> None:
        """Gives the metrics back what they have seen of the epoch."""
        self._restore("metrics", detector.metrics_variables)

    def restore_random(self) -> None:
        """Gives Python's and NumPy's global generators their states back."""
        version, gauss = (self.callbacks["random"][name] for name in ("version", "gauss"))
        random.setstate((version, tuple(int(word) for word in self.tensors["random/python"]), gauss))
        name, position, has_gauss, cached = self.callbacks["random"]["numpy"]
        np.random.set_state((name, self.tensors["random/numpy"], position, has_gauss, cached))

    def _restore(self, kind: str, variables) -> None:
        shapes = [tuple(variable.shape) for variable in variables]
        values = [self.tensors[name] for name in self.tensors if name.startswith(f"{kind}/")]
        if shapes != [value.shape for value in values]:
            pairs = zip(variables, shapes, values, strict=False)
            other = next((pair for pair in pairs if pair[1] != pair[2].shape), None)
            first = f"; {other[0].path} has {other[2].shape} instead of {other[1]}" if other else ""
            raise InputError(
                f"the run's checkpoint: expected {len(shapes)} {kind} variables of this training's shapes, "
                f"received {len(values)}{first}; was a setting changed?"
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def capture(detector: keras.Model, position: Position, callbacks: dict, rows: list) -> RunState:
    """The present moment.

    Args:
        detector: compiled; on JAX its variables must be in sync.
        position: how far the training is.
        callbacks: what they know, plain values: "EarlyStopping 0" -> attributes.
        rows: of results.csv.
    """
    tensors = _arrays("model", detector.variables) | _arrays("optimizer", detector.optimizer.variables)
    if position.step:
        tensors |= _arrays("metrics", detector.metrics_variables)
    version, words, gauss = random.getstate()
    name, keys, *rest = np.random.get_state()
    tensors |= {"random/python": np.array(words, "uint32"), "random/numpy": keys}
    callbacks = {**callbacks, "random": {"version": version, "gauss": gauss, "numpy": [name, *rest]}}
    return RunState(position, tensors, callbacks, list(rows))


def save_state(folder, state: RunState) -> pathlib.Path:
    """Writes a state into the folder, whole or not at all, and deletes all but the newest.

    Returns:
        The file.
    """
    folder = pathlib.Path(folder)
    figures = asdict(state.position), state.callbacks, state.rows
    path = folder / state.position.name
    with replacing(path) as temporary:
        np.savez(temporary, **state.tensors, **{_FIGURES: np.array(json.dumps(figures))})
    for old in [other for other in _files(folder) if other != path][: 1 - KEPT]:
        old.unlink()
    return path


def newest_state(folder) -> RunState | None:
    """The newest state in a folder that can be read; a damaged one is logged and renamed. None where there is none.

    Raises:
        InputError: there are some, and all are damaged.
    """
    for path in reversed(_files(folder)):
        try:
            return _read(path)
        except _TORN as error:
            logger.warning("%s: expected a whole checkpoint, received a damaged one (%s); it is left out", path, error)
            with contextlib.suppress(FileNotFoundError):  # another process was first
                path.rename(path.with_name(path.name + DAMAGED))
    damaged = sorted(pathlib.Path(folder).glob(f"*{DAMAGED}"))
    if damaged:
        raise InputError(f"{folder}: expected a whole checkpoint, received {len(damaged)} damaged ones and no other")
    return None


def _read(path) -> RunState:
    with np.load(path, allow_pickle=False) as file:
        tensors = {name: file[name] for name in file.files}  # reads, and so checks, every member
    position, callbacks, rows = json.loads(str(tensors.pop(_FIGURES)))
    return RunState(Position(**position), tensors, callbacks, rows)


def _files(folder) -> list[pathlib.Path]:
    return sorted(pathlib.Path(folder).glob("epoch-*.npz"))


def _arrays(kind: str, variables: Iterable) -> dict[str, np.ndarray]:
    return {f"{kind}/{index}": keras.ops.convert_to_numpy(variable) for index, variable in enumerate(variables)}
