"""An artefact beside the Keras model it was made from, on the same images."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from multigrid.geometry.boxes import iou

LEAST_SCORE = 0.01  # below it a cell says nothing
LEAST_ROWS = 100  # of an image that are compared even so: those of highest score
SAME_BOX = 0.75  # IoU; two boxes that a threshold of at most 0.5 keeps apart cannot both be as near to a third


@dataclass(frozen=True)
class Tolerance:
    """How far an artefact may be off."""

    box: float  # pixels, of any corner coordinate
    score: float
    share: float  # of the rows compared that have to be within both, and have the same class


# float16 has 11 bits: a cell between two anchors may choose the other one, and its box is another then.
TOLERANCES = {None: Tolerance(0.5, 1e-3, 1.0), "float16": Tolerance(0.5, 0.02, 0.97)}
# Of detections: what overlaps by the threshold itself may go either way by rounding, and others move with it.
SUPPRESSED_SHARES = {None: 0.99, "float16": 0.93}


@dataclass(frozen=True)
class Differences:
    """What the comparison found."""

    images: int
    compared: int  # rows: cells, or detections where the graph suppresses
    other_class: int  # cells of another class, or detections without a counterpart
    largest_box: float  # pixels, of the others
    largest_score: float
    median_box: float
    within: float | None  # share of the rows within the tolerance; None where there is none
    tolerance: Tolerance | None

    @property
    def passed(self) -> bool:
        """Whether enough rows are within the tolerance."""
        return self.tolerance is None or (self.within is not None and self.within >= self.tolerance.share)

    def describe(self) -> str:
        """One line for the eye."""
        text = (
            f"{self.compared} rows of {self.images} images: largest box difference {self.largest_box:.4g} px, "
            f"largest score difference {self.largest_score:.3g}, another class {self.other_class}"
        )
        if self.tolerance is None:
            return text
        least = self.tolerance
        return (
            f"{text}; {100 * self.within:.2f} % within {least.box:g} px and {least.score:g}, "
            f"expected {100 * least.share:g} %"
        )


class CheckError(Exception):
    """An artefact says something else than the model it was made from; no file was left.

    Attributes:
        differences: what was found.
    """

    def __init__(self, differences: Differences):
        super().__init__(f"the artefact differs from the Keras model: {differences.describe()}")
        self.differences = differences


def tolerance_of(quantize: str | None, suppressed: bool) -> Tolerance | None:
    """What is asked of an artefact; None of int8, which is judged by what it finds."""
    if quantize == "int8":
        return None
    found = TOLERANCES[quantize]
    return dataclasses.replace(found, share=SUPPRESSED_SHARES[quantize]) if suppressed else found


def compare(reference: dict, found: dict, tolerance: Tolerance | None, *, suppressed: bool) -> Differences:
    """Compares the outputs of two runtimes for the same images.

    Args:
        reference: {"boxes": [B, D, 4], "scores": [B, D], "classes": [B, D]} of the Keras model.
        found: likewise, of the artefact.
        tolerance: what is asked.
        suppressed: whether rows are detections, in an order of their own, or cells.

    Returns:
        The `Differences`.
    """
    pair = _paired_detections if suppressed else _same_cells
    pairs = [
        pair(*(_row(outputs, index) for outputs in (reference, found))) for index in range(len(reference["boxes"]))
    ]
    box, score, lost = (np.concatenate(parts) for parts in zip(*pairs, strict=True))
    same = ~lost
    within = None
    if tolerance is not None:  # written so that what is not a number is not within
        within = float(np.mean(same & (box <= tolerance.box) & (score <= tolerance.score))) if len(lost) else 1.0
    return Differences(
        len(reference["boxes"]),
        len(lost),
        int(lost.sum()),
        float(box[same].max(initial=0.0)),
        float(score[same].max(initial=0.0)),
        float(np.median(box[same])) if same.any() else 0.0,
        within,
        tolerance,
    )


def _row(outputs: dict, index: int) -> tuple:
    return outputs["boxes"][index], outputs["scores"][index], outputs["classes"][index]


def _worth_comparing(scores) -> np.ndarray:
    """Which rows say something, or are at least among the best."""
    rank = np.argsort(np.argsort(-scores, kind="stable"), kind="stable")
    return (scores >= LEAST_SCORE) | (rank < LEAST_ROWS)


def _same_cells(reference, found) -> tuple:
    """Box difference [R], score difference [R] and whether the class is another [R], cell by cell."""
    rows = _worth_comparing(reference[1]) | ~(found[1] < LEAST_SCORE)
    box = np.abs(reference[0] - found[0]).max(axis=-1)
    return box[rows], np.abs(reference[1] - found[1])[rows], (reference[2] != found[2])[rows]


def _paired_detections(reference, found) -> tuple:
    """The same of detections, each beside the one of its class that it overlaps most; those without one are lost."""
    rows = np.flatnonzero((reference[2] >= 0) & _worth_comparing(reference[1]))
    shared = iou(reference[0][rows, None], found[0][None])
    shared = np.where(reference[2][rows, None] == found[2][None], shared, 0.0)
    partner = shared.argmax(axis=1)
    lost = shared.max(axis=1, initial=0.0) < SAME_BOX
    box = np.abs(reference[0][rows] - found[0][partner]).max(axis=-1)
    score = np.abs(reference[1][rows] - found[1][partner])
    # a strong detection that Keras does not have at all is one too many
    extra = (found[2] >= 0) & ~(found[1] < 2 * LEAST_SCORE)
    extra[partner[~lost]] = False
    alone = extra.sum()
    return np.append(box, np.zeros(alone)), np.append(score, np.zeros(alone)), np.append(lost, np.ones(alone, bool))
