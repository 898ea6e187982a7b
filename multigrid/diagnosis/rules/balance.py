"""Causes in what kinds of cells, scales and parts of the loss weigh against each other.

As in `rules.loss` the live criterion is asked about a designed scene.
"""

from __future__ import annotations

import math

import numpy as np

from multigrid.diagnosis.examinations import claims, gradients, relations, responses
from multigrid.diagnosis.examinations.roundtrip import boxes_are_read_right
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import defaults_for, short, shorts, table

DILUTED = 0.2  # price of a positive cell over that of a negative one, before coefficients
OUTWEIGHED = 8.0  # price of a negative cell over that of a positive one
SCALES_APART = 12.0  # price of a cell of one scale over that of another, whatever the normalizer
OWNING, NOTHING = 0.9, 0.01  # share of the gradient that a part has at the start, of those that concern objects


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
    if seen is None or not boxes_are_read_right(case) or others.ignores_too_much:
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


def _ratio(upper, lower, seen) -> float:
    """Median over the scales that have both kinds of cell; very large where the lower has no price, 1 without any."""
    both = (seen.positives > 0) & (seen.negatives > 0) & np.isfinite(upper) & np.isfinite(lower)
    return float(np.median(upper[both] / np.maximum(lower[both], 1e-9))) if both.any() else 1.0


def _apart(prices, seen) -> float:
    """Largest over smallest price of a scale's cells, after the normalizer that leaves least of it."""
    there = (seen.positives > 0) & (seen.negatives > 0)
    prices, positives, cells = prices[there], seen.positives[there], (seen.negatives + seen.positives)[there]
    if len(prices) < 2 or not (prices > 0.0).all():
        return 1.0
    products = [cells**one * positives**other for one in (0, 1) for other in (0, 1)]
    return float(min((prices * product).max() / (prices * product).min() for product in products))
