"""Boxes and what they share, written once for `keras.ops` and NumPy.

Convention: a box is its corners (x1, y1, x2, y2) in pixels on the last axis; pairs of boxes broadcast against each
other. Of NumPy arrays alone a NumPy array comes back, otherwise a tensor of the backend.
"""

import math

import numpy as np
from keras import ops

TINY = 1e-7  # keeps quotients and square roots of degenerate boxes finite, in value and in gradient


def areas(boxes):
    """Area of each box.

    Args:
        boxes: [..., 4] float corners in pixels.

    Returns:
        [...] float, square pixels; 0 for an inverted box.
    """
    width, height = _sides(boxes)
    return width * height


def intersection(first, second):
    """Area that two boxes share.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float, square pixels.
    """
    xp = _namespace(first, second)
    width = xp.minimum(first[..., 2], second[..., 2]) - xp.maximum(first[..., 0], second[..., 0])
    height = xp.minimum(first[..., 3], second[..., 3]) - xp.maximum(first[..., 1], second[..., 1])
    return _positive(width) * _positive(height)


def iou(first, second):
    """Intersection over union.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float in [0, 1].
    """
    shared = intersection(first, second)
    return shared / (areas(first) + areas(second) - shared + TINY)


def intersection_over_larger(first, second):
    """Intersection over the larger of the two areas, where the boxes lie; `iol` lays them on a common centre first.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float in [0, 1]; never less than the IoU.
    """
    larger = _namespace(first, second).maximum(areas(first), areas(second))
    return intersection(first, second) / (larger + TINY)


def overlaps(first, second, threshold: float):
    """Whether the intersection over union exceeds a threshold, without a division.

    A second form of `iou(first, second) > threshold`, for speed alone: I > t / (1 + t) · (A + B) costs a third less on
    large grids of pairs. A property test holds the two together.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.
        threshold: number in [0, 1].

    Returns:
        [...] bool.
    """
    share = threshold / (1.0 + threshold)
    return intersection(first, second) > share * (areas(first) + TINY) + share * areas(second)


def giou(first, second):
    """Generalized IoU: IoU less the share of the enclosing box that neither covers.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float in [-1, 1].

    Source: Rezatofighi et al. 2019, algorithm 1.
    """
    shared = intersection(first, second)
    union = areas(first) + areas(second) - shared
    width, height = _enclosing_sides(first, second)
    hull = width * height
    return shared / (union + TINY) - (hull - union) / (hull + TINY)


def diou(first, second):
    """Distance IoU: IoU less the squared distance of the centres over the squared diagonal of the enclosing box.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float in [-1, 1].

    Source: Zheng et al. 2020 (Distance-IoU), equation 7.
    """
    width, height = _enclosing_sides(first, second)
    x_distance = (first[..., 0] + first[..., 2] - second[..., 0] - second[..., 2]) / 2.0
    y_distance = (first[..., 1] + first[..., 3] - second[..., 1] - second[..., 3]) / 2.0
    distance = (x_distance**2 + y_distance**2) / (width**2 + height**2 + TINY)
    return iou(first, second) - distance


def ciou(first, second):
    """Complete IoU: distance IoU less a penalty on the difference of the aspect ratios.

    Args:
        first: [..., 4] float corners in pixels.
        second: [..., 4] float, likewise; broadcasts against `first`.

    Returns:
        [...] float, at most 1.

    Source: Zheng et al. 2020 (Distance-IoU), equations 8 to 11; its trade-off factor takes no gradient.
    """
    widths_heights = (*_sides(first), *_sides(second))
    first_w, first_h, second_w, second_h = (ops.maximum(side, TINY) for side in widths_heights)
    angle = ops.arctan2(second_w, second_h) - ops.arctan2(first_w, first_h)
    aspect = (4.0 / math.pi**2) * angle**2
    trade_off = ops.stop_gradient(aspect / (1.0 - iou(first, second) + aspect + TINY))
    return diou(first, second) - trade_off * aspect


def iol(boxes_wh, anchors_wh):
    """Intersection over the larger area, box and anchor on a common centre.

    Args:
        boxes_wh: [..., N, 2] float, widths and heights in input pixels.
        anchors_wh: [K, 2] float, likewise.

    Returns:
        [..., N, K] float in [0, 1].

    Source: Tesema & Bourennane 2021, section III-B.
    """
    width, height = boxes_wh[..., None, 0], boxes_wh[..., None, 1]
    anchor_width, anchor_height = anchors_wh[:, 0], anchors_wh[:, 1]
    shared = ops.minimum(width, anchor_width) * ops.minimum(height, anchor_height)
    return shared / (ops.maximum(width * height, anchor_width * anchor_height) + TINY)


def centers_and_sizes(boxes):
    """Centres and sides of boxes.

    Args:
        boxes: [..., 4] float corners in pixels.

    Returns:
        Centres [..., 2] (x, y) and sizes [..., 2] (width, height), in pixels.
    """
    return (boxes[..., :2] + boxes[..., 2:]) / 2.0, boxes[..., 2:] - boxes[..., :2]


def _namespace(*arrays):
    return np if all(isinstance(array, np.ndarray) for array in arrays) else ops


def _sides(boxes):
    return _positive(boxes[..., 2] - boxes[..., 0]), _positive(boxes[..., 3] - boxes[..., 1])


def _positive(values):
    return np.maximum(values, 0.0) if isinstance(values, (np.ndarray, np.number)) else ops.relu(values)


def _enclosing_sides(first, second):
    xp = _namespace(first, second)
    width = xp.maximum(first[..., 2], second[..., 2]) - xp.minimum(first[..., 0], second[..., 0])
    height = xp.maximum(first[..., 3], second[..., 3]) - xp.minimum(first[..., 1], second[..., 1])
    return width, height
