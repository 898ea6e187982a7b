"""Greedy non-maximum suppression as part of a graph, for artefacts that run without this package.

`detection.suppression.nms` says what is kept; here the same is said in `keras.ops`, with shapes that do not depend on
what the images show.
"""

from __future__ import annotations

from keras import ops

from multigrid.geometry.boxes import overlaps

MAX_CANDIDATES = 1000  # the matrix of their overlaps has the square of it


def suppressed(
    boxes,
    scores,
    *,
    score_threshold: float,
    iou_threshold: float,
    max_detections: int,
    max_candidates: int = MAX_CANDIDATES,
) -> dict:
    """The detections of a batch: candidates are (cell, class) pairs, and boxes of different classes do not meet.

    Args:
        boxes: [B, N, 4] float32 corners in pixels; N has to be known when the graph is made.
        scores: [B, N, C] float32.
        score_threshold: least score of a candidate.
        iou_threshold: a box that overlaps a better one of its class by more goes.
        max_detections: D, the most that are kept.
        max_candidates: the most that are looked at, best scores first.

    Returns:
        {"boxes": [B, D, 4] float32 corners, "scores": [B, D] float32, "classes": [B, D] int32}, highest score first;
        where there are fewer, zeros and class -1 follow.
    """
    cells, classes = scores.shape[1:]
    candidates = min(max_candidates, cells * classes)
    score, index = ops.top_k(ops.reshape(scores, (-1, cells * classes)), candidates)
    index = ops.cast(index, "int32")
    corners = ops.take_along_axis(boxes, (index // classes)[..., None], axis=1)
    keep = greedy(corners, index % classes, score >= score_threshold, iou_threshold)

    kept = min(max_detections, candidates)
    best, position = ops.top_k(ops.where(keep, score, -1.0), kept)  # of equal scores the first comes first
    position = ops.cast(position, "int32")
    found = best >= 0.0
    detections = {
        "boxes": ops.where(found[..., None], ops.take_along_axis(corners, position[..., None], axis=1), 0.0),
        "scores": ops.where(found, best, 0.0),
        "classes": ops.where(found, ops.take_along_axis(index % classes, position, axis=1), -1),
    }
    return _padded(detections, max_detections - kept)


def greedy(boxes, classes, valid, iou_threshold: float):
    """Which of the candidates greedy suppression keeps.

    A candidate is kept where no better one of its class that is kept overlaps it. Starting from all of them, this rule
    is applied to all at once until nothing changes: after t rounds every candidate is decided whose chain of better
    ones is at most t long, so the end is reached, and it is the one answer that the rule allows.

    Args:
        boxes: [B, K, 4] float32 corners, highest score first.
        classes: [B, K] int32.
        valid: [B, K] bool, the others neither stay nor suppress.
        iou_threshold: overlap above which the weaker goes.

    Returns:
        [B, K] bool.
    """
    rank = ops.arange(boxes.shape[1], dtype="int32")
    rivals = overlaps(boxes[:, :, None], boxes[:, None], iou_threshold)
    rivals = ops.logical_and(rivals, ops.equal(classes[:, :, None], classes[:, None]))
    rivals = ops.logical_and(rivals, rank[:, None] < rank)
    rivals, valid = ops.cast(rivals, "float32"), ops.cast(valid, "float32")

    def changes(keep, before):
        return ops.any(ops.not_equal(keep, before))

    def next_round(keep, before):
        beaten = ops.squeeze(ops.matmul(keep[:, None], rivals), axis=1)
        return ops.where(beaten > 0.0, 0.0, valid), keep

    keep, _ = ops.while_loop(changes, next_round, next_round(valid, valid))
    return keep > 0.0


def _padded(detections: dict, missing: int) -> dict:
    if not missing:
        return detections
    fill = {"boxes": 0.0, "scores": 0.0, "classes": -1}
    return {
        name: ops.pad(values, [(0, 0), (0, missing)] + [(0, 0)] * (len(values.shape) - 2), constant_values=fill[name])
        for name, values in detections.items()
    }
