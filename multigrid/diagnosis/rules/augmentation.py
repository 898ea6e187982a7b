"""Causes in what training images go through."""

from __future__ import annotations

import numpy as np

from multigrid.diagnosis.examinations import boxes, pairing, pixels, placement, retention, validation
from multigrid.diagnosis.examinations.alignment import IDENTITY, MOVES, TURNS, describe
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule

KEPT = 0.65  # share of the objects that images without mosaic must keep; flips, shifts and small scales keep nearly all
KEPT_BY_MOSAIC = 0.5  # and mosaics, which show a part of each of their images
OBJECTS = 30  # that must have been expected, for a share of them to say something
CAPPED = 0.6  # share of the images, of those that could have more objects, that have exactly the most
CAPPED_IMAGES = 8
INVERTED = 0.005  # share of the boxes
ALIKE = 0.6  # evidence of mosaics, or of training images, against that of the others
ALIKE_AT_LEAST = 0.8  # likewise, where something else speaks for it as well
QUARTER = 0.08  # of the objects of mosaics, that each quarter has at least
ROUGH = 2.0  # times the detail of validation images
LETTERBOXES = (placement.BORDER, placement.HALF_BORDER, placement.LETTERBOX)
CLEAR = 0.12  # evidence by which a letterbox that boxes missed must be ahead


def _raw(case) -> placement.Placement | None:
    """Where boxes lie before augmentation: in the samples, or else in validation."""
    return case.examined(placement.of_samples) or case.examined(placement.of_validation)


@rule(
    "MG201", "An augmentation moves the image and leaves its boxes", group="augmentation", stage="batch",
    explains=("MG109", "MG206", "MG209"),
)  # fmt: skip
def boxes_left_behind(case):
    """A flip, a turn or a shift of the image alone, in all or some of the training images."""
    found, raw = case.examined(placement.of_training), _raw(case)
    if found is None or (raw is not None and not raw.lies_well):
        return None
    name = found.winner or found.mixed
    if name is None and raw is not None and placement.is_lost(found):
        return _moved_somehow(case, found, raw)
    if name not in (*TURNS, *MOVES, "swap_xy", "half", "double") or (name == "swap_xy" and found.winner):
        return None
    if raw is not None and raw.mixed == name or name in MOVES and (found.kinds >= retention.MIXED_UP).any():
        return None  # the labels' fault, or that of the mosaic
    share, some = found.share(name), found.winner is None
    seen = [
        Observation(f"training images that fit better, if {describe(name)}", _two(share), "below 0.05"),
        Observation(
            "evidence of training images for their boxes", _two(found.level(IDENTITY)), "as without augmentation"
        ),
    ]
    why = [f"gain {found.gain(name):.2f} an image; of the other explanations none comes near"] if some else []
    if raw is not None:
        seen.append(Observation("evidence without augmentation", _two(raw.level(IDENTITY)), "the same"))
        why.append("without augmentation boxes lie on their objects: the labels are right")
    return Verdict(
        0.95 if not some or found.gain(name) > 1.3 * placement.GAIN else 0.65,
        tuple(seen),
        tuple(why),
        Remedy(
            "Move boxes with the image: let one call transform both, or remove the step.",
            part="data",
            boxes=None if some else name,
            where="what makes the training batches",
        ),
    )


def _moved_somehow(case, found, raw) -> Verdict | None:
    """Of images whose boxes are lost, by none of the known moves: a crop, a zoom, or a turn by any angle."""
    detail = case.examined(pixels.detail)
    if detail is None or detail > ROUGH or (found.kinds >= retention.MIXED_UP).any():
        return None  # little is left of the objects, or they are those of a mosaic
    if pairing.finds(case.examined(pairing.of_training)):
        return None  # they have those of other images
    return Verdict(
        0.7,
        (
            Observation(
                "evidence of training images for their boxes", _two(found.level(IDENTITY)), "as without augmentation"
            ),
            Observation("evidence without augmentation", _two(raw.level(IDENTITY)), "the same"),
        ),
        (
            "without augmentation boxes lie on their objects: the labels are right",
            f"none of {len(found.names) - 1} explanations fits all: crops, zooms and angles differ by image",
            "no image shows the boxes of another one: the pairing is kept",
        ),
        Remedy(
            "Move boxes with the image: let one call transform both, or remove the step.",
            part="data",
            where="what makes the training batches",
        ),
    )


@rule(
    "MG202",
    "A flip exchanges the corners of boxes",
    group="augmentation",
    stage="batch",
    explains=("MG106", "MG108", "MG204"),
)
def corners_exchanged(case):
    """x1 > x2 after it, so that boxes have no area."""
    found, raw = case.examined(boxes.of_training), case.examined(boxes.of_samples)
    before = raw.inverted if raw else 0.0
    if found is None or found.inverted - before < INVERTED:
        return None
    return Verdict(
        0.95,
        (
            Observation(
                "boxes of the training batches whose second corner lies before the first", _two(found.inverted), "0"
            ),
            Observation("of the samples", _two(before), "0"),
        ),
        ("they come with augmentation: a format that was misread would be in the samples too",),
        Remedy(
            "After mirroring put the smaller coordinate first.", part="data", where="what makes the training batches"
        ),
    )


@rule(
    "MG203", "Boxes do not follow the letterbox", group="augmentation", stage="batch",
    explains=("MG106", "MG109", "MG113", "MG201", "MG204", "MG206", "MG208", "MG209"),
)  # fmt: skip
def letterbox_left_out(case):
    """The image is scaled and bordered, the boxes are not, or without the border."""
    raw = case.examined(placement.of_samples)
    if raw is not None and not raw.lies_well:
        return None
    for stream, look in (("validation", placement.of_validation), ("training", placement.of_training)):
        found = case.examined(look)
        if found is None:
            continue
        name = max(LETTERBOXES, key=found.level)
        rivals = [one for one in (*MOVES, *TURNS) if found.level(one) > found.level(name)]
        if found.beats(name, clear=CLEAR) and found.beats(name, placement.OTHERS) and not rivals:
            return Verdict(
                0.95,
                (
                    Observation(f"evidence of {stream} images for boxes", _two(found.level(IDENTITY)), "the highest"),
                    Observation(f"for boxes moved by {name} of their letterbox", _two(found.level(name)), "lower"),
                ),
                (
                    f"{found.lead(name):.0f} standard errors better, each by its own border: no constant shift fits so",
                    "in the pixels of the files the boxes lie on their objects",
                ),
                Remedy("Map boxes with the letterbox of their image: scale, then add the border.", part="data",
                       where="the function that letterboxes images and boxes"),
            )  # fmt: skip
    return None


@rule("MG204", "Augmentation drops objects", group="augmentation", stage="batch", explains=("MG114",))
def objects_dropped(case):
    """Of the objects of the samples too few are left in the images that show them."""
    found = case.examined(retention.examine)
    if found is None or _is_capped(found):
        return None
    for mosaic, least in ((False, KEPT), (True, KEPT_BY_MOSAIC)):
        share = found.share(mosaic)
        if found.objects(mosaic) >= OBJECTS and share < least:
            kind = "mosaics" if mosaic else "images without mosaic"
            return Verdict(
                0.9 if share < 0.75 * least else 0.65,
                (
                    Observation(f"objects of the samples that are left in {kind}", _two(share), f"above {least}"),
                    Observation("objects that were expected", found.objects(mosaic), f"at least {OBJECTS}"),
                ),
                ("the samples have them: they were read", "the number an image does not pile up at a limit"),
                Remedy("Lower augmentation.min_visibility, or crop and scale less.", part="data",
                       settings=("augmentation.min_visibility=0.1",), where="augmentation"),
            )  # fmt: skip
    return None


@rule("MG205", "Images keep only their first objects", group="augmentation", stage="batch", explains=("MG204", "MG206"))
def objects_cut_off(case):
    """A fixed number of rows for boxes, too few for what the images show."""
    found = case.examined(retention.examine)
    if found is None or not _is_capped(found):
        return None
    quarters = found.quarters / max(1, found.quarters.sum())
    why = [f"{found.at_most:.0%} of the images that could have more objects have exactly {found.most}"]
    if found.quarters.sum() >= OBJECTS:
        why.append(f"of the objects of mosaics the quarters have {', '.join(f'{share:.0%}' for share in quarters)}")
    return Verdict(
        0.95,
        (
            Observation("most objects of an image", found.most, f"{int(found.expected.max())} and fewer"),
            Observation("images with exactly so many, of those that could have more", _two(found.at_most), "below 0.4"),
        ),
        tuple(why),
        Remedy("Make room for all boxes of all the images that one shows.", part="data", where="the padding of boxes"),
    )


@rule("MG206", "Boxes of a mosaic lie in the wrong places", group="augmentation", stage="batch", explains=("MG106",))
def mosaic_misplaced(case):
    """Tiles are moved, and their boxes are not."""
    found, raw, kept = case.examined(placement.of_training), _raw(case), case.examined(retention.examine)
    if found is None or raw is None or not raw.lies_well or kept is None:
        return None
    tiled, plain = found.kinds >= retention.MIXED_UP, found.kinds == 1
    if tiled.sum() < placement.FEWEST_IMAGES or _is_capped(kept):
        return None
    reference = found.level(IDENTITY, plain) if plain.sum() >= placement.FEWEST_IMAGES else raw.level(IDENTITY)
    level, quarters = found.level(IDENTITY, tiled), kept.quarters / max(1, kept.quarters.sum())
    uneven = kept.quarters.sum() >= 2 * OBJECTS and (quarters.min() < QUARTER)
    if level > (ALIKE_AT_LEAST if uneven else ALIKE) * reference:
        return None
    if found.winner is not None:
        return None
    return Verdict(
        0.9 if uneven else 0.65,
        (
            Observation("evidence of mosaics for their boxes", _two(level), f"above {ALIKE * reference:.2f}"),
            Observation("of images without mosaic, or of the samples", _two(reference), "about the same"),
            Observation("share of objects by quarter", [_two(share) for share in quarters], "0.15 to 0.35 each"),
        ),
        ("images that are no mosaics have their boxes right", "no flip and no shift of whole images explains it"),
        Remedy("Shift each tile's boxes by what its image is shifted, then clip.", part="data",
               settings=("augmentation.mosaic=0.0",), where="mosaic"),
    )  # fmt: skip


@rule("MG207", "Validation images change from epoch to epoch", group="augmentation", stage="batch", explains=("MG208",))
def validation_augmented(case):
    """They are augmented, so that figures of two epochs cannot be compared."""
    found = case.examined(validation.examine)
    if found is None or found.changes < 0.05:
        return None
    return Verdict(
        0.9,
        (
            Observation(
                "images of the first validation batch that are others in the next epoch", _two(found.changes), "0"
            ),
        ),
        ("weights had no part in it: a BatchNorm that moves would leave the images alone",),
        Remedy("Build the validation data without augmentation.", part="data", where="the validation data"),
    )


@rule("MG208", "Validation images are fitted to the input in another way", group="augmentation", stage="batch")
def validation_fitted_otherwise(case):
    """Stretched instead of letterboxed, or with boxes of another frame."""
    found, placed = case.examined(validation.examine), case.examined(placement.of_validation)
    train = case.examined(placement.of_training)
    if found is None:
        return None
    seen, why = [], []
    if found.bordered is not None and found.bordered < 0.5:
        seen.append(Observation("validation images with the border of their letterbox", _two(found.bordered), "1"))
        why.append("the training images come from a letterbox of the same size: proportions differ")
    if train is not None and placed is not None and train.lies_well and placed.winner:
        seen.append(Observation("evidence of validation images for their boxes", _two(placed.level(IDENTITY)),
                                f"{train.level(IDENTITY):.2f} as in training"))  # fmt: skip
        why.append(f"they fit, if {describe_any(placed.winner)}; training boxes fit as they are")
    if not seen:
        return None
    return Verdict(
        0.85,
        tuple(seen),
        tuple(why),
        Remedy("Fit validation images by the letterbox of training.", part="data", where="the validation data"),
    )  # fmt: skip


@rule("MG209", "Augmentation destroys the images", group="augmentation", stage="batch", explains=("MG106",))
def images_destroyed(case):
    """Noise or cut-outs leave little of the objects."""
    found, raw = case.examined(placement.of_training), _raw(case)
    detail = case.examined(pixels.detail)
    if found is None or raw is None or not raw.lies_well or detail is None or found.winner or found.mixed:
        return None
    share = found.level(IDENTITY) / raw.level(IDENTITY)
    if share > ALIKE_AT_LEAST or detail < ROUGH:
        return None
    return Verdict(
        0.8 if share < ALIKE else 0.6,
        (
            Observation(
                "evidence of training images for their boxes, against that without augmentation",
                _two(share),
                "above 0.8",
            ),
            Observation("detail from pixel to pixel, against validation images", _two(detail), "0.7 to 1.3"),
        ),
        ("boxes lie where they should, and no other place does better", "the images have become noise"),
        Remedy("Augment less.", part="data", where="augmentation.steps"),
    )


def describe_any(name: str) -> str:
    """What happened to the boxes, for the hypotheses of `placement` as well."""
    words = {name: f"{name} of their letterbox is added" for name in LETTERBOXES}
    words |= {name: f"they are those of the {name} image" for name in (placement.PREVIOUS, placement.NEXT)}
    return words.get(name) or describe(name)


def _is_capped(found: retention.Retention) -> bool:
    return found.could >= CAPPED_IMAGES and found.at_most > CAPPED


def _two(number: float) -> float:
    return round(float(np.asarray(number)), 2)
