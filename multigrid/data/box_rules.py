"""Which boxes of a label file can be used, and what the others suffer from.

Boxes are corners (x1, y1, x2, y2) in pixels of the upright image, sizes (height, width). The rules are applied to all
boxes of a label file at once: a million of them are common.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from multigrid.data.defects import Defect
from multigrid.data.raw_image import RawImage

NOTABLE_CLIP = 1.0
"""Pixels beyond the border up to which a box is clipped without a word: tools that count from 1 reach so far."""


def judge_boxes(boxes: np.ndarray, sizes: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to their images, and for each the kind of its defect.

    Args:
        boxes: float64 [N, 4] corners in pixels.
        sizes: int [N, 2] (height, width) of each box's image.
        known: bool [N], whether the class is one of the detector's.

    Returns:
        float32 [N, 4] clipped corners, and str [N]: "" is sound, "clipped" can be used, all else cannot.
    """
    borders = sizes[:, [1, 0, 1, 0]]
    clipped = np.clip(boxes, 0, borders).astype(np.float32)
    low, high, right_bottom = boxes[:, :2], boxes[:, 2:], borders[:, :2]
    beyond = np.maximum(-boxes, boxes - borders).max(axis=1, initial=-np.inf)
    rules = [
        ("non-finite", ~np.isfinite(boxes).all(axis=1)),
        ("unknown-class", ~known),
        ("inverted", (high < low).any(axis=1)),
        ("empty", (high == low).any(axis=1)),
        ("outside", ((high <= 0) | (low >= right_bottom)).any(axis=1)),
        # A sliver can vanish when it is clipped or rounded to float32.
        ("empty", (clipped[:, 2:] <= clipped[:, :2]).any(axis=1)),
        ("clipped", beyond > NOTABLE_CLIP),
    ]
    kinds = np.select([found for _, found in rules], [kind for kind, _ in rules], default="")
    return clipped, kinds


def check_boxes(
    images: Sequence[RawImage], sizes: Sequence[tuple[int, int]], class_names: Sequence[str]
) -> tuple[list[np.ndarray], list[np.ndarray], list[Defect]]:
    """For every image its boxes float32 [n, 4], clipped, and classes int32 [n]; and the defects, in the file's order.

    Args:
        images: what a reader returned.
        sizes: the (height, width) of each.
        class_names: in the order of the class ids.
    """
    if not images:
        return [], [], []
    owner = np.repeat(np.arange(len(images)), [len(image.boxes) for image in images])
    owner_sizes = np.array(sizes, np.int64).reshape(-1, 2)[owner]
    boxes = np.array([box for image in images for box in image.boxes], np.float64).reshape(-1, 4)
    relative = np.array([image.relative for image in images], bool)[owner]
    with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found to be non-finite
        boxes = np.where(relative[:, None], boxes * owner_sizes[:, [1, 0, 1, 0]], boxes)
    classes = class_ids([label for image in images for label in image.labels], class_names)
    clipped, kinds = judge_boxes(boxes, owner_sizes, classes >= 0)

    kept = (kinds == "") | (kinds == "clipped")
    ends = np.cumsum(np.bincount(owner[kept], minlength=len(images)))[:-1]
    defects = _image_defects(images, sizes)
    first = np.searchsorted(owner, np.arange(len(images)))
    for index in np.flatnonzero(kinds != ""):
        number = int(owner[index])
        image, position = images[number], index - first[number]
        box = tuple(boxes[index].tolist())
        kind = str(kinds[index])
        detail = _detail(kind, image.labels[position], clipped[index], sizes[number], class_names)
        defects.append((number, Defect(kind, image.places[position], box, detail, dropped=not kept[index])))
    defects.sort(key=lambda found: found[0])
    return np.split(clipped[kept], ends), np.split(classes[kept], ends), [defect for _, defect in defects]


def class_ids(labels: Sequence[int | str], class_names: Sequence[str]) -> np.ndarray:
    """int32 [N] class ids of ids and names; -1 for what is not among the names."""
    ids = {name: index for index, name in enumerate(class_names)}
    ids.update({index: index for index in range(len(class_names))})
    return np.array([ids.get(label, -1) for label in labels], np.int32)


def _image_defects(images: Sequence[RawImage], sizes: Sequence[tuple[int, int]]) -> list[tuple[int, Defect]]:
    """(position of the image, defect) of what is said about images, not about boxes to train on."""
    found = []
    for number, (image, size) in enumerate(zip(images, sizes, strict=True)):
        if image.declared_size is not None and image.declared_size != size:
            (height, width), declared = size, image.declared_size
            detail = f"width x height given as {declared[1]:g} x {declared[0]:g}, the image has {width} x {height}"
            found.append((number, Defect("size-mismatch", image.place, (), detail, dropped=False)))
        for place, box in image.crowds:
            found.append((number, Defect("crowd", place, box, "a crowd region, not one object")))
    return found


def _detail(kind: str, label: int | str, clipped: np.ndarray, size: tuple[int, int], class_names: Sequence[str]) -> str:
    if kind == "unknown-class":
        if isinstance(label, str):
            return f'class "{label}", expected one of {len(class_names)} names such as "{class_names[0]}"'
        return f"class id {label}, expected 0 to {len(class_names) - 1}"
    return {
        "non-finite": "expected finite numbers",
        "inverted": "expected x1 < x2 and y1 < y2",
        "empty": "expected a box with width and height",
        "outside": f"wholly outside the image of width {size[1]}, height {size[0]}",
        "clipped": f"clipped to {','.join(f'{value:.6g}' for value in clipped)}",
    }[kind]
