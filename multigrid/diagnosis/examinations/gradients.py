"""Gradients of the loss in what the cells say: whether they are finite, and which part has how much of them."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.geometry import cells as cell_geometry
from multigrid.losses.targets import Targets

PARTS = ("localization", "object", "no_object", "anchor", "classification")
NARROW, WIDE = "boxes that are predicted with no width and height", "boxes that are predicted far too large"
EXACT = "boxes that are predicted exactly"
LOG_SIZES = {NARROW: -30.0, WIDE: 30.0}  # ln(size / anchor)
NO_OBJECTS, NARROW_OBJECT = "a batch without objects", "an object without width"


@dataclass(frozen=True)
class Gradients:
    """What came of the gradients.

    Attributes:
        broken: {situation: names of the parts whose gradient is not finite}; () where only the total's.
        spoiled: {situation: names of the parts that are not finite themselves}.
        steep: {situation: largest gradient in one number of a cell, over the largest of an ordinary answer}.
        shares: {part: its share of the sum of the parts' gradient norms, over the cells that answer for objects, at
            the start}; {} where one of them is not finite.
    """

    broken: dict
    spoiled: dict
    steep: dict
    shares: dict


def examine(case) -> Gradients | None:
    """The gradients of a `Case`'s criterion; None where its targets are of another kind."""
    scene = case.examined(outputs.examine)
    if scene is None:
        return None
    free = _Free(case.criterion, scene)
    start = _start(case, scene)
    ordinary = free.gradient(scene.targets, start)
    broken, spoiled, steep = {}, {}, {}
    for situation, targets, cells in _situations(case, scene, start):
        said = outputs.measure(case, scene, cells, targets)
        bad = tuple(name for name, values in said.parts.items() if not np.isfinite(values).all())
        if bad or not np.isfinite(said.total):
            spoiled[situation] = bad
        gradient = free.gradient(targets, cells)
        if np.isfinite(gradient).all():
            steep[situation] = float(np.abs(gradient).max() / max(np.abs(ordinary).max(), 1e-12))
        else:
            broken[situation] = _guilty(free, targets, cells)
    norms = {name: _norm(free.gradient(scene.targets, start, name), scene) for name in PARTS if name != "no_object"}
    whole = sum(norms.values())
    return Gradients(broken, spoiled, steep, {name: float(norm / whole) for name, norm in norms.items() if whole > 0.0})


class _Free(keras.Model):
    """Cells that move freely: a step of plain gradient descent with rate 1 tells the gradient, on any backend."""

    def __init__(self, criterion, scene):
        super().__init__(dtype="float32", name="asked_loss")
        self.criterion, self.layout = criterion, scene.layout
        self.moved = self.add_weight(shape=scene.cells.shape, initializer="zeros")
        self.built = True
        self.compile(optimizer=keras.optimizers.SGD(1.0), jit_compile=False)

    def call(self, inputs):
        return inputs["cells"] + self.moved

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        targets = Targets(*(x[name] for name in Targets._fields))
        said = self.criterion.breakdown(targets, cell_geometry.unflatten(y_pred, self.layout))
        chosen = [ops.sum(said.weighted.get(name, 0.0)) for name in PARTS]
        # a part that is not asked for must not spoil the others
        asked = [ops.where(x["asked"][0, row] > 0.0, value, 0.0) for row, value in enumerate([said.total, *chosen])]
        return sum(asked)

    def gradient(self, targets, cells, part: str | None = None) -> np.ndarray:
        """Of the total, or of one weighted part: [B, N, 5 + A + C]."""
        asked = np.zeros((len(cells), 1 + len(PARTS)), "float32")
        asked[:, 0 if part is None else 1 + PARTS.index(part)] = 1.0
        inputs = {name: as_array(value) for name, value in targets._asdict().items()}
        self.moved.assign(ops.zeros_like(self.moved))
        self.train_on_batch({**inputs, "cells": cells.astype("float32"), "asked": asked})
        return -as_array(self.moved).astype("float64")


def _start(case, scene) -> np.ndarray:
    """A fresh head's bias, but for the cells of objects boxes that are some way off."""
    cells = outputs.start_cells(case, scene).copy()
    cells[..., 2:4] = np.where(scene.positive[..., None], scene.cells[..., 2:4] + 0.4, cells[..., 2:4])
    return cells


def _situations(case, scene, start):
    """Name, targets and cells of what happens in every training sooner or later."""
    for name, size in LOG_SIZES.items():
        cells = start.copy()
        cells[..., 2:4] = size
        yield name, scene.targets, cells
    yield EXACT, scene.targets, scene.cells
    nothing = ops.convert_to_tensor(np.full_like(scene.classes, -1))
    outcome = case.criterion.encode(
        {"boxes": ops.zeros_like(ops.convert_to_tensor(scene.boxes)), "classes": nothing},
        outputs.empty_outputs(case, len(scene.boxes), scene.size),
    )
    yield NO_OBJECTS, outcome, start
    boxes = scene.boxes.copy()
    boxes[0, 0, 2] = boxes[0, 0, 0]
    narrow = case.criterion.encode(
        {"boxes": ops.convert_to_tensor(boxes), "classes": ops.convert_to_tensor(scene.classes)},
        outputs.empty_outputs(case, len(boxes), scene.size),
    )
    yield NARROW_OBJECT, narrow, start


def _guilty(free, targets, cells) -> tuple:
    """The parts whose own gradient is not finite."""
    return tuple(name for name in PARTS if not np.isfinite(free.gradient(targets, cells, name)).all())


def _norm(gradient, scene) -> float:
    return float(np.sqrt((gradient[scene.positive] ** 2).sum()))
