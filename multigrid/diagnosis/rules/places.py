"""Causes that put boxes in other places than their objects: format, unit, axes, size, turn, pairing."""

from __future__ import annotations

from dataclasses import replace

from multigrid.diagnosis.examinations import boxes, labels_read, pairing, placement
from multigrid.diagnosis.examinations.alignment import FORMATS, MOVES, SCALES, SIZES, TURNS, UNITS, describe
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule

DEFECTS = 0.2  # share of a label file that a reader must leave out, from which the file is looked at itself
SPOILT = (  # causes that boxes in wrong places or of no size look like
    "MG101", "MG106", "MG107", "MG108", "MG109", "MG110", "MG116", "MG201", "MG202", "MG203", "MG204", "MG205", "MG206",
    "MG208", "MG209",
)  # fmt: skip
PROVED = 0.95  # confidence where boxes were found with the images they belong to
STREAMS = ("label file", "samples", "training batches")


def _misplaced(case, names) -> tuple[str, placement.Placement, str, bool] | None:
    """(stream, its placement, hypothesis, whether only some images) of the first stream that one of these explains.

    The label file comes first where a reader must leave much of it out: what is left would mislead.
    """
    file = case.examined(labels_read.examine)
    spoilt = file is not None and file.dropped > DEFECTS
    looks = (placement.of_file if spoilt else None, placement.of_samples, placement.of_training)
    for stream, look in zip(STREAMS, looks, strict=True):
        found = case.examined(look) if look else None
        if found is None:
            continue
        if found.winner in names:
            return stream, found, found.winner, False
        if found.winner is None and found.mixed in names:
            return stream, found, found.mixed, True
    return None


def _misplaced_verdict(case, names, advice: str) -> Verdict | None:
    hit = _misplaced(case, names)
    if hit is None:
        return None
    stream, found, name, some = hit
    share = found.share(name)
    return Verdict(
        0.95 if not some or found.gain(name) > 2 * placement.GAIN else 0.7,
        (
            Observation(f"evidence of images for boxes of the {stream}", _two(found.level("identity")), "above 0.5"),
            Observation(f"the same, if {describe(name)}", _two(found.level(name)), "below that"),
            Observation("images that this fits clearly better", _two(share), "below 0.05"),
        ),
        (
            f"of {len(found.names) - 1} explanations this one fits best, {found.lead(name):.0f} standard errors ahead "
            "of the boxes as they are" + (f", in {share:.0%} of the images" if some else ""),
            f"boxes of other images have {found.level(placement.OTHERS):.2f}: images and boxes do belong together",
        ),
        _remedy(stream, name, some, advice),
    )  # fmt: skip


def _remedy(stream: str, name: str, some: bool, advice: str) -> Remedy:
    where = {"training batches": "what makes the batches"}.get(stream, "the label file of data.train, and its reader")
    return Remedy(advice, part="data", boxes=None if some else name, where=where)


@rule(
    "MG102", "Boxes are read in another format than they are written in", group="labels", stage="static",
    explains=SPOILT,
)  # fmt: skip
def box_format(case):
    """Corners, corner and size, centre and size taken for each other."""
    found = _misplaced_verdict(
        case, FORMATS, "Read the boxes as they are written: x1, y1, x2, y2, or x, y, width, height, or centre and size."
    )
    counted = case.examined(boxes.of_samples) or case.examined(boxes.of_training)
    if found or counted is None or counted.inverted < DEFECTS:
        return found
    return Verdict(
        0.6,
        (Observation("boxes whose second corner lies before the first", _two(counted.inverted), "0"),),
        ("that is too many for slips of single records", "no explanation fits the images clearly"),
        Remedy("See whether the file has corners or sizes.", part="data", where="data.train"),
    )


@rule(
    "MG103", "Boxes are in another unit: shares or percent of the image instead of pixels", group="labels",
    stage="static", explains=SPOILT,
)  # fmt: skip
def box_unit(case):
    """Coordinates of at most 1, or of at most 100."""
    advice = "Multiply the boxes by the image's width and height, or write pixels."
    found = _misplaced_verdict(case, UNITS, advice)
    counted = [case.examined(look) for look in (boxes.of_samples, boxes.of_training)]
    share = max((one.within_one for one in counted if one), default=0.0)
    if found or share < 0.02:
        return found
    return Verdict(
        0.95,
        (Observation("images all of whose coordinates are at most 1", _two(share), "0"),),
        ("an object of a pixel in the upper left corner, in image after image, is no object",),
        Remedy(advice, part="data", boxes="relative" if share > 0.95 else None, where="data.train"),
    )


@rule(
    "MG104", "x and y of the boxes are exchanged", group="labels", stage="batch",
    explains=SPOILT,
)  # fmt: skip
def exchanged_axes(case):
    """(y1, x1, y2, x2) read as (x1, y1, x2, y2)."""
    return _misplaced_verdict(case, ("swap_xy",), "Read y before x where the file has it so.")


@rule(
    "MG112", "Boxes are scaled by another image size", group="labels", stage="batch",
    explains=SPOILT,
)  # fmt: skip
def box_scale(case):
    """Width and height exchanged in scaling, or a size twice as large or half as large."""
    return _misplaced_verdict(
        case, SCALES, "Divide and multiply by the width and height of the very image the boxes are of."
    )


@rule(
    "MG113", "Boxes of the labels are turned, mirrored or shifted against their images", group="labels", stage="batch",
    explains=SPOILT,
)  # fmt: skip
def turned_labels(case):
    """In the samples themselves, so that no augmentation can have done it."""
    found = case.examined(placement.of_samples)
    if found is None or (found.winner or found.mixed) not in (*TURNS, *MOVES):
        return None
    return _misplaced_verdict(
        case,
        (*TURNS, *MOVES),
        "Apply the images' EXIF orientation before they are labelled, and count coordinates from the upper left.",
    )


@rule(
    "MG117", "Boxes are smaller or larger than their objects", group="labels", stage="batch",
    explains=(*SPOILT, "MG303", "MG321", "MG322"),
)  # fmt: skip
def other_sides(case):
    """About the right centres: half of a side was taken for a side, or boxes grew with a rotation."""
    return _misplaced_verdict(
        case, SIZES, "Write whole sides; where only the training batches are so, rotate by smaller angles."
    )


@rule(
    "MG106", "Images have the boxes of other images", group="labels", stage="batch",
    explains=("MG101", "MG109", "MG201", "MG204", "MG206", "MG208"),
)  # fmt: skip
def shuffled_pairs(case):
    """The pairing is shifted or lost, in the samples or on the way into the batches."""
    samples = case.examined(placement.of_samples)
    verdict = samples and _unpaired(case, "samples", samples, pairing.of_samples)
    batches = case.examined(placement.of_training)
    if verdict or batches is None:
        return verdict
    verdict = _unpaired(case, "training batches", batches, pairing.of_training)
    moved = verdict is not None and verdict.confidence < PROVED and samples is not None and samples.lies_well
    return replace(verdict, confidence=0.4) if moved else verdict  # an augmentation does so too: MG201


def _unpaired(case, stream: str, found: placement.Placement, search) -> Verdict | None:
    neighbours = (placement.PREVIOUS, placement.NEXT)
    own, others = found.level("identity"), found.level(placement.OTHERS)
    seen = (
        Observation(f"evidence of the images for their own boxes, {stream}", _two(own), "above 0.5"),
        Observation("for boxes of other images", _two(others), "far below"),
        Observation("images that show nothing of their boxes", _two(found.unsupported.mean()), "below 0.08"),
    )
    remedy = Remedy("Pair images and labels by name, not by position.", part="data", where=stream)
    shifted = found.winner or found.mixed
    if shifted in neighbours:
        return Verdict(0.95, seen, (f"the boxes of the {shifted} image fit better than its own",), remedy)
    if shifted is not None:
        return None
    if placement.is_lost(found):
        why = (
            f"none of {len(found.names) - 1} explanations of displaced boxes does better than boxes of other images",
        )
        proof = pairing.finds(case.examined(search))
        return Verdict(PROVED if proof else 0.75, seen, (*why, proof) if proof else why, remedy)
    proof = pairing.finds(case.examined(search)) if stream == "samples" and found.unsupported.mean() > 0.08 else None
    return Verdict(0.85, seen, (proof,), remedy) if proof else None


def _two(number: float) -> float:
    return round(float(number), 2)
