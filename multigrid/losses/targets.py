"""The one encoder: which cells answer for which object, and what they should say.

In a grid up to nine cells, the one that holds an object's centre and the eight around it, may claim the object: in the
grid whose anchors fit it best, or in every grid, as the assignment has it. A claim is a slot [image, object, one of K];
what a cell should predict is kept with the claim, not in a grid, so the cost grows with the number of objects and
hardly with the number of cells and classes.
"""

from typing import NamedTuple

from keras import ops

from multigrid.geometry import boxes as box_geometry
from multigrid.geometry import cells as cell_geometry

ASSIGNMENTS = ("inside", "paper", "single", "best", "ranked")
COMPETING = {"best": 4, "ranked": 9}  # assignments by what cells predict now, and how many an object keeps
EVERY_SCALE = ("ranked",)  # assignments where the nine cells of other scales too may claim an object
OBJECT_WEIGHT = 4.0  # cells that an object of "ranked" counts as, however many answer for it
FIT_FLOOR = 0.05  # added to the IoU, so that cells whose boxes overlap nothing yet are told apart by their distance
FIT_DECAY = 0.3  # how fast the fit falls with the squared distance, in cells, of a cell's centre from the object's
NINE = len(cell_geometry.NEIGHBOURHOOD)


class Targets(NamedTuple):
    """Claims of cells on objects, padded: B images, M objects, N cells over all scales, and K claims an object.

    K is 9, those of the object's own scale, or 9 · scales, coarse to fine, where other scales may claim it too.
    """

    boxes: object  # [B, M, 4] float32 corners in input pixels
    classes: object  # [B, M] int32, -1 for padding
    own_scale: object  # [B, M] int32, the scale of the anchor that fits the object best
    scale: object  # [B, M, K] int32, of the cell
    cell: object  # [B, M, K] int32, index into the image's N cells
    offset: object  # [B, M, K, 2] float32 (x, y) in cells, from the claiming cell's corner, in [-1, 2]
    anchor: object  # [B, M, K] int32, within the scale: the one that fits the object best there
    log_size: object  # [B, M, K, 2] float32, ln(size / that anchor)
    claimed: object  # [B, M, K] bool, before collisions
    positive: object  # [B, M, K] bool, the claims that won their cell
    standing: object  # [B, M, K] float32 in (0, 1], fit beside the object's best positive cell; 1 unless "ranked"
    weight: object  # [B, M, K] float32, what the claim counts for in the loss; 1 unless "ranked"


def encode(boxes, classes, layout, anchors_wh, assignment, predicted_boxes=None) -> Targets:
    """Finds the cells that answer for each object.

    Args:
        boxes: [B, M, 4] float corners in input pixels.
        classes: [B, M] int, -1 for padding.
        layout: `CellLayout` of the output grids.
        anchors_wh: [scales, A, 2] float, (width, height) in input pixels, coarse to fine.
        assignment: in the object's own scale, "paper": all nine cells; "single": the one that holds the centre;
            "inside": that one and those neighbours whose centre lies inside the box; "best": the four of the nine whose
            predicted box fits best at this moment. "ranked": of the cells of "inside", in the own scale and
            those beside it, the nine that fit best at this moment, each with the standing that its fit earns and with
            a share of the object's weight.
        predicted_boxes: [B, N, 4] float corners, every cell's present prediction; "best" and "ranked" need it.

    Returns:
        `Targets`. Where two objects want one cell it goes to the one whose centre lies in it, else to the nearer
        centre, else to the smaller box.
    """
    if assignment not in ASSIGNMENTS:
        raise ValueError(f"assignment: expected one of {', '.join(ASSIGNMENTS)}, received {assignment!r}")
    boxes, classes = ops.cast(boxes, "float32"), ops.cast(classes, "int32")
    center, size = box_geometry.centers_and_sizes(boxes)
    valid = (classes >= 0) & ops.all(size > 0.0, axis=-1)
    size = ops.where(valid[..., None], size, 1.0)
    own_scale, scale, anchor, log_size = _match(size, anchors_wh, assignment in EVERY_SCALE)
    stride = ops.take(ops.convert_to_tensor(layout.strides, "float32"), scale, axis=0)
    center = center[:, :, None] / stride[..., None]
    cell_xy, cell, exists = (_claims(values) for values in cell_geometry.nine_cells(center, scale, layout))
    scale, stride, anchor, log_size, center = (
        ops.repeat(values, NINE, axis=2) for values in (scale, stride, anchor, log_size, center)
    )
    offset = center - cell_xy
    near = ops.abs(scale - own_scale[..., None]) <= 1
    claimed = exists & valid[..., None] & near
    own = _own_cells(own_scale, scale)
    if assignment == "single":
        claimed = claimed & own
    elif assignment in ("inside", "ranked"):
        claimed = claimed & (own | _inside(boxes, cell_xy, stride))
    if assignment in COMPETING:
        fit = ops.where(claimed, _fit(boxes, cell, offset, predicted_boxes, assignment), 0.0)
        claimed = claimed & _among_best(fit, COMPETING[assignment])
    positive = _settle(claimed, cell, offset, ops.prod(size, axis=-1), layout)
    standing = weight = ops.ones_like(stride)
    if assignment == "ranked":
        standing, weight = _standing(fit, positive), _shared_weight(positive)
    return Targets(
        boxes, classes, own_scale, scale, cell, offset, anchor, log_size, claimed, positive, standing, weight
    )


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
    classes = ops.repeat(targets.classes[..., None], targets.cell.shape[-1], axis=-1)
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


def _match(size, anchors_wh, every_scale: bool):
    """Own scale [B, M]; and by the scales that may claim, V of them, scale and best anchor there [B, M, V], by IoL.

    And, [B, M, V, 2], ln(size / anchor).
    """
    anchors_wh = ops.convert_to_tensor(anchors_wh, "float32")
    scales, per_scale = anchors_wh.shape[:2]
    table = ops.reshape(anchors_wh, (-1, 2))
    overlap = box_geometry.iol(size, table)
    overlap = ops.reshape(overlap, (*ops.shape(size)[:2], scales, per_scale))
    own_scale = ops.cast(ops.argmax(ops.max(overlap, axis=-1, initial=0.0), axis=-1), "int32")
    anchor = ops.cast(ops.argmax(overlap, axis=-1), "int32")
    if every_scale:
        scale = ops.broadcast_to(ops.arange(scales, dtype="int32"), ops.shape(anchor))
    else:
        scale = own_scale[..., None]
        anchor = ops.take_along_axis(anchor, scale, axis=-1)
    log_size = ops.log(size[:, :, None] / ops.take(table, scale * per_scale + anchor, axis=0))
    return own_scale, scale, anchor, log_size


def _claims(values):
    """[B, M, V, 9, ...] -> [B, M, V · 9, ...]."""
    batch, objects = ops.shape(values)[:2]
    return ops.reshape(values, (batch, objects, values.shape[2] * NINE, *values.shape[4:]))


def _own_cells(own_scale, scale):
    """Which claims are that of the cell, in the object's own scale, that holds its centre: [B, M, K] bool."""
    center = [k == cell_geometry.OWN_CELL for k in range(NINE)] * (scale.shape[-1] // NINE)
    return ops.convert_to_tensor(center) & (scale == own_scale[..., None])


def _inside(boxes, cell_xy, stride):
    """Whether the centre of a claiming cell lies inside the box: [B, M, K] bool."""
    point = (cell_xy + 0.5) * stride[..., None]
    return ops.all((point > boxes[:, :, None, :2]) & (point < boxes[:, :, None, 2:]), axis=-1)


def _fit(boxes, cell, offset, predicted_boxes, assignment):
    """How well what a cell predicts now, and its place, suit an object: [B, M, K] in (0, 1.05]."""
    if predicted_boxes is None:
        raise ValueError(f'assignment "{assignment}": expected predicted_boxes, received None')
    overlap = box_geometry.iou(gather_cells(predicted_boxes, cell), boxes[:, :, None])
    distance = ops.sum((offset - 0.5) ** 2, axis=-1)
    return (overlap + FIT_FLOOR) * ops.exp(-FIT_DECAY * distance)


def _among_best(fit, count: int):
    """Whether a claim is one of so many of its object that fit best: [B, M, K] bool."""
    best = ops.top_k(fit, count)[1]
    return ops.any(best[..., None] == ops.arange(fit.shape[-1]), axis=-2)


def _standing(fit, positive):
    """Fit of positive claims beside the best of the same object; 1 for the others."""
    best = ops.max(ops.where(positive, fit, 0.0), axis=-1, keepdims=True, initial=0.0)
    return ops.where(positive, fit, 1.0) / ops.where(positive, best, 1.0)


def _shared_weight(positive):
    """The weight of an object shared out among its positive claims: large and small objects count alike."""
    number = ops.sum(ops.cast(positive, "float32"), axis=-1, keepdims=True)
    return ops.where(positive, OBJECT_WEIGHT / ops.maximum(number, 1.0), 1.0)


def _settle(claimed, cell, offsets, area, layout):
    """Leaves each cell to one claim: centre in the cell, else nearer, else smaller box, else the earlier object."""
    outside = ops.any((offsets < 0.0) | (offsets >= 1.0), axis=-1)
    nearness = -ops.sum((offsets - 0.5) ** 2, axis=-1) - ops.where(outside, 100.0, 0.0)
    smallness = ops.broadcast_to(-area[..., None], ops.shape(claimed))
    earliness = ops.broadcast_to(-ops.arange(ops.shape(area)[1], dtype="float32")[None, :, None], ops.shape(claimed))
    for merit in (nearness, smallness, earliness):
        claimed = claimed & (merit >= _best_by_cell(ops.where(claimed, merit, -1e30), cell, layout))
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
