"""Whether validation shows its samples as they are: letterboxed, and the same each time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid.data.images import BORDER, Letterbox
from multigrid.diagnosis.examinations.order import epochs, has_epochs

PAD = 4  # pixels of a border that is looked for
GREY = 8.0  # grey levels that its mean may be off by


@dataclass(frozen=True)
class Validation:
    """What was seen of the first validation batches.

    Attributes:
        changes: share of the images of a batch that are others when it is made again in the next epoch.
        bordered: share of the images that have the grey border of their letterbox, of those that should have one; None
            where there are none.
        displaced: median distance, in pixels, of boxes from where the letterbox puts those of their samples; None
            where samples are not known.
    """

    changes: float
    bordered: float | None
    displaced: float | None


def examine(case) -> Validation | None:
    """None where there is no validation data."""
    if not case.val_batches:
        return None
    data, (images, _) = case.val_data, case.val_batches[0]
    changes = _changes(data, images)
    if not hasattr(data, "sample_indices") or not getattr(data, "samples", None):
        return Validation(changes, None, None)
    bordered, displaced = [], []
    for index, (images, truth) in enumerate(case.val_batches):
        for row, shown in enumerate(data.sample_indices(index)):
            sample = data.samples[shown[0]]
            box = Letterbox.fit(sample.size, images.shape[1:3])
            bordered += _has_border(images[row], box)
            displaced += _displaced(truth, row, box.apply_boxes(sample.boxes))
    return Validation(
        changes, float(np.mean(bordered)) if bordered else None, float(np.median(displaced)) if displaced else None
    )


def _changes(data, images) -> float:
    if not has_epochs(data):
        again = data[0][0]
    else:
        with epochs(data) as begin:
            begin(1)
            again = data[0][0]
    if again.shape != images.shape:
        return 1.0
    return float(np.mean([not np.array_equal(one, other) for one, other in zip(images, again, strict=True)]))


def _has_border(image: np.ndarray, box: Letterbox) -> list[bool]:
    """[whether the border is there], [] where the letterbox has none to speak of."""
    left, top = box.pad
    strips = [strip for strip, pad in ((image[:top], top), (image[:, :left], left)) if pad >= PAD]
    return (
        [all(abs(float(strip.mean()) - BORDER) < GREY and float(strip.std()) < GREY for strip in strips)]
        if strips
        else []
    )


def _displaced(truth, row: int, expected: np.ndarray) -> list[float]:
    """Distance of the corners of an image's boxes from those expected; [] where their numbers differ."""
    classes = np.asarray(truth["classes"][row])
    boxes = np.asarray(truth["boxes"][row], "float64")[classes >= 0]
    return np.abs(boxes - expected).max(1).tolist() if boxes.shape == expected.shape and len(boxes) else []
