"""The funnel: how many (cell, class) pairs get past each step from raw grid to found object.

A cell may stand for several classes, so what is counted is pairs of a cell and a class: with C classes, each cell
counts C times at first, and each detection once at last. `funnel_words` says what the numbers mean.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid.detection.trace import SCORE_BINS, STEPS, Trace
from multigrid.evaluation.matching import Matches

FUNNEL_STEPS = (*STEPS, "true")  # the last: the detection is matched to an object
CONFIDENCES = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
QUANTILES = (0.5, 0.9, 0.99, 0.999)
ROUNDING = 1e-6  # results hold scores to six decimals, the trace holds all


@dataclass(frozen=True)
class Funnel:
    """Counts of every step: T thresholds, S scales, C classes; see `build_funnel`."""

    class_names: tuple  # C
    strides: tuple  # S, input pixels a cell
    thresholds: tuple  # T scores
    images: int
    objects: np.ndarray  # [C] int, labelled
    counts: np.ndarray  # [T, steps, S, C] int, pairs that got past each step of `FUNNEL_STEPS`
    not_finite: np.ndarray  # [2, S] int: cells whose objectness, pairs whose score is not a finite number
    objectness: tuple  # S rows of quantiles, see `quantiles`
    scores: tuple  # S rows of C rows of them
    confidences: tuple  # rows, see `at_confidences`

    def scored_too_low(self, row: int = -1) -> np.ndarray:
        """How many objects of each class [C] are found at the lowest threshold and not at this one.

        Args:
            row: which threshold.
        """
        found = self.counts[:, -1].sum(axis=1)
        return found[int(np.argmin(self.thresholds))] - found[row]

    def in_reach(self, row: int = -1) -> np.ndarray:
        """How many objects of each class can still be found after each step.

        A class with fewer pairs than objects cannot have all of them found (a surplus in one class helps no other), and
        an object that is found at a lower threshold alone got out of reach by its score.

        Args:
            row: which threshold.

        Returns:
            [steps, C] int; never more than at the step before, and at the last step those that were found.
        """
        reach = np.minimum(self.counts[row].sum(axis=1), self.objects)
        late = FUNNEL_STEPS.index("score")
        reach[late:] = np.minimum(reach[late:], self.objects - self.scored_too_low(row))
        return reach

    def worst_step(self, row: int = -1, label: int | None = None) -> str | None:
        """The step at which most objects get out of reach; None where none does.

        Args:
            row: which threshold.
            label: a class index; all classes if None.
        """
        reach = self.in_reach(row)
        lost = -np.diff(reach.sum(axis=1) if label is None else reach[:, label])
        return FUNNEL_STEPS[int(lost.argmax()) + 1] if lost.max() > 0 else None


def build_funnel(trace: Trace, matches: Matches, class_names) -> Funnel:
    """The funnel of an evaluation.

    Args:
        trace: what the pipeline counted, see `DetectionPipeline.stream`.
        matches: of the same images, with the strides of the detections.
        class_names: C names.

    Returns:
        A `Funnel`.

    Raises:
        ValueError: a step counts more than the step before: trace and matches are not of one evaluation.
    """
    found = np.stack([_true(trace, matches, row) for row in range(len(trace.thresholds))])
    counts = np.concatenate([trace.counts, found[:, None]], axis=1)
    if np.any(np.diff(counts, axis=1) > 0):
        raise ValueError("funnel: expected every step to count at most what the step before does, received more")
    cells = trace.counts[0, 0]
    cells_lost = cells[:, 0] - trace.objectness.sum(axis=1)
    pairs_lost = (cells - trace.scores.sum(axis=2)).sum(axis=1)
    scores = zip(trace.scores, trace.highest_score, strict=True)
    return Funnel(
        tuple(class_names),
        trace.strides,
        trace.thresholds,
        trace.images,
        np.bincount(matches.truth_class, minlength=len(class_names)),
        counts,
        np.stack([cells_lost, pairs_lost]),
        tuple(map(quantiles, trace.objectness, trace.highest_objectness)),
        tuple(tuple(map(quantiles, histograms, highest)) for histograms, highest in scores),
        tuple(at_confidences(matches, trace.images, min(trace.thresholds))),
    )


def at_confidences(matches: Matches, images: int, least: float = 0.0, confidences=CONFIDENCES) -> list[dict]:
    """What there would be at other confidences.

    Args:
        matches: of an evaluation.
        images: how many were looked at.
        least: the score from which there are detections; nothing is known below.
        confidences: the scores to look at.

    Returns:
        {"confidence", "detections", "per_image", "precision", "recall"} each; a figure is None where it is a
        quotient by zero.
    """
    rows, objects = [], len(matches.detection)
    for confidence in confidences:
        if confidence >= least:
            chosen = matches.score >= confidence
            number, right = int(chosen.sum()), int(matches.true_positive[chosen].sum())
            rows.append(
                {
                    "confidence": confidence,
                    "detections": number,
                    "per_image": number / images if images else None,
                    "precision": right / number if number else None,
                    "recall": right / objects if objects else None,
                }
            )
    return rows


def quantiles(histogram: np.ndarray, highest: float) -> dict:
    """Quantiles of a histogram over [0, 1].

    Args:
        histogram: [bins] int.
        highest: the largest value, which is exact.

    Returns:
        {"50%", "90%", "99%", "99.9%", "max"}; None each where there are no values. A quantile is the middle of its
        bin, but no more than the largest value.
    """
    names = [f"{100 * share:g}%" for share in QUANTILES]
    if not histogram.sum():
        return dict.fromkeys([*names, "max"])
    bins = np.searchsorted(np.cumsum(histogram), np.array(QUANTILES) * histogram.sum())
    values = np.minimum((bins + 0.5) / SCORE_BINS, highest).tolist()
    return dict(zip(names, values, strict=True)) | {"max": float(highest)}


def _true(trace: Trace, matches: Matches, row: int) -> np.ndarray:
    """True positives [S, C] at a threshold."""
    before, threshold = trace.counts[row, -1], trace.thresholds[row]

    def count(least: float) -> np.ndarray:
        chosen = matches.true_positive & (matches.score >= least)
        scale = [trace.strides.index(stride) for stride in matches.stride[chosen].tolist()]
        counts = np.zeros(before.shape, "int64")
        np.add.at(counts, (scale, matches.class_index[chosen]), 1)
        return counts

    # A score that only its rounding lifted to the threshold has not passed it before.
    return np.clip(before, count(threshold + ROUNDING), count(threshold))
