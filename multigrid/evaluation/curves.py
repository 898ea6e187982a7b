"""Precision, recall and F1 over the confidence that a detection must reach.

A detection is correct where it found an object, see `matching`. With tp of n detections correct and m objects,
precision is tp / n, recall tp / m and F1 = 2 tp / (n + m), their harmonic mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid.evaluation.matching import Matches


@dataclass(frozen=True)
class Curve:
    """Counts of the detections that reach each score which occurs, highest first. K scores."""

    scores: np.ndarray  # [K] float64, falling
    detections: np.ndarray  # [K] int, of that score or more
    correct: np.ndarray  # [K] int, of those
    objects: int

    @property
    def precision(self) -> np.ndarray:
        """[K] float64 in [0, 1]."""
        return self.correct / self.detections

    @property
    def recall(self) -> np.ndarray:
        """[K] float64 in [0, 1]; NaN where there is no object."""
        return self.correct / self.objects if self.objects else np.full(len(self.scores), np.nan)

    @property
    def f1(self) -> np.ndarray:
        """[K] float64 in [0, 1]; NaN where there is no object."""
        if not self.objects:
            return np.full(len(self.scores), np.nan)
        return 2 * self.correct / (self.detections + self.objects)

    @property
    def envelope(self) -> np.ndarray:
        """[K] float64: the best precision at a recall as high or higher, whose area is the average precision."""
        return np.maximum.accumulate(self.precision[::-1])[::-1]

    def f1_at(self, thresholds) -> np.ndarray:
        """F1 of the detections that reach each of these scores [T]; 0 where none does."""
        places = np.searchsorted(-self.scores, -np.asarray(thresholds, "float64"), side="right")
        return np.concatenate([[0.0], self.f1])[places]

    def best(self) -> dict:
        """Precision, recall and F1 where F1 is highest, and the least score to get them.

        Returns:
            {"precision", "recall", "f1", "best_threshold"}, floats. Of thresholds that are equally good the highest.
            All None where there is no object; where no detection is correct, F1 and recall are 0 and the others None.
        """
        names = ("precision", "recall", "f1", "best_threshold")
        if not self.objects:
            return dict.fromkeys(names)
        if not self.correct.any():
            return {"precision": None, "recall": 0.0, "f1": 0.0, "best_threshold": None}
        index = int(np.argmax(self.f1))
        figures = (self.precision[index], self.recall[index], self.f1[index], self.scores[index])
        return {name: float(figure) for name, figure in zip(names, figures, strict=True)}


def curve(scores, correct, objects: int) -> Curve:
    """The curve of detections.

    Args:
        scores: [D] float, in any order.
        correct: [D] bool.
        objects: how many could have been found.

    Returns:
        A `Curve`; detections of one score are one point, for no threshold parts them.
    """
    scores, correct = np.asarray(scores, "float64"), np.asarray(correct, bool)
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(correct[order])
    last = np.flatnonzero(np.append(scores[1:] != scores[:-1], True)) if len(scores) else np.zeros(0, int)
    return Curve(scores[last], last + 1, found[last], int(objects))


def curves_of(matches: Matches, classes: int) -> tuple[Curve, list[Curve]]:
    """The curve of all detections in one list, which weighs every object alike, and the curve of each class.

    Args:
        matches: of detections and objects.
        classes: how many there are.

    Returns:
        The pooled curve, and one a class.
    """
    correct = matches.true_positive
    pooled = curve(matches.score, correct, len(matches.truth_class))
    each = []
    for index in range(classes):
        mine = matches.class_index == index
        each.append(curve(matches.score[mine], correct[mine], np.count_nonzero(matches.truth_class == index)))
    return pooled, each
