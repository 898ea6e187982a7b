"""Causes in how images and batches come: values, channels, order, speed, variety."""

from __future__ import annotations

import numpy as np

from multigrid.diagnosis.examinations import order, pixels
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.models.blocks import BACKBONE, blocks_of

TOO_LARGE = 1.5  # of a value that the backbone is given, where 1 is white
TOO_SMALL = 0.2  # likewise, where an image has white
WHITE = 128  # grey levels, that some pixel of a batch should reach
MENDED = 0.5  # of the distance from what BatchNorm has learned, that is left once values are scaled
FLAT_CHANNEL = 2.0  # grey levels of standard deviation
SHOWN = 0.6  # share of the samples that three epochs show at least
PLAIN = 0.02  # share of labelled images that are of one colour
SORTED = 6.0  # standard deviations beyond chance
UNIFORM = 12.0  # likewise, where it must be spoken of by itself
WAITING = 0.5  # share of a step's time


@rule(
    "MG901", "The backbone is given values far above 1", group="pipeline", stage="batch",
    explains=("MG408", "MG903"),
)  # fmt: skip
def values_too_large(case):
    """Images from 0 to 255, or so, where the network wants 0 to 1."""
    found = case.examined(pixels.received)
    if found is None or not found.plainly or found.high < TOO_LARGE:
        return None
    own = BACKBONE in blocks_of(case.detector)  # which may want what Darknet does not
    return _of_values(
        found, "1: images are scaled to 0..1 before the backbone", "Scale images to 0..1 once.", 0.45 if own else 0.85
    )


@rule("MG902", "The backbone is given values near 0", group="pipeline", stage="batch", explains=("MG408", "MG903"))
def values_too_small(case):
    """Images that were scaled twice."""
    found = case.examined(pixels.received)
    if found is None or not found.plainly or found.given < WHITE:
        return None
    if max(abs(found.low), abs(found.high)) > TOO_SMALL:
        return None
    return _of_values(found, "0.5 to 1: images are scaled to 0..1 once", "Scale images to 0..1 once, not twice.")


def _of_values(found: pixels.Received, reference: str, advice: str, confidence: float = 0.85) -> Verdict:
    seen = [Observation("greatest value that the backbone is given", float(f"{found.high:.3g}"), reference)]
    why = ["measured on the layers before the backbone, before any update: no weight can have caused it"]
    if found.distance is not None:
        seen.append(
            Observation(
                "distance from what the first BatchNorm has learned, in deviations", round(found.distance, 2), "below 1"
            )
        )
        mended = found.mended < MENDED * found.distance
        why.append(
            f"scaled to 0..1 the distance is {found.mended:.2f}: {'that mends it' if mended else 'that is no better'}"
        )
        confidence = 0.97 if mended else 0.45
    return Verdict(
        confidence, tuple(seen), tuple(why), Remedy(advice, part="detector", where="the layer that scales images")
    )


@rule("MG903", "Colour channels come in another order than the backbone has learned", group="pipeline", stage="batch")
def channels_reversed(case):
    """BGR for RGB, told from the statistics of the first BatchNorm."""
    found = case.examined(pixels.received)
    if found is None or found.distance is None or found.reversed is None:
        return None
    if found.distance < 0.3 or found.reversed > 0.6 * found.distance:
        return None
    return Verdict(
        0.6,
        (
            Observation(
                "distance from what the first BatchNorm has learned, in deviations",
                round(found.distance, 2),
                "below 0.3",
            ),
            Observation("with the channels in the other order", round(found.reversed, 2), "greater"),
        ),
        ("another order of channels brings the images to what the backbone has seen",),
        Remedy("Read images as RGB.", part="data", where="what reads the images"),
    )


@rule("MG904", "A colour channel is lost", group="pipeline", stage="batch", explains=("MG208", "MG408", "MG903"))
def channel_lost(case):
    """One that hardly changes while another one does."""
    found = case.examined(pixels.of_training)
    flat = found.deviations < FLAT_CHANNEL
    if not flat.any() or flat.all() and found.plain > 0.5:
        return None
    return Verdict(
        0.9,
        (Observation("deviation of the channels, grey levels", np.round(found.deviations, 1).tolist(), "above 13"),
         Observation("mean of the channels", np.round(found.means, 1).tolist(), "alike")),
        ("grey images have three channels alike, not one that is constant",),
        Remedy("See how images are decoded: alpha, one channel, 16 bits.", part="data", where="what reads the images"),
    )  # fmt: skip


@rule(
    "MG905",
    "Images with objects are blank",
    group="pipeline",
    stage="batch",
    explains=("MG106", "MG209", "MG904", "MG908"),
)
def blank_images(case):
    """Of one colour, as where reading failed and an empty image took the place."""
    found = case.examined(pixels.of_training)
    if found.plain < PLAIN or found.plain * found.images < 2:
        return None
    return Verdict(
        0.9,
        (Observation("labelled images of one colour", round(found.plain, 3), "0"),),
        (f"of {found.images} images that have boxes",),
        Remedy(
            "Let errors of reading be errors; do not put an empty image in.", part="data", where="what reads the images"
        ),
    )


@rule(
    "MG909", "Training shows only some of the samples", group="pipeline", stage="batch",
    explains=("MG906", "MG908", "MG951"),
)  # fmt: skip
def samples_left_out(case):
    """It ends too early, or shows the same batch again and again."""
    share = case.examined(order.shown_share)
    if share is None or share > SHOWN:
        return None
    batches, samples = len(case.train_data), len(case.samples["train"])
    size = len(case.batches[0][0])
    short = batches * size < SHOWN * samples
    return Verdict(
        0.9,
        (
            Observation("share of the samples that three epochs show", round(share, 3), "1, or nearly"),
            Observation("batches of an epoch", batches, f"{-(-samples // size)} of {size} images"),
        ),
        (
            "the epoch is too short: its length is wrong" if short
            else "the epoch has batches enough, and they show the same samples again",
        ),
        Remedy(
            "Look at the length of the data, or at how its batches are chosen.", part="data",
            where="__len__ of the data" if short else "__getitem__ of the data",
        ),
    )  # fmt: skip


@rule("MG906", "Samples are not shuffled", group="pipeline", stage="batch")
def not_shuffled(case):
    """They come in the same order every epoch, in a sorted one at worst."""
    found = case.examined(order.examine)
    if found is None:
        return None
    by, most = max(found.sorted_by.items(), key=lambda one: one[1], default=("", 0.0))
    is_sorted = most > (SORTED if found.same else UNIFORM)
    if not found.same and not is_sorted:
        return None
    seen = [Observation("two epochs have the samples in the same order", bool(found.same), "no")]
    if by:
        seen.append(
            Observation(f"batches more uniform by {by} than chance, standard deviations", round(most, 1), "below 3")
        )
    return Verdict(
        0.9 if is_sorted else 0.6,
        tuple(seen),
        ("the order was asked of the data itself, for this epoch and the next",
         f"batches are sorted by {by}" if is_sorted else "but it is not sorted: little harm"),
        Remedy("Shuffle the samples anew every epoch.", part="data", where="the training data"),
        hygiene=not is_sorted,
    )  # fmt: skip


@rule("MG907", "Training waits for its data", group="pipeline", stage="training")
def data_too_slow(case):
    """A step spends more time on its batch than on the network."""
    rows = [row for row in case.course.rows if "data_seconds" in row and "seconds" in row] if case.course else []
    if len(rows) < 5:
        return None
    waited, total = (np.array([row[name] for row in rows]) for name in ("data_seconds", "seconds"))
    share = float(np.median(waited / np.maximum(total, waited)))
    if share < WAITING or np.median(waited) < 0.02:
        return None
    return Verdict(
        0.7,
        (Observation("share of a step that its batch takes", round(share, 2), "below 0.1 with workers"),
         Observation("seconds for a batch", round(float(np.median(waited)), 3), "less than a step")),
        ("measured one after the other; workers hide a part of it",),
        Remedy("Keep images in memory, use more workers.",
               settings=("data.cache=true", f"data.workers={max(4, _workers(case))}")),
        hygiene=True,
    )  # fmt: skip


def _workers(case) -> int:
    return case.config.data.workers if case.config is not None else 0


@rule(
    "MG908", "Every epoch has the augmented images of the first", group="pipeline", stage="batch", explains=("MG906",)
)
def same_draws(case):
    """The random numbers begin anew each epoch."""
    found, augmentation = case.examined(order.examine), getattr(case.config, "augmentation", None)
    if found is None or found.again is None or found.seen < 3 or found.again < 0.9:
        return None
    if augmentation is None or not (augmentation.steps or augmentation.mosaic or augmentation.mixup):
        return None
    return Verdict(
        0.85,
        (Observation("images of a sample that are the same in the next epoch", round(found.again, 2), "below 0.5"),),
        (f"of {found.seen} samples that were looked at in both; augmentation is configured",),
        Remedy("Seed the generator once, or with the epoch too.", part="data", where="the training data"),
    )
