"""Causes in how the parts of the loss are divided, masked, weighed and added up.

Most rules read what the live criterion says of a designed scene (`examinations.outputs`), so that neither data nor
network have a part in it.
"""

from __future__ import annotations

import math

import numpy as np

from multigrid.diagnosis.examinations import claims, gradients, relations, responses
from multigrid.diagnosis.examinations.roundtrip import boxes_are_read_right
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import defaults_for, short, shorts, table

SUMMED = 1.5  # part of the batch twice over part of the batch: 1 where it is a mean, 2 where it is a sum
DILUTED = 0.2  # price of a positive cell over that of a negative one, before coefficients
OUTWEIGHED = 8.0  # price of a negative cell over that of a positive one
JUMP = 30.0  # price of a cell without objects over that with one object's up to nine cells
HALF = 0.6  # objectness that a perfect cell is trained to, below which it is told both
UNEQUAL = 1.25  # prices that should be the same
SCALES_APART = 12.0  # price of a cell of one scale over that of another, whatever the normalizer
OWNING, NOTHING = 0.9, 0.01  # share of the gradient that a part has at the start, of those that concern objects


@rule("MG601", "The loss is a sum: it grows with the batch", group="loss", stage="batch", explains=("MG618",))
def sum_instead_of_mean(case):
    """The batch twice over has about twice the loss of the batch."""
    seen = case.examined(relations.examine)
    if seen is None:
        return None
    summed = {name: ratio for name, ratio in seen.doubled.items() if ratio > SUMMED}
    if not summed:
        return None
    return Verdict(
        0.9,
        (
            table("part of the batch twice over part of the batch", seen.doubled, "1; less where divisors multiply"),
            Observation("cost of a wrong unit of objectness in an empty image, a cell", short(seen.empty_price), "1"),
        ),
        ("the same images twice: nothing about them is harder, so a mean stays; a wrong coefficient would not grow",),
        Remedy(
            "Divide every part by the images of the batch or by its positive cells.",
            settings=defaults_for(case, "loss", "loss_normalization"),
            part="criterion", where="loss.loss_normalization",
        ),
    )  # fmt: skip


@rule(
    "MG602", "A divisor dilutes the cells that hold objects", group="loss", stage="batch",
    explains=("MG605", "MG618"),
)  # fmt: skip
def positives_are_diluted(case):
    """A wrong answer in a cell with an object costs a small part of what one in an empty cell costs."""
    seen = case.examined(responses.examine)
    if seen is None or not boxes_are_read_right(case):
        return None
    ratio = 1.0 / max(_ratio(seen.negative_unit, seen.positive_unit, seen), 1e-9)
    if not ratio < DILUTED or not (seen.negative_unit > 0.0).any():
        return None
    return Verdict(
        0.9 if ratio < 0.1 else 0.7,
        (
            Observation("price of a positive cell over a negative one, before coefficients", short(ratio), "0.3 to 3"),
            Observation("price of a positive cell by scale, coarse to fine", shorts(seen.positive_unit), "as below"),
            Observation("price of a negative cell by scale", shorts(seen.negative_unit), "as above"),
        ),
        (
            "measured by the same step of the logit in both kinds of cell, before the coefficients: not by these",
            f"1 / ratio is {1 / max(ratio, 1e-9):.0f}; a scale has {shorts(seen.negatives + seen.positives)} cells in "
            "the batch that was asked about",
        ),
        Remedy("Divide the parts of objects by images or positive cells, not by all cells.", part="criterion"),
    )


@rule(
    "MG603", "A batch without objects is divided by zero", group="loss", stage="batch",
    explains=("MG606", "MG614", "MG601"),
)  # fmt: skip
def unprotected_divisor(case):
    """Without any object the loss is not finite, or a thousand times what its cells cost."""
    seen, moved = case.examined(relations.examine), case.examined(gradients.examine)
    if seen is None:
        return None
    bad = tuple(name for name, value in seen.empty.items() if not math.isfinite(value))
    bad += tuple(name for name in moved.spoiled.get(gradients.NO_OBJECTS, ()) if name not in bad)
    explodes = not math.isfinite(seen.empty_price) or seen.empty_jump > JUMP
    if not bad and not explodes:
        return None
    return Verdict(
        0.95,
        (
            Observation("parts that are not finite in a batch without objects", list(bad), "none"),
            Observation("price of a cell there, over an image with one object", short(seen.empty_jump), "9 or less"),
        ),
        (
            "the same cells with objects in the batch are finite: it is the number of objects that is divided by, no "
            "single label and no learning rate",
        ),
        Remedy("Divide by max(count, 1).", part="criterion", where="the criterion's normalizers"),
    )


@rule("MG604", "Every image has its own divisor", group="loss", stage="batch", explains=("MG602", "MG617"))
def divided_by_image(case):
    """The same mistake about the same object costs more where the object is alone."""
    seen = case.examined(relations.examine)
    if seen is None:
        return None
    unequal = {name: ratio for name, ratio in seen.lone.items() if not 1.0 / UNEQUAL < ratio < UNEQUAL}
    if not unequal or seen.turned > 1e-3 or seen.places > UNEQUAL:
        return None
    return Verdict(
        0.85,
        (table("price of a mistake about an object alone, over the same among others", seen.lone, "1"),),
        ("same box, class and cells in both images of one batch: only a divisor of each image tells them apart",),
        Remedy("Sum over the batch, and divide once.", part="criterion", where="the criterion's normalizers"),
    )


@rule(
    "MG605", "Cells without an object outweigh those with one", group="loss", stage="batch", explains=("MG505",)
)  # fmt: skip
def negatives_outweigh(case):
    """By coefficients: confidence will fall to where the few positive cells balance the many others."""
    seen, found = case.examined(responses.examine), case.examined(claims.examine)
    if seen is None or not boxes_are_read_right(case):
        return None
    price = _ratio(seen.negative_price, seen.positive_price, seen)
    unit = _ratio(seen.negative_unit, seen.positive_unit, seen)
    if not price / max(unit, 1e-9) > OUTWEIGHED or unit > 1.0 / DILUTED:
        return None
    share = max(found.density if found else 0.0, 1e-6)
    pull, even = price * (1.0 - share) / share, (1.0 - share) / share
    return Verdict(
        min(0.97, 0.8 + 0.1 * math.log10(price / unit / OUTWEIGHED + 1.0)),
        (
            Observation("price of a negative cell over a positive one", short(price), "0.3 to 3"),
            Observation("pull of all negative cells over all positive ones at the start", short(pull), f"{even:.0f}"),
            Observation("objectness at which a constant head settles", short(1.0 / (1.0 + pull)), f"{share:.4f}"),
        ),
        (
            f"before coefficients cells of both kinds have the same price ({short(unit)}): no divisor is the cause",
            f"{share:.2%} of the cells answer for objects, so that labels and assignment have their share",
        ),
        Remedy(
            "Give both kinds of cells about the same coefficient.",
            settings=defaults_for(case, "loss", "no_object_scale", "object_scale"), part="criterion",
            where="loss.no_object_scale, loss.object_scale",
        ),
    )  # fmt: skip


@rule("MG624", "Cells without an object have no weight", group="loss", stage="batch")
def negatives_do_not_count(case):
    """Calling an empty cell an object costs nothing."""
    seen, others = case.examined(responses.examine), case.examined(relations.examine)
    if seen is None or not boxes_are_read_right(case) or _ignores_too_much(others):
        return None
    price = _ratio(seen.negative_price, seen.positive_price, seen)
    if not price < 0.01 or not (seen.positive_price > 0.0).any():
        return None
    return Verdict(
        0.85,
        (Observation("price of a negative cell over a positive one", short(price), "0.3 to 3"),),
        ("nothing holds objectness down where there is no object: detections come from everywhere",),
        Remedy(
            "Give cells without an object a coefficient.",
            settings=defaults_for(case, "loss", "no_object_scale", "object_scale"), part="criterion",
            where="loss.no_object_scale",
        ),
    )  # fmt: skip


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
    if seen is None or not _ignores_too_much(seen):
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


@rule("MG617", "One scale outweighs the others", group="loss", stage="batch")
def scales_apart(case):
    """A cell of one grid costs many times what a cell of another costs, and no normalizer explains it."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    apart = {
        "cells without an object": _apart(seen.negative_unit, seen), "cells with one": _apart(seen.positive_unit, seen)
    }  # fmt: skip
    if max(apart.values()) < SCALES_APART:
        return None
    return Verdict(
        0.85,
        (
            table("dearest scale over cheapest, the best normalizer taken out", apart, "1"),
            Observation(
                "price of a cell without an object, coarse to fine",
                shorts(seen.negative_unit),
                "equal, or by normalizer",
            ),
            Observation("price of a cell with one", shorts(seen.positive_unit), "equal, or by normalizer"),
        ),
        ("images, positive cells and all cells were tried as divisors, alone and together",),
        Remedy("Give the scales equal weights.", part="criterion"),
    )


@rule("MG618", "One part of the loss owns the gradient, or has none of it", group="loss", stage="batch")
def part_out_of_proportion(case):
    """Shares of the gradient in the cells that answer for objects, at the start."""
    seen, asked = case.examined(gradients.examine), case.examined(responses.examine)
    if seen is None or not seen.shares:  # there are none where a gradient is not finite
        return None
    there = {
        name: share for name, share in seen.shares.items()
        if not (name == "anchor" and asked.anchor is None)
        and not (name == "classification" and case.detector.num_classes == 1)
    }  # fmt: skip
    owner = max(there, key=there.get)  # objectness may start near its target, and is left out of what has nothing
    starved = min((name for name in there if name != "object"), key=there.get)
    if there[owner] < OWNING and there[starved] > NOTHING:
        return None
    named = owner if there[owner] >= OWNING else starved
    sure = there[owner] > 0.97 or there[starved] < 2e-3
    return Verdict(
        0.85 if sure else 0.65,
        (table("share of the gradient by part", there, "0.02 to 0.8"),),
        (f"{named} is out of proportion with all others, by its coefficient: in units of the parts they are alike",),
        Remedy(
            f"Bring the coefficient of {named} back to the order of the others.",
            settings=defaults_for(case, "loss", relations.SCALES[named]),
            part="criterion", where=f"loss.{relations.SCALES[named]}",
        ),
    )  # fmt: skip


@rule(
    "MG619", "Cells or images are mixed by a broadcast", group="loss", stage="batch",
    explains=("MG601", "MG602", "MG604", "MG606", "MG607", "MG612", "MG617", "MG620", "MG623"),
)  # fmt: skip
def mixed_by_broadcast(case):
    """What a cell costs depends on where other images have objects, or on the order of the images."""
    seen = case.examined(relations.examine)
    if seen is None:
        return None
    product = [name for name, ratio in seen.doubled.items() if ratio > SUMMED and seen.unmasked.get(name, 0.0) > 0.02]
    if not (seen.turned > 1e-3 or seen.places > UNEQUAL or product):
        return None
    return Verdict(
        0.9,
        (
            Observation("change of a part when the images come in the opposite order", short(seen.turned), "0"),
            Observation(
                "price of a cell of an empty image where another image has an object, over others",
                short(seen.places),
                "1",
            ),
            Observation("parts that grow with the batch and hear cells without an object", product, "none"),
        ),
        ("an unmasked part or a sum alone would not depend on other images or on order",),
        Remedy("Compare the shapes of mask and values: [B, N] times [B, N, 1] is [B, N, N].", part="criterion"),
    )


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


@rule("MG621", "What is minimized is not the sum of the parts that are shown", group="loss", stage="batch")
def total_is_another(case):
    """Total and weighted parts differ, or a coefficient multiplies twice."""
    seen = case.examined(relations.examine)
    if seen is None:
        return None
    squared = {name: factor for name, factor in seen.twice.items() if factor > 2.5}
    differs = math.isfinite(seen.total) and abs(seen.total - 1.0) > 1e-3
    if not squared and not differs:
        return None
    return Verdict(
        0.85,
        (
            Observation("total over the sum of the weighted parts", short(seen.total), "1"),
            table("factor of a part for a factor 2 of its coefficient", seen.twice, "2"),
        ),
        ("the curves of the parts, and whatever is read from them, do not show what is trained",),
        Remedy("Multiply each coefficient once, and return the sum of what is reported.", part="criterion"),
    )


def _ratio(upper, lower, seen) -> float:
    """Median over the scales that have both kinds of cell; very large where the lower has no price, 1 without any."""
    both = (seen.positives > 0) & (seen.negatives > 0) & np.isfinite(upper) & np.isfinite(lower)
    return float(np.median(upper[both] / np.maximum(lower[both], 1e-9))) if both.any() else 1.0


def _ignores_too_much(seen) -> bool:
    far = math.isfinite(seen.far_price) and seen.empty_price > 0.0 and seen.far_price < 0.5
    return far or seen.ignored_share > 0.12


def _apart(prices, seen) -> float:
    """Largest over smallest price of a scale's cells, after the normalizer that leaves least of it."""
    there = (seen.positives > 0) & (seen.negatives > 0)
    prices, positives, cells = prices[there], seen.positives[there], (seen.negatives + seen.positives)[there]
    if len(prices) < 2 or not (prices > 0.0).all():
        return 1.0
    products = [cells**one * positives**other for one in (0, 1) for other in (0, 1)]
    return float(min((prices * product).max() / (prices * product).min() for product in products))
