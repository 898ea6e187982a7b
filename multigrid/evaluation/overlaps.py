"""Objects and detections of the same image, and how much they overlap."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from multigrid.detection.records import corners_of
from multigrid.geometry.boxes import iou


def image_overlaps(
    truths: np.ndarray, found: np.ndarray, *, inclusive: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Overlaps in each image that has both objects and detections.

    Args:
        truths: [T] of `records.RECORD`.
        found: [D] of `records.RECORD`.
        inclusive: whether the right and lower corner are the last pixel inside; they are edges otherwise.

    Yields:
        [N] int indices of the image's objects, [M] int of its detections, both rising, and [N, M] float IoUs.
    """
    wider = np.array([0, 0, 1, 1]) * inclusive
    truth_boxes, boxes = corners_of(truths) + wider, corners_of(found) + wider
    columns_of = by_image(found["image_id"])
    for image_id, rows in by_image(truths["image_id"]).items():
        columns = columns_of.get(image_id)
        if columns is not None:
            yield rows, columns, iou(truth_boxes[rows, None], boxes[None, columns])


def by_image(image_ids: np.ndarray) -> dict[int, np.ndarray]:
    """{image id: indices, rising}, of the ids [N] of N detections or objects."""
    order = np.argsort(image_ids, kind="stable")
    ids, starts = np.unique(image_ids[order], return_index=True)
    return dict(zip(ids.tolist(), np.split(order, starts[1:]), strict=False))


def reaches(overlaps, threshold: float) -> np.ndarray:
    """Whether IoUs reach a threshold; `iou` is a hair low, for its divisor is never zero."""
    return np.asarray(overlaps) >= threshold - 1e-6
