"""The loss: values -> mask -> sum -> normalizer -> coefficient, in that order, once.

`MultiGridLoss.breakdown` is the only arithmetic of the loss. Training, validation and the probe read its result.
"""

from typing import NamedTuple

import keras
from keras import ops

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS, LossConfig, ModelConfig
from multigrid.geometry import boxes as box_geometry
from multigrid.geometry import cells as cell_geometry
from multigrid.losses import components, targets
from multigrid.replicas import replica_count, sum_over_replicas

DEFAULTS = LossConfig()
NORMALIZERS = ("batch", "positives", "grid")


class LossBreakdown(NamedTuple):
    """Every part of the loss for one batch; S scales, coarse to fine.

    Counted are images, cells, objects, claims, positives, negatives and ignored; "confidence" is the sum of what
    objectness should say in the positive cells. Where replicas share a batch, counts and normalizers are those of the
    whole batch, while total, parts and sums are of this replica's images: their sum over the replicas is the loss.
    """

    total: object  # scalar float32: the sum of coefficient · part over parts and scales
    parts: dict  # name -> [S] float32, normalized, before the coefficient
    sums: dict  # name -> [S] float32, before the normalizer
    normalizers: object  # [S] float32
    counts: dict  # name -> [S] float32
    coefficients: dict  # name of the part -> float
    regularization: object = None  # scalar float32 within the total, where layers of the model have losses of their own
    replicas: int = 1  # that share the batch

    @property
    def weighted(self) -> dict:
        """The parts times their coefficients, as they stand in the total: name -> [S]."""
        return {name: self.coefficients[name] * values for name, values in self.parts.items()}

    def part(self, name: str):
        """One part over all scales, before its coefficient: a scalar."""
        return ops.sum(self.parts[name])


@keras.saving.register_keras_serializable("multigrid")
class MultiGridLoss:
    """Localization, objectness, anchor and classification of cells against boxes.

    Args:
        anchors: [scales, A, 2] nested numbers, (width, height) in input pixels, coarse to fine.
        strides: pixels a cell of each scale.
        num_classes: C.
        offset_activation: how the detector's offset logits are read, see `geometry.cells.offset`.
        assignment: which cells answer for an object, see `losses.targets.encode`.
        localization: "ciou", "diou", "giou" or "mse".
        classification: "bce", "softmax" or "focal".
        anchor: "softmax" or "bce".
        label_smoothing: of the classes.
        class_weights: C numbers that multiply the classification of their class, or None for all 1.
        focal_gamma: exponent of "focal".
        focal_alpha: weight of the true class in "focal".
        iou_power: objectness is trained towards IoU ** iou_power of the predicted box; 0 makes the target 1.
        iou_blend: share of that in the target; the rest of it is 1.
        ignore_threshold: a cell without an object whose box overlaps one by more than this IoU is left alone.
        loss_normalization: any of "batch" (images), "positives" (cells that answer) and "grid" (all cells of the
            batch), or a list, which multiplies; counted for each scale, never less than 1.
        coord_scale: coefficient of localization.
        object_scale: coefficient of the objectness of cells that answer for an object.
        no_object_scale: coefficient of the objectness of the others.
        anchor_scale: coefficient of the choice of anchor.
        class_scale: coefficient of classification.
        consensus_scale: coefficient of the variance of what the cells of one object say; 0 leaves this part out.
        suppression_scale: coefficient of the objectness of ignored cells that are worse than an object's best cell; 0
            leaves this part out.
    """

    def __init__(
        self,
        anchors,
        num_classes: int,
        *,
        strides=(32, 16, 8),
        offset_activation: str = ModelConfig().offset_activation,
        assignment: str = DEFAULTS.assignment,
        localization: str = DEFAULTS.localization,
        classification: str = DEFAULTS.classification,
        anchor: str = DEFAULTS.anchor,
        label_smoothing: float = DEFAULTS.label_smoothing,
        class_weights=None,
        focal_gamma: float = DEFAULTS.focal_gamma,
        focal_alpha: float = DEFAULTS.focal_alpha,
        iou_power: float = DEFAULTS.iou_power,
        iou_blend: float = DEFAULTS.iou_blend,
        ignore_threshold: float = DEFAULTS.ignore_threshold,
        loss_normalization=DEFAULTS.loss_normalization,
        coord_scale: float = DEFAULTS.coord_scale,
        object_scale: float = DEFAULTS.object_scale,
        no_object_scale: float = DEFAULTS.no_object_scale,
        anchor_scale: float = DEFAULTS.anchor_scale,
        class_scale: float = DEFAULTS.class_scale,
        consensus_scale: float = DEFAULTS.consensus_scale,
        suppression_scale: float = DEFAULTS.suppression_scale,
    ):
        self.anchors = [[[float(side) for side in pair] for pair in scale] for scale in anchors]
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.offset_activation = offset_activation
        self.assignment = _known("assignment", assignment, targets.ASSIGNMENTS)
        self.localization = _known("localization", localization, components.LOCALIZATIONS)
        self.classification = _known("classification", classification, components.CLASSIFICATIONS)
        self.anchor = _known("anchor", anchor, components.ANCHORS)
        self.label_smoothing = label_smoothing
        self.class_weights = _class_weights(class_weights, num_classes)
        self.focal_gamma, self.focal_alpha = focal_gamma, focal_alpha
        self.iou_power, self.iou_blend = iou_power, iou_blend
        self.ignore_threshold = ignore_threshold
        words = (loss_normalization,) if isinstance(loss_normalization, str) else tuple(loss_normalization)
        self.loss_normalization = tuple(_known("loss_normalization", word, NORMALIZERS) for word in words)
        self.coord_scale = coord_scale
        self.object_scale = object_scale
        self.no_object_scale = no_object_scale
        self.anchor_scale = anchor_scale
        self.class_scale = class_scale
        self.consensus_scale = consensus_scale
        self.suppression_scale = suppression_scale

    @property
    def parts(self) -> dict:
        """The parts that are there, and the scale of each: the five, and the optional ones whose scale is above 0."""
        return LOSS_PARTS | {part: scale for part, scale in OPTIONAL_LOSS_PARTS.items() if getattr(self, scale) > 0.0}

    @property
    def coefficients(self) -> dict:
        """The tunable scales, by the part that each multiplies."""
        return {part: getattr(self, scale) for part, scale in self.parts.items()}

    def __call__(self, y_true, y_pred):
        """The total loss.

        Args:
            y_true: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M] int, -1 for padding}.
            y_pred: list of [B, rows, columns, 5 + A + C] raw grids, coarse to fine.

        Returns:
            Scalar float32.
        """
        return self.breakdown(self.encode(y_true, y_pred), y_pred).total

    def encode(self, y_true, outputs) -> targets.Targets:
        """Finds the cells that answer for each box; arguments as for `__call__`."""
        layout = cell_geometry.layout_of(outputs, self.strides)
        predicted = None
        if self.assignment in targets.COMPETING:
            channels = self._split(cell_geometry.flatten(outputs))
            predicted = ops.stop_gradient(self._decode(channels, layout))
        return targets.encode(y_true["boxes"], y_true["classes"], layout, self.anchors, self.assignment, predicted)

    def breakdown(self, encoded: targets.Targets, outputs) -> LossBreakdown:
        """Every part of the loss, per scale, and their weighted total.

        Args:
            encoded: the targets of this batch.
            outputs: list of [B, rows, columns, 5 + A + C] raw grids, coarse to fine.

        Returns:
            A `LossBreakdown`, float32 whatever the dtype of the outputs.
        """
        layout = cell_geometry.layout_of(outputs, self.strides)
        cells = cell_geometry.flatten(outputs)
        channels = self._split(cells)
        predicted = ops.stop_gradient(self._decode(channels, layout))
        positive_cell = targets.positive_cells(encoded, layout)
        ignored_cell = self._ignored(predicted, encoded) & ~positive_cell
        quality = self._quality(predicted, encoded)
        sums = self._sums_over_claims(cells, quality, encoded, layout)
        sums["localization"] = sums["localization"] + _spoiled(encoded)
        negative_cell = ~positive_cell & ~ignored_cell
        empty_logits = ops.where(negative_cell, channels.objectness, 0.0)
        nothing = ops.where(negative_cell, components.objectness(empty_logits, 0.0), 0.0)
        sums["no_object"] = _by_scale_of_cells(nothing, layout)
        if "suppression" in self.parts:
            redundant = self._suppression(channels.objectness, predicted, ignored_cell, encoded)
            sums["suppression"] = _by_scale_of_cells(redundant, layout)
        counts = _count(encoded, layout, negative_cell, ignored_cell)
        counts["confidence"] = _by_scale_of_claims(quality, encoded, layout)
        (everywhere,) = sum_over_replicas([ops.stack(list(counts.values()))])
        counts = dict(zip(counts, ops.unstack(everywhere), strict=True))
        normalizers = self._normalizers(counts)
        parts = {name: sums[name] / normalizers for name in self.parts}
        measured = LossBreakdown(None, parts, sums, normalizers, counts, self.coefficients, replicas=replica_count())
        return measured._replace(total=sum(ops.sum(values) for values in measured.weighted.values()))

    def get_config(self) -> dict:
        """The constructor's arguments, as plain values."""
        names = ("anchors", "num_classes", "strides", "offset_activation", "assignment", "localization")
        names += ("classification", "anchor", "label_smoothing", "class_weights", "focal_gamma", "focal_alpha")
        names += ("iou_power", "iou_blend", "ignore_threshold", "loss_normalization", *LOSS_PARTS.values())
        names += tuple(OPTIONAL_LOSS_PARTS.values())
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_config(cls, config: dict) -> "MultiGridLoss":
        """The inverse of `get_config`."""
        return cls(**config)

    def _split(self, cells):
        return cell_geometry.split_channels(cells, len(self.anchors[0]))

    def _decode(self, channels, layout):
        return cell_geometry.decode_boxes(channels, layout, self.anchors, self.offset_activation)

    def _ignored(self, predicted, encoded):
        """Cells whose predicted box overlaps a true one too much to be called empty: [B, N] bool."""
        true_boxes = _true_boxes(encoded)[:, None]
        return ops.any(box_geometry.overlaps(predicted[:, :, None], true_boxes, self.ignore_threshold), axis=-1)

    def _suppression(self, logits, predicted, ignored_cell, encoded):
        """Objectness of ignored cells, each by how much worse it is than the best that answers: [B, N]."""
        overlap = box_geometry.iou(predicted[:, :, None], _true_boxes(encoded)[:, None])
        own = ops.max(overlap, axis=-1, initial=0.0)
        answering = ops.where(encoded.positive, self._overlap(predicted, encoded), 0.0)
        best_of_object = ops.max(answering, axis=-1, initial=0.0)
        best = ops.max(ops.where(overlap >= own[..., None], best_of_object[:, None], 0.0), axis=-1, initial=0.0)
        weight = ops.where(ignored_cell, ops.stop_gradient(components.redundancy(own, best)), 0.0)
        return weight * components.objectness(ops.where(ignored_cell, logits, 0.0), 0.0)

    def _overlap(self, predicted, encoded):
        """IoU of the box that each positive cell predicts with its object's: [B, M, K], 1 for claims that lost."""
        overlap = box_geometry.iou(targets.gather_cells(predicted, encoded.cell), encoded.boxes[:, :, None])
        return ops.where(encoded.positive, overlap, 1.0)

    def _sums_over_claims(self, cells, quality, encoded, layout) -> dict:
        """Sums over the positive cells of each scale of the parts that only they have: name -> [S]."""
        won = encoded.positive
        claimed_cells = targets.gather_cells(cells, encoded.cell)
        # select before the arithmetic: a NaN in a cell that answers for nothing must not reach the sums
        raw = self._split(ops.where(won[..., None], claimed_cells, 0.0))
        offsets = cell_geometry.offset(raw.xy, self.offset_activation)
        boxes, true_boxes = self._boxes(offsets, raw.wh, encoded, layout)
        code = ops.concatenate([offsets, raw.wh], axis=-1)
        true_code = ops.concatenate([encoded.offset, encoded.log_size], axis=-1)
        values = {
            "localization": components.localization(self.localization, boxes, true_boxes, code, true_code),
            "object": components.objectness(raw.objectness, quality),
            "anchor": components.anchor(self.anchor, raw.anchor, encoded.anchor),
            "classification": self._classification(raw.classes, encoded),
        }
        if "consensus" in self.parts:
            classes = (ops.softmax if self.classification == "softmax" else ops.sigmoid)(raw.classes)
            values["consensus"] = components.consensus(boxes, true_boxes, ops.sigmoid(raw.objectness), classes, won)
        return {name: _by_scale_of_claims(value, encoded, layout) for name, value in values.items()}

    def _boxes(self, offsets, log_sizes, encoded, layout):
        """What positive cells predict, against the matched anchor, and the true boxes; one unit box for the others."""
        cell_xy = ops.take(layout.xy, encoded.cell, axis=0)
        stride = ops.take(layout.stride, encoded.cell, axis=0)
        table = ops.reshape(ops.convert_to_tensor(self.anchors, "float32"), (-1, 2))
        matched = ops.take(table, encoded.scale * len(self.anchors[0]) + encoded.anchor, axis=0)
        decoded = cell_geometry.cell_boxes(offsets, log_sizes, cell_xy, stride, matched)
        true_boxes = ops.broadcast_to(encoded.boxes[:, :, None], ops.shape(decoded))
        unit = ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0])
        won = encoded.positive[..., None]
        return ops.where(won, decoded, unit), ops.where(won, true_boxes, unit)

    def _quality(self, predicted, encoded):
        """What objectness should say: 1, or the IoU that the cell's box has at this moment."""
        if self.iou_power == 0.0 or self.iou_blend == 0.0:
            return ops.ones_like(encoded.offset[..., 0])
        quality = self._overlap(predicted, encoded) ** self.iou_power
        return ops.stop_gradient(1.0 - self.iou_blend + self.iou_blend * quality)

    def _classification(self, logits, encoded):
        index = ops.maximum(encoded.classes, 0)
        of_claims = ops.broadcast_to(index[..., None], ops.shape(encoded.cell))
        values = components.classification(
            self.classification, logits, of_claims, self.label_smoothing, self.focal_gamma, self.focal_alpha
        )
        if self.class_weights is None:
            return values
        return values * ops.take(ops.convert_to_tensor(self.class_weights, "float32"), index, axis=0)[..., None]

    def _normalizers(self, counts):
        factors = {"batch": counts["images"], "positives": counts["positives"], "grid": counts["cells"]}
        product = ops.ones_like(counts["images"])
        for word in self.loss_normalization:
            product = product * ops.maximum(factors[word], 1.0)
        return product


def _spoiled(encoded):
    """NaN where the box of an object is not finite, else 0: no cell claims such a box, and nobody would notice."""
    finite = ops.all(ops.isfinite(encoded.boxes), axis=-1)
    return ops.where(ops.any((encoded.classes >= 0) & ~finite), float("nan"), 0.0)


def _count(encoded, layout, negative_cell, ignored_cell) -> dict:
    """How many there are of each, by scale: name -> [S] float32; `cells` over the whole batch."""
    in_scale = ops.one_hot(encoded.own_scale, len(layout.strides))
    ones = ops.ones_like(encoded.offset[..., 0])
    valid = ops.cast(encoded.classes >= 0, "float32")
    images = ops.cast(ops.shape(encoded.boxes)[0], "float32")
    cells = ops.cast(ops.stack([rows * columns for rows, columns in layout.shapes]), "float32")
    return {
        "images": images * ops.ones_like(cells),
        "cells": images * cells,
        "objects": ops.einsum("bm,bms->s", valid, in_scale),
        "claims": _by_scale_of_claims(ones, encoded._replace(positive=encoded.claimed), layout),
        "positives": _by_scale_of_claims(ones, encoded, layout),
        "negatives": _by_scale_of_cells(ops.cast(negative_cell, "float32"), layout),
        "ignored": _by_scale_of_cells(ops.cast(ignored_cell, "float32"), layout),
    }


def _by_scale_of_cells(values, layout):
    """[B, N] of cells -> [S] sums."""
    starts = layout.first_cells
    return ops.stack([ops.sum(values[:, a:b]) for a, b in zip(starts[:-1], starts[1:], strict=True)])


def _by_scale_of_claims(values, encoded, layout):
    """[B, M, K] of claims -> [S] sums over those that won their cell."""
    # selected and not multiplied by 0 or 1: what is not finite at one scale stays there
    scale = ops.where(encoded.positive, encoded.scale, -1)
    return ops.stack([ops.sum(ops.where(scale == row, values, 0.0)) for row in range(len(layout.strides))])


def _true_boxes(encoded):
    """[B, M, 4], zeros for padding."""
    return ops.where((encoded.classes >= 0)[..., None], encoded.boxes, 0.0)


def _known(name, word, known):
    if word not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, received {word!r}")
    return word


def _class_weights(weights, num_classes):
    if weights is None:
        return None
    weights = [float(weight) for weight in weights]
    if len(weights) != num_classes:
        raise ValueError(f"class_weights: expected {num_classes} numbers, one a class, received {len(weights)}")
    return weights
