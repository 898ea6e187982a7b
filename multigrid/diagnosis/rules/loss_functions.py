"""Causes in the functions that the loss is made of: how an answer is read, and what it costs.

As in `rules.loss` the live criterion is asked about a designed scene, without the network.
"""

from __future__ import annotations

import math

import numpy as np

from multigrid.diagnosis.examinations import gradients, outputs, relations, responses, roundtrip
from multigrid.diagnosis.examinations.responses import KNOTS, SURE
from multigrid.diagnosis.examinations.roundtrip import boxes_are_read_right
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import ROUGH, defaults_for, short, shorts, table

FLOOR = 0.25  # of what the wrong answer costs, that the right one may cost
ZERO = KNOTS.index(0.0)


@rule("MG609", "Smoothed targets leave a high floor", group="loss", stage="batch")
def smoothed_too_much(case):
    """The best answer still costs a large part of what no answer costs, and surer ones cost more again."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    floors = {name: _floor(curve) for name, curve in seen.sure.items() if curve[0] > 0}
    if boxes_are_read_right(case):
        objects = seen.object[ZERO:]
        floors["object"] = (objects.min() / max(objects[0], 1e-9), objects[-1] > 1.05 * objects.min())
    limits = {"classification": 0.55, "anchor": 0.3, "object": 0.3}
    named = {name: floor for name, (floor, rises) in floors.items() if rises and floor > limits[name]}
    if not named:
        return None
    return Verdict(
        0.8 if max(named.values()) > 0.65 or set(named) - {"classification"} else 0.6,
        (table("best possible cost over that of equal logits", named, "0 without smoothing; 0.29 for 0.1 (bce)"),),
        ("beyond the best answer the cost rises again, as with smoothed targets; with a second sigmoid it stays flat",),
        Remedy(
            "Smooth class targets by 0.1 or less, and nothing else.",
            settings=defaults_for(case, "loss", "label_smoothing"), part="criterion", where="loss.label_smoothing",
        ),
    )  # fmt: skip


@rule("MG610", "The focal loss is out of proportion", group="loss", stage="batch")
def focal_out_of_proportion(case):
    """An exponent that leaves undecided cells without gradient, or a weight that leaves one kind of answer out."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    exponents = {"classification": _exponent(seen.classification[::-1])}
    exponents |= {"no_object": _exponent(seen.no_object), "object": _exponent(seen.object[::-1])}
    steep = {name: value for name, value in exponents.items() if math.isfinite(value) and value > 5.0}
    alpha = 1.0
    if seen.wrong_class is not None:
        right, wrong = (abs(curve[-1] - curve[0]) for curve in (seen.classification, seen.wrong_class))
        alpha = right / max(wrong, 1e-12)
    lopsided = not 0.06 < alpha < 17.0
    if not steep and not lopsided:
        return None
    return Verdict(
        0.85,
        (
            table("exponent, from the price at equal odds against that of a wrong answer", exponents, "0, or about 2"),
            Observation("weight of the right class over that of a wrong one", short(alpha), "1; 0.33 for alpha 0.25"),
        ),
        ("the price of a surely wrong answer is as it should be; it is the proportion that is not",),
        Remedy(
            "Use gamma 2 and alpha 0.25, or no focal loss.",
            settings=defaults_for(case, "loss", "focal_gamma", "focal_alpha"), part="criterion",
            where="loss.focal_gamma, loss.focal_alpha",
        ),
    )  # fmt: skip


@rule("MG611", "Class weights do not follow the classes' frequencies", group="loss", stage="batch")
def class_weights_are_wrong(case):
    """Weights that make the many classes heavier still, or that are not normalized."""
    seen, counts = case.examined(responses.examine), _class_counts(case)
    if seen is None or len(seen.class_prices) < 2:
        return None
    prices, counts = seen.class_prices, counts[: len(seen.class_prices)]
    there = (counts > 0) & (prices > 0)
    if there.sum() < 2:
        return None
    weight, number = prices[there], counts[there]
    mean = float((weight * number).sum() / number.sum())
    spread = float(weight.max() / weight.min())
    residual = _unexplained(np.log(weight), np.log(number))
    disordered = spread > 3.0 and residual > math.log(5.0)
    if not disordered and not (spread > 1.5 and (mean > 4.0 or mean < 0.05)):
        return None
    return Verdict(
        0.85 if disordered else 0.7,
        (
            Observation("weight of each class", shorts(prices), "falling with its frequency"),
            Observation("objects of each class", counts.astype(int).tolist(), "as they are"),
            Observation("mean weight over the objects", short(mean), "about 1"),
            Observation("factor that no power of the frequency explains", short(math.exp(residual)), "below 2"),
        ),
        ("weights that balance classes are a falling power of their frequency, from 0 (none) to 1 (balanced)",),
        Remedy(
            "Count the weights from the training labels, in the order of the classes.",
            settings=("loss.class_weights=null",), part="criterion", where="loss.class_weights",
        ),
    )  # fmt: skip


@rule(
    "MG612", "A sigmoid or softmax is applied twice", group="loss", stage="batch",
    explains=("MG609", "MG610", "MG602", "MG605", "MG624", "MG618"),
)  # fmt: skip
def applied_twice(case):
    """The surest right answer still costs a large part of what the surest wrong answer costs."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    curves = {"no_object": seen.no_object, "object": seen.object[::-1]}
    floors = {name: curve[0] / max(curve[-1], 1e-12) for name, curve in curves.items() if _monotone(curve)}
    for name, curve in seen.sure.items():
        if curve[0] > 0 and _monotone(curve[::-1]) and curve[-2] - curve[-1] < 0.02 * curve[-1]:
            floors[name] = curve[-1] / curve[0]
    named = {name: floor for name, floor in floors.items() if floor > FLOOR}
    if not named:
        return None
    cells, ends = int(seen.negatives.sum()), seen.no_object[[0, -1]] / max(seen.no_object[-1], 1e-12)
    return Verdict(
        0.95,
        (
            table("cost of the surest right answer over the surest wrong (or no) answer", floors, "below 0.05"),
            Observation("cost of logits -8 and 8 without an object, over 8's", shorts(ends), "[0, 1]; twice [0.53, 1]"),
        ),
        (
            "the cost is monotone and flat at both ends, so that the logits run away while it stays: smoothed targets "
            "would make sure answers dearer, missing weight would scale both ends",
            f"asked in {cells} cells, without the network",
        ),
        Remedy(
            "Give the loss logits, and let it alone apply the sigmoid (from_logits=True).", part="criterion",
            where=f"criterion: {', '.join(named)}",
        ),
    )  # fmt: skip


@rule(
    "MG613", "Logits are taken for probabilities", group="loss", stage="batch",
    explains=("MG602", "MG605", "MG609", "MG610", "MG612", "MG624", "MG618"),
)  # fmt: skip
def logits_as_probabilities(case):
    """Beyond 0 and 1 the cost is clipped: it stands still where an answer gets worse."""
    seen = case.examined(responses.examine)
    if seen is None:
        return None
    curves = {"no_object": seen.no_object, "object": seen.object[::-1], "classification": seen.classification[::-1]}
    if seen.anchor is not None:
        curves["anchor"] = seen.anchor[::-1]
    named = [name for name, curve in curves.items() if _clipped(curve)]
    if not named:
        return None
    curve = curves[named[0]]
    return Verdict(
        0.95,
        (
            Observation(
                f"{named[0]} where the wrong answer grows by logits 0, 2, 4, 8", shorts(curve[ZERO:]), "rising"
            ),
            Observation("parts that stand still beyond a logit of 2", named, "none"),
        ),
        (
            "the cost is the same to the last digit: clipped, so that these cells have no gradient at all; a second "
            "sigmoid would still rise",
        ),
        Remedy(
            "Apply the sigmoid, or tell the loss that it is given logits.", part="criterion", where=", ".join(named)
        ),
    )


@rule("MG614", "The gradient is not a number where the loss is", group="loss", stage="batch")
def gradient_through_mask(case):
    """A mask that multiplies: 0 · inf is no number, forward or backward."""
    seen = case.examined(gradients.examine)
    if seen is None:
        return None
    quiet = {situation: names for situation, names in seen.broken.items() if situation not in seen.spoiled}
    spoiled = {
        situation: names for situation, names in seen.spoiled.items()
        if situation == gradients.NARROW_OBJECT
    }  # fmt: skip
    if not quiet and not spoiled:
        return None
    where = {**spoiled, **quiet}
    only_boxes = set(where) <= {gradients.NARROW, gradients.WIDE, gradients.EXACT}
    if only_boxes:
        return None
    return Verdict(
        0.9,
        tuple(
            Observation(f"not finite: {situation}", list(names) or "total", "finite")
            for situation, names in where.items()
        ),
        ("the loss itself is finite there, so that nothing shows until the weights are gone",)
        if quiet
        else (
            "an object without width is masked by multiplication: a selection before the arithmetic would leave it out",
        ),
        Remedy(
            "Select before the arithmetic (where, with a harmless stand-in), do not multiply by the mask after it.",
            part="criterion",
        ),
    )


@rule("MG615", "Overlap of degenerate boxes is divided by zero", group="loss", stage="batch")
def degenerate_boxes(case):
    """Boxes without or beyond size, or predicted exactly, give no finite localization or gradient."""
    seen = case.examined(gradients.examine)
    if seen is None:
        return None
    situations = (gradients.NARROW, gradients.WIDE, gradients.EXACT)
    bad = {
        one: seen.broken.get(one, ()) or seen.spoiled.get(one, ())
        for one in situations
        if one in seen.broken or one in seen.spoiled
    }
    steep = {one: short(value) for one, value in seen.steep.items() if one in situations and value > 1e4}
    if not bad and not steep:
        return None
    return Verdict(
        0.9 if bad else 0.7,
        (
            *(Observation(f"not finite: {one}", list(names) or "total", "finite") for one, names in bad.items()),
            *(Observation(f"gradient over an ordinary one: {one}", much, "below 100") for one, much in steep.items()),
        ),
        ("the objects are sound and ordinary predictions are finite: labels and learning rate are not the cause",),
        Remedy(
            "Add a small number to denominators and under roots, and clip sizes before exp.",
            settings=(), part="criterion", where="loss.localization",
        ),
    )  # fmt: skip


@rule(
    "MG616",
    "The loss reads boxes in another way than they are decoded",
    group="loss",
    stage="batch",
    explains=("MG622",),
)
def loss_reads_otherwise(case):
    """The perfect answer is not perfect to the loss, and one other way to write it down is."""
    seen = case.examined(roundtrip.examine_readings)
    if seen is None or not seen.others or seen.own_cell_only:
        return None
    name, best = min(
        ((name, value) for name, value in seen.others.items() if "exchanged" not in name), key=lambda one: one[1]
    )
    if best > 0.25 * seen.floor:
        return None
    return Verdict(
        0.9,
        (
            Observation(ROUGH, short(seen.floor), "0"),
            Observation(f"the same where cells say {name}", short(best), "not smaller"),
        ),
        (
            "what the loss teaches cells to say is not what the decoder reads: boxes are wrong though the loss is low",
            table("other readings", seen.others, "").value,
        ),
        Remedy(
            "Let loss and decoder read the grids by the same function.",
            part="criterion",
            where="criterion, geometry.cells",
        ),
    )


@rule("MG622", "The loss is not smallest at the true box", group="loss", stage="batch")
def not_smallest_at_truth(case):
    """The perfect answer costs a good part of what a wrong one costs, and no known misreading explains it."""
    seen = case.examined(roundtrip.examine_readings)
    if seen is None or not seen.floor > 0.1:
        return None
    return Verdict(
        0.6 if seen.floor < 0.5 else 0.75,
        (Observation(ROUGH, short(seen.floor), "0"),),
        (table("other readings that were tried", seen.others, "").value,),
        Remedy("Compare the boxes that the loss decodes with the true ones.", part="criterion"),
    )


@rule(
    "MG625", "A part of the loss has the wrong sign", group="loss", stage="batch",
    explains=("MG609", "MG616", "MG618", "MG622", "MG623", "MG752"),
)  # fmt: skip
def wrong_sign(case):
    """It is below zero for a head that knows nothing, and rises towards the perfect answer."""
    scene = case.examined(outputs.examine)
    if scene is None:
        return None
    fresh = outputs.measure(case, scene, outputs.start_cells(case, scene))
    perfect = outputs.measure(case, scene)
    turned = [name for name in fresh.parts if fresh.sum(name) < min(-1e-6, perfect.sum(name))]
    if not turned:
        return None
    ours = set(relations.SCALES) & set(turned)  # a part of one's own, such as a penalty, may be meant so
    return Verdict(
        0.9 if ours else 0.4,
        tuple(
            Observation(f"{name} of a fresh head, and of the perfect answer", f"{short(fresh.sum(name))}, "
                        f"{short(perfect.sum(name))}", "above 0, and less for the perfect answer")
            for name in turned
        ),
        ("training makes it smaller, that is, the answers worse; a coefficient has no part in it",),
        Remedy("Turn the sign: 1 - IoU and minus log-likelihood are what is to be small.", part="criterion",
               where=", ".join(turned)),
    )  # fmt: skip


@rule(
    "MG623", "A part of the loss does not listen to the labels", group="loss", stage="batch", explains=("MG609",)
)  # fmt: skip
def deaf_part(case):
    """Other boxes, anchors or classes in the targets, and the same loss."""
    seen = case.examined(relations.examine)
    if seen is None or not seen.deaf:
        return None
    return Verdict(
        0.85,
        (Observation("parts that do not rise when the truth becomes another", list(seen.deaf), "none"),),
        ("the cells say the old truth perfectly, so that any other truth has to cost more",),
        Remedy("Compare the part with the targets it should read.", part="criterion", where=", ".join(seen.deaf)),
    )


def _monotone(curve) -> bool:
    return bool((np.diff(curve) >= -1e-6 * np.abs(curve).max()).all())


def _clipped(curve) -> bool:
    """Whether a rising cost stands still from logits of 2 on, and far above nothing."""
    rises = curve[-1] - curve[0]
    return bool(rises > 0.0 and abs(curve[-1] - curve[-3]) < 1e-4 * rises and curve[-3] > 0.9 * curve[-1])


def _floor(curve) -> tuple[float, bool]:
    """Lowest cost over that of equal logits, and whether surer answers cost more again."""
    return float(curve.min() / curve[0]), bool(curve[-1] > 1.05 * curve.min() and curve.argmin() < len(SURE) - 1)


def _exponent(curve) -> float:
    """What exponent of a focal loss the cost at equal odds speaks of; the curve rises from right to wrong."""
    whole, middle = (curve[-1] - curve[0]) / KNOTS[-1], curve[ZERO] - curve[0]
    return float(-math.log2(middle / math.log(2.0) / whole)) if middle > 0.0 and whole > 0.0 else 0.0


def _class_counts(case) -> np.ndarray:
    """Objects of each class, in the label files or, where these are not known, in the batches."""
    samples = case.samples.get("train")
    if samples:
        classes = np.concatenate([np.asarray(one.classes) for one in samples])
    else:
        classes = np.concatenate([np.asarray(truth["classes"]).reshape(-1) for _, truth in case.batches])
    classes = classes[(classes >= 0) & (classes < case.detector.num_classes)]
    return np.bincount(classes.astype(int), minlength=case.detector.num_classes).astype("float64")


def _unexplained(weight, number) -> float:
    """Range of the logarithm of the weights that the best falling power of the frequency leaves."""
    ranges = [np.ptp(weight + power * number) for power in np.linspace(0.0, 1.0, 11)]
    return float(min(ranges))
