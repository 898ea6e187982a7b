"""Whether boxes can be boxes: finite, with an area, in the image, each once, and of the classes that there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from multigrid.data.images import Letterbox
from multigrid.geometry.boxes import iou

MOST = 3000  # images that are looked through for repeated boxes
FEWEST = 30  # boxes of which it is said that their coordinates lie on a grid
FEWEST_SIZES = 5  # different ones, in steps of the grid
FEWEST_LINES, MOST_LINES = 3, 65  # lines of such a grid along a side of the image
SAME = 0.95  # IoU of two boxes of a class that are one object, labelled twice


@dataclass(frozen=True)
class Boxes:
    """What was counted of the boxes of a stream; shares are of all its objects.

    Attributes:
        count: objects.
        images: that were looked at.
        not_finite: share with a coordinate that is not a number.
        flat: share whose width or height is exactly 0, of those not inverted.
        inverted: share whose second corner lies before the first.
        outside: share whose centre is not in the image.
        within_one: share of the images with objects whose coordinates are all at most 1, as shares of a side are.
        repeated: share that another box of the class covers by more than `SAME`.
        ids: objects of each class number.
        short_sides: [objects] shorter side in pixels of the network's input, of those with an area.
        coarseness: step of the grid that nearly all coordinates lie on, over the median side of the boxes; 0 where
            there is no such grid.
    """

    count: int
    images: int
    not_finite: float
    flat: float
    inverted: float
    outside: float
    within_one: float
    repeated: float
    ids: Mapping[int, int]
    short_sides: np.ndarray
    coarseness: float


def of_samples(case) -> Boxes | None:
    """Of the samples to train on, in the pixels of their images; None where there are none."""
    samples = case.samples.get("train", ())
    network = case.batches[0][0].shape[1:3]
    scales = [min(Letterbox.fit(one.size, network).scale) for one in samples]
    rows = [
        (np.asarray(one.boxes, "float64"), np.asarray(one.classes), one.size, scale)
        for one, scale in zip(samples, scales, strict=True)
    ]
    return _counted(rows)


def of_training(case) -> Boxes | None:
    """Of the training batches."""
    return _of_batches(case.batches)


def of_validation(case) -> Boxes | None:
    """Of the validation batches; None where there are none."""
    return _of_batches(case.val_batches)


def _of_batches(batches) -> Boxes | None:
    rows = []
    for images, truth in batches:
        for boxes, classes in zip(np.asarray(truth["boxes"], "float64"), np.asarray(truth["classes"]), strict=True):
            rows.append((boxes[classes >= 0], classes[classes >= 0], images.shape[1:3], 1.0))
    return _counted(rows)


def _counted(rows: list) -> Boxes | None:
    """Of rows (boxes [N, 4], classes [N], (height, width), pixels of the network's input a pixel)."""
    if not sum(len(boxes) for boxes, *_ in rows):
        return None
    boxes = np.concatenate([boxes for boxes, *_ in rows])
    room = np.concatenate([np.broadcast_to(size[::-1], (len(boxes), 2)) for boxes, _, size, _ in rows])
    factor = np.concatenate([np.full(len(boxes), scale) for boxes, *_, scale in rows])
    finite = np.isfinite(boxes).all(1)
    with np.errstate(invalid="ignore"):
        sides, centre = boxes[:, 2:] - boxes[:, :2], (boxes[:, 2:] + boxes[:, :2]) / 2
        inverted = finite & (sides < 0).any(1)
        flat = finite & ~inverted & (sides == 0).any(1)
        outside = finite & ((centre < 0) | (centre > room)).any(1)
    labelled = [boxes for boxes, *_ in rows if len(boxes)]
    sound = finite & ~inverted & ~flat
    return Boxes(
        count=len(boxes),
        images=len(rows),
        not_finite=float(1 - finite.mean()),
        flat=float(flat.mean()),
        inverted=float(inverted.mean()),
        outside=float(outside.mean()),
        within_one=float(np.mean([np.nan_to_num(one).max() <= 1.0 for one in labelled])),
        repeated=_repeated_share(rows),
        ids=Counter(np.concatenate([classes for _, classes, *_ in rows]).astype(int).tolist()),
        short_sides=sides[sound].min(1) * factor[sound],
        coarseness=_coarseness(boxes[sound], room[sound]),
    )


def _coarseness(boxes: np.ndarray, room: np.ndarray) -> float:
    """Of boxes [N, 4] in images of (width, height), [N, 2]; see `Boxes`."""
    if len(boxes) < FEWEST:
        return 0.0
    places, pixel = (boxes / np.tile(room, 2)).ravel(), (1.0 / np.tile(room, 2)).ravel()
    inner = (places > pixel) & (places < 1.0 - pixel)  # what is cut at the border lies on every grid
    if inner.sum() < FEWEST:
        return 0.0
    places, pixel = places[inner], pixel[inner]
    for count in range(FEWEST_LINES, MOST_LINES):
        line = np.round(places * count)
        near = np.abs(places - line / count) <= 0.6 * pixel  # a whole pixel is as near as files come to a line
        by_chance = min(1.0, 1.2 * count * float(np.mean(pixel)))
        if near.mean() > 0.97 and by_chance < 0.5 and len(np.unique(line[near])) > 0.6 * (count - 1):
            sides = np.round((boxes[:, 2:] - boxes[:, :2]) / room * count)
            if len(np.unique(sides, axis=0)) < FEWEST_SIZES:
                return 0.0  # squares of a board, halves of a page: what is there may well lie on a grid
            return float(1.0 / count / np.median((boxes[:, 2:] - boxes[:, :2]) / room))
    return 0.0


def _repeated_share(rows: list) -> float:
    """Share of the objects that lie on an earlier one, of `MOST` images: all pairs of an image are compared."""
    looked = rows[:MOST]
    return sum(_repeated(boxes, classes) for boxes, classes, *_ in looked) / max(1, sum(len(row[0]) for row in looked))


def _repeated(boxes: np.ndarray, classes: np.ndarray) -> int:
    """How many boxes of an image lie on an earlier one of their class."""
    if len(boxes) < 2:
        return 0
    same = (iou(boxes[:, None], boxes[None]) > SAME) & (classes[:, None] == classes[None])
    return int(np.triu(same, 1).any(0).sum())
