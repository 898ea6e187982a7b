"""The round trip: from boxes through the live encoder to what cells should say, and back to boxes.

And where the criterion does not find the perfect answer perfect: which other reading of the same numbers it would.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.outputs import as_array, measure
from multigrid.geometry import cells as cell_geometry

NEAR = 0.05  # cells, or units of the logarithm of a size: an error of the round trip that is none
EDGE = 0.02  # cells that an offset may lie outside of its range by rounding


@dataclass(frozen=True)
class RoundTrip:
    """Errors of the designed scene's claims where they are largest, K of them: those that the targets put at one scale,
    of objects that belong to one scale, the same or another.

    Attributes:
        shift: [2] median of where cells say the centre is, less where it is, (x, y) in cells.
        shift_spread: [2] spread of that around its median, in cells.
        own_cell: [2] cells by which what is called an object's own cell lies beside its centre, (x, y), where that is
            the same for nearly all objects; else 0.
        exchanged: median distance, in cells, from where the cells say the centre is to where it is after rows and
            columns of the cells, or x and y of the points, were exchanged; the least of these readings.
        distance: the same distance without an exchange.
        magnified: median factor by which the said centre is further from the origin than the true one.
        magnified_spread: spread of its logarithm.
        log_size: [2] median of ln(said side / true side), (width, height).
        crossed: median error of the sizes, as ln, with width and height exchanged in what cells should say.
        size_error: median error of the sizes, as ln.
        out_of_range: share of the claims whose offset no activation reaches.
        claims: K.
    """

    shift: np.ndarray
    shift_spread: np.ndarray
    own_cell: np.ndarray
    exchanged: float
    distance: float
    magnified: float
    magnified_spread: float
    log_size: np.ndarray
    crossed: float
    size_error: float
    out_of_range: float
    claims: int


@dataclass(frozen=True)
class Readings:
    """How well the criterion's localization likes the perfect answer, and other ways to write it down.

    Attributes:
        floor: localization of the perfect answer over that of boxes half a size off.
        others: {reading: the same for it}, over the claims of the own cell alone for "sigmoid of the cell itself".
        own_cell_only: whether that reading suits own cells and not their neighbours.
    """

    floor: float
    others: dict
    own_cell_only: bool


def examine(case) -> RoundTrip | None:
    """The round trip of the designed scene; None where the criterion's targets are of another kind or claim nothing."""
    scene = case.examined(outputs.examine)
    if scene is None or not as_array(scene.targets.positive).any():
        return None
    image, row, claim = np.nonzero(as_array(scene.targets.positive))
    cell, offset = as_array(scene.targets.cell)[image, row, claim], as_array(scene.targets.offset)[image, row, claim]
    strides = np.array(case.detector.strides, float)
    grids = [(scene.size[0] // stride, scene.size[1] // stride) for stride in case.detector.strides]
    scale, column, line, across = _places(cell, grids)
    boxes, stride = scene.boxes[image, row], strides[scale][:, None]
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2.0, boxes[:, 2:] - boxes[:, :2]
    said = np.stack([column, line], axis=-1) + offset
    away = said - centre / stride
    readings = (said[:, ::-1], np.stack([line, column], axis=-1) + offset, across + offset)
    scale_of, anchor_of = (as_array(value)[image, row, claim] for value in (scene.targets.scale, scene.targets.anchor))
    anchor, log_size = case.anchors[scale_of, anchor_of], as_array(scene.targets.log_size)[image, row, claim]
    size, crossed = (np.log(anchor / side) + code for code in (log_size, log_size[:, ::-1]))
    farther = np.log(np.maximum(said * stride, 1e-3) / np.maximum(centre, 1e-3))
    errors = np.maximum(np.abs(away).max(axis=-1), np.abs(size).max(axis=-1))
    # by what the targets say: the cell itself, where it is a wrong one, may lie in another grid
    group = len(grids) * scale_of + as_array(scene.targets.own_scale)[image, row]
    worst = group == max(
        set(group.tolist()), key=lambda one: np.nan_to_num(np.median(errors[group == one]), nan=np.inf)
    )
    away, size, crossed, farther = (values[worst] for values in (away, size, crossed, farther))
    return RoundTrip(
        shift=np.median(away, axis=0),
        shift_spread=_spread(away),
        own_cell=_own_cell(scene),
        exchanged=min(_distance((reading - centre / stride)[worst]) for reading in readings),
        distance=_distance(away),
        magnified=float(np.exp(np.median(farther))),
        magnified_spread=float(_spread(farther.reshape(-1, 1))[0]),
        log_size=np.median(size, axis=0),
        crossed=_distance(crossed),
        size_error=_distance(size),
        out_of_range=float(((offset < -1.0 - EDGE) | (offset > 2.0 + EDGE)).any(axis=-1).mean()),
        claims=int(worst.sum()),
    )


def examine_readings(case) -> Readings | None:
    """What the criterion's localization takes the offsets and sizes for; None as for `examine`."""
    scene = case.examined(outputs.examine)
    if scene is None or not as_array(scene.targets.positive).any():
        return None
    own, neighbours = _only(scene, True), _only(scene, False)
    rough = [_edited(scene, wh=lambda wh, step=step: wh + step) for step in (0.5, -0.5)]
    scale = max(_localization(case, scene, cells) for cells in rough)
    floor = _localization(case, scene, scene.cells) / max(scale, 1e-9)
    if floor < 0.02:
        return Readings(floor, {}, False)
    offset = as_array(cell_geometry.offset(ops.convert_to_tensor(scene.cells[..., :2]), outputs.activation_of(case)))
    inside = np.clip(offset, 1e-3, 1.0 - 1e-3)
    logit = np.log(inside / (1.0 - inside))
    edits = {
        "offsets themselves, without any activation": {"xy": lambda _: offset},
        "sides over anchor sides, without a logarithm": {"wh": np.exp},
        "width and height exchanged": {"wh": lambda wh: wh[..., ::-1]},
        "x and y exchanged": {"xy": lambda xy: xy[..., ::-1]},
        "x and y exchanged, width and height too": {"xy": lambda xy: xy[..., ::-1], "wh": lambda wh: wh[..., ::-1]},
    }
    for other in set(cell_geometry.OFFSET_ACTIVATIONS) - {outputs.activation_of(case)}:
        reached = as_array(cell_geometry.offset_logits(ops.convert_to_tensor(offset), other))
        edits[f"offsets by the activation {other}"] = {"xy": lambda _, reached=reached: reached}
    for power in (-2, -1, 1, 2):
        edits[f"sides {2.0**power:g} times as large"] = {"wh": lambda wh, power=power: wh + power * math.log(2.0)}
    others = {
        name: _localization(case, scene, _edited(scene, **edit)) / max(scale, 1e-9) for name, edit in edits.items()
    }
    plain = _edited(scene, xy=lambda _: logit)
    own_now, own_plain = (_localization(case, scene, cells, own) for cells in (scene.cells, plain))
    others["sigmoid of the cell itself"] = own_plain / max(scale, 1e-9)
    beyond = _localization(case, scene, plain, neighbours) / max(scale, 1e-9)
    return Readings(floor, others, bool(own_plain < 0.3 * own_now and beyond > 0.02))


def sides_are_exchanged(trip: RoundTrip) -> bool:
    """Whether the targets are right but for width and height, which have each other's place."""
    return trip.distance < NEAR and trip.size_error >= NEAR and trip.crossed < 0.2 * trip.size_error


def boxes_are_read_right(case) -> bool:
    """Whether the perfect answer is about perfect to the criterion; else targets of objectness mean nothing there."""
    seen = case.examined(examine_readings)
    return seen is not None and seen.floor < 0.1


def _places(cell, grids) -> tuple:
    """Scale, column and row of cells by their index, and (x, y) if the index had gone column by column."""
    first = np.cumsum([0] + [rows * columns for rows, columns in grids])
    scale = np.clip(np.searchsorted(first, cell, side="right") - 1, 0, len(grids) - 1)
    rows, columns = np.array(grids)[scale].T
    index = cell - first[scale]
    across = np.stack([index // rows, index % rows], axis=-1)
    return scale, index % columns, index // columns, across


def _own_cell(scene) -> np.ndarray:
    """How far the middle of an object's nine cells is from the one that its centre lies in, at the worst scale."""
    objects = scene.classes >= 0
    offset = as_array(scene.targets.offset)[objects, cell_geometry.OWN_CELL]
    beside, scale = -np.floor(offset + 1e-4), as_array(scene.targets.own_scale)[objects]
    middles = [np.zeros(2)]
    for row in np.unique(scale):
        mine = beside[scale == row]
        middle = np.median(mine, axis=0)
        if (mine == middle).all(axis=-1).mean() > 0.9:
            middles.append(middle)
    return max(middles, key=lambda middle: np.abs(middle).sum())


def _distance(errors) -> float:
    return float(np.median(np.abs(errors).max(axis=-1)))


def _spread(errors) -> np.ndarray:
    return np.percentile(errors, 90, axis=0) - np.percentile(errors, 10, axis=0)


def _edited(scene, xy=None, wh=None) -> np.ndarray:
    """The perfect answer with offsets or sizes of positive cells written in another way."""
    cells, positive = scene.cells.copy(), scene.positive
    if xy is not None:
        cells[positive, 0:2] = np.broadcast_to(xy(scene.cells[..., 0:2]), cells[..., 0:2].shape)[positive]
    if wh is not None:
        cells[positive, 2:4] = wh(scene.cells[positive, 2:4])
    return cells


def _only(scene, own: bool):
    """The scene's targets with the claims of objects' own cells alone, or with all others alone."""
    offset = as_array(scene.targets.offset)
    within = ((offset >= 0.0) & (offset <= 1.0)).all(axis=-1)
    return scene.targets._replace(
        positive=ops.convert_to_tensor(as_array(scene.targets.positive) & (within if own else ~within))
    )


def _localization(case, scene, cells, targets=None) -> float:
    said = measure(case, scene, cells, targets)
    return float(np.sum(said.parts.get("localization", 0.0)))
