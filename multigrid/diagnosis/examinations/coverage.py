"""Weights: what the files that a config names hold, and what the live tensors are."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.models.blocks import BACKBONE, block_of, head_blocks
from multigrid.models.matching import best_match, model_layers
from multigrid.models.weights import read_stored

STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True)
class Coverage:
    """How much of a weights file is in the live network.

    Attributes:
        path: of the file.
        key: of the config that names it.
        format: of the file, in words.
        tensors: of the network that the file has a value of the right shape for, grids of the head left out.
        equal: of those that are as in the file.
        statistics, equal_statistics: likewise, of BatchNorm's moving mean and variance alone.
        wanted: tensors of the backbone, whatever the file has.
        absent: names of those of them that the file has nothing for.
        different: names of tensors that are not as in the file.
    """

    path: str
    key: str
    format: str
    tensors: int
    equal: int
    statistics: int
    equal_statistics: int
    wanted: int
    absent: tuple[str, ...]
    different: tuple[str, ...]


def examine(case) -> tuple[Coverage, ...]:
    """The live tensors of a `Case` beside each file that its config names: one `Coverage` a file.

    Only before the first step: afterwards they have moved.
    """
    if case.config is None or case.step:
        return ()
    named = [(key, getattr(case.config, key)) for key in ("backbone_weights", "weights")]
    both = all(path is not None for _, path in named)
    return tuple(
        _compared(key, path, case.detector if key == "weights" else case.detector.backbone)
        for key, path in named
        if path is not None and not (both and key == "backbone_weights")  # the second file is loaded over the first
    )


def _compared(key: str, path, model) -> Coverage:
    layers = model_layers(model)
    stored = read_stored(path, layers)
    fitting = best_match(layers, stored).fitting
    pairs, absent, wanted = [], [], 0
    for index, layer in enumerate(layers):
        if layer.block in head_blocks([layer.block]):
            continue  # a file of other classes or anchors has no head for this network
        for role, variable in layer.tensors.items():
            name, in_backbone = f"{layer.name}/{role}", not layer.block.startswith("neck_")
            wanted += in_backbone
            if (index, role) in fitting:
                same = np.array_equal(np.asarray(ops.convert_to_numpy(variable)), fitting[index, role][1])
                pairs.append((name, role, same))
            elif in_backbone:
                absent.append(name)
    return Coverage(
        str(path),
        key,
        stored.format,
        len(pairs),
        sum(same for _, _, same in pairs),
        sum(role in STATISTICS for _, role, _ in pairs),
        sum(same for _, role, same in pairs if role in STATISTICS),
        wanted,
        tuple(absent),
        tuple(name for name, _, same in pairs if not same),
    )


@dataclass(frozen=True)
class Tensors:
    """What the live weights say of themselves.

    Attributes:
        non_finite: paths of the variables that hold NaN or infinity.
        norms: BatchNorm layers.
        untouched: names of those whose statistics are exactly (0, 1), so that they have counted nothing.
    """

    non_finite: tuple[str, ...]
    norms: int
    untouched: tuple[str, ...]


def tensors(case) -> Tensors:
    """The live weights of a `Case`."""
    norms = [layer for layer in layers_with_weights(case.detector) if is_norm(layer)]
    wrong = [one.path for one in case.detector.weights if not np.isfinite(ops.convert_to_numpy(one)).all()]
    return Tensors(tuple(wrong), len(norms), tuple(layer.name for layer in norms if _untouched(layer)))


@dataclass(frozen=True)
class Trained:
    """What is trained of a block: weights by whether they learn.

    Attributes:
        convolutions, frozen_convolutions: layers with kernels, and those of them that do not learn.
        norms, frozen_norms: BatchNorm layers, likewise.
        fresh: whether every BatchNorm of it has counted nothing yet.
    """

    convolutions: int
    frozen_convolutions: int
    norms: int
    frozen_norms: int
    fresh: bool


def trained_blocks(case) -> dict[str, Trained]:
    """What is trained of each block of a `Case`'s detector, from the image on."""
    blocks: dict = {}
    for layer in layers_with_weights(case.detector):
        blocks.setdefault(block_of(layer.variables[0].path), []).append(layer)
    return {block: _trained(layers) for block, layers in blocks.items()}


def layers_with_weights(detector) -> list:
    """The layers that hold weights of their own, in order."""
    return [
        layer
        for layer in detector._flatten_layers(include_self=False)
        if layer.variables and not isinstance(layer, (keras.Model, keras.metrics.Metric))
    ]


def is_norm(layer) -> bool:
    """Whether a layer keeps statistics of the batches it sees."""
    return hasattr(layer, "moving_mean") and hasattr(layer, "moving_variance")


def in_backbone(block: str) -> bool:
    """Whether a block is of the backbone."""
    return block == BACKBONE or not block.startswith(("neck_", "head_", "grid_"))


def _trained(layers) -> Trained:
    norms, others = [one for one in layers if is_norm(one)], [one for one in layers if not is_norm(one)]
    learn = lambda layer: bool(layer.trainable_variables)  # noqa: E731
    return Trained(
        len(others),
        sum(not learn(one) for one in others),
        len(norms),
        sum(not one.trainable for one in norms),
        bool(norms) and all(map(_untouched, norms)),
    )


def _untouched(layer) -> bool:
    mean, variance = (np.asarray(ops.convert_to_numpy(getattr(layer, name))) for name in STATISTICS)
    return not mean.any() and bool((variance == 1).all())
