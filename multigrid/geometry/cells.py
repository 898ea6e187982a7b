"""What the channels of an output cell mean, and how a cell says where a box is.

A scale's output is a grid [batch, rows, columns, 5 + A + C] of raw numbers. The grids of all scales, coarse to fine,
are read as one list of cells: [batch, cells, 5 + A + C]. Points are (x, y); this module is the one place that turns
them into the [row, column] of a grid.
"""

import math
from typing import NamedTuple

import numpy as np
from keras import ops

STRIDES = (32, 16, 8)  # input pixels a cell of each grid, coarse to fine

MAX_LOG_SIZE = math.log(1000.0 / 16.0)  # the clip before `exp`, as Detectron has it
OFFSET_SLOPE = 0.15  # the factor inside the paper's activation
OFFSET_ACTIVATIONS = ("tanh", "sigmoid")

# (x, y) steps from an object's own cell to the nine that answer for it, row by row
NEIGHBOURHOOD = tuple((x, y) for y in (-1, 0, 1) for x in (-1, 0, 1))
OWN_CELL = NEIGHBOURHOOD.index((0, 0))


class Channels(NamedTuple):
    """The channels of cells, by meaning; every field has the leading axes of the cells it was split from."""

    xy: object  # [..., 2] offset logits
    wh: object  # [..., 2] ln(size / anchor)
    objectness: object  # [...] logit
    anchor: object  # [..., A] logits
    classes: object  # [..., C] logits


def split_channels(cells, anchors_per_scale: int) -> Channels:
    """Names the channels of raw cells [..., 5 + A + C]."""
    first_class = 5 + anchors_per_scale
    return Channels(
        cells[..., 0:2], cells[..., 2:4], cells[..., 4], cells[..., 5:first_class], cells[..., first_class:]
    )


class CellLayout(NamedTuple):
    """Where the cells of all scales lie in the input image, in the order of the flattened grids."""

    shapes: tuple  # (rows, columns) of each scale, coarse to fine
    strides: tuple  # pixels a cell, likewise
    xy: object  # [N, 2] float32 (column, row)
    stride: object  # [N] float32 pixels
    scale: object  # [N] int32

    @property
    def first_cells(self) -> list:
        """Index of each scale's first cell in the flattened list, and at the end the number of all cells."""
        starts = [0]
        for rows, columns in self.shapes:
            starts.append(starts[-1] + rows * columns)
        return starts


def layout_of(outputs, strides) -> CellLayout:
    """Reads the layout of cells from the output grids themselves.

    Args:
        outputs: list of [B, rows, columns, channels], coarse to fine.
        strides: pixels a cell of each.

    Returns:
        A `CellLayout` of all N cells.
    """
    shapes = tuple((ops.shape(grid)[1], ops.shape(grid)[2]) for grid in outputs)
    positions, pixels, scales = [], [], []
    for scale, ((rows, columns), stride) in enumerate(zip(shapes, strides, strict=True)):
        index = ops.arange(rows * columns, dtype="int32")
        positions.append(ops.stack([index % columns, index // columns], axis=-1))
        pixels.append(ops.full_like(index, stride))
        scales.append(ops.full_like(index, scale))
    return CellLayout(
        shapes,
        tuple(strides),
        ops.cast(ops.concatenate(positions, axis=0), "float32"),
        ops.cast(ops.concatenate(pixels, axis=0), "float32"),
        ops.concatenate(scales, axis=0),
    )


def cell_corners(size: tuple[int, int], strides=STRIDES) -> tuple:
    """Where the cells of all scales lie in an input of this (height, width), in the order of the flattened grids.

    Returns:
        [N, 4] float32 corners in input pixels, and [N] int64 the scale of each, as NumPy arrays.
    """
    corners, scales = [], []
    for scale, stride in enumerate(strides):
        row, column = np.indices((size[0] // stride, size[1] // stride)).reshape(2, -1)
        corners.append(np.stack([column, row, column + 1, row + 1], axis=-1) * stride)
        scales.append(np.full(len(row), scale))
    return np.concatenate(corners).astype("float32"), np.concatenate(scales)


def flatten(outputs):
    """The grids of all scales as one list of cells.

    Args:
        outputs: list of [B, rows, columns, channels], coarse to fine.

    Returns:
        [B, N, channels] float32.
    """
    channels = outputs[0].shape[-1]
    cells = [ops.reshape(grid, (ops.shape(grid)[0], -1, channels)) for grid in outputs]
    return ops.cast(ops.concatenate(cells, axis=1), "float32")


def unflatten(cells, layout: CellLayout) -> list:
    """The inverse of `flatten`: [B, N, channels] back to a list of [B, rows, columns, channels]."""
    starts = layout.first_cells
    batch, channels = ops.shape(cells)[0], cells.shape[-1]
    return [
        ops.reshape(cells[:, first:last], (batch, rows, columns, channels))
        for first, last, (rows, columns) in zip(starts[:-1], starts[1:], layout.shapes, strict=True)
    ]


def nine_cells(center, scale, layout: CellLayout):
    """The 3×3 cells around points, in the order of `NEIGHBOURHOOD`.

    Args:
        center: [..., 2] float (x, y) in cells of the scale looked at.
        scale: [...] int32.
        layout: where the cells lie.

    Returns:
        (column, row) [..., 9, 2] float32; index among all N cells [..., 9] int32, some other cell's where there is
        none; whether there is one [..., 9] bool.
    """
    shapes = ops.take(ops.convert_to_tensor([[c, r] for r, c in layout.shapes], "int32"), scale, axis=0)
    own = ops.clip(ops.cast(ops.floor(center), "int32"), 0, shapes - 1)
    around = own[..., None, :] + ops.convert_to_tensor(NEIGHBOURHOOD, "int32")
    limit = shapes[..., None, :]
    exists = ops.all((around >= 0) & (around < limit), axis=-1)
    inside = ops.clip(around, 0, limit - 1)
    first = ops.take(ops.convert_to_tensor(layout.first_cells[:-1], "int32"), scale, axis=0)
    index = first[..., None] + inside[..., 1] * limit[..., 0] + inside[..., 0]
    return ops.cast(around, "float32"), index, exists


def offset(logits, activation: str):
    """Where a centre lies, seen from a cell's upper left corner.

    Args:
        logits: [..., 2] float.
        activation: "tanh" is the paper's tanh(0.15 t) + sigmoid(0.15 t); "sigmoid" is 3 sigmoid(t) - 1.

    Returns:
        [..., 2] float in (-1, 2), (x, y) in cells.

    Raises:
        ValueError: another activation.

    Source: Tesema & Bourennane 2021, section III-C.
    """
    if activation not in OFFSET_ACTIVATIONS:
        raise ValueError(f"offset activation: expected {' or '.join(OFFSET_ACTIVATIONS)}, received {activation!r}")
    if activation == "tanh":
        return ops.tanh(OFFSET_SLOPE * logits) + ops.sigmoid(OFFSET_SLOPE * logits)
    return 3.0 * ops.sigmoid(logits) - 1.0


def offset_logits(offsets, activation: str):
    """The inverse of `offset`: the logits that put a centre there.

    Args:
        offsets: [..., 2] float strictly inside (-1, 2), in cells.
        activation: as for `offset`.

    Returns:
        [..., 2] float logits.
    """
    share = ops.clip((offsets + 1.0) / 3.0, 1e-6, 1.0 - 1e-6)
    logits = ops.log(share) - ops.log1p(-share)
    if activation != "tanh":
        return logits
    lower, upper = ops.full_like(offsets, -120.0), ops.full_like(offsets, 120.0)
    for _ in range(40):  # the activation is monotone and its inverse the root of a cubic: halve the interval
        middle = (lower + upper) / 2.0
        above = offset(middle, activation) > offsets
        lower, upper = ops.where(above, lower, middle), ops.where(above, middle, upper)
    return (lower + upper) / 2.0


def cell_boxes(offsets, log_sizes, cell_xy, stride, anchors_wh):
    """Boxes that cells speak of: ((column, row) + offset) · stride and anchor · exp(size).

    Args:
        offsets: [..., 2] float (x, y) in cells, from each cell's upper left corner.
        log_sizes: [..., 2] float, ln(width / anchor width) and ln(height / anchor height); clipped before `exp`.
        cell_xy: [..., 2] float (column, row).
        stride: [...] float, pixels a cell.
        anchors_wh: [..., 2] float, (width, height) in pixels.

    Returns:
        [..., 4] float corners in input pixels.
    """
    centers = (cell_xy + offsets) * stride[..., None]
    halves = anchors_wh * ops.exp(ops.clip(log_sizes, -MAX_LOG_SIZE, MAX_LOG_SIZE)) / 2.0
    return ops.concatenate([centers - halves, centers + halves], axis=-1)


def decode_boxes(channels: Channels, layout: CellLayout, anchors_wh, activation: str):
    """The one decoder: the box of every cell, against the anchor that the cell itself prefers.

    Args:
        channels: of cells [B, N, ...], all scales.
        layout: where these cells lie.
        anchors_wh: [scales, A, 2] float, (width, height) in input pixels.
        activation: of the offsets, see `offset`.

    Returns:
        [B, N, 4] float32 corners in input pixels, not clipped to the image.
    """
    per_scale = channels.anchor.shape[-1]
    table = ops.reshape(ops.convert_to_tensor(anchors_wh, "float32"), (-1, 2))
    # not argmax: Keras' own looks at the sign of zeros by bit operations, which converters to other formats do not know
    _, preferred = ops.top_k(channels.anchor, 1)
    preferred = ops.cast(preferred[..., 0], "int32") + layout.scale * per_scale
    chosen = ops.take(table, preferred, axis=0)
    return cell_boxes(offset(channels.xy, activation), channels.wh, layout.xy, layout.stride, chosen)
