"""Activity: what every layer answers on one batch, with its own forward pass."""

from __future__ import annotations

import contextlib
import functools
from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations.coverage import is_norm
from multigrid.models.listening import listening


@dataclass(frozen=True)
class Norm:
    """A BatchNorm layer's input beside its statistics.

    Attributes:
        name: of the layer.
        shift: median over the channels of |mean of the batch - moving mean| / moving deviation.
        ratio: median over the channels of the variance of the batch / moving variance.
        samples: images · rows · columns that a channel's statistics of the batch come from.
    """

    name: str
    shift: float
    ratio: float
    samples: int

    @property
    def spread(self) -> float:
        """|logarithm of the ratio of variances|."""
        return abs(float(np.log(self.ratio)))

    @property
    def distance(self) -> float:
        """Of the input from the statistics: shift and spread, added."""
        return self.shift + self.spread


@dataclass(frozen=True)
class Activity:
    """What the layers of a detector did.

    Attributes:
        norms: in the order of the forward pass.
        dead: {name of the layer: share of its channels that are one constant over the batch}, of those without
            weights that act on maps with channels, such as activations.
    """

    norms: tuple[Norm, ...]
    dead: dict


def examine(case) -> Activity:
    """The activity of a `Case`'s detector on its batch, in training mode; the detector stays as it is."""
    norms, dead, images = [], {}, case.batch[0]
    detector = case.detector
    with listening(detector, functools.partial(_record, norms, dead)):
        state = ([v.value for v in detector.trainable_variables], [v.value for v in detector.non_trainable_variables])
        moving = {id(layer): _statistics(layer) for layer in detector._flatten_layers() if is_norm(layer)}
        norms.append(moving)
        detector.stateless_call(*state, ops.convert_to_tensor(images), training=True)
    return Activity(tuple(norms[1:]), dead)


# What images from 0 to 255 are multiplied by, and what is added, before a network that is trained so.
SCALINGS = {
    "0 to 1": (1 / 255, 0.0),
    "-1 to 1": (1 / 127.5, -1.0),
    "0 to 255": (1.0, 0.0),
    "about -2 to 2, by mean and deviation of photographs": (1 / 57.6, -1.99),
}


class _SeenError(Exception):
    """The layer that is looked at has been seen."""


def scalings(case) -> dict:
    """The first BatchNorm's input beside its statistics: {"as it is": a `Norm`, <scaling>: a `Norm`}.

    {} of a detector without a layer that scales images, or without BatchNorm.
    """
    layers = case.detector._flatten_layers(include_self=False)
    scaling = next((layer for layer in layers if hasattr(layer, "scale") and hasattr(layer, "offset")), None)
    norm = next((layer for layer in case.detector._flatten_layers(include_self=False) if is_norm(layer)), None)
    if scaling is None or norm is None:
        return {}
    kept, found = (scaling.scale, scaling.offset), {"as it is": _first_norm(case)}
    try:
        for name, (scaling.scale, scaling.offset) in SCALINGS.items():
            found[name] = _first_norm(case)
    finally:
        scaling.scale, scaling.offset = kept
    return found


def _first_norm(case) -> Norm:
    seen = []

    def stop_at_norm(layer, inputs, outputs):
        if is_norm(layer):
            seen.append(_compared(layer, _numbers(inputs[0]), _statistics(layer)))
            raise _SeenError

    with listening(case.detector, stop_at_norm), contextlib.suppress(_SeenError):
        case.detector(ops.convert_to_tensor(case.batch[0]), training=False)
    return seen[0] if seen else Norm("", float("nan"), float("nan"), 0)


def _record(norms: list, dead: dict, layer, inputs, outputs) -> None:
    if is_norm(layer):
        norms.append(_compared(layer, _numbers(inputs[0]), norms[0][id(layer)]))
    elif not layer.variables and hasattr(outputs, "shape") and len(outputs.shape) == 4 and outputs.shape[-1] > 3:
        values = _numbers(outputs)
        dead[layer.name] = float((np.ptp(values.reshape(-1, values.shape[-1]), axis=0) == 0).mean())


def _compared(layer, values: np.ndarray, moving) -> Norm:
    mean, variance = moving
    flat = values.reshape(-1, values.shape[-1]).astype("float64")
    deviation = np.sqrt(variance + layer.epsilon)
    shift = np.median(np.abs(flat.mean(0) - mean) / deviation)
    ratio = np.median((flat.var(0) + layer.epsilon) / (variance + layer.epsilon))
    return Norm(layer.name, float(shift), float(ratio), len(flat))


def _statistics(layer) -> tuple:
    return tuple(np.array(ops.convert_to_numpy(one), "float64") for one in (layer.moving_mean, layer.moving_variance))


def _numbers(tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor), "float32")
