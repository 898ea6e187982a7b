"""COCO metrics from samples and detections; the arithmetic is `faster-coco-eval`'s.

Convention of this module: boxes come as corners (x1, y1, x2, y2) in pixels of the original image and leave as COCO's
(x, y, width, height); a class index c is the category id c + 1. What is written is what is measured: detections are
rounded when they become results, and the metrics are computed from those.
"""

from __future__ import annotations

import collections
import logging
import os

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from multigrid.data.coco_labels import coco_dictionary, corners_to_xywh
from multigrid.errors import InputError

logger = logging.getLogger(__name__)

COORDINATE_DECIMALS = 3
SCORE_DECIMALS = 6
# The order in which every COCO evaluator gives its twelve numbers.
SUMMARY = (
    "mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large",
    "AR1", "AR10", "AR100", "AR_small", "AR_medium", "AR_large",
)  # fmt: skip


def to_coco_ground_truth(samples, class_names) -> dict:
    """The labels of samples as a COCO dictionary.

    Args:
        samples: sequence of `Sample`, boxes in pixels of the upright image.
        class_names: the names by class index.

    Returns:
        What `coco_dictionary` returns; `file_name` is relative to the folder that all images share.

    Raises:
        InputError: two samples have the same image id, or a class has no name.
    """
    folder = os.path.commonpath([os.path.dirname(sample.path) for sample in samples]) if samples else ""
    return coco_dictionary(samples, class_names, lambda path: os.path.relpath(path, folder).replace(os.sep, "/"))


def to_coco_results(image_id: int, boxes_xyxy, scores, classes) -> list[dict]:
    """The detections of one image in COCO's results format.

    Args:
        image_id: the id of the image.
        boxes_xyxy: [N, 4] float, corners in pixels of the original image.
        scores: [N] float.
        classes: [N] int, class indices.

    Returns:
        list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"} in the order of the boxes;
        coordinates rounded to 0.001 pixel, scores to 0.000001.

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
    boxes, scores = np.round(boxes, COORDINATE_DECIMALS).tolist(), np.round(scores, SCORE_DECIMALS).tolist()
    return [
        {"image_id": int(image_id), "category_id": int(class_index) + 1, "bbox": box, "score": score}
        for box, score, class_index in zip(boxes, scores, classes, strict=True)
    ]


def coco_metrics(ground_truth: dict, results: list[dict], class_names=None) -> dict:
    """COCO's box metrics, whole and by class.

    Args:
        ground_truth: COCO dictionary; stays as it is.
        results: list in COCO's results format; stays as it is.
        class_names: the names in the order of the category ids; the dictionary's own if None.

    Returns:
        {"mAP", "mAP50", "mAP75", "mAP_small", "mAP_medium", "mAP_large", "AR1", "AR10", "AR100", "AR_small",
        "AR_medium", "AR_large", "images", "objects", "detections", "per_class": {name: {"AP", "AP50", "AP75",
        "objects", "detections"}}}. Every figure is in [0, 1], or None where no object could have been found: a class
        or a size without objects counts in no mean.

    Raises:
        InputError: results of an image or a category that the ground truth does not have, or other class names.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    names = [category["name"] for category in categories]
    if class_names is not None and list(class_names) != names:
        raise InputError(f"ground truth: expected the classes {list(class_names)}, received {names}")
    _check_results(ground_truth, results)
    evaluation = _evaluate(ground_truth, results)
    metrics = {name: _figure(value) for name, value in zip(SUMMARY, evaluation.stats, strict=True)}
    metrics |= {
        "images": len(ground_truth["images"]),
        "objects": sum(_is_counted(annotation) for annotation in ground_truth["annotations"]),
        "detections": len(results),
        "per_class": _per_class(evaluation, categories, ground_truth, results),
    }
    return metrics


def _evaluate(ground_truth: dict, results: list[dict]) -> COCOeval_faster:
    # The library writes into the annotations that it is given, so it gets copies.
    truth = COCO(ground_truth, use_deepcopy=True, print_function=logger.debug)
    evaluation = COCOeval_faster(truth, truth.loadRes(results), "bbox", print_function=logger.debug)
    evaluation.run()
    return evaluation


def _per_class(evaluation, categories: list[dict], ground_truth: dict, results: list[dict]) -> dict:
    objects = collections.Counter(
        annotation["category_id"] for annotation in ground_truth["annotations"] if _is_counted(annotation)
    )
    detections = collections.Counter(result["category_id"] for result in results)
    # [thresholds, recalls, classes, areas, counts] for all areas and up to 100 detections; -1: no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    # The thresholds are .5, .55, ...: the first is AP50, the sixth AP75.
    chosen = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    return {
        category["name"]: {name: _figure(precision[rows, :, index].mean()) for name, rows in chosen.items()}
        | {"objects": objects[category["id"]], "detections": detections[category["id"]]}
        for index, category in enumerate(categories)
    }


def _is_counted(annotation: dict) -> bool:
    return not annotation.get("iscrowd", 0)


def _figure(value: float) -> float | None:
    return None if value < 0 else float(value)


def _check_results(ground_truth: dict, results: list[dict]) -> None:
    for key, table in (("image_id", "images"), ("category_id", "categories")):
        known = {entry["id"] for entry in ground_truth[table]}
        for index, result in enumerate(results, start=1):
            if result[key] not in known:
                raise InputError(
                    f"detection {index}: expected {key} to be one of the ground truth's {len(known)} {table}, "
                    f"received {result[key]!r}"
                )
