"""Causes in the loss and in the network that show while training goes on."""

from __future__ import annotations

import math

import numpy as np

from multigrid.diagnosis.examinations import activity, settings
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.learning_rate import calm

SUNK = 0.9  # of the confidence at the start
FAR_SUNK = 0.7  # likewise, where nothing else speaks for it
BELOW = 0.5  # of the share of cells that hold an object: what a head without eyes would say
OUT_OF_BALANCE = 10.0  # coefficient of cells without an object by that of cells with one
LEAST_TARGET = 0.1  # mean objectness that positive cells are trained towards
STUCK = 0.97  # of the best constant
LEARNT = 0.8
LONG = 300  # steps after which a part should have learnt something
BLIND = 0.02  # spread of a cell's logits over images, by their spread over cells
DEAD = 0.5  # share of a layer's channels
WIDE_SIZE = 8.3  # twice the logarithm of 1000 / 16, to which sizes are clipped


@rule(
    "MG650",
    "Cells without an object drown the objectness of those with one",
    group="loss",
    stage="training",
    explains=("MG505",),
)
def negatives_drown(case):
    """The confidence of positive cells sinks below their share of all cells, under an outsized coefficient."""
    sinking, ratio = _sinking(case), _balance(case)
    if sinking is None or ratio < OUT_OF_BALANCE:
        return None
    return Verdict(
        0.9,
        (*sinking, Observation("no_object_scale by object_scale", ratio, "0.1 to 10")),
        (
            f"the target of positive cells is {_target(case):.2f} on average: it is not the target that is small",
            "their number is not in question either: the same cells sink that were positive at the start",
        ),
        Remedy(
            "Give cells with and without an object the same coefficient.",
            settings=("loss.no_object_scale=1.0", "loss.object_scale=1.0"),
            part="criterion",
        ),
    )


@rule("MG651", "Positive cells are too weak in the objectness loss", group="loss", stage="training")
def positives_diluted(case):
    """The confidence of positive cells sinks although coefficients and targets are in order."""
    sinking = _sinking(case, FAR_SUNK)
    if sinking is None or _balance(case) >= OUT_OF_BALANCE or _target(case) < LEAST_TARGET:
        return None
    return Verdict(
        0.7,
        sinking,
        (
            f"coefficients are balanced ({_balance(case):.3g} to 1) and the mean target is {_target(case):.2f}",
            "so positive cells are divided by more than the others, by all cells for instance",
        ),
        Remedy(
            "Divide objectness of positive and of negative cells by the same number.",
            settings=("loss.loss_normalization=[batch]",),
            part="criterion",
        ),
    )


@rule("MG652", "The objectness target of positive cells is next to nothing", group="loss", stage="training")
def target_collapses(case):
    """Positive cells are trained towards an objectness of nearly 0, and sink."""
    sinking, target = _sinking(case, below=math.inf), _target(case)
    if target >= LEAST_TARGET or sinking is None:
        return None
    overlap = case.course.looks[-1].get("positive_overlap", 1.0)
    if target > 0.5 * overlap:
        return None  # the boxes themselves are that bad
    return Verdict(
        0.85,
        (Observation("mean objectness target of positive cells", target, "1, or 0.2 and more with IoU"), *sinking),
        (
            f"the boxes of these cells overlap theirs by {overlap:.2f} on average: the target is far below that",
            "the coefficients may be as they like: the loss asks for what is seen",
        ),
        Remedy(
            "Blend the IoU target with 1, or lower its power.",
            settings=("loss.iou_power=1.0", "loss.iou_blend=0.5"),
            part="criterion",
        ),
    )


@rule(
    "MG655", "A batch holds boxes that are not numbers", group="labels", stage="training",
    explains=("MG501", "MG502", "MG656", "MG657"),
)  # fmt: skip
def data_not_finite(case):
    """The first that is not finite is the target or the input."""
    course = case.course
    if course is None or course.finite or course.fault.kind not in ("target", "input"):
        return None
    images, truth = course.broken or case.batches[0]
    rows = int((~np.isfinite(np.asarray(truth["boxes"])).all(-1)).sum())
    return Verdict(
        0.97,
        (
            Observation("first that is not finite", course.fault.subject, "none"),
            Observation("boxes of the batch with NaN or infinity", rows, "0"),
        ),
        (
            f"weights are finite before step {course.steps}, and so was every loss: {_last_losses(course)}",
            f"images {list(course.fault.images or ())} of {len(images)} in the batch have it, the others do not",
        ),
        Remedy(
            "Drop or mend these boxes where labels are read.",
            part="data",
            where=f"batch {course.rows[-1].get('batch', 0)}",
        ),
    )


@rule("MG656", "A part of the loss is not finite for finite outputs", group="loss", stage="training")
def loss_not_finite(case):
    """Weights, batch and outputs are finite, a component is not."""
    course = case.course
    if course is None or course.finite or course.fault.kind != "component":
        return None
    _, truth = course.broken or case.batches[0]
    boxes, valid = np.asarray(truth["boxes"], "float64"), np.asarray(truth["classes"]) >= 0
    sides = (boxes[..., 2:] - boxes[..., :2])[valid]
    narrow = int((sides <= 0).any(-1).sum()) if len(sides) else 0
    empty = not valid.any()
    why = "the batch has no object at all: what is divided by their number divides by 0"
    if not empty:
        why = f"the batch has {int(valid.sum())} objects, {narrow} of them without width or height"
    return Verdict(
        0.8 if calm(course) else 0.6,
        (
            Observation("first that is not finite", course.fault.subject, "none"),
            Observation("at step", course.steps, "never"),
        ),
        (why, f"outputs of all layers are finite in that step; before it: {_last_losses(course)}"),
        Remedy(
            "Guard the division or logarithm of this part; select with `where` before the arithmetic, not after."
            if not narrow
            else "Drop boxes without width or height where labels are read.",
            part="data" if narrow else "criterion",
            where=course.fault.subject,
        ),
    )


@rule("MG657", "A gradient is not finite though the loss is", group="loss", stage="training")
def gradient_not_finite(case):
    """Only backwards something divides by zero."""
    course = case.course
    if course is None or course.finite or course.fault.kind != "gradient":
        return None
    return Verdict(
        0.8 if calm(course) else 0.55,
        (Observation("first that is not finite", course.fault.subject + course.fault.note, "none"),),
        (
            "loss, parts and outputs of the step are finite: 0 times infinity, behind a mask, is NaN only backwards",
            f"before it: {_last_losses(course)}",
        ),
        Remedy("Select with `where` before a division, root or logarithm, not after it.", part="criterion"),
    )


@rule("MG658", "Classes cannot be learnt from these labels", group="labels", stage="training")
def classes_stuck(case):
    """Boxes and objectness are learnt, classification stays at the best constant."""
    parts = _parts_at_end(case.course)
    others = [parts[name] for name in ("localization", "objectness") if name in parts]
    if not _long_enough(case) or "classification" not in parts or len(case.class_names) < 2:
        return None
    if parts["classification"] < STUCK or not others or max(others) > LEARNT:
        return None
    return Verdict(
        0.6,
        (
            Observation("classification by that of the best constant head", parts["classification"], "< 0.8"),
            Observation("the other parts likewise", max(others), "< 0.8"),
        ),
        ("the network sees the objects: boxes and objectness are learnt from the same cells",),
        Remedy("Look at the class column of the label files, and at the order of class names.", part="data"),
    )


@rule("MG659", "Nothing is learnt beyond what the labels alone tell", group="model", stage="training")
def all_stuck(case):
    """Every part is at its best constant after many steps."""
    parts = _parts_at_end(case.course)
    known = [parts[name] for name in ("localization", "objectness", "classification") if name in parts]
    if not _long_enough(case) or len(known) < 2 or min(known) < STUCK:
        return None
    return Verdict(
        0.5,
        tuple(
            Observation(f"{name} by that of the best constant head", value, "< 0.8") for name, value in parts.items()
        ),
        (f"after {case.course.steps} steps; weights do move: {_moving(case.course)}",),
        Remedy("See first whether boxes lie on their objects, then learning rate and input."),
    )


@rule("MG750", "The outputs do not depend on the image", group="model", stage="training")
def blind(case):
    """A cell says the same of every image."""
    course = case.course
    looks = [look for look in course.looks if "across_images" in look] if course is not None else []
    if not looks or course.updates < 5 or not course.finite:
        return None
    ratios = [look["across_images"] / max(look["within_image"], 1e-12) for look in looks]
    if max(ratios[-2:]) > BLIND:
        return None
    images = case.batch[0]
    return Verdict(
        0.7,
        (Observation("spread of a cell's logits over images, by that over cells", ratios[-1], "> 0.1"),),
        (f"the images do differ: {np.std(images.astype('float32'), axis=0).mean():.1f} grey levels from each other",),
        Remedy("Look at how images are scaled before the first layer, and for dead layers.", part="detector"),
    )


@rule("MG751", "A layer has dead channels", group="model", stage="batch")
def dead_channels(case):
    """Half or more of an activation's channels are one constant."""
    dead = {name: share for name, share in case.examined(activity.examine).dead.items() if share > DEAD}
    if not dead:
        return None
    name = next(iter(dead))
    return Verdict(
        0.85 if max(dead.values()) > 0.9 or len(dead) > 1 else 0.6,
        (Observation(f"channels of {name} that say the same everywhere", f"{dead[name]:.0%}", "< 5 %"),),
        (f"{len(dead)} layers, the first of them on the way from the image is {name}",),
        Remedy(
            "Use LeakyReLU, smaller biases and a lower learning rate; start this layer anew.",
            part="detector",
            where=name,
        ),
    )


@rule("MG752", "Predicted sizes grow without bound", group="model", stage="training")
def sizes_grow(case):
    """Logarithms of sizes far beyond the largest image, and growing."""
    looks = [look for look in case.course.looks if "max_log_size" in look] if case.course is not None else []
    if len(looks) < 3 or looks[-1]["max_log_size"] < WIDE_SIZE:
        return None
    sizes = [look["max_log_size"] for look in looks]
    if not sizes[-1] > sizes[-2] > sizes[-3]:
        return None
    return Verdict(
        0.45,
        (Observation("largest ln(size / anchor) of any cell", sizes[-1], "< 4.1"),),
        (f"from look to look {', '.join(f'{size:.2f}' for size in sizes)}, whatever localization does meanwhile",),
        Remedy("Clip the logarithm of sizes before exp, at ln(1000 / 16).", part="criterion"),
    )


def _sinking(case, sunk: float = SUNK, below: float = BELOW):
    """What is seen of the confidence of positive cells where it sinks; None where it does not.

    Args:
        case: with a course.
        sunk: share of its start that it has fallen to.
        below: likewise, of the share of all cells that hold an object.
    """
    course = case.course
    looks = [look for look in course.looks if "positive_confidence" in look] if course is not None else []
    if len(looks) < 3 or course.updates < 10:
        return None
    first, last, share = looks[0]["positive_confidence"], looks[-1]["positive_confidence"], looks[-1]["object_share"]
    falling = last < looks[-2]["positive_confidence"]
    if last > sunk * first or last > below * share or not falling:
        return None
    return (
        Observation("mean objectness of positive cells at the start", first, f"about {share:.2g}"),
        Observation(f"after {looks[-1]['step']} steps", last, f"more than {share:.2g}"),
        Observation("of the other cells", looks[-1]["negative_confidence"], "less"),
    )


def _balance(case) -> float:
    """Coefficient of cells without an object by that of those with one."""
    coefficients = getattr(case.criterion, "coefficients", {})
    return coefficients.get("no_object", 1.0) / max(coefficients.get("object", 1.0), 1e-12)


def _target(case) -> float:
    """Mean objectness that positive cells are trained towards; 1 where that is not known."""
    return float(case.course.looks[-1].get("objectness_target", 1.0))


def _parts_at_end(course) -> dict:
    """Each part by its best constant, at the last look."""
    looks = [look for look in course.looks if "parts" in look] if course is not None else []
    if not looks:
        return {}
    return {
        name: one["measured"] / one["best_constant"]
        for name, one in looks[-1]["parts"].items()
        if one["best_constant"] > 1e-6
    }


def _long_enough(case) -> bool:
    """Whether a part should have learnt something by now: the rise of the learning rate does not count."""
    return case.course is not None and case.course.steps >= LONG + 2 * case.examined(settings.optimization).peak_step


def _moving(course) -> str:
    ratios = [value for name, value in course.looks[-1].items() if name.startswith("update_ratio/")]
    return f"{np.median(ratios):.2g} of themselves a step" if ratios else "not measured"


def _last_losses(course) -> str:
    losses = [row["loss"] for row in course.rows[:-1]][-3:]
    return "losses of " + ", ".join(f"{loss:.4g}" for loss in losses) if losses else "it is the first step"
