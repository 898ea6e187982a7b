"""From candidates to detections: of the boxes that say the same, one is left.

Every rule takes `Candidates`, sorted by score, and looks at each class by itself: a box has no effect on boxes of other
classes. Boxes are corners (x1, y1, x2, y2) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np

from multigrid.config import DetectionConfig
from multigrid.detection.candidates import Candidates
from multigrid.geometry.boxes import diou, intersection_over_larger, iou, overlaps

DEFAULTS = DetectionConfig()
BLOCK = 64  # candidates that are compared with each other at once
SUPPORT_POWER = 0.5  # see `support`


class Survivors(NamedTuple):
    """What suppression leaves, highest score first."""

    boxes: np.ndarray  # [D, 4] float corners in pixels
    scores: np.ndarray  # [D] float
    leads: np.ndarray  # [D] int: the candidate of highest score of each, by its index


@dataclass(frozen=True)
class Suppression:
    """A rule and its numbers; called with candidates, it says what is left of them.

    Args:
        rule: a word of `RULES`.
        threshold: a box that overlaps a better one of its class by more is the same object.
        sigma: width of the Gaussian by which `soft_nms` lowers scores.

    Raises:
        ValueError: no such rule.
    """

    rule: str = DEFAULTS.suppression
    threshold: float = DEFAULTS.nms_threshold
    sigma: float = DEFAULTS.soft_sigma

    def __post_init__(self):
        if self.rule not in RULES:
            raise ValueError(f"suppression: expected one of {', '.join(RULES)}, received {self.rule!r}")

    def __call__(self, candidates: Candidates, limit: int | None = None, least_score: float = 0.0) -> Survivors:
        """The survivors.

        Args:
            candidates: sorted by score, highest first.
            limit: so many survivors at most; all if None.
            least_score: a score that was lowered below this is none.
        """
        if not len(candidates.scores):
            return Survivors(candidates.boxes, candidates.scores, np.zeros(0, "int64"))
        found = RULES[self.rule](self, candidates, limit)
        chosen = np.flatnonzero(found.scores >= least_score)
        chosen = chosen[np.argsort(-found.scores[chosen], kind="stable")][:limit]
        return Survivors(*(values[chosen] for values in found))


def nms(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Greedy non-maximum suppression, by OpenCV where there is a limit.

    Whoever is best stays, and whatever overlaps it by more than the threshold goes. So the first survivors depend on
    the first candidates alone: no more of them are looked at than it takes. OpenCV compares every candidate with every
    survivor, one by one; without a limit that takes thrice as long as whole blocks do.
    """
    if limit is None:
        return _leads(candidates, _greedy_by_iou(options, candidates, None)[0])
    corners = _apart(candidates)
    sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    scores = np.maximum(candidates.scores.astype("float32"), 1e-30)  # OpenCV leaves out what scores its threshold, 0
    everything = len(scores)
    looked_at = min(2 * limit, everything)
    while True:
        kept = cv2.dnn.NMSBoxes(sides[:looked_at], scores[:looked_at], 0.0, options.threshold)
        if looked_at == everything or len(kept) >= limit:
            return _leads(candidates, np.sort(np.asarray(kept, "int64").reshape(-1))[:limit])
        looked_at = min(2 * looked_at, everything)


def diou_nms(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Greedy suppression by distance IoU, which spares neighbours whose centres lie apart.

    Source: Zheng et al. 2020 (Distance-IoU), section 3.4.
    """
    return _leads(candidates, _greedy(candidates, lambda one, other: diou(one, other) > options.threshold, limit)[0])


def iol_nms(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Greedy suppression by intersection over the larger area."""

    def exceeds(one, other):
        return intersection_over_larger(one, other) > options.threshold

    return _leads(candidates, _greedy(candidates, exceeds, limit)[0])


def soft_nms(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Gaussian soft suppression: no box goes; what overlaps a better one loses score, exp(-IoU² / sigma) of it is left.

    Source: Bodla et al. 2017 (Soft-NMS), equation 3.
    """
    scores = np.array(candidates.scores, "float64")
    for own in _classes(candidates):
        boxes, left = candidates.boxes[own], scores[own]
        remains = np.exp(-(iou(boxes[:, None], boxes[None]) ** 2) / options.sigma)
        waiting = np.ones(len(own), bool)
        for _ in own:
            best = int(np.where(waiting, left, -1.0).argmax())
            waiting[best] = False
            left[waiting] *= remains[best, waiting]
        scores[own] = left
    return Survivors(candidates.boxes, scores.astype(candidates.scores.dtype), np.arange(len(scores)))


def weighted_boxes(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Weighted box fusion: each candidate joins the cluster whose fused box it overlaps most, and moves it.

    A fused box is the score-weighted mean of its members. Its score is that of the best member: the cells of one image
    are not the independent detectors whose mean score the authors take.

    Source: Solovyev et al. 2021 (Weighted boxes fusion), section 3.
    """
    boxes, leads = [], []
    for own in _classes(candidates):
        sums, weights = np.zeros((len(own), 4)), np.zeros(len(own))
        count = 0
        for index in own:
            box, score = candidates.boxes[index].astype("float64"), max(float(candidates.scores[index]), 1e-9)
            shared = iou(sums[:count] / weights[:count, None], box)
            joined = int(shared.argmax()) if count else 0
            if not count or shared[joined] <= options.threshold:
                joined, count = count, count + 1
                leads.append(index)
            sums[joined] += score * box
            weights[joined] += score
        boxes.append(sums[:count] / weights[:count, None])
    leads = np.array(leads, "int64")
    return Survivors(np.concatenate(boxes).astype(candidates.boxes.dtype), candidates.scores[leads], leads)


def consensus(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """Greedy suppression in which those that go have a say in where the box lies.

    Whoever a survivor removes is another view of the same object, as the nine cells around a centre are: the box
    becomes the mean of all these views, weighed by the square of their scores (measured: better than the score itself,
    and than its cube). The score stays the survivor's.
    """
    found, _ = _merged(options, candidates, limit)
    return found


def vote(options: Suppression, candidates: Candidates, limit: int | None) -> Survivors:
    """`consensus`, and the score says how many agree: it is multiplied by `support` of the sum of the views' scores.

    Several cells look for every object; what only one of them sees is more often nothing.
    """
    found, total = _merged(options, candidates, None)  # whoever is not among the first may be after the vote
    return found._replace(scores=(support(total) * found.scores).astype(candidates.scores.dtype))


def support(total):
    """What `vote` multiplies a score by where the scores of all views add up to this: (total / (1 + total))^(1/2).

    Args:
        total: [...] float >= 0, a NumPy array or a tensor.

    Returns:
        [...] float in [0, 1), likewise.

    Source: of this project.
    """
    return (total / (1.0 + total)) ** SUPPORT_POWER


def _merged(options: Suppression, candidates: Candidates, limit: int | None) -> tuple[Survivors, np.ndarray]:
    """The survivors, each at the mean of itself and what it removes, and the sum of the scores of these views."""
    kept, lead = _greedy_by_iou(options, candidates, limit)
    member = np.flatnonzero(lead >= 0)
    group = lead[member]
    scores = candidates.scores[member].astype("float64")
    weight = np.maximum(scores, 1e-9) ** 2
    total = np.bincount(group, weight, len(kept))
    sides = [np.bincount(group, weight * candidates.boxes[member, side], len(kept)) / total for side in range(4)]
    boxes = np.stack(sides, axis=1).astype(candidates.boxes.dtype)
    return Survivors(boxes, candidates.scores[kept], kept), np.bincount(group, scores, len(kept))


RULES: dict[str, Callable[[Suppression, Candidates, int | None], Survivors]] = {
    "nms": nms,
    "soft_nms": soft_nms,
    "diou_nms": diou_nms,
    "iol_nms": iol_nms,
    "wbf": weighted_boxes,
    "consensus": consensus,
    "vote": vote,
}


def _leads(candidates: Candidates, kept: np.ndarray) -> Survivors:
    return Survivors(candidates.boxes[kept], candidates.scores[kept], kept)


def _classes(candidates: Candidates) -> Iterator[np.ndarray]:
    """Indices of the candidates of one class after the other, each by score."""
    for label in np.unique(candidates.classes):
        yield np.flatnonzero(candidates.classes == label)


def _apart(candidates: Candidates) -> np.ndarray:
    """Boxes [K, 4] float64 with every class moved to a place of its own, and nowhere below zero."""
    boxes = candidates.boxes.astype("float64")
    boxes -= np.tile(boxes[:, :2].min(axis=0), 2)
    return boxes + (candidates.classes * (boxes.max() + 1.0))[:, None]


def _greedy_by_iou(options: Suppression, candidates: Candidates, limit: int | None) -> tuple:
    return _greedy(candidates, lambda one, other: overlaps(one, other, options.threshold), limit)


def _greedy(candidates: Candidates, exceeds: Callable, limit: int | None) -> tuple:
    """Greedy suppression by any overlap, block by block.

    Args:
        candidates: sorted by score.
        exceeds: from boxes [n, 1, 4] and [1, m, 4] to whether they overlap too much, [n, m] bool.
        limit: so many survivors at most.

    Returns:
        kept [D] int, the survivors in their order; lead [K] int, for every candidate the survivor (as an index into
        `kept`) that it is or that removed it, -1 where the limit was reached before its turn.
    """
    boxes, classes = candidates.boxes, candidates.classes

    def removes(some, others):
        return exceeds(boxes[some, None], boxes[None, others]) & (classes[some, None] == classes[others])

    kept, lead = [], np.full(len(boxes), -1)
    waiting = np.arange(len(boxes))
    while len(waiting) and (limit is None or len(kept) < limit):
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        within = removes(block, block)
        survivors = _survivors(within, None if limit is None else limit - len(kept))
        across = removes(block[survivors], waiting)
        for members, pairs in ((block, within[survivors]), (waiting, across)):
            removed = pairs.any(axis=0)
            lead[members[removed]] = len(kept) + pairs[:, removed].argmax(axis=0)
        waiting = waiting[~removed]
        lead[block[survivors]] = len(kept) + np.arange(len(survivors))
        kept.extend(block[survivors])
    return np.array(kept, "int64"), lead


def _survivors(removes: np.ndarray, limit: int | None) -> list:
    """The indices that survive where [n, n] bool says who would remove whom, the first ones first; so many at most."""
    rows = [int.from_bytes(row.tobytes(), "little") for row in np.packbits(removes, axis=1, bitorder="little")]
    gone, survivors = 0, []
    for index, row in enumerate(rows):  # a number of Python as a set of bits: an array operation each would cost more
        if not gone >> index & 1:
            survivors.append(index)
            gone |= row
            if len(survivors) == limit:
                break
    return survivors
