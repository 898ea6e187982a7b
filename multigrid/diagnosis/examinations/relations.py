"""What has to hold between losses of related batches, whatever the loss is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.outputs import as_array, measure, measure_as_it_is

HALF_HEARTED = 0.4  # of the perfect answer's numbers: all parts are then well above their floors
OF_OBJECTS = ("localization", "object", "anchor", "classification")  # parts that only cells with an object have
SCALES = {
    "localization": "coord_scale",
    "object": "object_scale",
    "no_object": "no_object_scale",
    "anchor": "anchor_scale",
    "classification": "class_scale",
}


@dataclass(frozen=True)
class Relations:
    """What was measured on a designed scene.

    Attributes:
        doubled: {part: part of the batch twice over part of the batch}.
        turned: largest relative change of a part where the images come in the opposite order.
        empty: {part: value} on a batch without objects where every cell says 0, so that nothing is free of charge.
        empty_price: what a cell costs there a unit of its objectness.
        empty_jump: that at the finest scale, over the same in an image with one object alone.
        lone: {part: price of the same mistake about the same object where it is alone over where others are around}.
        unmasked: {part: change, where only cells without an object say other things, over the part's own value}.
        places: price of the same wrong objectness in an empty image, in a cell where another image has an object over
            that in a corner, or the other way round: 1 or more.
        total: total over the sum of the weighted parts.
        ignored_price: price of objectness in a cell without an object whose box is an object's, over that of others.
        far_price: price of objectness in cells whose boxes overlap nothing, in an image with objects, over that in an
            image without.
        deaf: parts that stay as they are when what the objects are is changed.
        twice: {part: factor of the total's share for a factor 2 of the coefficient}.
        ignored_share: of the cells without an object in a training batch, where all boxes are of an anchor's size.
    """

    doubled: dict
    turned: float
    empty: dict
    empty_price: float
    empty_jump: float
    lone: dict
    unmasked: dict
    places: float
    total: float
    ignored_price: float
    far_price: float
    deaf: tuple
    twice: dict
    ignored_share: float

    @property
    def ignores_too_much(self) -> bool:
        """Whether cells without an object go free far from any, or in great number."""
        far = math.isfinite(self.far_price) and self.empty_price > 0.0 and self.far_price < 0.5
        return far or self.ignored_share > 0.12


def examine(case) -> Relations | None:
    """The relations of a `Case`'s criterion; None where its targets are of another kind."""
    scene = case.examined(outputs.examine)
    if scene is None:
        return None
    cells = scene.cells * HALF_HEARTED
    once, images = measure(case, scene, cells), len(cells)
    twice = scene.part(np.tile(np.arange(images), 2))
    turned = scene.part(np.arange(images)[::-1])
    again, backwards = measure(case, twice, np.tile(cells, (2, 1, 1))), measure(case, turned, cells[::-1])
    empty, start = scene.part([images - 1]), measure(case, scene, outputs.start_cells(case, scene))
    nothing, loud = (measure(case, empty, _all_say(empty, logit)) for logit in (0.0, 8.0))
    return Relations(
        doubled={name: again.sum(name) / once.sum(name) for name in once.parts if once.sum(name)},
        turned=max(abs(backwards.sum(name) / once.sum(name) - 1.0) for name in once.parts if once.sum(name)),
        empty={name: nothing.sum(name) for name in nothing.parts},
        empty_price=loud.sum("no_object") / 8.0 / empty.cells.shape[1],
        empty_jump=_empty_jump(case, scene, loud),
        lone=_lone(case, scene),
        unmasked=_unmasked(case, scene, cells, once),
        places=_places(case, scene),
        total=start.total / sum(float(values.sum()) for values in start.weighted.values()),
        ignored_price=_ignored_price(case, scene),
        far_price=_far_price(case, scene),
        deaf=_deaf(case, scene),
        twice=_twice(case, scene, cells),
        ignored_share=_ignored_share(case),
    )


def _all_say(scene, logit: float) -> np.ndarray:
    """Small boxes, and the same for everything else."""
    cells = np.full_like(scene.cells, logit)
    cells[..., 2:4] = outputs.SMALL
    return cells


def _empty_jump(case, scene, loud) -> float:
    """Images of the same size, one a batch: the object alone brings a divisor of its few cells."""
    one = scene.part([1])
    cells = one.cells.copy()
    cells[..., 4] = np.where(one.positive, cells[..., 4], 8.0)
    free = (~one.positive[0] & (one.scale_of_cells == len(one.layout.strides) - 1)).sum()
    finest = (one.scale_of_cells == len(one.layout.strides) - 1).sum()
    price = measure(case, one, cells).parts["no_object"][-1] / free
    return float(loud.parts["no_object"][-1] / finest / price) if price > 0.0 else 1.0


def _lone(case, scene) -> dict:
    """The finest object of image 0, among others, against the same in image 1, alone."""
    base = measure(case, scene)
    prices = []
    for image, row in ((0, len(scene.layout.strides) - 1), (1, 0)):
        mine, cells = scene.claims(image, row), scene.cells.copy()
        cells[image, mine, 2:4] += 0.5
        cells[image, mine, 4:] = 0.0
        spoiled = measure(case, scene, cells)
        count = max(len(mine), 1)
        prices.append({name: (spoiled.sum(name) - base.sum(name)) / count for name in OF_OBJECTS})
    return {name: prices[1][name] / prices[0][name] for name in OF_OBJECTS if prices[0][name]}


def _price(case, scene, image: int, cell, base) -> float:
    """What one or some cells' objectness of 8 adds to the part of cells without an object, each."""
    cells = scene.cells.copy()
    cells[image, cell, 4] = 8.0
    return (measure(case, scene, cells).sum("no_object") - base.sum("no_object")) / max(np.size(cell), 1)


def _places(case, scene) -> float:
    """Two cells of an empty image at the finest scale: the last that answers for an object elsewhere, and the first."""
    base, empty = measure(case, scene), len(scene.cells) - 1
    finest = scene.scale_of_cells == len(scene.layout.strides) - 1
    answering = np.flatnonzero(scene.positive[:-1].any(axis=0) & finest)
    if not len(answering):
        return 1.0
    prices = [_price(case, scene, empty, [cell], base) for cell in (answering[-1], np.flatnonzero(finest)[0])]
    return float(max(prices) / max(min(prices), 1e-12)) if max(prices) > 0.0 else 1.0


def _unmasked(case, scene, cells, base) -> dict:
    """Cells without an object say other places, sizes a little larger, anchors and classes."""
    other = cells.copy()
    other[..., 0:2] += 0.7
    other[..., 2:4] += 0.2
    other[..., 5:] += np.linspace(-2.0, 1.5, other.shape[-1] - 5)
    changed = measure(case, scene, np.where(scene.positive[..., None], cells, other))
    return {name: abs(changed.sum(name) - base.sum(name)) / base.sum(name) for name in OF_OBJECTS if base.sum(name)}


def _ignored_share(case) -> float:
    """Of a training batch and a head that says the smallest of its anchors everywhere, or any other all alike."""
    images, truth = case.batch
    boxes, classes = np.asarray(truth["boxes"], "float32"), np.asarray(truth["classes"])
    scene = outputs.encoded_scene(case, boxes, classes, images.shape[1:3])
    counts = measure_as_it_is(case, scene, outputs.start_cells(case, scene)).counts
    without = np.sum(counts.get("negatives", 0.0)) + np.sum(counts.get("ignored", 0.0))
    return float(np.sum(counts.get("ignored", 0.0)) / max(without, 1.0))


def _ignored_price(case, scene) -> float:
    """A cell beside the object of image 1 that says the object's very box, against one that says a small one."""
    base = measure(case, scene)
    claims, free = scene.claims(1, 0), _beside(scene)
    if free is None or not len(claims):
        return 0.0
    own = claims[0]
    cells = scene.cells.copy()
    cells[1, free] = cells[1, own]
    cells[1, free, 0:2] = _logits_of_centre(case, scene, free)
    cells[1, free, 4] = 8.0
    price = measure(case, scene, cells).sum("no_object") - base.sum("no_object")
    other = _price(case, scene, 1, [free], base)
    return float(price / other) if other else 0.0


def _beside(scene) -> int | None:
    """A cell without an object that lies next to the lone object's own and can say its box."""
    rows = as_array(scene.targets.cell)[1, 0]
    own = as_array(scene.targets.own_scale)[1, 0]
    free = [cell for cell in rows if scene.scale_of_cells[cell] == own and not scene.positive[1, cell]]
    return int(free[0]) if free else None


def _logits_of_centre(case, scene, cell: int) -> np.ndarray:
    """Offset logits with which a cell says the centre of the lone object."""
    box = scene.boxes[1, 0]
    centre = (box[:2] + box[2:]) / 2.0 / as_array(scene.layout.stride)[cell]
    wanted = centre - as_array(scene.layout.xy)[cell]
    return as_array(outputs.cell_geometry.offset_logits(ops.convert_to_tensor(wanted), outputs.activation_of(case)))


def _far_price(case, scene) -> float:
    base, empty = measure(case, scene), len(scene.cells) - 1
    finest = np.flatnonzero(scene.scale_of_cells == len(scene.layout.strides) - 1)
    far = [cell for cell in finest if not scene.positive[0, cell]]
    alone = _price(case, scene, empty, far, base)
    return float(_price(case, scene, 0, far, base) / alone) if alone > 0.0 else 0.0


def _deaf(case, scene) -> tuple:
    """Parts that a change of the truth should change, and does not."""
    targets, base = scene.targets, measure(case, scene)
    classes = as_array(targets.classes)
    other = np.where(classes >= 0, (classes + 1) % case.detector.num_classes, -1).astype("int32")
    sides = np.tile(scene.boxes[..., 2:] - scene.boxes[..., :2], 2)
    moved = targets._replace(
        classes=ops.convert_to_tensor(other),
        boxes=ops.convert_to_tensor((scene.boxes + 0.4 * sides).astype("float32")),
        offset=targets.offset + 0.4,
        log_size=targets.log_size + 0.4,
        anchor=(targets.anchor + 1) % scene.per_scale,
    )
    changed = measure(case, scene, targets=moved)
    asked = {"localization": 2, "classification": case.detector.num_classes, "anchor": scene.per_scale}
    return tuple(
        name
        for name, choices in asked.items()
        if choices > 1 and abs(changed.sum(name) - base.sum(name)) < 0.01 * base.sum(name) + 1e-6
    )


def _twice(case, scene, cells) -> dict:
    """What becomes of each part's share of the total when its coefficient is doubled for a moment."""
    criterion, factors = case.criterion, {}
    base = measure_as_it_is(case, scene, cells)
    for name, key in SCALES.items():
        value = getattr(criterion, key, None)
        if not isinstance(value, (int, float)) or not value or not base.weighted.get(name, np.zeros(1)).any():
            continue
        setattr(criterion, key, 2.0 * value)
        try:
            changed = measure_as_it_is(case, scene, cells)
        finally:
            setattr(criterion, key, value)
        share = float(base.weighted[name].sum())
        factors[name] = (changed.total - base.total) / share + 1.0
    return factors
