"""Every false positive and every miss sorted by its cause, and the average precision that each cause costs.

Kinds, tried in this order, by the IoU of a false positive with the objects of its image:

* `loc`: between background and foreground with an object of its class: badly placed;
* `cls`: foreground with an object of another class: wrongly named;
* `dupe`: foreground with an object of its class, which a better detection has found: found twice;
* `bkg`: under background with every object: nothing is there;
* `both`: what is left: badly placed and wrongly named.

`missed` is an object that no detection found and that no `cls` or `loc` lies on: to mend those would find it.

Source: Bolya et al. 2020 (TIDE), section 2.2; where a detection suits several kinds, the order is that of its authors'
program, `tidecv`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid.detection.records import RECORD
from multigrid.evaluation.matching import Matches, average_precision
from multigrid.evaluation.overlaps import by_image, reaches
from multigrid.geometry.boxes import iou

FALSE_POSITIVES = ("cls", "loc", "both", "dupe", "bkg")
KINDS = (*FALSE_POSITIVES, "missed")
MEANINGS = {
    "cls": "right place, wrong class",
    "loc": "right class, wrong place",
    "both": "wrong class and wrong place",
    "dupe": "an object that was found already",
    "bkg": "nothing is there",
    "missed": "an object without any detection",
}
FOREGROUND, BACKGROUND = 0.5, 0.1


@dataclass(frozen=True)
class Errors:
    """What is wrong with each of D detections, and which of T objects are missed."""

    matches: Matches
    kind: np.ndarray  # [D] str of `FALSE_POSITIVES`; "" for a true positive
    truth: np.ndarray  # [D] int, the object that it errs about; -1 for `bkg` and for a true positive
    iou: np.ndarray  # [D] float64, with that object; 0 where there is none
    missed: np.ndarray  # [T] bool
    explained: np.ndarray  # [T] bool: not found either, but a `cls` or a `loc` lies on it

    def counts(self, label: int | None = None) -> dict:
        """{kind: number}, with "explained" after "missed".

        Args:
            label: class index of the detections and of the objects; all if None.
        """
        found = slice(None) if label is None else self.matches.class_index == label
        truths = slice(None) if label is None else self.matches.truth_class == label
        counts = {kind: int(np.count_nonzero(self.kind[found] == kind)) for kind in FALSE_POSITIVES}
        counts["missed"] = int(self.missed[truths].sum())
        return {**counts, "explained": int(self.explained[truths].sum())}


def find_errors(matches: Matches, foreground: float = FOREGROUND, background: float = BACKGROUND) -> Errors:
    """Every error of an evaluation, of one kind each.

    Args:
        matches: at the IoU `foreground`.
        foreground: IoU from which a box is on an object.
        background: IoU under which it is on none.
    """
    kind = np.full(len(matches.score), "", dtype="U4")
    truth, overlap = np.full(len(kind), -1), np.zeros(len(kind))
    detections, truths = by_image(matches.image_id), by_image(matches.truth_image_id)
    none = np.zeros(0, "int64")
    for image_id, rows in detections.items():
        rows = rows[~matches.true_positive[rows]]
        found = _sort(matches, rows, truths.get(image_id, none), foreground, background)
        kind[rows], truth[rows], overlap[rows] = found
    unfound = matches.detection < 0
    explained = np.zeros(len(unfound), bool)
    explained[truth[(kind == "cls") | (kind == "loc")]] = True
    return Errors(matches, kind, truth, overlap, unfound & ~explained, unfound & explained)


def costs(errors: Errors, ground_truth: dict) -> dict:
    """The average precision at IoU 0.5 that each kind of error costs.

    One kind is mended and nothing else: a `cls` gets the class and a `loc` the place of its object where the object is
    not found (of several, the one of highest score) and goes where it is; `both`, `dupe` and `bkg` go; an object that
    is missed is none any more. All detections count, whatever their score, as they do in average precision itself. The
    costs do not add up: one mistake hides another.

    Args:
        errors: of an evaluation.
        ground_truth: its COCO dictionary.

    Returns:
        {"AP50", "cost": {kind: AP50 when it is mended less AP50}, "false_positives", "false_negatives"}, where the
        last two are what it costs that there are any; None where no class has an object.
    """
    truths = [entry for entry in ground_truth["annotations"] if not entry.get("iscrowd", 0)]
    records = _records(errors.matches)
    everything = np.ones(len(truths), bool)

    def precision(records: np.ndarray, kept: np.ndarray) -> float | None:
        left = [entry for entry, keep in zip(truths, kept, strict=True) if keep]
        if truths and not left:
            return 1.0  # nothing is left to be found
        # Without COCO's limit, which `matches` obeys already: one that is mended may not crowd out another.
        return average_precision({**ground_truth, "annotations": left}, records, FOREGROUND, max_detections=None)

    now = precision(records, everything)
    if now is None:
        return {"AP50": None, **dict.fromkeys(("false_positives", "false_negatives")), "cost": dict.fromkeys(KINDS)}
    mended = {kind: precision(_mended(errors, records, truths, kind), everything) for kind in FALSE_POSITIVES}
    mended["missed"] = precision(records, ~errors.missed)
    return {
        "AP50": now,
        "cost": {kind: mended[kind] - now for kind in KINDS},
        "false_positives": precision(records[errors.kind == ""], everything) - now,
        "false_negatives": precision(records, errors.matches.detection >= 0) - now,
    }


def error_values(errors: Errors, ground_truth: dict, class_names, threshold: float) -> dict:
    """Counts and costs by names, for a file.

    Args:
        errors: of all detections.
        ground_truth: the COCO dictionary.
        class_names: C names.
        threshold: the confidence at which people look at detections.
    """
    seen = find_errors(errors.matches.above(threshold))
    return {
        "iou": {"foreground": FOREGROUND, "background": BACKGROUND},
        "kinds": MEANINGS,
        **costs(errors, ground_truth),
        "threshold": threshold,
        "counts_at_threshold": _counted(seen, class_names),
        "counts_of_all": _counted(errors, class_names),
    }


def _counted(errors: Errors, class_names) -> dict:
    return {
        "all": {"true": int(errors.matches.true_positive.sum()), **errors.counts()},
        "by_class": {
            name: {
                "true": int(errors.matches.true_positive[errors.matches.class_index == label].sum()),
                **errors.counts(label),
            }
            for label, name in enumerate(class_names)
        },
    }


def _sort(matches: Matches, rows, columns, foreground: float, background: float) -> tuple:
    """Kinds [R], objects [R] and overlaps [R] of the false positives `rows` of one image with objects `columns`."""
    kinds, objects, shared = np.full(len(rows), "bkg", "U4"), np.full(len(rows), -1), np.zeros(len(rows))
    if not len(rows) or not len(columns):
        return kinds, objects, shared
    overlap = iou(matches.boxes[rows, None], matches.truth_boxes[None, columns])
    same = matches.class_index[rows, None] == matches.truth_class[None, columns]
    own, other = np.where(same, overlap, 0.0), np.where(same, 0.0, overlap)
    # What a kind looks at, the least and the most of it; the last that suits stands. Whoever is on an object of its
    # class and found none came too late: a better one has it.
    tests = (
        ("both", overlap, background, np.inf),
        ("dupe", own, foreground, np.inf),
        ("cls", other, foreground, np.inf),
        ("loc", own, background, foreground),  # of the foreground itself on it is a dupe
    )
    for kind, looked_at, least, most in tests:
        best, value = looked_at.argmax(axis=1), looked_at.max(axis=1)
        suits = reaches(value, least) & ~reaches(value, most)
        kinds[suits], objects[suits], shared[suits] = kind, columns[best[suits]], value[suits]
    return kinds, objects, shared


def _records(matches: Matches) -> np.ndarray:
    records = np.zeros(len(matches.score), RECORD)
    records["image_id"], records["category_id"] = matches.image_id, matches.class_index + 1
    records["bbox"], records["score"] = matches.boxes, matches.score
    records["bbox"][:, 2:] -= records["bbox"][:, :2]
    return records


def _mended(errors: Errors, records: np.ndarray, truths: list[dict], kind: str) -> np.ndarray:
    """The detections without one kind of error."""
    kept, mended = errors.kind != kind, records.copy()
    if kind in ("cls", "loc"):
        err = np.flatnonzero(~kept & (errors.truth >= 0))
        err = err[errors.matches.detection[errors.truth[err]] < 0]
        _, first = np.unique(errors.truth[err], return_index=True)  # the first has the highest score
        for index in err[first]:
            truth = truths[errors.truth[index]]
            mended["bbox"][index], mended["category_id"][index] = truth["bbox"], truth["category_id"]
            kept[index] = True
    return mended[kept]
