"""Looks: what a detector says of one and the same batch while it is trained, and what has moved in it."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from multigrid.config import with_objectness
from multigrid.diagnosis.probe import CELLS_OF_PARTS, describe_batch
from multigrid.geometry import boxes as box_geometry
from multigrid.geometry import cells as cell_geometry
from multigrid.losses.targets import gather_cells, positive_cells
from multigrid.models.blocks import block_of

SATURATED = 10.0  # a logit beyond has a gradient below 5e-5


class Watcher:
    """Looks at a detector from time to time, always with the same batch.

    Args:
        case: the detector and its batch.
        forward: whether the network is asked; without, only its weights are looked at.
    """

    def __init__(self, case, forward: bool = True):
        self.case, self.detector, self.forward = case, case.detector, forward
        self.images, self.truth = case.batch
        self.best, self.first = None, self._values()
        self.last, self.last_step = self.first, 0

    def look(self, step: int) -> dict:
        """What there is to see now.

        Returns:
            {"step"
            "update_ratio/<block>": ‖change‖ / ‖weights‖ of the block since the last look, for each step of it
            "unmoved": paths of trainable variables that are as at the beginning
            "moved_frozen": paths of others that are not
            "loss" of the batch, "max_logit", "saturated" share of objectness logits, "max_log_size"
            "parts": {name: {"measured", "best_constant"}} for each cell that has the part
            "positive_confidence", "negative_confidence": mean objectness probability of the cells that answer, and of
            the others; "objectness_target" mean of the former, "object_share" the same over all cells
            "max_offset_logit", "positive_overlap", mean IoU, of positive cells
            "across_images", "within_image": spread of the logits of one cell over the images, and of one image over
            the cells}. Of an encoder that knows no claims the figures about positive cells are left out.
        """
        found = {"step": step, **self._moves(step)}
        return found | self._outputs() if self.forward else found

    def _values(self) -> dict:
        return {variable.path: np.array(ops.convert_to_numpy(variable)) for variable in self.detector.weights}

    def _moves(self, step: int) -> dict:
        now, trainable = self._values(), {variable.path for variable in self.detector.trainable_variables}
        squares = {}
        for path in trainable:
            block, old = block_of(path), self.last[path].astype("float64")
            change, size = squares.get(block, (0.0, 0.0))
            squares[block] = (change + np.square(now[path] - old).sum(), size + np.square(old).sum())
        elapsed = max(1, step - self.last_step)
        found = {
            f"update_ratio/{block}": float(np.sqrt(change / max(size, 1e-30)) / elapsed)
            for block, (change, size) in squares.items()
        }
        same = {path for path, value in now.items() if np.array_equal(value, self.first[path])}
        learnt = _statistics(self.detector)
        found["unmoved"] = sorted(same & trainable)
        found["moved_frozen"] = sorted(now.keys() - same - trainable - learnt)
        self.last, self.last_step = now, step
        return found

    def _outputs(self) -> dict:
        detector, criterion = self.detector, self.case.criterion
        grids = self.grids()
        with_claims = criterion.encode(self.truth, grids)
        breakdown = criterion.breakdown(with_claims, grids)
        cells = np.asarray(ops.convert_to_numpy(cell_geometry.flatten(grids)), "float64")
        objectness = cells[..., 4]
        found = {
            "loss": float(ops.convert_to_numpy(breakdown.total)),
            "parts": self._parts(breakdown),
            "max_logit": float(np.abs(cells).max()),
            "saturated": float((np.abs(objectness) > SATURATED).mean()),
            "max_log_size": float(np.abs(cells[..., 2:4]).max()),
            **_spread(cells),
        }
        if not hasattr(with_claims, "positive"):
            return found
        layout = cell_geometry.layout_of(grids, detector.strides)
        positive = np.asarray(ops.convert_to_numpy(positive_cells(with_claims, layout)))
        probability = np.asarray(ops.convert_to_numpy(ops.sigmoid(objectness)))
        if positive.any():
            found["positive_confidence"] = float(probability[positive].mean())
            found["max_offset_logit"] = float(np.abs(cells[positive][:, :2]).max())
            found["positive_overlap"] = self._overlap(grids, with_claims, layout)
        found["negative_confidence"] = float(probability[~positive].mean())
        target = breakdown.counts.get("confidence", breakdown.counts["positives"])
        found["objectness_target"] = float(np.sum(ops.convert_to_numpy(target)) / max(1, positive.sum()))
        found["object_share"] = float(positive.mean()) * found["objectness_target"]
        return found

    def _overlap(self, grids, with_claims, layout) -> float:
        """Mean IoU of the boxes that positive cells predict with those that they should."""
        criterion, flat = self.case.criterion, cell_geometry.flatten(grids)
        channels = cell_geometry.split_channels(flat, self.case.anchors.shape[1])
        anchors = self.case.anchors.astype("float32")
        activation = getattr(criterion, "offset_activation", self.detector.offset_activation)
        predicted = cell_geometry.decode_boxes(channels, layout, anchors, activation)
        overlap = box_geometry.iou(gather_cells(predicted, with_claims.cell), with_claims.boxes[:, :, None])
        return float(np.asarray(ops.convert_to_numpy(overlap))[np.asarray(with_claims.positive)].mean())

    def grids(self) -> list:
        """What training sees of the batch, with its own statistics; the detector stays as it is."""
        detector = self.detector
        state = ([v.value for v in detector.trainable_variables], [v.value for v in detector.non_trainable_variables])
        return detector.stateless_call(*state, ops.convert_to_tensor(self.images), training=True)[0]

    def _parts(self, breakdown) -> dict:
        """Each part for each cell that has it, and what the best constant head would have."""
        if self.best is None:
            rows = describe_batch(self.detector, self.images, self.truth, training_mode=True)["per_unit"]
            self.best = {row["component"]: row["best_constant"] for row in rows}
        sums = with_objectness({name: np.sum(ops.convert_to_numpy(one)) for name, one in breakdown.sums.items()})
        cells = {name: np.sum(ops.convert_to_numpy(one)) for name, one in breakdown.counts.items()}
        found = {}
        for name, best in self.best.items():
            count = cells[CELLS_OF_PARTS.get(name, "cells")]
            if count and best is not None:
                found[name] = {"measured": float(sums[name] / count), "best_constant": best}
        return found


def _statistics(detector) -> set:
    """Paths of the variables that training moves without a gradient: statistics of BatchNorm that is not frozen."""
    norms = [
        layer
        for layer in detector._flatten_layers(include_self=False)
        if isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    ]
    return {variable.path for layer in norms for variable in layer.non_trainable_variables}


def _spread(cells: np.ndarray) -> dict:
    """How much the logits [B, N, channels] of a cell differ between images, and those of an image between cells."""
    if len(cells) < 2:
        return {}
    across, within = cells.std(axis=0).mean(axis=0), cells.std(axis=1).mean(axis=0)
    return {"across_images": float(across.mean()), "within_image": float(within.mean())}
