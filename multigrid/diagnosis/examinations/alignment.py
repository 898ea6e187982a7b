"""What may have been done to boxes on their way: each mistake that is common, and the step that undoes it.

A hypothesis is named by the step that mends the boxes. Boxes are corners (x1, y1, x2, y2) in pixels of an image of
(height, width); a box that was misread may be inverted, or lie outside. Nothing is clipped here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

IDENTITY = "identity"
SHIFTS = (8, 16, 32)  # pixels: a cell of each grid


def apply(name: str, boxes, size) -> np.ndarray:
    """The boxes as they should be, if a hypothesis is right.

    Args:
        name: of the hypothesis, one of `HYPOTHESES`.
        boxes: [..., 4] float corners in pixels.
        size: (height, width) of the image in pixels.

    Returns:
        [..., 4] float64 corners in pixels.
    """
    if name not in HYPOTHESES:
        raise ValueError(f"hypothesis: expected one of {', '.join(HYPOTHESES)}, received {name!r}")
    return HYPOTHESES[name][0](np.asarray(boxes, "float64"), np.array(size[::-1], "float64"))


def describe(name: str) -> str:
    """What happened to the boxes, in words, if a hypothesis is right."""
    return HYPOTHESES[name][1]


def _joined(first, last) -> np.ndarray:
    return np.concatenate([first, last], axis=-1)


def _mapped(function: Callable) -> Callable:
    """A hypothesis from what it does to points (x, y), [..., 2]; the corners are put in order again."""

    def change(boxes, sides):
        first, last = function(boxes[..., :2], sides), function(boxes[..., 2:], sides)
        return _joined(np.minimum(first, last), np.maximum(first, last))

    return change


def _scaled(function: Callable) -> Callable:
    """A hypothesis that multiplies (x, y) by what the sides (width, height) say; what is inverted stays so."""
    return lambda boxes, sides: boxes * np.tile(function(sides), 2)


def _by_size(share: float) -> Callable:
    """A hypothesis that moves a box by a share of its own size."""
    return lambda boxes, sides: boxes + share * np.tile(boxes[..., 2:] - boxes[..., :2], 2)


def _about_centre(factor: float) -> Callable:
    """A hypothesis that multiplies the sides of a box and leaves its centre."""

    def change(boxes, sides):
        centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2 * factor
        return _joined(centre - half, centre + half)

    return change


def _by_pixels(right: float, down: float) -> Callable:
    return lambda boxes, sides: boxes + np.array([right, down, right, down], "float64")


def _sizes_as_far_corner(boxes, sides):
    return _joined(boxes[..., :2], boxes[..., :2] + boxes[..., 2:])


def _centres_and_sizes(boxes, sides):
    return _joined(boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2)


def _far_corner_as_size(boxes, sides):
    return _joined(boxes[..., :2], boxes[..., 2:] - boxes[..., :2])


def _corners_as_centre_and_size(boxes, sides):
    return _joined((boxes[..., :2] + boxes[..., 2:]) / 2, boxes[..., 2:] - boxes[..., :2])


def _shifts() -> dict:
    steps = [(right * far, down * far) for far in SHIFTS for right in (-1, 0, 1) for down in (-1, 0, 1)]
    return {
        f"shift {right} {down}": (
            _by_pixels(right, down),
            f"boxes lie {-right}, {-down} pixels (x, y) from their place",
        )
        for right, down in steps
        if (right, down) != (0, 0)
    }


# name: (function(boxes [..., 4], (width, height)) -> boxes, what is wrong)
HYPOTHESES: dict[str, tuple[Callable, str]] = {
    IDENTITY: (lambda boxes, sides: boxes, "boxes lie on their objects"),
    "swap_xy": (lambda boxes, sides: boxes[..., [1, 0, 3, 2]], "x and y are exchanged"),
    "hflip": (_mapped(lambda xy, sides: sides * [1, 0] + xy * [-1, 1]), "left and right are exchanged"),
    "vflip": (_mapped(lambda xy, sides: sides * [0, 1] + xy * [1, -1]), "top and bottom are exchanged"),
    "rot180": (_mapped(lambda xy, sides: sides - xy), "image or boxes stand on their head"),
    "rot90": (
        _mapped(lambda xy, sides: np.array([0, 1]) * sides + (xy / sides)[..., ::-1] * sides * [1, -1]),
        "image or boxes are turned by a quarter",
    ),
    "rot270": (
        _mapped(lambda xy, sides: np.array([1, 0]) * sides + (xy / sides)[..., ::-1] * sides * [-1, 1]),
        "image or boxes are turned by a quarter, the other way",
    ),
    "xywh": (_sizes_as_far_corner, "corner and size (x, y, w, h) were read as two corners"),
    "cxcywh": (_centres_and_sizes, "centre and size (cx, cy, w, h) were read as two corners"),
    "corners from xywh": (_far_corner_as_size, "two corners were read as corner and size (x, y, w, h)"),
    "corners from cxcywh": (_corners_as_centre_and_size, "two corners were read as centre and size (cx, cy, w, h)"),
    "xywh from cxcywh": (_by_size(0.5), "corner and size (x, y, w, h) were read as centre and size"),
    "cxcywh from xywh": (_by_size(-0.5), "centre and size (cx, cy, w, h) were read as corner and size"),
    "relative": (_scaled(lambda sides: sides), "shares of the image's sides were taken for pixels"),
    "percent": (_scaled(lambda sides: sides / 100), "percent of the image's sides were taken for pixels"),
    "turn90": (
        _mapped(lambda xy, sides: np.array([0, 1]) * sides + xy[..., ::-1] * [1, -1]),
        "boxes belong to the image before it was turned by a quarter",
    ),
    "turn270": (
        _mapped(lambda xy, sides: np.array([1, 0]) * sides + xy[..., ::-1] * [-1, 1]),
        "boxes belong to the image before it was turned by a quarter, the other way",
    ),
    "half": (_scaled(lambda sides: np.array([0.5, 0.5])), "coordinates are twice as large as the image"),
    "double": (_scaled(lambda sides: np.array([2.0, 2.0])), "coordinates are half as large as the image"),
    "stretch": (_scaled(lambda sides: sides / sides[::-1]), "width and height were exchanged in scaling"),
    "unstretch": (_scaled(lambda sides: sides[::-1] / sides), "width and height were exchanged in scaling"),
    "sides x 2": (_about_centre(2.0), "boxes are half as large as their objects"),
    "sides x 1.4": (_about_centre(1.4), "boxes have 0.7 of the sides of their objects"),
    "sides x 0.7": (_about_centre(0.7), "boxes have 1.4 times the sides of their objects"),
    "sides x 0.5": (_about_centre(0.5), "boxes are twice as large as their objects"),
    **_shifts(),
}
FORMATS = ("xywh", "cxcywh", "corners from xywh", "corners from cxcywh", "xywh from cxcywh", "cxcywh from xywh")
UNITS = ("relative", "percent")
SCALES = ("half", "double", "stretch", "unstretch")
TURNS = ("hflip", "vflip", "rot180", "rot90", "rot270", "turn90", "turn270")
SIZES = tuple(name for name in HYPOTHESES if name.startswith("sides"))
MOVES = tuple(name for name in HYPOTHESES if name.startswith("shift"))
