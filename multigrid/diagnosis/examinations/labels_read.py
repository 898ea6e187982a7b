"""What the label file itself says, before a reader leaves out what it cannot use."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multigrid.config import SHAPES
from multigrid.data.box_rules import check_boxes
from multigrid.data.images import image_size
from multigrid.data.raw_image import RawImage
from multigrid.data.samples import Sample, read_raw_images


@dataclass(frozen=True)
class LabelFile:
    """The labels to train on as they stand in their file.

    Attributes:
        source: the file.
        images: of it.
        sizes: (height, width) of each image.
        kinds: how many boxes have a defect, by `data.defects.Defect.kind`.
        ids: how many boxes each class number has; names are not counted.
    """

    source: str
    images: tuple[RawImage, ...]
    sizes: tuple
    kinds: Mapping[str, int]
    ids: Mapping[int, int]

    @property
    def boxes(self) -> int:
        """Of all images."""
        return sum(len(image.boxes) for image in self.images)

    @property
    def dropped(self) -> float:
        """Share of the boxes that a reader must leave out."""
        lost = sum(self.kinds.get(kind, 0) for kind in ("non-finite", "unknown-class", "inverted", "empty", "outside"))
        return lost / max(1, self.boxes)

    def share(self, kind: str) -> float:
        """Of the boxes, that have this defect."""
        return self.kinds.get(kind, 0) / max(1, self.boxes)

    def samples(self) -> list[Sample]:
        """Its images with all boxes as they stand, in pixels, whatever is wrong with them."""
        return [
            Sample(image.path, _pixels(image, size), np.zeros(len(image.boxes), int), image.image_id, size)
            for image, size in zip(self.images, self.sizes, strict=True)
        ]


def examine(case) -> LabelFile | None:
    """The label file of data.train; None where the config names none that can be read here."""
    source = getattr(getattr(case.config, "data", None), "train", None)
    if source is None or source == SHAPES or not os.path.exists(source):
        return None
    images = read_raw_images(os.fspath(source), case.class_names, "train")
    known = {sample.path: sample.size for sample in case.samples.get("train", ())}
    sizes = [known.get(image.path) or image_size(image.path) for image in images]
    _, _, defects = check_boxes(images, sizes, case.class_names)
    numbers = Counter(label for image in images for label in image.labels if isinstance(label, int))
    return LabelFile(source, tuple(images), tuple(sizes), Counter(one.kind for one in defects), numbers)


def emptied(file: LabelFile, samples) -> tuple[int, int]:
    """(images whose boxes the file has and the samples have not, images with boxes that can be used)."""
    count = {sample.path: len(sample.boxes) for sample in samples}
    labelled = [
        image.path
        for image, size in zip(file.images, file.sizes, strict=True)
        if image.path in count and _has_usable(image, size)
    ]
    return sum(count[path] == 0 for path in labelled), len(labelled)


def _has_usable(image: RawImage, size) -> bool:
    """Whether a box has an area within the image."""
    boxes = np.clip(np.nan_to_num(_pixels(image, size)), 0, np.tile(size[::-1], 2))
    return bool((boxes[:, 2:] > boxes[:, :2]).all(1).any())


def _pixels(image: RawImage, size) -> np.ndarray:
    boxes = np.array(image.boxes, "float64").reshape(-1, 4)
    return boxes * np.tile(size[::-1], 2) if image.relative else boxes
