"""How many of the objects of the samples are left in the training images that show them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

MIXED_UP = 4  # samples that a mosaic shows


@dataclass(frozen=True)
class Retention:
    """Of the images of training batches that are known to show certain samples.

    Attributes:
        kept: [images] objects of each.
        expected: [images] objects of all the samples that it shows.
        mosaic: [images] bool, whether it shows four of them.
        quarters: [4] objects in the upper left, upper right, lower left and lower right quarter of mosaics.
    """

    kept: np.ndarray
    expected: np.ndarray
    mosaic: np.ndarray
    quarters: np.ndarray

    def share(self, mosaic: bool) -> float:
        """Of the objects, that is left in mosaics or in other images; NaN where there are none."""
        chosen = self.mosaic == mosaic
        expected = self.expected[chosen].sum()
        return float(self.kept[chosen].sum() / expected) if expected else float("nan")

    def objects(self, mosaic: bool) -> int:
        """That were to be expected in mosaics or in other images."""
        return int(self.expected[self.mosaic == mosaic].sum())

    @property
    def most(self) -> int:
        """Objects of the image with most of them."""
        return int(self.kept.max())

    @property
    def at_most(self) -> float:
        """Share of the images with as many objects as that one, of those that could have more."""
        could = self.expected > self.most
        return float(np.mean(self.kept[could] == self.most)) if could.any() else 0.0

    @property
    def could(self) -> int:
        """Images whose samples have more objects than any image is left with."""
        return int((self.expected > self.most).sum())


def examine(case) -> Retention | None:
    """Of `case.batches`; None where the data cannot say which samples an image shows."""
    data = case.train_data
    if not hasattr(data, "sample_indices") or not getattr(data, "samples", None):
        return None
    counts = np.array([len(sample.boxes) for sample in data.samples])
    kept, expected, mosaic, quarters = [], [], [], np.zeros(4, int)
    for index, (images, truth) in enumerate(case.batches):
        boxes, classes = np.asarray(truth["boxes"]), np.asarray(truth["classes"])
        for own, labels, shown in zip(boxes, classes, data.sample_indices(index), strict=True):
            kept.append(int((labels >= 0).sum()))
            expected.append(int(counts[list(shown)].sum()))
            mosaic.append(len(shown) >= MIXED_UP)
            if mosaic[-1]:
                quarters += _by_quarter(own[labels >= 0], images.shape[1:3])
    return Retention(np.array(kept), np.array(expected), np.array(mosaic), quarters)


def _by_quarter(boxes: np.ndarray, size) -> np.ndarray:
    right, low = ((boxes[:, :2] + boxes[:, 2:]) / 2 > np.array(size[::-1]) / 2).T
    return np.bincount(right + 2 * low, minlength=4)
