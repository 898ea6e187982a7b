"""Faults of anchors, cells and what they should predict."""

from __future__ import annotations

import numpy as np
from keras import ops

from faults.kinds import fault
from multigrid.geometry.anchors import Anchors, read_anchors, write_anchors
from multigrid.losses.multigrid_loss import MultiGridLoss

COCO = Anchors.from_flat(
    [(10, 13), (16, 30), (33, 23), (30, 61), (62, 45), (59, 119), (116, 90), (156, 198), (373, 326)]
)


def _anchors(making, change) -> None:
    """Has the config name a file of changed anchors; change takes and gives sizes [3, A, 2]."""
    path = making.file("anchors.txt")
    write_anchors(Anchors(change(np.array(read_anchors(making.stage.config().data.anchors).sizes))), path, "scales")
    making.config(f"data.anchors={path}")


@fault("T01", "targets", "S", (128.0, 32.0, 4.0), ("MG301",))
def anchors_in_wrong_unit(making, divisor):
    _anchors(making, lambda sizes: sizes / divisor)


@fault("T02", "targets", "S", ((2, 1, 0), (1, 2, 0), (0, 2, 1)), ("MG302",))
def anchors_in_wrong_order(making, order):
    """Which scale's anchors each scale gets; scales run coarse to fine."""

    def reorder(vocabulary):
        return type(vocabulary)(vocabulary.class_names, Anchors(vocabulary.anchors.sizes[list(order)]))

    making.change("vocabulary", reorder)


@fault("T03", "targets", "S", (5.0, 3.0, "coco"), ("MG303", "MG301"))
def anchors_do_not_fit(making, stretch):
    """All wide or all tall by this factor, in turn; or those that suit other data and another input size."""

    def change(sizes):
        if stretch == "coco":
            return COCO.sizes
        flat = sizes.reshape(-1, 2).copy()
        side = np.sqrt(flat.prod(axis=1))
        flat[0::2] = np.stack([side * stretch, side / stretch], axis=1)[0::2]
        flat[1::2] = np.stack([side / stretch, side * stretch], axis=1)[1::2]
        return flat.reshape(sizes.shape)

    _anchors(making, change)


@fault("T06", "targets", "B", ("xy", "x", "finest"), ("MG311",))
def cell_off_by_one(making, where):
    """Objects are put one cell to the right and below, to the right, or to the right on the finest grid alone."""

    def encode(self, y_true, outputs):
        found = MultiGridLoss.encode(self, y_true, outputs)
        strides = np.array(self.strides, "float32") * (1.0 if where != "finest" else np.eye(len(self.strides))[-1])
        step = ops.take(ops.convert_to_tensor(strides, "float32"), found.own_scale, axis=0)
        down = step if where == "xy" else ops.zeros_like(step)
        return MultiGridLoss.encode(
            self, {**y_true, "boxes": y_true["boxes"] + ops.stack([step, down] * 2, -1)}, outputs
        )

    making.criterion(encode=encode)


@fault("T05", "targets", "B", (2.0, 1.5, 1.2), ("MG803", "MG313", "MG616"), further=True)
def strides_differ(making, factor):
    """Predictions are decoded with strides that are so many times too long."""
    from faults.evaluation import decode_with

    making.change("predictor", lambda predictor: decode_with(predictor, strides=factor))


@fault("T07", "targets", "B", ("all",), ("MG312",), further=True)
def cell_axes_swapped(making, _):
    def encode(self, y_true, outputs):
        boxes = ops.convert_to_tensor(y_true["boxes"])
        centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
        centre = centre[..., ::-1]
        return MultiGridLoss.encode(
            self, {**y_true, "boxes": ops.concatenate([centre - half, centre + half], -1)}, outputs
        )

    making.criterion(encode=encode)


@fault("T09", "targets", "B", (0.9, 0.7, 0.5), ("MG322",), further=True)
def too_few_positives(making, share):
    """This share of the objects gets no cell at all."""

    def encode(self, y_true, outputs):
        found = MultiGridLoss.encode(self, y_true, outputs)
        fraction = ops.sum(found.boxes, axis=-1) * 0.6180339
        kept = (fraction - ops.floor(fraction) >= share)[..., None]
        return found._replace(claimed=found.claimed & kept, positive=found.positive & kept)

    making.criterion(encode=encode)
