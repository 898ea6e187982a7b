"""From scored cells to a short list of detections."""

import cv2
import numpy as np

MAX_CANDIDATES = 3000  # a cap on what suppression has to sort; far above the detections that are kept


def candidates(boxes, scores, threshold: float):
    """Every (cell, class) whose score passes; a cell may stand for several classes.

    Args:
        boxes: [N, 4] float corners in pixels.
        scores: [N, C] float in [0, 1].
        threshold: least score.

    Returns:
        boxes [K, 4], scores [K] and classes [K] int32, highest score first; K is at most `MAX_CANDIDATES`.
    """
    cell, label = np.nonzero(scores >= threshold)
    score = scores[cell, label]
    if len(score) > MAX_CANDIDATES:
        best = np.argpartition(-score, MAX_CANDIDATES)[:MAX_CANDIDATES]
        cell, label, score = cell[best], label[best], score[best]
    order = np.argsort(-score, kind="stable")
    return boxes[cell[order]], score[order], label[order].astype("int32")


def nms(boxes, scores, classes, iou_threshold: float, max_detections: int):
    """Class-aware greedy non-maximum suppression, by OpenCV.

    Args:
        boxes: [K, 4] float corners in pixels.
        scores: [K] float.
        classes: [K] int; boxes of different classes do not suppress each other.
        iou_threshold: a box that overlaps a better one of its class by more goes.
        max_detections: the most that are kept.

    Returns:
        [D] int indices of the boxes kept, highest score first.
    """
    if len(boxes) == 0:
        return np.zeros(0, "int64")
    # OpenCV moves each class beyond the largest coordinate of all, which keeps them apart only where none is negative
    corners = np.asarray(boxes, "float64")
    sides = np.concatenate([corners[:, :2] - corners[:, :2].min(axis=0), corners[:, 2:] - corners[:, :2]], axis=1)
    kept = cv2.dnn.NMSBoxesBatched(sides, scores.astype("float32"), classes.astype("int32"), 0.0, iou_threshold)
    kept = np.asarray(kept, "int64").reshape(-1)
    return kept[np.argsort(-scores[kept], kind="stable")][:max_detections]
