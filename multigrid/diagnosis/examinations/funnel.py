"""The funnel of objects: from the label files through the batches into positive cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops


@dataclass(frozen=True)
class Funnel:
    """Objects an image at each step; over the same label files, and the batches that were looked at.

    A step that nothing is known of is None.
    """

    parsed: float | None  # in the samples that were read
    batched: float  # in the batches, whatever their boxes are
    usable: float  # of those with finite corners, a positive area and a centre in the image
    encoded: float  # that at least one cell claims
    positive_cells: float  # an encoded object, after collisions
    images: int  # that were looked at in batches
    empty_images: float  # share of those without any object
    empty_samples: float | None  # share of the samples that were read without any object


def examine(case) -> Funnel:
    """The funnel of a `Case`, by its own criterion's encoder with the detector's outputs of a constant head."""
    samples = case.samples.get("train")
    counts = [_of_batch(case, images, truth) for images, truth in case.batches]
    images, empty, batched, usable, encoded, cells = np.sum(counts, axis=0)
    return Funnel(
        parsed=float(np.mean([len(one.boxes) for one in samples])) if samples else None,
        batched=batched / images,
        usable=usable / images,
        encoded=encoded / images,
        positive_cells=cells / encoded if encoded else 0.0,
        images=int(images),
        empty_images=empty / images,
        empty_samples=float(np.mean([len(one.boxes) == 0 for one in samples])) if samples else None,
    )


def outputs_of_nothing(case, images) -> list:
    """Grids of zeros as the detector would give them for these images, [B, rows, columns, 5 + A + C] each."""
    channels = 5 + case.anchors.shape[1] + case.detector.num_classes
    shapes = [(len(images), images.shape[1] // stride, images.shape[2] // stride) for stride in case.detector.strides]
    return [ops.zeros((*shape, channels)) for shape in shapes]


def usable_boxes(boxes, classes, size) -> np.ndarray:
    """Which rows are objects with finite corners, a positive area and a centre in the image: [B, M] bool.

    Args:
        boxes: [B, M, 4] corners in input pixels.
        classes: [B, M], -1 for padding.
        size: (height, width) of the images.
    """
    with np.errstate(invalid="ignore"):
        centre, side = (boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2]
        inside = np.all((centre >= 0) & (centre <= np.array(size[::-1])), axis=-1)
        return (classes >= 0) & np.isfinite(boxes).all(-1) & (side > 0).all(-1) & inside


def _of_batch(case, images, truth) -> tuple:
    boxes, classes = np.asarray(truth["boxes"]), np.asarray(truth["classes"])
    usable = usable_boxes(boxes, classes, images.shape[1:3])
    targets = case.criterion.encode(truth, outputs_of_nothing(case, images))
    positive = np.asarray(ops.convert_to_numpy(targets.positive))
    valid = classes >= 0
    return (
        len(images), int((~valid.any(1)).sum()), valid.sum(), usable.sum(), positive.any(-1).sum(), positive.sum()
    )  # fmt: skip
