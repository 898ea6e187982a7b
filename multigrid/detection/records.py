"""Detections of a whole data set in one array, and COCO's results made from it.

Convention of this module: boxes are COCO's (x, y, width, height) in pixels of the original image, a category id is the
class index plus one. What is written is what is measured: numbers are rounded when they become records.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator

import numpy as np

from multigrid.data.coco_labels import corners_to_xywh
from multigrid.report import replacing

COORDINATE_DECIMALS = 3
SCORE_DECIMALS = 6
BLOCK = 1000  # records that are dictionaries at a time
# 56 bytes a detection; as a dictionary it takes ten times as much.
RECORD = np.dtype(
    [("image_id", "i8"), ("category_id", "i4"), ("bbox", "f8", 4), ("score", "f8"), ("stride", "i4")],
)


def to_records(image_id: int, boxes_xyxy, scores, classes, strides=None) -> np.ndarray:
    """The detections of one image as records.

    Args:
        image_id: the id of the image.
        boxes_xyxy: [N, 4] float, corners in pixels of the original image.
        scores: [N] float.
        classes: [N] int, class indices.
        strides: [N] int, input pixels a cell of the grid that found each; 0 if None.

    Returns:
        [N] of `RECORD` in the order of the boxes; coordinates rounded to 0.001 pixel, scores to 0.000001.

    Raises:
        ValueError: a box or a score is not finite, or the numbers of boxes, scores and classes differ.
    """
    boxes, scores = corners_to_xywh(boxes_xyxy), np.asarray(scores, dtype=np.float64)
    if not len(boxes) == len(scores) == len(classes):
        raise ValueError(
            f"image {image_id}: expected as many scores and classes as boxes, received {len(boxes)} boxes, "
            f"{len(scores)} scores, {len(classes)} classes"
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise ValueError(f"image {image_id}: expected finite boxes and scores, received others")
    records = np.zeros(len(boxes), RECORD)
    records["image_id"] = image_id
    records["category_id"] = np.asarray(classes, dtype="i4") + 1
    records["bbox"], records["score"] = np.round(boxes, COORDINATE_DECIMALS), np.round(scores, SCORE_DECIMALS)
    if strides is not None:
        records["stride"] = strides
    return records


def records_of(results) -> np.ndarray:
    """COCO's results or annotations as records.

    Args:
        results: list of {"image_id", "category_id", "bbox", "score"}, or records, which are returned as they are.

    Returns:
        [N] of `RECORD`, not rounded; the stride is 0, and so is the score of an annotation, which has none.
    """
    if isinstance(results, np.ndarray):
        return results
    rows = [
        (entry["image_id"], entry["category_id"], tuple(entry["bbox"]), entry.get("score", 0), 0) for entry in results
    ]
    return np.array(rows, RECORD)


def truths_of(ground_truth: dict) -> np.ndarray:
    """The objects of a COCO dictionary as records; annotations with `iscrowd` are no objects."""
    return records_of([entry for entry in ground_truth["annotations"] if not entry.get("iscrowd", 0)])


def corners_of(records: np.ndarray) -> np.ndarray:
    """The boxes of records [N] as float64 corners [N, 4]."""
    boxes = records["bbox"].copy()
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def as_results(records: np.ndarray) -> Iterator[dict]:
    """Records in COCO's results format, one dictionary after the other, in plain Python numbers.

    Args:
        records: [N] of `RECORD`.

    Yields:
        {"image_id", "category_id", "bbox": [x, y, width, height], "score"}.
    """
    names = ("image_id", "category_id", "bbox", "score")
    for start in range(0, len(records), BLOCK):
        columns = (records[name][start : start + BLOCK].tolist() for name in names)
        yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))


def write_results(path: str | os.PathLike, records: np.ndarray) -> None:
    """Writes records as a JSON file of COCO's results, a line a detection, without a second copy in memory.

    Args:
        path: the file; its folder is made.
        records: [N] of `RECORD`.
    """
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        for index, result in enumerate(as_results(records)):
            file.write((",\n" if index else "\n") + json.dumps(result, allow_nan=False))
        file.write("\n]\n")
