"""The live anchors against the boxes of the training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid import assembly
from multigrid.diagnosis.examinations.funnel import usable_boxes
from multigrid.geometry.anchor_fit import AnchorFit, match_statistics, numpy_iol, suited_scale
from multigrid.geometry.anchors import Anchors

LARGEST_FACTOR = 1024.0
STEPS = 61  # of the factors that are tried, either way of 1
NEARLY = 0.98  # of the best mean; of factors as good as that the one nearest 1 is taken
MOST = 4000  # boxes


@dataclass(frozen=True)
class AnchorExamination:
    """How anchors and boxes go together.

    Attributes:
        fit: of the anchors to the boxes of the batches.
        label_fit: of the anchors to the boxes of the label files, as the network sees them; None where not known.
        factor: by which all anchors would have to be multiplied to fit best.
        factor_fit: their mean IoL then.
        log_ratio: mean of ln(box side / side of its anchor), over all boxes and both sides.
        log_spread: its standard deviation.
        areas: [S] mean area of the anchors of each scale, coarse to fine, in square pixels.
        sides_in_cells: [S] mean side of the anchors of each scale over its stride.
        spread: standard deviation of the boxes' centres over the image's side: about 0 where boxes are in another unit.
        misdealt: share of the boxes, of the label files where these are known, whose anchor is on another scale than
            the one whose cells suit their size.
        usable: share of the objects that have a box within their image, in the batches or in the label files, whichever
            is less.
    """

    fit: AnchorFit
    label_fit: AnchorFit | None
    factor: float
    factor_fit: float
    log_ratio: float
    log_spread: float
    areas: np.ndarray
    sides_in_cells: np.ndarray
    spread: float
    misdealt: float
    usable: float


def examine(case) -> AnchorExamination | None:
    """The anchors of a `Case`; None where the batches have no usable object."""
    sizes, centres, usable = _boxes(case)
    if not len(sizes):
        return None
    anchors = Anchors(case.anchors)
    fit, (factor, factor_fit) = match_statistics(anchors, sizes), _best_factor(anchors, sizes)
    ratio, (label_sizes, label_usable) = _log_ratio(anchors, sizes), _labels(case)
    areas = case.anchors.prod(axis=-1).mean(axis=-1)
    return AnchorExamination(
        fit=fit,
        label_fit=None if label_sizes is None else match_statistics(anchors, label_sizes),
        factor=factor,
        factor_fit=factor_fit,
        log_ratio=float(ratio.mean()),
        log_spread=float(ratio.std()),
        areas=areas,
        sides_in_cells=np.sqrt(areas) / np.array(case.detector.strides),
        spread=float(centres.std(axis=0).mean()),
        misdealt=_misdealt(anchors, sizes if label_sizes is None else label_sizes),
        usable=min(usable, label_usable),
    )


def _boxes(case) -> tuple:
    """Sizes [N, 2] in pixels and centres [N, 2] in shares of the image, and the share of usable objects."""
    sizes, centres, usable, objects = [], [], 0, 0
    for images, truth in case.batches:
        boxes, classes = np.asarray(truth["boxes"], "float64"), np.asarray(truth["classes"])
        good = usable_boxes(boxes, classes, images.shape[1:3])
        usable, objects = usable + good.sum(), objects + (classes >= 0).sum()
        boxes = boxes[good]
        sizes.append(boxes[:, 2:] - boxes[:, :2])
        centres.append((boxes[:, :2] + boxes[:, 2:]) / 2.0 / images.shape[2:0:-1])
    return np.concatenate(sizes)[:MOST], np.concatenate(centres), float(usable / max(objects, 1))


def _labels(case) -> tuple[np.ndarray | None, float]:
    """Sizes [N, 2] in the label files, as the network sees them, None where not known, and the share of usable ones."""
    samples = [one for one in (case.samples.get("train") or ())[:MOST] if len(one.boxes)]
    if not samples:
        return None, 1.0
    usable = [usable_boxes(one.boxes, np.zeros(len(one.boxes)), one.size) for one in samples]
    sizes = assembly.network_sizes(samples, case.batches[0][0].shape[1:3])
    good = np.concatenate(usable) & np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)
    return (sizes[good][:MOST] if good.any() else None), float(good.mean())


def _best_factor(anchors: Anchors, sizes) -> tuple[float, float]:
    """The factor nearest 1 of those that are nearly the best, and the mean IoL of the anchors multiplied by it."""
    factors = LARGEST_FACTOR ** np.linspace(-1.0, 1.0, 2 * STEPS + 1)
    some = sizes[:: max(1, len(sizes) // 300)]
    means = np.array([match_statistics(Anchors(anchors.sizes * factor), some).mean_iol for factor in factors])
    good = np.flatnonzero(means >= NEARLY * means.max())
    best = good[np.argmin(np.abs(np.log(factors[good])))]
    return float(factors[best]), float(means[best])


def _log_ratio(anchors: Anchors, sizes) -> np.ndarray:
    """ln(side / side of the anchor that fits best), [N, 2]."""
    return np.log(sizes / anchors.flat()[_best(anchors, sizes)])


def _misdealt(anchors: Anchors, sizes) -> float:
    """Share of the boxes that go to another scale than the one that suits their size."""
    scales, each = anchors.sizes.shape[:2]
    return float((_best(anchors, sizes) // each != suited_scale(sizes, scales)).mean())


def _best(anchors: Anchors, sizes) -> np.ndarray:
    """Index of the anchor that fits each box best, [N]."""
    return numpy_iol(sizes, anchors.flat()).argmax(axis=1)
