"""The replay: the step of a bundle made again, from the bundle alone."""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from multigrid.models.blocks import block_of
from multigrid.training.bundle import read_bundle
from multigrid.training.faults import first_fault, gradients_of
from multigrid.training.optimizers import inner_optimizer


def replay(folder) -> dict:
    """Makes the step of a bundle again and measures it.

    Args:
        folder: the bundle.

    Returns:
        {"epoch", "step", "learning_rate", "images", "files", "verdict_then", "verdict", "first", "reproduced",
        "loss", "strides", "components", "gradient_norms", "optimizer_step"}: plain numbers, epoch and step from 1.
        components is a list of {"component", "coefficient", "at": [S] parts before their coefficient, coarse to fine};
        gradient_norms has one number a block, before clipping; optimizer_step says what the bundle's optimizer did:
        "moved" and "not_finite" count weights of "weights".

    Raises:
        InputError: no bundle, or a damaged one.
    """
    step, verdict_then = read_bundle(folder)
    detector = step.detector()
    fault = first_fault(detector, step.images, step.truth)
    breakdown = detector.loss_breakdown(step.images, step.truth, training=True)
    return {
        **step.figures(fault),
        "verdict_then": verdict_then,
        "reproduced": fault is not None,
        "loss": _number(breakdown.total),
        "strides": list(detector.strides),
        "components": _components(breakdown),
        "gradient_norms": _norms(gradients_of(detector, step.images, step.truth)),
        "optimizer_step": _optimizer_step(step),
    }


def not_finite(record: dict) -> list[str]:
    """What of a replay is not finite, in words: components at their scales, then blocks' gradients."""
    names = [
        f"component {row['component']} at stride {stride}"
        for row in record["components"]
        for stride, value in zip(record["strides"], row["at"], strict=True)
        if not math.isfinite(value)
    ]
    return names + [
        f"gradient of {block}" for block, norm in record["gradient_norms"].items() if not math.isfinite(norm)
    ]


def _components(breakdown) -> list[dict]:
    return [
        {
            "component": name,
            "coefficient": float(breakdown.coefficients[name]),
            "at": [float(value) for value in ops.convert_to_numpy(values)],
        }
        for name, values in breakdown.parts.items()
    ]


def _norms(gradients) -> dict[str, float]:
    """The norm of each block's gradients, in float64: it is the gradients that are to be judged, not their squares."""
    squares: dict[str, float] = {}
    for path, gradient in gradients.items():
        block = block_of(path)
        squares[block] = squares.get(block, 0.0) + float(np.sum(np.square(gradient.astype("float64"))))
    return {block: math.sqrt(value) for block, value in squares.items()}


def _optimizer_step(step) -> dict:
    """What the optimizer of the bundle does with the weights, in its own state."""
    detector = step.detector()
    optimizer = step.optimizer(detector)
    detector.compile(optimizer, jit_compile=detector.prefers_xla, auto_scale_loss=False)
    before = [np.array(ops.convert_to_numpy(variable)) for variable in detector.trainable_variables]
    detector.train_on_batch(step.images, step.truth)
    after = [ops.convert_to_numpy(variable) for variable in detector.trainable_variables]
    moved = sum(not np.array_equal(one, other, equal_nan=True) for one, other in zip(before, after, strict=True))
    return {
        "optimizer": type(inner_optimizer(optimizer)).__name__,
        "weights": len(after),
        "moved": moved,
        "not_finite": sum(not np.isfinite(values).all() for values in after),
    }


def _number(tensor) -> float:
    return float(ops.convert_to_numpy(tensor))
