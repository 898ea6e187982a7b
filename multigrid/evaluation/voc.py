"""Average precision as Pascal VOC counts it: at eleven recalls (until 2009) and at every point (since 2010).

VOC's rule differs from COCO's: a detection belongs to the object of its class that it overlaps most, and is false where
a detection of higher score has that object already, even if another object is free; and no number of detections is too
many.
No object is "difficult" here: the readers make no difference between objects.
"""

from __future__ import annotations

import numpy as np

from multigrid.detection.records import records_of, truths_of
from multigrid.evaluation.overlaps import image_overlaps, reaches

# In binary the steps 0.3, 0.6 and 0.7 come out a little above these numbers, so that a recall of just 3 / 10 does not
# reach its step. Published figures were counted with the same steps, and these are to agree with them.
ELEVEN = np.linspace(0, 1, 11)


def voc_ap(ground_truth: dict, results, iou_threshold: float = 0.5, *, inclusive: bool = False) -> dict:
    """VOC's average precision, whole and by class.

    Args:
        ground_truth: COCO dictionary; annotations with `iscrowd` are no objects.
        results: list in COCO's results format, or records of them.
        iou_threshold: least IoU of a match.
        inclusive: whether the right and lower corner are the last pixel inside, which makes every box one pixel wider
            and higher, as VOC's own program and those that follow it count; corners are edges otherwise.

    Returns:
        {"iou", "AP_11point", "AP_every_point", "per_class": {name: {"AP_11point", "AP_every_point"}}}; the whole is the
        mean of the classes that have objects, and None stands where there is no object.

    Source: Everingham et al. 2010, The Pascal Visual Object Classes Challenge, section 4.2; its development kit.
    """
    truths, found = truths_of(ground_truth), records_of(results)
    per_class = {}
    for category in sorted(ground_truth["categories"], key=lambda entry: entry["id"]):
        objects = truths[truths["category_id"] == category["id"]]
        mine = found[found["category_id"] == category["id"]]
        correct = _correct(objects, mine[np.argsort(-mine["score"], kind="stable")], iou_threshold, inclusive)
        per_class[category["name"]] = average_precisions(correct, len(objects))
    names = ("AP_11point", "AP_every_point")
    known = {name: [one[name] for one in per_class.values() if one[name] is not None] for name in names}
    whole = {name: float(np.mean(values)) if values else None for name, values in known.items()}
    return {"iou": iou_threshold, **whole, "per_class": per_class}


def average_precisions(correct, objects: int) -> dict:
    """Both average precisions of a ranking.

    Args:
        correct: [D] bool, of the detections of one class, highest score first.
        objects: how many could have been found.

    Returns:
        {"AP_11point", "AP_every_point"} in [0, 1], or None where there is no object.
    """
    if not objects:
        return {"AP_11point": None, "AP_every_point": None}
    found = np.cumsum(correct)
    precision, recall = found / np.arange(1, len(found) + 1), found / objects
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)  # beyond the last recall
    return {
        "AP_11point": float(envelope[np.searchsorted(recall, ELEVEN)].mean()),
        "AP_every_point": float(np.sum(np.diff(recall, prepend=0.0) * envelope[:-1])),
    }


def _correct(objects: np.ndarray, found: np.ndarray, threshold: float, inclusive: bool) -> np.ndarray:
    """[D] bool: which detections of one class, highest score first, found an object."""
    belongs = np.full(len(found), -1)
    for rows, columns, overlaps in image_overlaps(objects, found, inclusive=inclusive):
        best = overlaps.argmax(axis=0)
        enough = reaches(overlaps[best, np.arange(len(columns))], threshold)
        belongs[columns[enough]] = rows[best[enough]]
    taken, first = np.unique(belongs, return_index=True)
    correct = np.zeros(len(found), bool)
    correct[first[taken >= 0]] = True
    return correct
