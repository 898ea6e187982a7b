"""Objects of the training batches and the cells that answer for them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.funnel import usable_boxes
from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.geometry import cells as cell_geometry
from multigrid.geometry.anchor_fit import typical_sizes
from multigrid.losses import targets as target_rules


@dataclass(frozen=True)
class Claims:
    """Counts over the batches that were looked at.

    Attributes:
        objects: with finite corners, a positive area and a centre in the image.
        unclaimed: share of them that no cell claims, before any collision.
        claims: an object in the grid it belongs to, before collisions.
        most: positive cells of the object that has most.
        starved: share of the objects that are claimed there, and lose all these cells to others.
        starved_if_spread: that share if every object went to the scale whose cells suit its size.
        lost: share of these claims that are lost to other objects.
        lost_if_spread: likewise.
        positives: cells that answer for one of them, or for padding.
        astray: share of these that answer for no object, or for one whose centre is further than their neighbour.
        density: positives over all cells.
        scale_shares: [S] share of the claimed objects at each scale.
    """

    objects: int
    unclaimed: float
    claims: float
    most: int
    starved: float
    starved_if_spread: float
    lost: float
    lost_if_spread: float
    positives: int
    astray: float
    density: float
    scale_shares: np.ndarray


def examine(case) -> Claims | None:
    """Claims in the batches of a `Case`; None where the criterion's targets are of another kind."""
    images, truth = case.batches[0]
    if not outputs.tells_claims(
        case.criterion.encode(truth, outputs.empty_outputs(case, len(images), images.shape[1:3]))
    ):
        return None
    rows = [_of_batch(case, images, truth) for images, truth in case.batches]
    sums = {name: np.sum([row[name] for row in rows], axis=0) for name in rows[0]}
    objects, claimed = max(sums["objects"], 1), max(sums["claimed"], 1)
    return Claims(
        objects=int(sums["objects"]),
        unclaimed=1.0 - sums["claimed"] / objects if sums["objects"] else 0.0,
        claims=sums["claims"] / claimed,
        most=int(max(row["most"] for row in rows)),
        starved=sums["starved"] / claimed,
        starved_if_spread=sums["starved_if_spread"] / claimed,
        lost=1.0 - sums["won"] / max(sums["claims"], 1),
        lost_if_spread=sums["lost_if_spread"] / max(sums["claims_if_spread"], 1),
        positives=int(sums["positives"]),
        astray=sums["astray"] / max(sums["positives"], 1),
        density=sums["positives"] / max(sums["cells"], 1),
        scale_shares=sums["by_scale"] / claimed,
    )


def _of_batch(case, images, truth) -> dict:
    boxes, classes = np.asarray(truth["boxes"], "float32"), np.asarray(truth["classes"])
    usable = usable_boxes(boxes, classes, images.shape[1:3])
    empty = outputs.empty_outputs(case, len(images), images.shape[1:3])
    found = case.criterion.encode(truth, empty)
    positive, home = as_array(found.positive), as_array(found.at_home)
    claimed = as_array(found.claimed) & home
    if claimed.shape[:2] != usable.shape:  # an encoder that has rows of its own: they are counted, not compared
        usable = as_array(found.classes) >= 0
    mine, scale = usable & claimed.any(-1), as_array(found.own_scale)
    offset = as_array(found.offset)
    far, padding = ((offset < -1.02) | (offset > 2.02)).any(axis=-1), as_array(found.classes) < 0
    positive = positive & (usable | padding)[..., None]  # boxes that are no boxes have cells that mean nothing
    return {
        "objects": usable.sum(),
        "claimed": mine.sum(),
        "claims": claimed[usable].sum(),
        "most": positive.sum(-1).max(initial=0),
        "starved": (mine & ~(positive & home).any(-1)).sum(),
        "won": (positive & home)[usable].sum(),
        "positives": positive.sum(),
        "astray": (positive & (far | padding[..., None])).sum(),
        "cells": sum(int(np.prod(grid.shape[:3])) for grid in empty),
        "by_scale": np.array([(mine & (scale == row)).sum() for row in range(len(empty))]),
        **_if_spread(case, boxes, np.where(usable, classes, -1) if usable.shape == classes.shape else classes, empty),
    }


def _if_spread(case, boxes, classes, empty) -> dict:
    """Collisions under the same assignment if anchors of each scale were of the sizes that suit its cells."""
    layout = cell_geometry.layout_of(empty, case.detector.strides)
    anchors = typical_sizes(case.anchors.shape[1], len(empty)).astype("float32")
    channels = cell_geometry.split_channels(cell_geometry.flatten(empty), anchors.shape[1])
    predicted = cell_geometry.decode_boxes(channels, layout, anchors, outputs.activation_of(case))
    rule = getattr(case.criterion, "assignment", "paper")
    spread = target_rules.encode(ops.convert_to_tensor(boxes), classes, layout, anchors, rule, predicted)
    claimed, positive = (as_array(which & spread.at_home) for which in (spread.claimed, spread.positive))
    return {
        "starved_if_spread": (claimed.any(-1) & ~positive.any(-1)).sum(),
        "lost_if_spread": claimed.sum() - positive.sum(),
        "claims_if_spread": claimed.sum(),
    }
