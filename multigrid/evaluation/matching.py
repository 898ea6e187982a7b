"""Which detection found which object, by COCO's rule; the matching is `faster-coco-eval`'s.

Convention of this module: boxes are corners (x1, y1, x2, y2) in pixels of the original image, a class index is the
category id less one, and a detection is true or false at one IoU threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from multigrid.detection.records import corners_of, records_of
from multigrid.evaluation.evaluator import run_coco

MAX_DETECTIONS = 100  # of an image and class; COCO's largest


@dataclass(frozen=True)
class Matches:
    """Detections, highest score first, and the objects that they found. D detections, T objects ("truths")."""

    image_id: np.ndarray  # [D] int
    class_index: np.ndarray  # [D] int
    boxes: np.ndarray  # [D, 4] float64 corners
    score: np.ndarray  # [D] float64
    stride: np.ndarray  # [D] int, input pixels a cell of the grid that found it; 0 where the results do not say
    result: np.ndarray  # [D] int, its place in the results
    truth: np.ndarray  # [D] int, the truth that it found; -1 where it found none
    iou: np.ndarray  # [D] float64, with that truth; 0 where there is none
    truth_image_id: np.ndarray  # [T] int
    truth_class: np.ndarray  # [T] int
    truth_boxes: np.ndarray  # [T, 4] float64 corners
    detection: np.ndarray  # [T] int, the detection that found it; -1 where none did

    @property
    def true_positive(self) -> np.ndarray:
        """[D] bool: whether a detection found an object."""
        return self.truth >= 0

    def above(self, threshold: float) -> Matches:
        """The same of the detections that reach a score; a match never depends on detections of lower score."""
        count = int(np.count_nonzero(self.score >= threshold))
        of_detections = ("image_id", "class_index", "boxes", "score", "stride", "result", "truth", "iou")
        kept = {name: getattr(self, name)[:count] for name in of_detections}
        return replace(self, **kept, detection=np.where(self.detection < count, self.detection, -1))


def match(ground_truth: dict, results, iou_threshold: float = 0.5) -> Matches:
    """Detections and objects, matched as COCO does.

    In each image and class, the detection of the highest score takes the object that it overlaps most, if by at least
    the threshold, then the next one what is left. Only the 100 best detections of an image and class are looked at; the
    others are left out, as is a detection that COCO leaves out because it found a crowd.

    Args:
        ground_truth: COCO dictionary; stays as it is. Annotations with `iscrowd` are no truths.
        results: list in COCO's results format, or records of them; stays as it is.
        iou_threshold: least IoU of a match.

    Returns:
        `Matches`; detections of equal score in the order of the results.
    """
    found = records_of(results)
    truths = [entry for entry in ground_truth["annotations"] if not entry.get("iscrowd", 0)]
    place = {entry["id"]: index for index, entry in enumerate(truths)}
    truth, overlap = np.full(len(found), -1), np.zeros(len(found))
    looked_at = _ranks(found) < MAX_DETECTIONS
    for rows, evaluation in run_coco(ground_truth, found, **_params(iou_threshold, MAX_DETECTIONS)):
        for pair, iou in evaluation.eval["matched"].items():
            number, annotation = (int(part) for part in pair.split("_"))
            result = rows[number - 1]
            if annotation in place:
                truth[result], overlap[result] = place[annotation], iou
            else:
                looked_at[result] = False
    order = np.argsort(-found["score"], kind="stable")
    order = order[looked_at[order]]
    truth, detection = truth[order], np.full(len(truths), -1)
    detection[truth[truth >= 0]] = np.flatnonzero(truth >= 0)
    truths = records_of(truths)
    return Matches(
        *_columns(found[order]), found["score"][order], found["stride"][order], order, truth, overlap[order],
        *_columns(truths), detection,
    )  # fmt: skip


def average_precision(
    ground_truth: dict, results, iou_threshold: float = 0.5, max_detections: int | None = MAX_DETECTIONS
) -> float | None:
    """COCO's average precision at one threshold, the mean of all classes that have objects.

    Args:
        ground_truth: COCO dictionary; stays as it is.
        results: list in COCO's results format, or records of them; stays as it is.
        iou_threshold: least IoU of a match.
        max_detections: so many of an image and class are looked at, those of the highest score; all if None.

    Returns:
        In [0, 1]; None where no class has an object.
    """
    found = records_of(results)
    if max_detections is None:
        max_detections = int(_ranks(found).max(initial=0)) + 1
    parts = run_coco(ground_truth, found, **_params(iou_threshold, max_detections))
    # [1 threshold, recalls, classes, 1 area, 1 count]; -1: no object.
    precision = np.concatenate([evaluation.eval["precision"] for _, evaluation in parts], axis=2)
    known = precision[precision > -1]
    return float(known.mean()) if known.size else None


def _params(iou_threshold: float, max_detections: int) -> dict:
    """What the library is to do otherwise than COCO: one threshold, and no look at the areas."""
    of_areas = {"areaRng": [[0, 1e10]], "areaRngLbl": ["all"]}
    return {"iouThrs": np.array([iou_threshold]), "maxDets": [max_detections], **of_areas}


def _ranks(found: np.ndarray) -> np.ndarray:
    """For each record [N], how many of its image and class come before it by score."""
    order = np.lexsort((-found["score"], found["category_id"], found["image_id"]))  # stable
    group = found[["image_id", "category_id"]][order]
    starts = np.flatnonzero(np.append(True, group[1:] != group[:-1])) if len(found) else np.zeros(0, "int64")
    ranks = np.empty(len(found), "int64")
    ranks[order] = np.arange(len(found)) - np.repeat(starts, np.diff(np.append(starts, len(found))))
    return ranks


def _columns(records: np.ndarray) -> tuple:
    """Image ids [N], class indices [N] and corners [N, 4] of records."""
    return records["image_id"].copy(), records["category_id"].astype("int64") - 1, corners_of(records)
