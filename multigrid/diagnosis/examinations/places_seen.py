"""Where in the image a cell looks, and whether it says the same twice: the detector is asked again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations.outputs import as_array

IMAGES = 4
FEWEST_CELLS = 6  # along each side of a grid
SIDE = 0.25  # of the image's sides: a patch that is changed
CORNERS = ((0.05, 0.1), (0.1, 0.65), (0.65, 0.05), (0.7, 0.7))  # (top, left) of the patches, in shares of the sides
CHANGES = 60  # grey levels of the noise that a patch gets


@dataclass(frozen=True)
class PlacesSeen:
    """Answers of the live detector, in inference mode.

    Attributes:
        repeated: [S] by scale, coarse to fine: deviation between two answers to the same image over the deviation of
            the answers from cell to cell; 0 where both are the same.
        local: [S] mean change of the cells in a changed patch of the image over that of the cells elsewhere; infinite
            where no other cell changes, NaN where none does and for grids of so few cells that each sees most of the
            image.
    """

    repeated: np.ndarray
    local: np.ndarray


def examine(case) -> PlacesSeen:
    """Asks about the first images of `case.batch`, one patch changed at a time; nothing is moved."""
    images = np.asarray(case.batch[0][:IMAGES])
    first, second = _said(case, images), _said(case, images)
    repeated = [
        _ratio(np.abs(one - other).mean(), one.std(axis=(0, 1, 2)).mean())
        for one, other in zip(first, second, strict=True)
    ]
    inside, outside = np.zeros(len(first)), np.zeros(len(first))
    rng = np.random.default_rng(0)
    for top, left in CORNERS:
        changed, place = _changed(images, top, left, rng)
        for scale, (one, other) in enumerate(zip(first, _said(case, changed), strict=True)):
            moved = np.abs(one - other).mean(axis=(0, 3))
            mask = _cells(place, moved.shape)
            inside[scale] += moved[mask].mean() if min(moved.shape) >= FEWEST_CELLS else np.nan
            outside[scale] += moved[~mask].mean()
    return PlacesSeen(np.array(repeated), np.array([_ratio(*both) for both in zip(inside, outside, strict=True)]))


def _said(case, images) -> list[np.ndarray]:
    return [as_array(grid).astype("float64") for grid in case.detector(ops.convert_to_tensor(images), training=False)]


def _ratio(value: float, by: float) -> float:
    return float(value / by) if by else (float("inf") if value > 0.0 else float("nan"))


def _changed(images, top: float, left: float, rng) -> tuple:
    """Images with noise in a patch, and the patch (top, left, bottom, right) in shares of the sides."""
    height, width = images.shape[1:3]
    rows, columns = (
        slice(int(top * height), int((top + SIDE) * height)),
        slice(int(left * width), int((left + SIDE) * width)),
    )
    changed = images.astype("float64")
    changed[:, rows, columns] += rng.uniform(-CHANGES, CHANGES, changed[:, rows, columns].shape)
    return changed.clip(0, 255).astype(images.dtype), (top, left, top + SIDE, left + SIDE)


def _cells(place, shape) -> np.ndarray:
    """Cells of a grid (rows, columns) whose centre lies in a patch, [rows, columns] bool; the nearest if none does."""
    top, left, bottom, right = place
    y, x = ((np.arange(count) + 0.5) / count for count in shape)
    rows, columns = (y >= top) & (y < bottom), (x >= left) & (x < right)
    rows[np.abs(y - (top + bottom) / 2).argmin()] = columns[np.abs(x - (left + right) / 2).argmin()] = True
    return rows[:, None] & columns[None]
