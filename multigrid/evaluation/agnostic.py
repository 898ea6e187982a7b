"""Average precision as if every class were one: whether objects are found, whatever they are taken for."""

from __future__ import annotations

import numpy as np

from multigrid.config import DetectionConfig
from multigrid.detection.candidates import Candidates
from multigrid.detection.records import corners_of, records_of
from multigrid.detection.suppression import Suppression
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.matching import MAX_DETECTIONS
from multigrid.evaluation.overlaps import by_image

NMS_THRESHOLD = DetectionConfig().nms_threshold
AGNOSTIC_FIGURES = ("mAP", "mAP50", "mAP75")
THE_CLASS = {"id": 1, "name": "object"}


def class_agnostic_metrics(ground_truth: dict, records, nms_threshold: float = NMS_THRESHOLD) -> dict:
    """COCO's average precision of detections and objects without their classes.

    A detector suppresses class by class, so that one box may be there under several classes. All but the best of them
    would be false here; so what overlaps a better detection of its image goes first, whatever the classes of the two.

    Args:
        ground_truth: COCO dictionary; stays as it is.
        records: [N] of `records.RECORD`, or a list in COCO's results format; stays as it is.
        nms_threshold: the IoU above which the weaker of two boxes goes.

    Returns:
        {"mAP", "mAP50", "mAP75"} in [0, 1], or None where there is no object.

    Raises:
        InputError: results of an image that the ground truth does not have.
    """
    annotations = [{**entry, "category_id": THE_CLASS["id"]} for entry in ground_truth["annotations"]]
    found = records_of(records)
    found = found[_left(found, nms_threshold)]  # a copy
    found["category_id"] = THE_CLASS["id"]
    metrics = coco_metrics({**ground_truth, "categories": [THE_CLASS], "annotations": annotations}, found)
    return {name: metrics[name] for name in AGNOSTIC_FIGURES}


def _left(found: np.ndarray, threshold: float) -> np.ndarray:
    """Indices, rising, of the records that suppression across classes leaves; COCO looks at no more of an image."""
    suppress, boxes, scores = Suppression("nms", threshold), corners_of(found), found["score"]
    left = [np.zeros(0, "int64")]
    for rows in by_image(found["image_id"]).values():
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        candidates = Candidates(boxes[rows], scores[rows], np.zeros(len(rows), "int32"), rows)
        left.append(rows[suppress(candidates, MAX_DETECTIONS).leads])
    return np.sort(np.concatenate(left))
