"""Frozen blocks: which layers learn, and the proof that the others do not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import keras

from multigrid import report
from multigrid.models.blocks import block_of


class FrozenWeightsMovedError(RuntimeError):
    """A tensor that should stay as it is has changed; the message names it."""


def freeze(detector: keras.Model, blocks: Sequence[str]) -> None:
    """Freezes these blocks and frees all others; takes effect when the detector is compiled again.

    A frozen BatchNorm normalizes with its statistics, in training too, and keeps them.

    Args:
        detector: a `MultiGridDetector`.
        blocks: as `models.blocks` names them.
    """
    for layer in detector._flatten_layers(include_self=False):
        if layer.variables and not isinstance(layer, keras.Model):
            layer.trainable = block_of(layer.variables[0].path) not in blocks


def fingerprints(detector: keras.Model) -> dict[str, str]:
    """A hash of every tensor of the detector, BatchNorm's statistics included, by the path of the variable."""
    return {
        variable.path: hashlib.sha256(keras.ops.convert_to_numpy(variable).tobytes()).hexdigest()
        for variable in detector.variables
    }


class WhatMoves(keras.callbacks.Callback):
    """Reads back, after the first epoch of a stage, which tensors moved, and says so.

    Args:
        title: of the stage, for the line.
        frozen: blocks that should stay as they are.
        said: whether the line is printed although nothing is frozen.

    Attributes:
        moved: paths of the variables that changed in that epoch; None before its end.
    """

    def __init__(self, title: str, frozen: Sequence[str], said: bool = False):
        super().__init__()
        self.title, self.frozen, self.said = title, tuple(frozen), said
        self.moved = None

    def on_train_begin(self, logs=None):
        self.before, self.moved = fingerprints(self.model), None

    def on_epoch_end(self, epoch, logs=None):
        if self.moved is not None:
            return
        after = fingerprints(self.model)
        self.moved = [path for path, value in after.items() if value != self.before[path]]
        wrong = [path for path in self.moved if block_of(path) in self.frozen]
        if wrong:
            raise FrozenWeightsMovedError(
                f"{self.title}: expected {', '.join(self.frozen)} to stay as they are, but {len(wrong)} of their "
                f"tensors moved, first {wrong[0]}"
            )
        if self.frozen or self.said:
            stayed, names = len(after) - len(self.moved), ", ".join(self.frozen) or "nothing"
            report.say(f"{self.title}: {len(self.moved)} tensors moved, {stayed} stayed; frozen: {names}")
