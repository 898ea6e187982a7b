"""What the network says before, or without, a further step."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.models.head import grid_name

DEAF = 0.2  # share of a convolution's inputs
SATURATED = 10.0  # a logit beyond this moves nothing


@dataclass(frozen=True)
class Start:
    """The live network on one batch, as a training step sees it.

    Attributes:
        objectness: mean logit of objectness of all cells.
        objectness_probability: mean probability.
        prior: the logit that a fresh head of this detector would start with.
        spread: largest standard deviation of a channel of a grid, over cells and images.
        saturated: share of objectness, anchor and class logits beyond `SATURATED`.
        by_cell: [S] standard deviation over cells and images of the outputs of each scale, the mean of its channels.
        head_kernel: largest standard deviation of an output layer's kernel.
    """

    objectness: float
    objectness_probability: float
    prior: float
    spread: float
    saturated: float
    by_cell: np.ndarray
    head_kernel: float


@dataclass(frozen=True)
class Kernels:
    """Convolutions that do not see or tell apart what they should.

    Attributes:
        zero: names of kernels whose numbers are all 0, and of scales of BatchNorm in front of an output grid of zeros,
            where neither gets a gradient through the other.
        identical: names of those whose filters are all the same.
        deaf: names of those that are 0 for a good part of their input channels.
    """

    zero: tuple[str, ...]
    identical: tuple[str, ...]
    deaf: tuple[str, ...]


def examine(case) -> Start:
    """What the live detector says of `case.batch` in training mode; nothing is moved."""
    detector = case.detector
    state = ([v.value for v in detector.trainable_variables], [v.value for v in detector.non_trainable_variables])
    grids, _ = detector.stateless_call(*state, ops.convert_to_tensor(case.batch[0]), training=True)
    flat = [as_array(grid).astype("float64").reshape(-1, grid.shape[-1]) for grid in grids]
    cells = np.concatenate(flat)
    kernels = [detector.get_layer(grid_name(stride)).kernel for stride in detector.strides]
    with np.errstate(over="ignore"):
        probability = 1.0 / (1.0 + np.exp(-cells[:, 4]))
    return Start(
        objectness=float(cells[:, 4].mean()),
        objectness_probability=float(probability.mean()),
        prior=float(detector.initial_bias()[4]),
        spread=float(max(grid.std(axis=0).max() for grid in flat)),
        saturated=float((np.abs(cells[:, 4:]) > SATURATED).mean()),
        by_cell=np.array([grid.std(axis=0).mean() for grid in flat]),
        head_kernel=float(max(as_array(kernel).std() for kernel in kernels)),
    )


def examine_kernels(case) -> Kernels:
    """The kernels of all convolutions but those of the output grids, whose zeros would do no harm."""
    outputs = {grid_name(stride) for stride in case.detector.strides}
    zero, identical, deaf = [], [], []
    for layer in _layers(case.detector):
        kernel = getattr(layer, "kernel", None)
        if layer.name in outputs:
            continue
        if not isinstance(layer, keras.layers.Conv2D):
            zero += [one.path for one in layer.weights if len(one.shape) > 1 and not as_array(one).any()]
            continue
        filters = as_array(kernel).reshape(-1, kernel.shape[-1])
        largest = np.abs(filters).max()
        if largest == 0.0:
            zero.append(kernel.path)
        elif filters.shape[1] > 1 and filters.std(axis=1).max() < 1e-6 * largest:
            identical.append(kernel.path)
        elif (np.abs(as_array(kernel)).max(axis=(0, 1, 3)) == 0.0).mean() > DEAF:
            deaf.append(kernel.path)
    return Kernels((*zero, *_zeros_before_zeros(case.detector)), tuple(identical), tuple(deaf))


def _zeros_before_zeros(detector) -> list[str]:
    found = []
    for stride in detector.strides:
        grid = detector.get_layer(grid_name(stride))
        norms = [layer for layer in detector.layers if layer.name == f"head_{stride}_bn"]  # an own head has none
        if not as_array(grid.kernel).any():
            found += [norm.gamma.path for norm in norms if norm.gamma is not None and not as_array(norm.gamma).any()]
    return found


def _layers(model):
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _layers(layer)
        else:
            yield layer
