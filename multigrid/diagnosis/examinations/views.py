"""Images and their boxes, as the label files, the training data and the validation data pair them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multigrid.data.images import Letterbox, read_image

IMAGES = 64  # of a stream; more tell nothing new
LONGEST = 320  # pixels that an image of a file is read at: about what a network sees


@dataclass(frozen=True)
class View:
    """An image with the boxes that are said to be in it.

    Attributes:
        image: [height, width, 3].
        boxes: [N, 4] float64 corners in its pixels, N > 0; maybe inverted or outside. Those without an area or with
            something else than numbers are left out.
        samples: indices of the samples that it shows, its own first; () where not known.
        letterbox: how the one sample that it shows was fitted to it; None where not known, or where there are several.
        scale: (x, y) its pixels a pixel that the boxes were measured in.
    """

    image: np.ndarray
    boxes: np.ndarray
    samples: tuple = ()
    letterbox: Letterbox | None = None
    scale: tuple = (1.0, 1.0)


def of_samples(samples: Sequence) -> list[View]:
    """Images of files with the boxes of `Sample`s, spread evenly over those that have any."""
    return [_of_file(one) for one in _spread([one for one in samples if _usable(one.boxes).any()])]


def of_batches(batches: Sequence, data) -> list[View]:
    """Images of batches with objects; which samples they show is asked of the data, if it can tell."""
    found = []
    for index, (images, truth) in enumerate(batches):
        shown = data.sample_indices(index) if hasattr(data, "sample_indices") else [()] * len(images)
        boxes, classes = np.asarray(truth["boxes"], "float64"), np.asarray(truth["classes"])
        for image, own, label, samples in zip(images, boxes, classes, shown, strict=True):
            usable = _usable(own) & (label >= 0)
            if usable.any():
                found.append(View(image, own[usable], samples, _letterbox(data, samples, image.shape[:2])))
    return _spread(found)


def _of_file(sample) -> View:
    height, width = sample.size
    factor = min(1.0, LONGEST / max(height, width))
    small = Letterbox.fit(sample.size, (max(1, round(height * factor)), max(1, round(width * factor))))
    image = small.apply_image(read_image(sample.path, at_least=small.resized_size))
    boxes = np.asarray(sample.boxes, "float64")[_usable(sample.boxes)]
    return View(image, boxes * np.tile(small.scale, 2), scale=small.scale)


def _usable(boxes) -> np.ndarray:
    """Which boxes [N, 4] have numbers for corners, and no side of exactly 0: [N] bool."""
    boxes = np.asarray(boxes, "float64").reshape(-1, 4)
    with np.errstate(invalid="ignore"):
        return np.isfinite(boxes).all(1) & (boxes[:, 2:] != boxes[:, :2]).all(1)


def _letterbox(data, samples: tuple, size) -> Letterbox | None:
    known = len(samples) == 1 and getattr(data, "samples", None)
    return Letterbox.fit(data.samples[samples[0]].size, size) if known else None


def _spread(items: list) -> list:
    if len(items) <= IMAGES:
        return items
    return [items[index] for index in np.linspace(0, len(items) - 1, IMAGES).round().astype(int)]
