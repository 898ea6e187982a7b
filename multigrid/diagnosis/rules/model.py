"""Causes in the network and its head."""

from __future__ import annotations

import numpy as np

from multigrid.diagnosis.examinations import claims, places_seen, relations, responses, roundtrip, start
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import ROUGH, defaults_for

BELIEVES = 0.2  # mean probability of an object above which a head has no prior
EVERYWHERE = 0.65  # from which it says that objects are everywhere
SATURATED = 0.05  # share of logits
WIDE = 3.0  # standard deviation of the outputs
LARGE_KERNEL = 0.4  # standard deviation of an output layer's kernel; 0.01 at the start, 0.1 after training
RANDOM = 0.02  # difference of two answers to one image over their spread
LOCAL = 1.6  # change of cells in a changed patch over that of others; 2.8 and more in sound networks
UNUSED = 0.3  # share of the classes


@rule("MG701", "The head has other classes than the labels", group="model", stage="static")
def other_classes(case):
    """Another number of classes in head, criterion and vocabulary, or classes at the end that no label has."""
    counts = {
        "class names": len(case.class_names),
        "head": int(case.detector.outputs[0].shape[-1]) - 5 - case.anchors.shape[1],
        "criterion": int(getattr(case.criterion, "num_classes", case.detector.num_classes)),
    }
    if len(set(counts.values())) > 1:
        return Verdict(
            0.95,
            tuple(Observation(f"classes of the {name}", count, "all the same") for name, count in counts.items()),
            ("channels of a cell are 5, its anchors and its classes",),
            Remedy(
                "Make detector and criterion for the classes of data.classes.", part="detector", where="data.classes"
            ),
        )
    samples = case.samples.get("train") or ()
    seen = [int(one.classes.max()) for one in samples if len(one.classes)]
    unused = counts["head"] - 1 - max(seen, default=counts["head"] - 1)
    if len(seen) < 10 or unused < 2 or unused < UNUSED * counts["head"]:
        return None
    return Verdict(
        0.6,
        (
            Observation("classes of the head", counts["head"], f"{counts['head'] - unused}, as the labels have"),
            Observation("last classes that no label has", unused, "0"),
        ),
        (f"{len(seen)} labelled images were counted, all of the training",),
        Remedy("List the classes of the labels, and no others.", where="data.classes"),
        hygiene=True,
    )


@rule("MG702", "Objectness starts without a prior", group="model", stage="batch")
def no_prior(case):
    """Every cell starts undecided, so that the empty ones own the first steps."""
    seen, limit = case.examined(start.examine), _believes(case)
    if not limit < seen.objectness_probability <= EVERYWHERE:
        return None
    return Verdict(
        0.65,
        _objectness(seen),
        ("it is below zero or about it: a prior of the wrong sign would lie far above",),
        Remedy(
            "Start the bias of objectness at ln(p / (1 - p)) for p about 0.01.",
            settings=defaults_for(case, "model", "objectness_prior"), part="detector", where="model.objectness_prior",
        ),
    )  # fmt: skip


@rule("MG703", "Objectness starts with the wrong sign: every cell sees an object", group="model", stage="batch")
def prior_of_the_wrong_sign(case):
    """The mean probability of an object is near 1."""
    seen = case.examined(start.examine)
    if not seen.objectness_probability > EVERYWHERE:
        return None
    return Verdict(
        0.9,
        _objectness(seen),
        (f"the logits of a fresh head of this detector would be {seen.prior:.2f}",),
        Remedy(
            "Start the bias of objectness at ln(p / (1 - p)) for p about 0.01: about -4.6.",
            settings=defaults_for(case, "model", "objectness_prior"), part="detector", where="model.objectness_prior",
        ),
    )  # fmt: skip


@rule(
    "MG704", "The output layers start too large", group="model", stage="batch", explains=("MG702", "MG703"),
)  # fmt: skip
def saturated_outputs(case):
    """Logits so large that their gradient is gone, from kernels that are larger than any training makes them."""
    if case.step:
        return None  # they did not start so: what a training made of them is for the rules of training
    seen = case.examined(start.examine)
    gone, wide = seen.saturated > SATURATED, seen.spread > WIDE
    if not (gone or wide) or not seen.head_kernel > LARGE_KERNEL:
        return None
    return Verdict(
        0.9 if gone else 0.75,
        (
            Observation("share of logits beyond 10", round(seen.saturated, 3), "below 0.01"),
            Observation("standard deviation of the outputs", round(seen.spread, 2), "below 1 at the start"),
            Observation(
                "standard deviation of an output layer's kernel", round(seen.head_kernel, 3), "0.01; trained 0.1"
            ),
        ),
        ("the kernels are large by themselves; large features or a wrong bias would leave them small",),
        Remedy("Start the output layers with a standard deviation of 0.01.", part="detector", where="models.head"),
    )


@rule(
    "MG706", "Loss and decoder read the channels in another order", group="model", stage="batch",
    explains=("MG314", "MG609", "MG622", "MG623"),
)  # fmt: skip
def channels_exchanged(case):
    """Width and height, x and y, or classes are exchanged between what is trained and what is decoded."""
    trip = case.examined(roundtrip.examine)
    if trip is not None and roundtrip.sides_are_exchanged(trip):
        return _exchanged_in_targets(trip)
    seen, asked = case.examined(roundtrip.examine_readings), case.examined(responses.examine)
    if seen is None:
        return None
    exchanged = {name: value for name, value in seen.others.items() if "exchanged" in name}
    name, best = min(exchanged.items(), key=lambda one: one[1], default=("", np.inf))
    boxes = best < 0.25 * seen.floor
    deaf = "classification" in case.examined(relations.examine).deaf
    classes = not deaf and asked.classification[-1] > asked.classification[0] * 1.01
    if not boxes and not classes:
        return None
    ends = [round(float(asked.classification[row]), 2) for row in (0, -1)]
    return Verdict(
        0.9,
        (
            Observation(ROUGH, round(seen.floor, 4), "0"),
            Observation(f"the same with {name or 'nothing exchanged'}", round(float(min(best, 1e9)), 4), "not smaller"),
            Observation("classification where the true class has logits -8 and 8", ends, "falling"),
        ),
        ("another activation or stride was tried too, and does not mend it",),
        Remedy("Let targets, loss and decoder name channels by `geometry.cells.split_channels`.", part="criterion"),
    )  # fmt: skip


def _exchanged_in_targets(trip) -> Verdict:
    return Verdict(
        0.95,
        (
            Observation("error of the encoded sides, as ln", round(trip.size_error, 3), "0"),
            Observation("the same with width and height exchanged", round(trip.crossed, 3), "not smaller"),
        ),
        (f"centres are right, to {trip.distance:.2f} cells: rows and columns are not exchanged",),
        Remedy("Write width before height into the targets.", part="criterion", where="criterion.encode"),
    )


@rule("MG707", "A feature map does not reach its grid", group="model", stage="batch")
def map_does_not_arrive(case):
    """A grid that says the same everywhere while others do not, or a convolution that reads none of what it joins."""
    seen, kernels = case.examined(start.examine), case.examined(start.examine_kernels)
    strides, largest = case.detector.strides, seen.by_cell.max()
    still = [stride for stride, spread in zip(strides, seen.by_cell, strict=True) if spread < 1e-5 * largest]
    if not still and not kernels.deaf:
        return None
    return Verdict(
        0.85,
        (
            Observation("strides of grids that say the same in every cell", still, "none"),
            Observation("kernels that are 0 for a good part of their inputs", list(kernels.deaf), "none"),
        ),
        ("the other grids do depend on the images: neither data nor backbone as a whole is the cause",),
        Remedy("Look at the neck's connections and their kernels.", part="detector", where="models.head"),
    )


@rule(
    "MG708", "A convolution starts with filters that are all alike", group="model", stage="static",
    explains=("MG402", "MG659", "MG707", "MG751"),
)  # fmt: skip
def filters_alike(case):
    """Zero or identical filters get identical gradients, and stay alike."""
    seen = case.examined(start.examine_kernels)
    if not seen.zero and not seen.identical:
        return None
    return Verdict(
        0.9,
        (
            Observation("kernels of zeros", list(seen.zero), "none"),
            Observation("kernels with identical filters", list(seen.identical), "none"),
        ),
        ("output layers, where zeros alone would do no harm, are left out",),
        Remedy(
            "Initialize these kernels at random.", part="detector", where=", ".join((*seen.zero, *seen.identical)[:3])
        ),
    )


@rule(
    "MG709", "The network says something else each time it is asked", group="model", stage="batch",
    explains=("MG710", "MG806", "MG809", "MG659", "MG751"),
)  # fmt: skip
def answers_at_random(case):
    """Chance is at work in inference, as of a Dropout that is always on."""
    seen = case.examined(places_seen.examine)
    repeated = float(np.nanmax(seen.repeated, initial=0.0))
    if not repeated > RANDOM:
        return None
    return Verdict(
        0.9 if repeated > 5 * RANDOM else 0.6,
        (
            Observation(
                "difference of two answers to one image, over the answers' own spread", round(repeated, 3), "0"
            ),
        ),
        ("both were asked in inference mode, with no step between: BatchNorm and data have no part in it",),
        Remedy(
            "Look for a Dropout, or noise, that is called with training=True, or passes `training` on to nobody.",
            part="detector", where="the layers of the detector",
        ),
    )  # fmt: skip


@rule(
    "MG710", "What a cell says does not come from its place in the image", group="model", stage="batch",
    explains=("MG659", "MG707"),
)  # fmt: skip
def cells_look_elsewhere(case):
    """A change in a part of the image changes cells everywhere alike, as where a reshape stands for a transpose."""
    if not str(getattr(getattr(case.detector, "backbone", None), "name", "")).startswith("darknet"):
        return None  # other backbones may pass a mean of the whole image to every cell
    seen = case.examined(places_seen.examine)
    if not (seen.local < LOCAL).any() or np.nanmax(seen.repeated, initial=0.0) > RANDOM:
        return None
    return Verdict(
        0.85,
        (
            Observation(
                "change of the cells in a changed patch over that of others, coarse to fine",
                np.round(seen.local, 2).tolist(), "above 2",
            ),
        ),
        (
            "noise was put into one patch of the image after the other, and the network asked; the labels have no part "
            "in it",
            "a scale without any signal would not change at all",
        ),
        Remedy(
            "Look at what moves axes or features between backbone and grids: reshape, transpose, upsampling, padding.",
            part="detector", where="the layers before the grids of these scales",
        ),
    )  # fmt: skip


def _believes(case) -> float:
    """Mean probability of an object that is too much, where objects are as dense as here."""
    found = case.examined(claims.examine)
    return max(BELIEVES, 3.0 * (found.density if found else 0.0))


def _objectness(seen) -> tuple[Observation, ...]:
    return (
        Observation(
            "mean objectness logit of all cells", round(seen.objectness, 3), f"about {seen.prior:.1f} or below"
        ),
        Observation("mean probability of an object", round(seen.objectness_probability, 4), "0.001 to 0.1"),
    )
