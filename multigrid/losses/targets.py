"""The one encoder: which cells answer for which object, and what they should say.

Every object belongs to the scale and anchor that fit its size best; there, and with "across" as a guest in the scale
beside too, up to nine cells, the one that holds its centre and the eight around it, claim it. A claim is a slot [image,
object, one of K]; what a cell should predict is kept with the claim, not in a grid, so the cost grows with the number
of objects and hardly with the number of cells and classes.
"""

from typing import NamedTuple

from keras import ops

from multigrid.geometry import boxes as box_geometry
from multigrid.geometry import cells as cell_geometry

ASSIGNMENTS = ("inside", "paper", "single", "best", "across")
COMPETING = ("best", "across")  # where what cells predict at the moment decides which of them answer
BEST_CELLS = 2  # how many of a grid's nine these keep
BEST_FLOOR = 0.05  # added to the IoU, so that cells whose boxes overlap nothing yet are told apart by their distance
BEST_DECAY = 0.3  # how fast a cell's merit falls with the squared distance, in cells, of its centre from the object's
NINE = len(cell_geometry.NEIGHBOURHOOD)


class Targets(NamedTuple):
    """Claims of cells on objects, padded: B images, M objects, N cells over all scales, and K claims an object.

    K is 9, those of the object's own scale, or with "across" and three scales or more 18: after them those of the scale
    beside it.
    """

    boxes: object  # [B, M, 4] float32 corners in input pixels
    classes: object  # [B, M] int32, -1 for padding
    scale: object  # [B, M, K] int32, of the claiming cell
    anchor: object  # [B, M, K] int32, within that scale: the one that fits the object best there
    log_size: object  # [B, M, K, 2] float32, ln(size / that anchor)
    cell: object  # [B, M, K] int32, index into the image's N cells
    offset: object  # [B, M, K, 2] float32 (x, y) in cells, from the claiming cell's corner, in [-1, 2]
    claimed: object  # [B, M, K] bool, before collisions
    positive: object  # [B, M, K] bool, the claims that won their cell

    @property
    def own_scale(self):
        """[B, M] int32, the scale of the anchor that fits the object best."""
        return self.scale[..., 0]

    @property
    def at_home(self):
        """[B, M, K] bool, the claims in that scale; only what these leave over goes to the others, the guests."""
        return _at_home(self.scale)


def encode(boxes, classes, layout, anchors_wh, assignment, predicted_boxes=None) -> Targets:
    """Finds the cells that answer for each object.

    Args:
        boxes: [B, M, 4] float corners in input pixels.
        classes: [B, M] int, -1 for padding.
        layout: `CellLayout` of the output grids.
        anchors_wh: [scales, A, 2] float, (width, height) in input pixels, coarse to fine.
        assignment: "paper": all nine cells; "single": the object's own; "inside": its own and those neighbours whose
            centre lies inside the box; "best": the two of the nine whose predicted box fits best at this moment;
            "across": likewise two of the nine, and in the scale beside, where an object is a guest, up to two of those
            that "inside" allows there: the next coarser scale, for objects of the coarsest the next finer. The finest
            has no guests; with fewer than three scales it is "best".
        predicted_boxes: [B, N, 4] float corners, every cell's present prediction; "best" and "across" need it.

    Returns:
        `Targets`. Where two objects want one cell it goes to the one that belongs to its scale, else to the one whose
        centre lies in it, else to the nearer centre, else to the smaller box.
    """
    boxes, classes = ops.cast(boxes, "float32"), ops.cast(classes, "int32")
    center, size = box_geometry.centers_and_sizes(boxes)
    valid = (classes >= 0) & ops.all(size > 0.0, axis=-1)
    size = ops.where(valid[..., None], size, 1.0)
    near = _candidates(center, size, layout, anchors_wh, assignment)
    claimed = near.exists & valid[..., None]
    claimed = claimed & _rule(assignment, boxes, near, predicted_boxes, claimed)
    positive = _settle(claimed, near, ops.prod(size, axis=-1), layout)
    return Targets(boxes, classes, near.scale, near.anchor, near.log_size, near.cell, near.offset, claimed, positive)


def gather_cells(values, cell):
    """Values of the claimed cells.

    Args:
        values: [B, N, ...] of every cell.
        cell: [B, M, K] int32 indices into N.

    Returns:
        [B, M, K, ...].
    """
    shape = ops.shape(values)
    flat = ops.reshape(values, (-1, *values.shape[2:]))
    return ops.take(flat, _across_batch(cell, shape[1]), axis=0)


def positive_cells(targets: Targets, layout):
    """Which of all cells answer for an object: [B, N] bool."""
    return _any_by_cell(targets.positive, targets.cell, layout)


def target_grids(targets: Targets, layout, anchors_per_scale: int, num_classes: int) -> list:
    """The targets laid out as the outputs are, for pictures and for checks; training does not need them.

    Args:
        targets: what `encode` returned.
        layout: the layout it was encoded for.
        anchors_per_scale: A.
        num_classes: C.

    Returns:
        List of [B, rows, columns, 5 + A + C] float32, coarse to fine: offset, log size, 1, one-hot anchor and one-hot
        class in the positive cells, 0 elsewhere.
    """
    classes = ops.broadcast_to(targets.classes[..., None], ops.shape(targets.cell))
    values = ops.concatenate(
        [
            targets.offset,
            targets.log_size,
            ops.ones_like(targets.log_size[..., :1]),
            ops.one_hot(targets.anchor, anchors_per_scale),
            ops.one_hot(classes, num_classes),
        ],
        axis=-1,
    )
    values = ops.where(targets.positive[..., None], values, 0.0)
    batch, total, channels = ops.shape(targets.boxes)[0], layout.first_cells[-1], 5 + anchors_per_scale + num_classes
    index = ops.reshape(_across_batch(targets.cell, total), (-1,))
    summed = ops.segment_sum(ops.reshape(values, (-1, channels)), index, num_segments=batch * total)
    return cell_geometry.unflatten(ops.reshape(summed, (batch, total, channels)), layout)


class _Candidates(NamedTuple):
    """The cells around each object's centre, in the scales that may claim it, its own first: [B, M, K, ...]."""

    scale: object
    anchor: object
    log_size: object
    stride: object  # pixels
    cell: object
    cell_xy: object  # [B, M, K, 2] float32 (column, row)
    offset: object
    exists: object  # whether there is such a cell


def _candidates(center, size, layout, anchors_wh, assignment) -> _Candidates:
    scale, anchor, log_size = _match(size, anchors_wh, assignment)
    stride = ops.take(ops.convert_to_tensor(layout.strides, "float32"), scale, axis=0)
    center = center[:, :, None] / stride[..., None]
    cell_xy, cell, exists = cell_geometry.nine_cells(center, scale, layout)
    offset = center[..., None, :] - cell_xy
    nine = (ops.repeat(values, NINE, axis=2) for values in (scale, anchor, log_size, stride))
    return _Candidates(*nine, *(_claims(values) for values in (cell, cell_xy, offset, exists)))


def _match(size, anchors_wh, assignment):
    """The V scales whose cells may claim an object, its own first, and the anchor of each that fits it best, by IoL.

    Returns:
        Scale [B, M, V] int32; anchor [B, M, V] int32; ln(size / anchor) [B, M, V, 2].
    """
    anchors_wh = ops.convert_to_tensor(anchors_wh, "float32")
    scales, per_scale = anchors_wh.shape[:2]
    table = ops.reshape(anchors_wh, (-1, 2))
    overlap = box_geometry.iol(size, table)
    own = ops.cast(ops.argmax(overlap, axis=-1), "int32") // per_scale
    scale = own[..., None]
    if assignment == "across" and scales > 2:
        # never the finest, unless it is the object's own: with large ones in it the small ones are hardly learnt
        scale = ops.stack([own, ops.abs(own - 1)], axis=-1)
    of_scales = ops.argmax(ops.reshape(overlap, (*ops.shape(size)[:2], scales, per_scale)), axis=-1)
    anchor = ops.take_along_axis(ops.cast(of_scales, "int32"), scale, axis=-1)
    return scale, anchor, ops.log(size[:, :, None] / ops.take(table, scale * per_scale + anchor, axis=0))


def _claims(values):
    """[B, M, V, 9, ...] -> [B, M, V · 9, ...]."""
    batch, objects = ops.shape(values)[:2]
    return ops.reshape(values, (batch, objects, values.shape[2] * NINE, *values.shape[4:]))


def _rule(assignment, boxes, near, predicted_boxes, claimed):
    """Which of the claims the assignment lets stand: [B, M, K] bool."""
    if assignment == "paper":
        return ops.ones_like(claimed)
    if assignment == "single":
        return ops.broadcast_to(_own_cells(claimed.shape[2]), ops.shape(claimed))
    if assignment == "inside":
        return _inside(boxes, near)
    if assignment not in COMPETING:
        raise ValueError(f"assignment: expected one of {', '.join(ASSIGNMENTS)}, received {assignment!r}")
    if predicted_boxes is None:
        raise ValueError(f'assignment "{assignment}": expected predicted_boxes, received None')
    claimed = claimed & (_at_home(near.scale) | _inside(boxes, near))
    return claimed & _best_of_nine(boxes, near, predicted_boxes, claimed)


def _own_cells(count):
    """Of an object's claims those of the cell that holds its centre, one a scale: [K] bool."""
    return ops.convert_to_tensor([k % NINE == cell_geometry.OWN_CELL for k in range(count)])


def _inside(boxes, near):
    """The cell that holds the object's centre, and those neighbours whose own lies inside the box: [B, M, K] bool."""
    point = (near.cell_xy + 0.5) * near.stride[..., None]
    low, high = boxes[:, :, None, :2], boxes[:, :, None, 2:]
    return _own_cells(near.cell.shape[2]) | ops.all((point > low) & (point < high), axis=-1)


def _at_home(scale):
    return scale == scale[..., :1]


def _best_of_nine(boxes, near, predicted_boxes, claimed):
    overlap = box_geometry.iou(gather_cells(predicted_boxes, near.cell), boxes[:, :, None])
    fit = ops.where(claimed, (overlap + BEST_FLOOR) * ops.exp(-BEST_DECAY * _away(near)), -1.0)
    by_scale = ops.reshape(fit, (*ops.shape(fit)[:2], fit.shape[2] // NINE, NINE))
    kept = ops.top_k(by_scale, BEST_CELLS)[1]
    return _claims(ops.any(kept[..., None] == ops.arange(NINE), axis=-2))


def _away(near):
    """Squared distance of an object's centre from that of the cell, in cells: [B, M, K]."""
    return ops.sum((near.offset - 0.5) ** 2, axis=-1)


def _settle(claimed, near, area, layout):
    """Leaves each cell to one claim: of its scale, else centre in the cell, else nearer, smaller, earlier object."""
    outside = ops.any((near.offset < 0.0) | (near.offset >= 1.0), axis=-1)
    nearness = -_away(near) - ops.where(outside, 100.0, 0.0)
    smallness = ops.broadcast_to(-area[..., None], ops.shape(claimed))
    earliness = ops.broadcast_to(-ops.arange(ops.shape(area)[1], dtype="float32")[None, :, None], ops.shape(claimed))
    merits = [nearness, smallness, earliness]
    if claimed.shape[2] > NINE:
        merits.insert(0, ops.cast(_at_home(near.scale), "float32"))
    for merit in merits:
        claimed = claimed & (merit >= _best_by_cell(ops.where(claimed, merit, -1e30), near.cell, layout))
    return claimed


def _best_by_cell(merit, cell, layout):
    """The highest merit among all claims on the same cell, for each claim."""
    total = layout.first_cells[-1]
    index = ops.reshape(_across_batch(cell, total), (-1,))
    best = ops.segment_max(ops.reshape(merit, (-1,)), index, num_segments=ops.shape(merit)[0] * total)
    return ops.reshape(ops.take(best, index, axis=0), ops.shape(merit))


def _any_by_cell(claims, cell, layout):
    total, batch = layout.first_cells[-1], ops.shape(claims)[0]
    index = ops.reshape(_across_batch(cell, total), (-1,))
    count = ops.segment_sum(ops.cast(ops.reshape(claims, (-1,)), "float32"), index, num_segments=batch * total)
    return ops.reshape(count > 0.0, (batch, total))


def _across_batch(cell, total):
    """Indices into an image's cells -> indices into the cells of the whole batch."""
    batch = ops.arange(ops.shape(cell)[0], dtype="int32")
    return batch[:, None, None] * total + cell
