"""Suppression as part of a graph, for artefacts that run without this package.

`detection.suppression` says what is left; here the same is said in `keras.ops`, with shapes that do not depend on what
the images show.
"""

from __future__ import annotations

from keras import ops

from multigrid.detection.suppression import support
from multigrid.geometry.boxes import overlaps

RULES = ("nms", "consensus", "vote")  # those of `detection.suppression` that are here too

MAX_CANDIDATES = 512  # the matrix of their overlaps has the square of it, and costs more than the network at 1000


def suppressed(
    boxes,
    scores,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int = MAX_CANDIDATES,
    rule: str = "nms",
    rounds: int | None = None,
) -> dict:
    """The detections of a batch: candidates are (cell, class) pairs, and boxes of different classes do not meet.

    Args:
        boxes: [B, N, 4] float32 corners in pixels; N has to be known when the graph is made.
        scores: [B, N, C] float32.
        score_threshold: least score of a candidate.
        iou_threshold: a box that overlaps a better one of its class by more goes.
        max_detections: D, the most that are kept.
        max_candidates: the most that are looked at, best scores first.
        rule: "nms"; "consensus", where what a box removes has a say in where it lies; or "vote", where it also has one
            in the score.
        rounds: see `kept_by`.

    Returns:
        {"boxes": [B, D, 4] float32 corners, "scores": [B, D] float32, "classes": [B, D] int32}, highest score first;
        where there are fewer, zeros and class -1 follow.
    """
    cells, classes = scores.shape[1:]
    candidates = min(max_candidates, cells * classes)
    score, index = ops.top_k(ops.reshape(scores, (-1, cells * classes)), candidates)
    index = ops.cast(index, "int32")
    corners = ops.take_along_axis(boxes, (index // classes)[..., None], axis=1)
    valid = score >= score_threshold
    rivals = rivalry(corners, index % classes, iou_threshold)
    keep = kept_by(rivals, valid, rounds)
    if rule != "nms":
        views = views_of(ops.where(valid, score, 0.0), rivals, keep)
        corners = means_of_views(corners, views)
    if rule == "vote":
        score = score * support(ops.sum(views, axis=-1))
        keep = ops.logical_and(keep, score >= score_threshold)
    return _listed(keep, corners, score, index % classes, max_detections)


def rivalry(boxes, classes, iou_threshold: float):
    """Whom every candidate would remove.

    Args:
        boxes: [B, K, 4] float32 corners, highest score first.
        classes: [B, K] int32.
        iou_threshold: overlap above which the weaker goes.

    Returns:
        [B, K, K] float32, 1 where the first is better than the second, of the same class, and overlaps it.
    """
    rank = ops.arange(boxes.shape[1], dtype="int32")
    found = overlaps(boxes[:, :, None], boxes[:, None], iou_threshold)
    found = ops.logical_and(found, ops.equal(classes[:, :, None], classes[:, None]))
    return ops.cast(ops.logical_and(found, rank[:, None] < rank), "float32")


def kept_by(rivals, valid, rounds: int | None = None):
    """Which candidates greedy suppression keeps: those that no better one that is kept would remove.

    Starting from all of them, this rule is applied to all at once until nothing changes. After t rounds every candidate
    is decided whose chain of better ones is at most t long, so the end is reached, and it is the one answer that the
    rule allows.

    Args:
        rivals: [B, K, K] of `rivalry`.
        valid: [B, K] bool, the others neither stay nor remove.
        rounds: how often the rule is applied, for graphs without loops: what stands at the end of a longer chain may
            then be decided wrongly. None goes on until nothing changes.

    Returns:
        [B, K] bool.
    """
    valid = ops.cast(valid, "float32")

    def changes(keep, before):
        return ops.any(ops.not_equal(keep, before))

    def next_round(keep, before):
        beaten = ops.squeeze(ops.matmul(keep[:, None], rivals), axis=1)
        return ops.where(beaten > 0.0, 0.0, valid), keep

    state = next_round(valid, valid)
    if rounds is None:
        state = ops.while_loop(changes, next_round, state)
    else:
        for _ in range(rounds - 1):
            state = next_round(*state)
    return state[0] > 0.0


def views_of(scores, rivals, keep):
    """For every candidate that is kept the scores of those that see the same: its own, and of what it removes.

    Args:
        scores: [B, K] float32, highest first, 0 of those that have no say.
        rivals: [B, K, K] of `rivalry`.
        keep: [B, K] bool.

    Returns:
        [B, K, K] float32, 0 of the others; the rows of those that are not kept are 0.
    """
    count = scores.shape[1]
    rank = ops.arange(count, dtype="int32")
    removes = ops.logical_and(keep[:, :, None], rivals > 0.0)
    lead = ops.min(ops.where(removes, rank[:, None], count), axis=1)  # the best of those that remove it
    lead = ops.where(keep, rank, lead)
    return ops.where(ops.equal(rank[:, None], lead[:, None]), scores[:, None], 0.0)


def means_of_views(boxes, views):
    """Boxes of those that are kept, moved to the mean of their views, weighed by the square of the scores.

    Args:
        boxes: [B, K, 4] float32 corners, highest score first.
        views: [B, K, K] of `views_of`.

    Returns:
        [B, K, 4] float32 corners; of the others anything.
    """
    weights = ops.square(views)
    return ops.matmul(weights, boxes) / ops.maximum(ops.sum(weights, axis=-1, keepdims=True), 1e-30)


def _listed(keep, boxes, scores, classes, most: int) -> dict:
    """Of the candidates those that are kept, as `suppressed` returns them.

    Args:
        keep: [B, K] bool.
        boxes: [B, K, 4] float32 corners.
        scores: [B, K] float32, >= 0; of equal ones the first comes first.
        classes: [B, K] int32.
        most: D, rows of what comes back.
    """
    rows = min(most, scores.shape[1])
    best, position = ops.top_k(ops.where(keep, scores, -1.0), rows)
    position = ops.cast(position, "int32")
    found = best >= 0.0
    detections = {
        "boxes": ops.where(found[..., None], ops.take_along_axis(boxes, position[..., None], axis=1), 0.0),
        "scores": ops.where(found, best, 0.0),
        "classes": ops.where(found, ops.take_along_axis(classes, position, axis=1), -1),
    }
    return _padded(detections, most - rows)


def _padded(detections: dict, missing: int) -> dict:
    if not missing:
        return detections
    fill = {"boxes": 0.0, "scores": 0.0, "classes": -1}
    return {
        name: ops.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (len(values.shape) - 2), constant_values=fill[name])
        for name, values in detections.items()
    }
