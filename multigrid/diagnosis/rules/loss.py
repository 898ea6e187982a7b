"""Causes in how the parts of the loss are divided and added up.

Most rules read what the live criterion says of a designed scene (`examinations.outputs`), so that neither data nor
network have a part in it.
"""

from __future__ import annotations

import math

from multigrid.diagnosis.examinations import gradients, relations
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import defaults_for, short, table

SUMMED = 1.5  # part of the batch twice over part of the batch: 1 where it is a mean, 2 where it is a sum
JUMP = 30.0  # price of a cell without objects over that with one object's up to nine cells
UNEQUAL = 1.25  # prices that should be the same


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
