"""How many (cell, class) pairs got past each step from raw grid to detection: where detections are lost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

STEPS = (
    "cells",  # all pairs
    "objectness",  # the cell's objectness reaches the threshold
    "score",  # objectness × class does
    "box",  # and the box is finite and lies in the image
    "candidate",  # and is among those that suppression looks at
    "suppression",  # and is not another box of the same object
    "cap",  # and is among the most that an image can have
)
SCORE_BINS = 1000


class Trace:
    """Counts, summed over images; a `DetectionPipeline` that is given one fills it.

    Every step's count is at most that of the step before.

    Args:
        num_classes: C.
        strides: pixels a cell of each scale, S of them.
        thresholds: T scores to count at, none below the pipeline's own.

    Attributes:
        counts: [T, steps, S, C] int64, pairs that got past each step of `STEPS`.
        objectness: [S, bins] int64, histogram of the cells' objectness over [0, 1].
        scores: [S, C, bins] int64, histogram of all pairs' scores over [0, 1].
        highest_objectness: [S] float64; -inf where no cell's is finite.
        highest_score: [S, C] float64, likewise.
        images: how many were looked at.
    """

    def __init__(self, num_classes: int, strides: Sequence[int], thresholds: Sequence[float]):
        self.strides, self.thresholds = tuple(strides), tuple(thresholds)
        self.counts = np.zeros((len(self.thresholds), len(STEPS), len(self.strides), num_classes), "int64")
        self.objectness = np.zeros((len(self.strides), SCORE_BINS), "int64")
        self.scores = np.zeros((len(self.strides), num_classes, SCORE_BINS), "int64")
        self.highest_objectness = np.full(len(self.strides), -np.inf)
        self.highest_score = np.full((len(self.strides), num_classes), -np.inf)
        self.images = 0

    def add_cells(self, scale, objectness, scores) -> None:
        """Takes the cells of one image.

        Args:
            scale: [N] int, index into the strides.
            objectness: [N] float.
            scores: [N, C] float.
        """
        self.images += 1
        num_classes = scores.shape[1]
        for index, threshold in enumerate(self.thresholds):
            for step, chosen in (("cells", scale), ("objectness", scale[objectness >= threshold])):
                self.counts[index, STEPS.index(step)] += np.bincount(chosen, minlength=len(self.strides))[:, None]
        self.objectness += _histogram(scale, objectness, self.objectness.shape)
        # Next to all pairs are in the first bin: they are counted by class, and the others one by one.
        cell, label = np.divmod(np.flatnonzero(scores >= 1 / SCORE_BINS), num_classes)
        self.scores += _histogram(scale[cell] * num_classes + label, scores[cell, label], self.scores.shape)
        for index in range(len(self.strides)):
            own = scale == index
            self.scores[index, :, 0] += np.count_nonzero(scores[own] < 1 / SCORE_BINS, axis=0)
            highest = np.max(objectness[own], where=np.isfinite(objectness[own]), initial=-np.inf)
            self.highest_objectness[index] = max(self.highest_objectness[index], highest)
            highest = np.max(scores[own], axis=0, where=np.isfinite(scores[own]), initial=-np.inf)
            self.highest_score[index] = np.maximum(self.highest_score[index], highest)

    def add(self, step: str, scale, classes, scores) -> None:
        """Takes the pairs of one image that got past a step.

        Args:
            step: a word of `STEPS` from "score" on.
            scale: [K] int, index into the strides.
            classes: [K] int.
            scores: [K] float.
        """
        shape = self.counts.shape[2:]
        for index, threshold in enumerate(self.thresholds):
            chosen = scores >= threshold
            pairs = scale[chosen] * shape[1] + classes[chosen]
            self.counts[index, STEPS.index(step)] += np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)


def _histogram(rows, values, shape) -> np.ndarray:
    """Counts [..., bins] of values in [0, 1]; what is not finite is in no bin."""
    finite = np.isfinite(values)
    bins = np.minimum((values[finite] * SCORE_BINS).astype("int64"), SCORE_BINS - 1)
    return np.bincount(rows[finite] * SCORE_BINS + bins, minlength=int(np.prod(shape))).reshape(shape)
