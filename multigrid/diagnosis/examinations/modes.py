"""Modes: the loss of one batch with its own statistics, with the moving ones, and with moving ones made anew."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations.coverage import is_norm

PASSES = 4  # batches that statistics are counted on anew


@dataclass(frozen=True)
class Modes:
    """Losses of one and the same batch, before coefficients of regularizers."""

    training: float  # BatchNorm with the statistics of this batch
    inference: float  # with the moving ones
    recalibrated: float  # with moving ones that were counted anew, on `PASSES` batches

    @property
    def gap(self) -> float:
        """How many times larger the loss is as validation sees it."""
        return self.inference / max(self.training, 1e-9)

    @property
    def healed(self) -> float:
        """The same with statistics that were counted anew."""
        return self.recalibrated / max(self.training, 1e-9)


def examine(case) -> Modes:
    """The modes of a `Case`'s detector; its statistics are as before afterwards."""
    images, truth = case.batch
    loss = lambda training: _number(case.detector.loss_breakdown(images, truth, training=training).total)  # noqa: E731
    training, inference = loss(True), loss(False)
    norms = [layer for layer in case.detector._flatten_layers() if is_norm(layer)]
    kept = [(variable, np.array(ops.convert_to_numpy(variable))) for one in norms for variable in _moving(one)]
    momenta = [(layer, layer.momentum) for layer in norms]
    try:
        _count_anew(case, norms)
        recalibrated = loss(False)
    finally:
        for variable, value in kept:
            variable.assign(value)
        for layer, momentum in momenta:
            layer.momentum = momentum
    return Modes(training, inference, recalibrated)


def _count_anew(case, norms) -> None:
    """Moving statistics as the plain mean over some batches; with a frozen layer its statistics are used, and stay."""
    for number, (images, _) in enumerate(case.batches[:PASSES]):
        for layer in norms:
            layer.momentum = number / (number + 1)
        case.detector(ops.convert_to_tensor(images), training=True)


def _moving(layer) -> tuple:
    return layer.moving_mean, layer.moving_variance


def _number(tensor) -> float:
    return float(ops.convert_to_numpy(tensor))
