"""How the loss answers to single logits: its price of being wrong, its floor, and where it is flat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.outputs import as_array, measure

KNOTS = (-8.0, -4.0, -2.0, 0.0, 2.0, 4.0, 8.0)  # logits
SURE = (0.0, 0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0)  # of the right answer, the wrong ones being its negative
WEIGHED_CLASSES = 16  # that are asked one by one


@dataclass(frozen=True)
class Responses:
    """Costs of a designed scene, a part each; K knots, S scales.

    Attributes:
        no_object: [K] where the objectness of all cells without an object is a knot.
        object: [K] where that of all cells with one is.
        classification: [K] where the true class's logit is, the others being 0.
        wrong_class: [K] where a wrong class's logit is, the others being 0; None for a single class.
        anchor: [K] where the matched anchor's logit is, the others being 0; None for a single anchor.
        sure: {"classification", "anchor": [len(SURE)]} for answers of growing confidence.
        overlap: what `no_object` changes by where only cells with an object say 8 instead of -8, over what the same
            number of cells without one would change it by.
        negative_price: [S] what the total changes by where a cell without an object says 1 more, far from the truth.
        positive_price: [S] likewise of a cell with one that says 1 less.
        negative_unit, positive_unit: [S] likewise of the part, before its coefficient.
        negatives: [S] cells without an object.
        positives: [S] cells with one.
        class_prices: [C'] what the true class's logit costs a unit in a cell, for each of the first `WEIGHED_CLASSES`.
    """

    no_object: np.ndarray
    object: np.ndarray
    classification: np.ndarray
    wrong_class: np.ndarray | None
    anchor: np.ndarray | None
    sure: dict
    overlap: float
    negative_price: np.ndarray
    positive_price: np.ndarray
    negative_unit: np.ndarray
    positive_unit: np.ndarray
    negatives: np.ndarray
    positives: np.ndarray
    class_prices: np.ndarray


def examine(case) -> Responses | None:
    """The responses of a `Case`'s criterion; None where its targets are of another kind."""
    scene = case.examined(outputs.examine)
    if scene is None:
        return None
    objectness = [measure(case, scene, _objectness(scene, knot, knot)) for knot in KNOTS]
    choices = [measure(case, scene, _choices(scene, knot)) for knot in KNOTS]
    wrong = [measure(case, scene, _wrong_class(scene, knot)) for knot in KNOTS] if scene.classes.max() else None
    sure = [measure(case, scene, _sure(scene, confidence)) for confidence in SURE]
    loud, quiet = (measure(case, scene, _objectness(scene, -8.0, knot)) for knot in (8.0, -8.0))
    negatives, positives = _cells_by_scale(scene, ~scene.positive), _cells_by_scale(scene, scene.positive)
    swing = (objectness[-1].parts["no_object"] - objectness[0].parts["no_object"]) / np.maximum(negatives, 1)
    leaked = loud.sum("no_object") - quiet.sum("no_object")
    return Responses(
        no_object=_curve(objectness, "no_object"),
        object=_curve(objectness, "object"),
        classification=_curve(choices, "classification"),
        wrong_class=None if wrong is None else _curve(wrong, "classification"),
        anchor=_curve(choices, "anchor") if scene.per_scale > 1 else None,
        sure={name: _curve(sure, name) for name in ("classification", "anchor")},
        overlap=float(leaked / max(abs(np.sum(swing * positives)), 1e-12)),
        negative_price=_slope(objectness, "no_object", negatives, "weighted"),
        positive_price=-_slope(objectness, "object", positives, "weighted"),
        negative_unit=_slope(objectness, "no_object", negatives, "parts"),
        positive_unit=-_slope(objectness, "object", positives, "parts"),
        negatives=negatives,
        positives=positives,
        class_prices=_class_prices(case, scene, positives),
    )


def _curve(measured, name: str) -> np.ndarray:
    return np.array([one.sum(name) for one in measured])


def _slope(measured, name: str, cells, kind: str) -> np.ndarray:
    """From the first knot to the last, a cell and a unit of its logit: [S]."""
    first, last = (getattr(one, kind)[name] for one in (measured[0], measured[-1]))
    return (last - first) / (KNOTS[-1] - KNOTS[0]) / np.maximum(cells, 1)


def _cells_by_scale(scene, chosen) -> np.ndarray:
    return np.array([chosen[:, scene.scale_of_cells == row].sum() for row in range(len(scene.layout.strides))])


def _objectness(scene, negative: float, positive: float) -> np.ndarray:
    cells = scene.cells.copy()
    cells[..., 4] = np.where(scene.positive, positive, negative)
    return cells


def _choices(scene, logit: float) -> np.ndarray:
    """The logit for the right anchor and class, 0 for the others."""
    cells = scene.cells.copy()
    cells[..., 5:] = np.where(cells[..., 5:] > 0.0, logit, 0.0)
    return cells


def _wrong_class(scene, logit: float) -> np.ndarray:
    """The logit for the class after the right one, 0 for the others."""
    cells = scene.cells.copy()
    right = cells[..., scene.first_class :] > 0.0
    cells[..., scene.first_class :] = np.where(np.roll(right, 1, axis=-1), logit, 0.0)
    return cells


def _sure(scene, confidence: float) -> np.ndarray:
    cells = scene.cells.copy()
    cells[..., 5:] = np.sign(cells[..., 5:]) * confidence
    return cells


def _class_prices(case, scene, positives) -> np.ndarray:
    """Slope of the classification in the true class's logit where it is far from the truth, a positive cell."""
    prices = []
    for label in range(min(case.detector.num_classes, WEIGHED_CLASSES)):
        classes = np.where(as_array(scene.targets.classes) >= 0, label, -1).astype("int32")
        targets = scene.targets._replace(classes=ops.convert_to_tensor(classes))
        low, high = scene.cells.copy(), scene.cells.copy()
        low[..., scene.first_class :], high[..., scene.first_class :] = 0.0, 0.0
        low[..., scene.first_class + label], high[..., scene.first_class + label] = -8.0, -4.0
        wrong, better = measure(case, scene, low, targets), measure(case, scene, high, targets)
        fallen = (wrong.parts["classification"] - better.parts["classification"]) * wrong.normalizers
        prices.append(fallen.sum() / 4.0 / max(positives.sum(), 1))
    return np.array(prices)
