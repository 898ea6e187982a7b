"""The probe: every part of the loss on real batches, per scale, before any weight moves.

It observes what training does: the trainer builds data and detector, and every number comes from the one
`MultiGridLoss.breakdown`. What a loss *should* be is asked of the same breakdown, with constant outputs in place of the
network's: the biases of a fresh head, and the best that a head could do without looking at the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from keras import ops

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS, with_objectness
from multigrid.geometry import cells as cell_geometry
from multigrid.losses.multigrid_loss import LossBreakdown

AGREEMENT = 1e-5  # relative; between the probe's total and what `evaluate` reports
SCALES = LOSS_PARTS | OPTIONAL_LOSS_PARTS
# whose number each part is divided by; the others are shared out over all cells
CELLS_OF_PARTS = {
    **dict.fromkeys(("localization", "object", "anchor", "classification", "consensus"), "positives"),
    "no_object": "negatives",
    "suppression": "ignored",
}
UNITS = {"positives": "positive cell", "negatives": "negative cell", "ignored": "ignored cell", "cells": "cell"}


class ProbeMismatchError(RuntimeError):
    """The probe measures something else than training does; its numbers would mislead."""


def run_probe(trainer, num_batches: int = 2, *, training_mode: bool = False) -> Iterator[dict]:
    """Measures the first batches of a training.

    Args:
        trainer: a `MultiGridTrainer`; what it has not yet built is built.
        num_batches: how many; no more than the data has.
        training_mode: let BatchNorm use the statistics of the batch, as `fit` does, instead of its moving averages.

    Yields:
        A record a batch, see `describe_batch`.

    Raises:
        ProbeMismatchError: on the first batch the total is not what `evaluate` reports.
    """
    detector, data = trainer.build_model(), trainer.train_data
    for index in range(min(num_batches, len(data))):
        images, truth = data[index]
        if index == 0:
            check_against_evaluate(detector, images, truth)
        yield describe_batch(detector, images, truth, index, training_mode=training_mode)


def check_against_evaluate(detector, images, truth) -> float:
    """The relative difference between the probe's total and what `evaluate` says of the same batch.

    Where neither of them is finite there is nothing to compare, and no error: that is for the record to show.

    Args:
        detector: compiled.
        images: uint8 [B, H, W, 3].
        truth: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.

    Raises:
        ProbeMismatchError: it is above `AGREEMENT`, or one of the two is not finite.
    """
    probed = float(detector.loss_breakdown(images, truth).total)
    evaluated = detector.evaluate(images, truth, batch_size=len(images), verbose=0, return_dict=True)["loss"]
    difference = abs(probed - evaluated) / max(1.0, abs(evaluated))
    neither_finite = not math.isfinite(probed) and not math.isfinite(evaluated)
    if not neither_finite and not difference <= AGREEMENT:  # NaN on one side is not below anything
        raise ProbeMismatchError(
            f"total: expected {evaluated!r} as evaluate reports it, received {probed!r} from the probe"
        )
    return difference


def describe_batch(detector, images, truth, index: int = 0, *, training_mode: bool = False) -> dict:
    """One batch through the live detector and its criterion.

    Args:
        detector: a `MultiGridDetector` with a criterion; it is not changed.
        images: uint8 [B, H, W, 3].
        truth: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.
        index: of the batch, for the record.
        training_mode: see `run_probe`.

    Returns:
        {"batch_idx", "batch_stats", "loss_components", "weighted_components", "scaling_coefficients",
        "per_scale_losses", "per_unit"}: plain numbers. Components are normalized and before their coefficient,
        summed over the scales; total_loss is the sum of coefficient · component, and of "regularization_loss", a
        component that is there where layers have losses of their own.
    """
    breakdown = _plain(detector.loss_breakdown(images, truth, training=training_mode))
    grids = [(images.shape[1] // stride, images.shape[2] // stride) for stride in detector.strides]
    components = {f"{name}_loss": float(values.sum()) for name, values in with_objectness(breakdown.parts).items()}
    if breakdown.regularization is not None:
        components["regularization_loss"] = float(breakdown.regularization)
    return {
        "batch_idx": index,
        "batch_stats": {
            "batch_size": len(images),
            "total_objects": int(breakdown.counts["objects"].sum()),
            "num_scales": len(grids),
            "per_scale_stats": _scale_stats(breakdown, grids, detector.strides),
        },
        "loss_components": {"total_loss": float(breakdown.total), **components},
        "weighted_components": {name: float(values.sum()) for name, values in breakdown.weighted.items()},
        "scaling_coefficients": {SCALES[name]: scale for name, scale in breakdown.coefficients.items()},
        "per_scale_losses": [
            {
                "stride": stride,
                "normalization_factor": float(breakdown.normalizers[row]),
                **{f"{name}_loss": float(values[row]) for name, values in breakdown.parts.items()},
            }
            for row, stride in enumerate(detector.strides)
        ],
        "per_unit": _per_unit(detector, truth, grids, breakdown),
    }


def flat_row(record: dict) -> dict:
    """A record as one row of a table: the batch, its components and coefficients, then each component per scale."""
    row = {"batch_idx": record["batch_idx"], "batch_size": record["batch_stats"]["batch_size"]}
    row["total_objects"] = record["batch_stats"]["total_objects"]
    names = ("total", "localization", "objectness", "anchor", "classification")
    row |= {f"{name}_loss": record["loss_components"][f"{name}_loss"] for name in names}
    row |= record["scaling_coefficients"]
    row |= {name: value for name, value in record["loss_components"].items() if name not in row}
    for scale in record["per_scale_losses"]:
        row |= {f"{name}_{scale['stride']}": value for name, value in scale.items() if name != "stride"}
    return row


def non_finite_parts(record: dict) -> list:
    """Names of the components of a record that are NaN or infinite."""
    return [name for name, value in record["loss_components"].items() if not math.isfinite(value)]


def _scale_stats(breakdown, grids, strides) -> list:
    counts = breakdown.counts
    return [
        {
            "stride": stride,
            "grid_shape": list(grid),
            "objects": int(counts["objects"][row]),
            "positive_cells": int(counts["positives"][row]),
            "claims_lost": int(counts["claims"][row] - counts["positives"][row]),
            "ignored_cells": int(counts["ignored"][row]),
            "density": float(counts["positives"][row] / counts["cells"][row]),
        }
        for row, (grid, stride) in enumerate(zip(grids, strides, strict=True))
    ]


def _per_unit(detector, truth, grids, breakdown) -> list:
    """Each component per cell that has it: measured, with a fresh head's biases, and with the best constant head."""
    batch = len(truth["classes"])
    fresh = [detector.initial_bias()] * len(grids)
    outputs = _constant_outputs(fresh, grids, batch)
    targets = detector.criterion.encode(truth, outputs)
    at_start = _plain(detector.criterion.breakdown(targets, outputs))
    best = _plain(detector.criterion.breakdown(targets, _best_constant_outputs(detector, targets, grids)))
    rows = []
    for name in (*breakdown.parts, "objectness"):
        measured, start, floor = (_unit(name, one) for one in (breakdown, at_start, best))
        unit = UNITS[CELLS_OF_PARTS.get(name, "cells")]
        rows.append(
            {"component": name, "unit": unit, "measured": measured, "at_initialization": start, "best_constant": floor}
        )
    return rows


def _unit(name: str, breakdown) -> float | None:
    """A component's sum over all scales, divided by the cells that have it."""
    total = with_objectness(breakdown.sums)[name].sum()
    units = breakdown.counts[CELLS_OF_PARTS.get(name, "cells")].sum()
    return float(total / units) if units else None


def _constant_outputs(vectors, grids, batch: int) -> list:
    return [
        ops.convert_to_tensor(np.broadcast_to(vector, (batch, rows, columns, len(vector))).astype("float32"))
        for vector, (rows, columns) in zip(vectors, grids, strict=True)
    ]


def _best_constant_outputs(detector, targets, grids) -> list:
    """Outputs of the best head that knows these labels and not the image.

    The best objectness is the mean of its targets; those are the overlaps of the constant boxes, whose sum a first
    pass through the loss tells.
    """
    batch = len(targets.classes)
    vectors = _frequencies_and_means(detector, targets)
    counts = _plain(detector.criterion.breakdown(targets, _constant_outputs(vectors, grids, batch))).counts
    share = counts["confidence"] / np.maximum(counts["positives"] + counts["negatives"], 1.0)
    for vector, logit in zip(vectors, _log_odds(share), strict=True):
        vector[4] = logit
    return _constant_outputs(vectors, grids, batch)


def _frequencies_and_means(detector, targets) -> list:
    """For each scale the mean code and the log odds of anchors and classes; a fresh head's bias where there is none."""
    criterion, per_scale = detector.criterion, len(detector.anchors[0])
    won, scale = np.asarray(targets.positive), np.asarray(targets.scale)
    vectors = []
    for row in range(len(detector.strides)):
        vector = detector.initial_bias()
        mine = won & (scale == row)
        if mine.any():
            mean_offset = np.asarray(targets.offset)[mine].mean(0)
            vector[0:2] = np.asarray(cell_geometry.offset_logits(mean_offset, criterion.offset_activation))
            vector[2:4] = np.asarray(targets.log_size)[mine].mean(0)
            anchors = _shares(np.asarray(targets.anchor)[mine], per_scale)
            of_claims = np.broadcast_to(np.asarray(targets.classes)[..., None], mine.shape)
            classes = _shares(of_claims[mine], criterion.num_classes)
            vector[5 : 5 + per_scale] = _constant_logits(anchors, criterion.anchor)
            vector[5 + per_scale :] = _constant_logits(classes, criterion.classification)
        vectors.append(vector)
    return vectors


def _shares(index, count: int) -> np.ndarray:
    """Share of each of `count` values among cells; a cell that answers for padding counts as the first."""
    return np.bincount(np.maximum(index, 0), minlength=count) / len(index)


def _constant_logits(shares, kind: str) -> np.ndarray:
    return np.log(np.maximum(shares, 1e-7)) if kind == "softmax" else _log_odds(shares)


def _log_odds(share):
    share = np.clip(share, 1e-7, 1.0 - 1e-7)
    return np.log(share) - np.log1p(-share)


def _plain(breakdown: LossBreakdown) -> LossBreakdown:
    """The same breakdown in NumPy, float64."""
    numbers = lambda values: np.asarray(ops.convert_to_numpy(values), "float64")  # noqa: E731
    return breakdown._replace(
        total=numbers(breakdown.total),
        parts={name: numbers(values) for name, values in breakdown.parts.items()},
        sums={name: numbers(values) for name, values in breakdown.sums.items()},
        normalizers=numbers(breakdown.normalizers),
        counts={name: numbers(values) for name, values in breakdown.counts.items()},
        regularization=None if breakdown.regularization is None else numbers(breakdown.regularization),
    )
