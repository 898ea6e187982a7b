"""Causes in which cells a part of the loss counts, and as what.

As in `rules.loss` the live criterion is asked about a designed scene.
"""

from __future__ import annotations

import math

from multigrid.diagnosis.examinations import relations, responses
from multigrid.diagnosis.examinations.roundtrip import boxes_are_read_right
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import defaults_for, short, table

HALF = 0.6  # objectness that a perfect cell is trained to, below which it is told both


@rule(
    "MG606", "Cells without an object are not masked", group="loss", stage="batch", explains=("MG618", "MG602", "MG609")
)
def not_masked(case):
    """A part that concerns objects alone is not zero without any, or hears cells that answer for none."""
    seen = case.examined(relations.examine)
    if seen is None:
        return None
    named = [
        name
        for name in relations.OF_OBJECTS
        if abs(seen.empty.get(name, 0.0)) > 1e-4 or seen.unmasked.get(name, 0) > 0.02
    ]
    if not named or any(not math.isfinite(value) for value in seen.empty.values()):
        return None
    return Verdict(
        0.95,
        (
            table("parts of a batch without objects", {name: seen.empty.get(name, 0.0) for name in named}, "0"),
            table("change where only cells without an object say other things", seen.unmasked, "0"),
        ),
        ("a part that is merely too heavy would still be zero without objects",),
        Remedy(f"Count {', '.join(named)} in cells that answer for an object alone.", part="criterion"),
    )


@rule("MG607", "Cells that see an object beside its own are trained to see none", group="loss", stage="batch")
def nothing_is_ignored(case):
    """A cell without an object that says an object's very box is punished in full."""
    seen = case.examined(relations.examine)
    threshold = getattr(case.criterion, "ignore_threshold", None)
    if seen is None or not boxes_are_read_right(case) or not seen.ignored_price > 0.5 or seen.far_price < 0.5:
        return None
    return Verdict(
        0.7 if threshold is not None else 0.5,
        (Observation("price of objectness in such a cell, over that of others", short(seen.ignored_price), "0"),),
        (f"its box overlaps the object by 1; the criterion's own threshold is {threshold}",),
        Remedy(
            "Leave cells alone whose box overlaps an object by more than about half.",
            settings=defaults_for(case, "loss", "ignore_threshold"),
            part="criterion", where="loss.ignore_threshold",
        ),
        hygiene=threshold is None,  # a loss without such a rule is a loss of another kind
    )  # fmt: skip


@rule("MG608", "Too many cells without an object are ignored", group="loss", stage="batch")
def too_much_is_ignored(case):
    """Objectness costs nothing in cells whose boxes overlap nothing, once there are objects in the image."""
    seen = case.examined(relations.examine)
    if seen is None or not seen.ignores_too_much:
        return None
    return Verdict(
        0.9 if seen.far_price < 0.5 or seen.ignored_share > 0.2 else 0.75,
        (
            Observation("price of objectness far from objects, over an empty image's", short(seen.far_price), "1"),
            Observation("ignored of the cells without an object, in a batch", short(seen.ignored_share), "below 0.02"),
        ),
        ("these boxes are a fiftieth of an anchor's size and overlap nothing",),
        Remedy(
            "Compare decoded boxes, and ignore cells above about half an overlap only.",
            settings=defaults_for(case, "loss", "ignore_threshold"),
            part="criterion", where="loss.ignore_threshold",
        ),
    )  # fmt: skip


@rule(
    "MG620", "Cells with an object are also trained to have none", group="loss", stage="batch",
    explains=("MG602", "MG609", "MG618"),
)  # fmt: skip
def masks_overlap(case):
    """Raising objectness in cells with an object alone raises the part of the cells without, or at last their own."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    wanted = _wanted_objectness(seen.object) if boxes_are_read_right(case) else 1.0
    if not seen.overlap > 0.02 and not wanted < HALF:
        return None
    return Verdict(
        0.9,
        (
            Observation("share of the cells with an object that count as cells without", short(seen.overlap), "0"),
            Observation("objectness at which a perfect cell costs least", short(wanted), "0.9 to 1"),
        ),
        ("no other cell changed: both answers are asked of the same cells; a heavy coefficient would not do that",),
        Remedy(
            "Positive, negative and ignored cells have to be a partition: negative = ~positive & ~ignored.",
            part="criterion",
        ),
    )


def _wanted_objectness(curve) -> float:
    """The target that the costs of certain answers have, by their slopes at both ends; 1 where they have none."""
    fall, rise = curve[0] - curve[1], curve[-1] - curve[-2]
    return float(fall / (fall + rise)) if fall > 0.0 and rise > 0.0 else 1.0
