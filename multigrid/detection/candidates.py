"""From the scores of all cells to the (cell, class) pairs that may become detections."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

MAX_CANDIDATES = 3000  # a cap on what suppression has to compare; far above the detections that are kept


class Candidates(NamedTuple):
    """(cell, class) pairs, highest score first."""

    boxes: np.ndarray  # [K, 4] float corners in pixels
    scores: np.ndarray  # [K] float in [0, 1]
    classes: np.ndarray  # [K] int32
    cells: np.ndarray  # [K] int index of the cell that says so


def passing(scores, threshold: float):
    """The (cell, class) pairs whose score passes; a cell may stand for several classes.

    Args:
        scores: [N, C] float in [0, 1]; what is not a number does not pass.
        threshold: least score.

    Returns:
        cells [K] int and classes [K] int, cell by cell.
    """
    flat = np.flatnonzero(scores >= threshold)
    return flat // scores.shape[1], flat % scores.shape[1]


def best_candidates(boxes, scores, cells, classes, most: int = MAX_CANDIDATES) -> Candidates:
    """The pairs of highest score, sorted by it.

    Args:
        boxes: [N, 4] float corners in pixels, of all cells.
        scores: [N, C] float, of all cells.
        cells: [K] int, those of the pairs.
        classes: [K] int, those of the pairs.
        most: so many are left at most.
    """
    score = scores[cells, classes]
    if len(score) > most:
        best = np.argpartition(-score, most)[:most]
        cells, classes, score = cells[best], classes[best], score[best]
    order = np.argsort(-score, kind="stable")
    cells = cells[order]
    return Candidates(boxes[cells], score[order], classes[order].astype("int32"), cells)
