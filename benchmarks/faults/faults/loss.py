"""Faults of the loss and its coefficients: settings, or a subclass of the loss with a method of its own."""

from __future__ import annotations

import numpy as np
from keras import ops

from faults.kinds import fault
from multigrid.losses import components, targets
from multigrid.losses.multigrid_loss import MultiGridLoss, _by_scale_of_cells, _by_scale_of_claims

POSITIVES = ("loss.loss_normalization=positives", "training.max_grad_norm=10.0")
PROBABILITIES = ("objectness and classes", "objectness", "classes")


def _reads(making, which: str, function) -> None:
    """Has the loss read objectness, class logits or both through a function."""

    def breakdown(self, encoded, outputs):
        first = 5 + len(self.anchors[0])
        changed = []
        for grid in outputs:
            objectness, classes = grid[..., 4:5], grid[..., first:]
            objectness = function(objectness) if "objectness" in which else objectness
            classes = function(classes) if "classes" in which else classes
            changed.append(ops.concatenate([grid[..., :4], objectness, grid[..., 5:first], classes], axis=-1))
        return MultiGridLoss.breakdown(self, encoded, changed)

    making.criterion(breakdown=breakdown)


def with_sums(making, function) -> None:
    """Has the sums over positive cells go through function(criterion, sums, cells, quality, encoded, layout)."""

    def sums_over_claims(self, cells, quality, encoded, layout):
        sums = MultiGridLoss._sums_over_claims(self, cells, quality, encoded, layout)
        return function(self, sums, cells, quality, encoded, layout)

    making.criterion(_sums_over_claims=sums_over_claims)


def raw_outputs(criterion, cells, encoded):
    """Channels of the positive cells [B, M, K, ...]; zeros for the others."""
    claimed = targets.gather_cells(cells, encoded.cell)
    return criterion._split(ops.where(encoded.positive[..., None], claimed, 0.0))


@fault("L03", "loss", "B", (0.0, 1e-6, 1e-2), ("MG603",), settings=POSITIVES)
def normalizer_unprotected(making, least):
    """The number of positive cells is a divisor, however small; some images have no objects."""

    def normalizers(self, counts):
        return ops.maximum(counts["positives"], least)

    making.criterion(_normalizers=normalizers)


@fault("L05", "loss", "E", (1000.0, 200.0, 40.0), ("MG605", "MG650"))
def no_object_scale_too_large(making, scale):
    making.config(f"loss.no_object_scale={scale}")


@fault("L07", "loss", "B", ((1.0, 1.0, 1.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)), ("MG606",))
def anchor_loss_not_masked(making, scales):
    """On these grids, coarse to fine, the anchor loss counts cells without an object too."""

    def add(criterion, sums, cells, quality, encoded, layout):
        logits = criterion._split(cells).anchor
        everywhere = components.anchor(criterion.anchor, logits, ops.zeros(ops.shape(logits)[:-1], "int32"))
        added = _by_scale_of_cells(everywhere, layout) * np.array(scales, "float32")
        return {**sums, "anchor": sums["anchor"] + added}

    with_sums(making, add)


@fault("L13", "loss", "B", PROBABILITIES, ("MG612",))
def sigmoid_twice(making, which):
    _reads(making, which, ops.sigmoid)


@fault("L14", "loss", "B", PROBABILITIES, ("MG613",))
def sigmoid_missing(making, which):
    """The cross-entropy of probabilities, which are clipped, is taken of logits."""

    def logit_of(values):
        clipped = ops.clip(values, 1e-7, 1.0 - 1e-7)
        return ops.log(clipped) - ops.log1p(-clipped)

    _reads(making, which, logit_of)


@fault("L01", "loss", "B", (100.0, 8.0), ("MG601",), further=True, settings=("training.optimizer=sgd",))
def loss_summed(making, share):
    """Over the batch and not divided, or not even by what else made it small."""
    making.criterion(_normalizers=lambda self, counts: ops.ones_like(counts["images"]) * 8.0 / share)


@fault("L02", "loss", "B", (1.0, 0.5), ("MG602", "MG651"), further=True)
def positives_diluted(making, power):
    """Parts of positive cells are divided by the cells of their grid (or a root of that) besides."""

    def divide(criterion, sums, cells, quality, encoded, layout):
        count = np.array([rows * columns for rows, columns in layout.shapes], "float32") ** power
        return {name: values / count for name, values in sums.items()}

    with_sums(making, divide)


@fault("L09", "loss", "B", (0.0, 0.02, 0.1), ("MG608",), further=True)
def too_much_ignored(making, threshold):
    making.config(f"loss.ignore_threshold={threshold}")


@fault("L10", "loss", "B", (0.49, 0.4), ("MG609",), further=True)
def labels_smoothed_away(making, smoothing):
    making.config(f"loss.label_smoothing={smoothing}")


@fault("L11", "loss", "B", (30.0, 8.0), ("MG610",), further=True, settings=("loss.classification=focal",))
def focal_exponent_too_high(making, gamma):
    making.config(f"loss.focal_gamma={gamma}")


@fault("L12", "loss", "B", (1000.0, 100.0), ("MG611",), further=True)
def class_weights_wrong(making, factor):
    """The first class counts so many times more than it should, the others so many times less."""
    weights = [factor, *[1.0 / factor] * (making.class_count - 1)]
    making.config(f"loss.class_weights={weights}")


@fault("L16", "loss", "B", ("all",), ("MG614", "MG615", "MG657"), further=True)
def gradient_through_mask(making, _):
    """A part whose values are finite and whose gradient is not, where a row is padding."""

    def add(criterion, sums, cells, quality, encoded, layout):
        length = ops.sqrt(ops.sum(raw_outputs(criterion, cells, encoded).wh ** 2, axis=-1))
        return {**sums, "localization": sums["localization"] + 0.1 * _by_scale_of_claims(length, encoded, layout)}

    with_sums(making, add)


@fault("L20", "loss", "E", (12.0, 6.0, 3.0), ("MG652",), further=True)
def objectness_target_collapses(making, power):
    making.config(f"loss.iou_power={power}")


@fault("L21", "loss", "B", (1000.0, 100.0), ("MG617",), further=True)
def scales_out_of_balance(making, factor):
    """The finest grid counts so many times more than the others."""

    def normalizers(self, counts):
        return MultiGridLoss._normalizers(self, counts) / np.array([1.0, 1.0, factor], "float32")

    making.criterion(_normalizers=normalizers)


@fault("L22", "loss", "B", ("coord_scale=0.001", "class_scale=1000.0", "coord_scale=0.05"), ("MG618",), further=True)
def coefficients_out_of_balance(making, setting):
    making.config(f"loss.{setting}")


@fault("L24", "loss", "B", (10.0, 3.0, 1.0), ("MG620",), further=True)
def positives_also_negative(making, weight):
    """Cells with an object are trained as empty ones besides, with this weight."""

    def add(criterion, sums, cells, quality, encoded, layout):
        values = components.objectness(raw_outputs(criterion, cells, encoded).objectness, 0.0)
        return {**sums, "object": sums["object"] + weight * _by_scale_of_claims(values, encoded, layout)}

    with_sums(making, add)
