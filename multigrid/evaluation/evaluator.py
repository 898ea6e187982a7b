"""COCO metrics from samples and detections; the arithmetic is `faster-coco-eval`'s.

Convention of this module: boxes come as corners (x1, y1, x2, y2) in pixels of the original image and leave as COCO's
(x, y, width, height); a class index c is the category id c + 1.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import logging
import os
from collections.abc import Iterator

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from multigrid.data.coco_labels import coco_dictionary
from multigrid.detection.records import as_results, records_of, to_records, truths_of
from multigrid.errors import InputError

logger = logging.getLogger(__name__)

DETECTIONS_AT_ONCE = 100_000
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
    return list(as_results(to_records(image_id, boxes_xyxy, scores, classes)))


def coco_metrics(ground_truth: dict, results, class_names=None) -> dict:
    """COCO's box metrics, whole and by class.

    Args:
        ground_truth: COCO dictionary; stays as it is.
        results: list in COCO's results format, or records of them; stays as it is.
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
    records, truths = records_of(results), truths_of(ground_truth)
    _check_results(ground_truth, records)
    evaluation = _joined(run_coco(ground_truth, records))
    metrics = {name: _figure(value) for name, value in zip(SUMMARY, evaluation.stats, strict=True)}
    metrics |= {
        "images": len(ground_truth["images"]),
        "objects": len(truths),
        "detections": len(records),
        "per_class": _per_class(evaluation, categories, truths, records),
    }
    return metrics


def run_coco(ground_truth: dict, records: np.ndarray, **params) -> Iterator[tuple[np.ndarray, COCOeval_faster]]:
    """The library's evaluations, of some classes at a time, for it takes 2 kB a detection; no class looks at another.

    Args:
        ground_truth: COCO dictionary; stays as it is.
        records: [N] of `records.RECORD`.
        params: over COCO's own, by the library's names: iouThrs, areaRng, areaRngLbl, maxDets.

    Yields:
        Indices [K] of the records of a group of classes, and the evaluation of these, accumulated; result number n of
        the library, from 1, is number n - 1 of them. The groups come in the order of the category ids.
    """
    categories = sorted(ground_truth["categories"], key=lambda category: category["id"])
    for group in _groups(categories, records):
        rows = np.flatnonzero(np.isin(records["category_id"], [category["id"] for category in group]))
        yield rows, _evaluate_classes(ground_truth, records[rows], group, params)


def _groups(categories: list[dict], records: np.ndarray) -> list[list[dict]]:
    """Categories in their order, as many together as have no more than `DETECTIONS_AT_ONCE`, but at least one."""
    groups, count = [[]], 0
    for category in categories:
        mine = int(np.count_nonzero(records["category_id"] == category["id"]))
        if groups[-1] and count + mine > DETECTIONS_AT_ONCE:
            groups.append([])
            count = 0
        groups[-1].append(category)
        count += mine
    return groups


def _evaluate_classes(ground_truth: dict, records: np.ndarray, categories: list[dict], params: dict) -> COCOeval_faster:
    ids = {category["id"] for category in categories}
    annotations = [entry for entry in ground_truth["annotations"] if entry["category_id"] in ids]
    with _without_collector():
        # The library writes new keys into the entries that it is given, so it gets copies. An outline, which it would
        # make of each box, is nothing that boxes need.
        truth = {**ground_truth, "categories": categories, "annotations": annotations}
        truth = COCO(copy.deepcopy(truth), print_function=logger.debug)
        found = truth.loadRes([result | {"segmentation": None} for result in as_results(records)])
        evaluation = COCOeval_faster(truth, found, "bbox", print_function=logger.debug)
        for name, value in params.items():
            setattr(evaluation.params, name, value)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _joined(parts: Iterator[tuple[np.ndarray, COCOeval_faster]]) -> COCOeval_faster:
    """The evaluation of all classes, summarized; of the groups no more is kept than their figures."""
    precisions, recalls = [], []
    for _, evaluation in parts:
        precisions.append(evaluation.eval["precision"])
        recalls.append(evaluation.eval["recall"])
    figures = {"precision": np.concatenate(precisions, axis=2), "recall": np.concatenate(recalls, axis=1)}
    evaluation.eval = {**evaluation.eval, **figures}
    evaluation.summarize()
    return evaluation


@contextlib.contextmanager
def _without_collector() -> Iterator[None]:
    """Keeps Python from looking for garbage.

    A hundred thousand new dictionaries make it walk through everything that TensorFlow holds, which takes longer than
    the metrics; and there is none in them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _per_class(evaluation, categories: list[dict], truths: np.ndarray, records: np.ndarray) -> dict:
    # [thresholds, recalls, classes, areas, counts] for all areas and up to 100 detections; -1: no object.
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    # The thresholds are .5, .55, ...: the first is AP50, the sixth AP75.
    chosen = {"AP": slice(None), "AP50": slice(0, 1), "AP75": slice(5, 6)}
    counted = {"objects": truths["category_id"], "detections": records["category_id"]}
    return {
        category["name"]: {name: _figure(precision[rows, :, index].mean()) for name, rows in chosen.items()}
        | {name: int(np.count_nonzero(ids == category["id"])) for name, ids in counted.items()}
        for index, category in enumerate(categories)
    }


def _figure(value: float) -> float | None:
    return None if value < 0 else float(value)


def _check_results(ground_truth: dict, records: np.ndarray) -> None:
    for key, table in (("image_id", "images"), ("category_id", "categories")):
        known = [entry["id"] for entry in ground_truth[table]]
        unknown = np.flatnonzero(~np.isin(records[key], known))
        if len(unknown):
            raise InputError(
                f"detection {unknown[0] + 1}: expected {key} to be one of the ground truth's {len(known)} {table}, "
                f"received {records[key][unknown[0]]}"
            )
