"""Which class was taken for which: objects against the detections that lie on them, whatever their class."""

from __future__ import annotations

import numpy as np

from multigrid.detection.records import records_of, truths_of
from multigrid.evaluation.overlaps import image_overlaps, reaches

BACKGROUND = "background"


def confusion_matrix(ground_truth: dict, results, threshold: float, iou_threshold: float = 0.5) -> dict:
    """Counts of (class of the object, class of the detection).

    In each image the pair of object and detection with the largest IoU is matched first, then the next of what is left,
    down to the least IoU; classes play no part in that, so a box of the wrong class on an object is a confusion. An
    object without a detection is in the last column, a detection without an object in the last row.

    Args:
        ground_truth: COCO dictionary; annotations with `iscrowd` are no objects.
        results: list in COCO's results format, or records of them.
        threshold: least score of a detection that counts.
        iou_threshold: least IoU of a match.

    Returns:
        {"labels": names and "background", "threshold", "iou", "counts": [C + 1, C + 1] lists of int}; rows are the
        truth, columns what was predicted.
    """
    categories = sorted(ground_truth["categories"], key=lambda entry: entry["id"])
    ids = [category["id"] for category in categories]
    truths, found = truths_of(ground_truth), records_of(results)
    found = found[found["score"] >= threshold]
    truth, detection = _pairs(truths, found, iou_threshold)
    rows, columns = (np.searchsorted(ids, entries["category_id"]) for entries in (truths, found))
    counts = np.zeros((len(ids) + 1, len(ids) + 1), "int64")
    np.add.at(counts, (rows[truth], columns[detection]), 1)
    np.add.at(counts, (np.delete(rows, truth), len(ids)), 1)
    np.add.at(counts, (len(ids), np.delete(columns, detection)), 1)
    labels = [category["name"] for category in categories]
    return {"labels": [*labels, BACKGROUND], "threshold": threshold, "iou": iou_threshold, "counts": counts.tolist()}


def _pairs(truths: np.ndarray, found: np.ndarray, threshold: float) -> tuple[list, list]:
    """Indices of the objects and of the detections that belong together."""
    pairs = []
    for rows, columns, overlaps in image_overlaps(truths, found):
        pairs += [(rows[row], columns[column]) for row, column in greedy_pairs(overlaps, threshold)]
    return [row for row, _ in pairs], [column for _, column in pairs]


def greedy_pairs(overlaps: np.ndarray, threshold: float) -> list[tuple[int, int]]:
    """Pairs (row, column) of [N, M] overlaps, the largest first, each row and each column at most once."""
    rows, columns = np.nonzero(reaches(overlaps, threshold))
    order = np.argsort(-overlaps[rows, columns], kind="stable")
    free_rows, free_columns = np.ones(overlaps.shape[0], bool), np.ones(overlaps.shape[1], bool)
    chosen = []
    for row, column in zip(rows[order].tolist(), columns[order].tolist(), strict=True):
        if free_rows[row] and free_columns[column]:
            free_rows[row] = free_columns[column] = False
            chosen.append((row, column))
    return chosen
