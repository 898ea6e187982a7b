"""Causes in anchors, cells and what they should predict."""

from __future__ import annotations

import numpy as np

from multigrid.diagnosis.examinations import anchors_fit, claims, outputs, roundtrip
from multigrid.diagnosis.examinations.roundtrip import NEAR
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import ROUGH

UNIT_FACTOR = 5.5  # anchors that are off by more, all alike, are in another unit
GOOD_FIT = 0.45  # mean IoL from which the anchors would fit once they are multiplied
BETTER = 0.12  # by how much another size of all anchors would raise the mean IoL
MISDEALT = 0.85  # share of the boxes that go to a grid that does not suit their size
SPREAD = 0.04  # of the boxes' centres; below, it is the boxes that are in another unit
USABLE = 0.8  # share of boxes in their image; below, it is the boxes that are wrong
SAME = 0.15  # how far an error may be from a whole number of cells or a power of two
# what follows, in the loss and behind it, where cells should say something else than the truth
CONSEQUENCES = (
    "MG602", "MG604", "MG606", "MG607", "MG609", "MG617", "MG618", "MG620", "MG622", "MG623", "MG803", "MG807", "MG808",
)  # fmt: skip
REFIT = "multigrid anchors --config YOUR.yaml --output anchors.txt"


@rule(
    "MG301", "Anchors are in another unit than the boxes", group="targets", stage="static",
    explains=("MG302", "MG303", "MG321", "MG322", *CONSEQUENCES),
)  # fmt: skip
def anchors_in_another_unit(case):
    """All anchors are off by one large factor, and would fit if they were multiplied by it."""
    seen = case.examined(anchors_fit.examine)
    if not _labels_are_sound(seen) or max(seen.factor, 1.0 / seen.factor) < UNIT_FACTOR:
        return None
    if seen.fit.mean_iol > 0.3 or (seen.label_fit is not None and seen.label_fit.mean_iol > 0.3):
        return None
    likely = seen.factor_fit >= GOOD_FIT
    unit = _unit_of(case, seen.factor)
    return Verdict(
        0.95 if likely else 0.6,
        (
            Observation("mean best IoL of boxes and anchors", round(seen.fit.mean_iol, 4), "at least 0.5"),
            Observation("mean ln(box side / anchor side)", round(seen.log_ratio, 2), "between -0.3 and 0.3"),
            Observation("factor that all anchors lack", round(seen.factor, 3), f"1; {unit}"),
        ),
        (
            f"one factor mends all: with it the mean best IoL is {seen.factor_fit:.2f}; anchors that merely do not fit "
            "have no such factor",
            f"the boxes' centres spread over the image ({seen.spread:.2f} of its side), so the boxes are in pixels",
        ),
        Remedy(
            f"Give anchors as width,height in pixels of the network's input; fit them with `{REFIT}`.",
            settings=("data.anchors=anchors.txt",),
            where="data.anchors",
        ),
    )


@rule(
    "MG302", "Anchors are dealt to the wrong scales", group="targets", stage="static",
    explains=("MG321", "MG303"),
)  # fmt: skip
def anchors_in_the_wrong_order(case):
    """The coarse grid has the small anchors and the fine grid the large ones."""
    areas = case.anchors.prod(axis=-1).mean(axis=-1)
    rises = areas[1:] > 1.05 * areas[:-1]  # coarse to fine
    if not rises.any():
        return None
    cells = np.sqrt(areas) / np.array(case.detector.strides)
    return Verdict(
        0.95 if rises.all() or areas[0] < areas[-1] else 0.85,
        (
            Observation("mean anchor area, coarse to fine", np.round(areas, 1).tolist(), "falling"),
            Observation("anchor side in cells, coarse to fine", np.round(cells, 2).tolist(), "1.2 to 12 on every grid"),
        ),
        ("the order alone is wrong: it is read from the anchors of the live criterion, whatever the boxes are",),
        Remedy(
            "Give each scale anchors that suit its stride: the largest to the coarsest grid.",
            settings=("data.anchors=anchors.txt",),
            where="data.anchors",
        ),
    )


@rule("MG303", "Anchors do not fit the boxes", group="targets", stage="static", explains=("MG321", "MG322"))
def anchors_do_not_fit(case):
    """Many boxes have no anchor of about their size, and no single factor is missing."""
    seen = case.examined(anchors_fit.examine)
    if not _labels_are_sound(seen):
        return None
    if not _misfit(seen, seen.fit) or seen.label_fit is not None and not _misfit(seen, seen.label_fit):
        return _misdealt(seen) if seen.misdealt > MISDEALT else None
    worst = ", ".join(f"{width:.0f}x{height:.0f}" for width, height, _ in seen.fit.worst)
    return Verdict(
        0.9 if seen.fit.mean_iol < 0.45 or seen.fit.share_above_quarter < 0.8 else 0.7,
        (
            Observation("mean best IoL of boxes and anchors", round(seen.fit.mean_iol, 3), "at least 0.5"),
            Observation("boxes with an anchor within a factor 4", round(seen.fit.share_above_quarter, 3), "above 0.9"),
            Observation(
                "share of boxes by scale, coarse to fine", np.round(seen.fit.scale_shares, 2).tolist(), "spread"
            ),
        ),
        (
            f"the factor that helps most is {seen.factor:.2f}, to a mean of {seen.factor_fit:.2f}: no unit is wrong",
            f"worst matched sizes: {worst} pixels",
        ),
        Remedy(
            f"Fit anchors to this data set: `{REFIT}`.", settings=("data.anchors=anchors.txt",), where="data.anchors"
        ),
    )


def _misdealt(seen) -> Verdict:
    """Anchors of about the right shapes whose sizes send objects to grids that do not suit them."""
    return Verdict(
        0.6,
        (
            Observation(
                "boxes whose anchor is on a grid that does not suit their size", round(seen.misdealt, 2), "0.1"
            ),
            Observation(
                "share of boxes by scale, coarse to fine", np.round(seen.fit.scale_shares, 2).tolist(), "spread"
            ),
            Observation("anchor side in cells, coarse to fine", np.round(seen.sides_in_cells, 2).tolist(), "2 to 4"),
        ),
        (
            "anchors that are dealt by area, as in YOLOv3, send up to 0.8 of them there",
            f"some anchor is about as large as each box (mean best IoL {seen.fit.mean_iol:.2f}), on another grid",
        ),
        Remedy(
            f"Fit anchors at this input size: `{REFIT}`.", settings=("data.anchors=anchors.txt",), where="data.anchors"
        ),
    )


@rule(
    "MG311", "Cells are shifted against the objects they answer for", group="targets", stage="batch",
    explains=("MG314", "MG323", "MG331", *CONSEQUENCES),
)  # fmt: skip
def cells_are_shifted(case):
    """What cells should say lies a whole number of cells beside the object."""
    seen = case.examined(roundtrip.examine)
    if seen is None:
        return None
    whole = np.round(seen.shift)
    displaced = whole.any() and np.abs(seen.shift - whole).max() < SAME and seen.shift_spread.max() < SAME
    if not displaced and not (seen.distance < NEAR and seen.own_cell.any()):
        return None
    return Verdict(
        0.95,
        (
            Observation("shift of the encoded centres, (x, y) in cells", np.round(seen.shift, 3).tolist(), "[0, 0]"),
            Observation("own cell from the cell of the centre, (x, y)", seen.own_cell.tolist(), "[0, 0]"),
            Observation("spread of it over the claims", np.round(seen.shift_spread, 3).tolist(), "below 0.15"),
            Observation("offsets out of the range of the activation", round(seen.out_of_range, 3), "0"),
        ),
        (
            "the same shift in cells at every scale and place: neither a factor nor an exchange of x and y gives that",
            f"the latter would leave {seen.exchanged:.2f} cells",
            "the boxes are designed, so the labels have no part in it",
        ),
        Remedy(
            "Look at how the encoder finds the cell of a centre: floor(centre / stride), without an offset.",
            part="criterion", where="criterion.encode",
        ),
    )  # fmt: skip


@rule(
    "MG312", "Rows and columns are exchanged in the targets", group="targets", stage="batch",
    explains=("MG311", "MG313", "MG314", "MG323", "MG331", *CONSEQUENCES),
)  # fmt: skip
def rows_and_columns_exchanged(case):
    """What cells should say is at the mirror image of the object about the diagonal."""
    seen = case.examined(roundtrip.examine)
    if seen is None or seen.distance < 0.5 or seen.exchanged > 0.1 * seen.distance:
        return None
    return Verdict(
        0.95,
        (
            Observation("distance of encoded centres from the objects, in cells", round(seen.distance, 2), "0"),
            Observation("the same after rows and columns were exchanged", round(seen.exchanged, 3), "not smaller"),
        ),
        ("an exchange of the cells' axes mends the round trip; neither a shift nor a factor does",),
        Remedy("Index grids as [row, column], that is [y, x].", part="criterion", where="criterion.encode"),
    )


@rule(
    "MG313", "The encoder counts with another stride than the grids have", group="targets", stage="batch",
    explains=("MG314", "MG323", "MG331", *CONSEQUENCES),
)  # fmt: skip
def other_stride(case):
    """Encoded centres are the true ones times a factor, as measured by the grids' own size."""
    seen = case.examined(roundtrip.examine)
    if seen is None or seen.distance < NEAR or abs(np.log2(seen.magnified)) < SAME or seen.magnified_spread > SAME:
        return None
    return Verdict(
        0.9,
        (
            Observation("encoded centre over true centre", round(seen.magnified, 3), "1"),
            Observation("spread of its logarithm", round(seen.magnified_spread, 3), "below 0.15"),
        ),
        ("the error is a pure factor about the origin; a shift would be the same in all cells",),
        Remedy("Give the criterion the detector's strides.", part="criterion", where="criterion.strides"),
    )


@rule(
    "MG315", "Cells should say other classes than the labels", group="targets", stage="batch",
    explains=("MG706", "MG808", "MG811", "MG803"),
)  # fmt: skip
def other_classes_in_targets(case):
    """The encoder changes the class on its way, as where it counts a background class that is not there."""
    scene = case.examined(outputs.examine)
    if scene is None:
        return None
    objects = scene.classes >= 0
    said, true = outputs.as_array(scene.targets.classes)[objects], scene.classes[objects]
    if (said == true).all():
        return None
    pairs = sorted({(int(one), int(other)) for one, other in zip(true, said, strict=True) if one != other})
    return Verdict(
        0.95,
        (
            Observation("objects whose class is another in the targets", round(float((said != true).mean()), 2), "0"),
            Observation(
                "label -> target, as class numbers", ", ".join(f"{one} -> {other}" for one, other in pairs), ""
            ),
        ),
        ("the objects are designed, so the labels have no part in it; the predictor is not asked",),
        Remedy("Give the encoder the classes as they are, from 0.", part="criterion", where="criterion.encode"),
    )


@rule(
    "MG314", "What cells should say does not give the box back", group="targets", stage="batch", explains=CONSEQUENCES
)
def no_round_trip(case):
    """Decoding the encoded truth gives another box, and the error has none of the known forms."""
    seen = case.examined(roundtrip.examine)
    if seen is None or (seen.distance < NEAR and seen.size_error < NEAR):
        return None
    crossed = roundtrip.sides_are_exchanged(seen)
    what = "with width and height exchanged the sizes are right" if crossed else "no exchange, shift or factor mends it"
    return Verdict(
        0.9 if crossed else 0.7,
        (
            Observation("distance of encoded centres from the objects, in cells", round(seen.distance, 3), "0"),
            Observation("error of the encoded sides, as ln", round(seen.size_error, 3), "0"),
            Observation("ln(encoded side / true side), (width, height)", np.round(seen.log_size, 3).tolist(), "[0, 0]"),
        ),
        (what,),
        Remedy("Look at how the encoder writes offset and size.", part="criterion", where="criterion.encode"),
    )


@rule("MG321", "Objects lose their cells to each other", group="targets", stage="static")
def collisions(case):
    """Far more claims are lost than the density of the objects explains."""
    seen = case.examined(claims.examine)
    if seen is None or seen.objects < 10:
        return None
    extra, spread = seen.starved - seen.starved_if_spread, max(seen.starved_if_spread, 0.005)
    more_lost = seen.lost > 0.12 and seen.lost > 4.0 * max(seen.lost_if_spread, 0.01)
    if not (extra > 0.04 and seen.starved > 3.0 * spread) and not more_lost:
        return None
    return Verdict(
        0.85 if extra > 0.1 or seen.lost > 0.5 else 0.65,
        (
            Observation("objects without a cell of their own", round(seen.starved, 3), f"{seen.starved_if_spread:.3f}"),
            Observation("claims lost to other objects", round(seen.lost, 3), f"{seen.lost_if_spread:.3f}"),
            Observation("objects by scale, coarse to fine", np.round(seen.scale_shares, 2).tolist(), "spread"),
        ),
        (
            "the references are the same boxes with every object at the scale that suits its size: density alone would "
            "lose as many there",
        ),
        Remedy(
            f"Fit anchors, so that objects go to the grid that suits their size: `{REFIT}`; or use a larger input.",
            settings=("data.anchors=anchors.txt",), part="criterion", where="data.anchors, criterion.encode",
        ),
    )  # fmt: skip


@rule("MG322", "Objects have too few cells that answer for them", group="targets", stage="static")
def too_few_cells(case):
    """Usable boxes that no cell claims, or fewer claims than the assignment promises."""
    seen = case.examined(claims.examine)
    if seen is None or seen.objects < 4:
        return None
    promised = 9 if getattr(case.criterion, "assignment", None) == "paper" else 1
    few = seen.claims < 0.5 * promised
    if seen.unclaimed < 0.02 and not few:
        return None
    return Verdict(
        0.9 if seen.unclaimed > 0.1 else 0.7,
        (
            Observation("objects that no cell claims", round(seen.unclaimed, 3), "0"),
            Observation("claims an object", round(seen.claims, 2), "6 to 9" if promised == 9 else "at least 1"),
        ),
        (
            "these objects have finite boxes with their centre in the image: labels and augmentation are not the cause",
            "claims are counted before collisions: density is not the cause either",
        ),
        Remedy(
            "Let every object have its best anchor, whatever its overlap; look for a threshold in the assignment.",
            part="criterion", where="criterion.encode, loss.assignment",
        ),
    )  # fmt: skip


@rule("MG323", "Too many cells answer for objects", group="targets", stage="static", explains=("MG605", *CONSEQUENCES))
def too_many_cells(case):
    """More than the nine around a centre, or cells that answer for no object."""
    seen = case.examined(claims.examine)
    if seen is None or not seen.positives:
        return None
    each = seen.positives / max(seen.objects, 1)
    if seen.astray < 0.02 and seen.most <= 9 and each < 9.1:
        return None
    return Verdict(
        0.9,
        (
            Observation("positive cells an object", round(each, 2), "9 at most"),
            Observation("positive cells of the object that has most", seen.most, "9 at most"),
            Observation(
                "positive cells for no object, or one further off than a neighbour", round(seen.astray, 3), "0"
            ),
            Observation("share of all cells", round(seen.density, 4), f"below {9 * seen.density / max(each, 9):.4f}"),
        ),
        ("counted on the live encoder's targets of the training batches",),
        Remedy("Let only the 3×3 cells around a centre answer.", part="criterion", where="criterion.encode"),
    )


@rule(
    "MG331", "Cells should say offsets that their activation cannot reach", group="targets", stage="batch",
    explains=("MG616", *CONSEQUENCES),
)  # fmt: skip
def unreachable_offsets(case):
    """The loss reads offsets by an activation that keeps within the cell, or targets lie outside of (-1, 2)."""
    seen, trip = case.examined(roundtrip.examine_readings), case.examined(roundtrip.examine)
    if seen is None or trip is None or not (seen.own_cell_only or trip.out_of_range > 0.02):
        return None
    return Verdict(
        0.9,
        (
            Observation(ROUGH, round(seen.floor, 3), "0"),
            Observation("targets outside of (-1, 2)", round(trip.out_of_range, 3), "0"),
        ),
        (
            f"a sigmoid of the cell itself suits own cells and not their neighbours: {seen.own_cell_only}",
            "so the neighbours' offset logits can only grow without end",
        ),
        Remedy(
            "Let the activation span the 3×3 cells: 3 sigmoid(t) - 1, or the paper's.",
            part="criterion", where="criterion, model.offset_activation",
        ),
    )  # fmt: skip


def _misfit(seen, fit) -> bool:
    """Whether anchors fit badly, or much worse than they would if all were somewhat larger or smaller."""
    return not fit.fits or (fit.mean_iol < 0.65 and seen.factor_fit - fit.mean_iol > BETTER)


def _labels_are_sound(seen) -> bool:
    """Whether the boxes themselves look like boxes in pixels; if not, anchors cannot be judged."""
    return seen is not None and seen.spread > SPREAD and seen.usable > USABLE


def _unit_of(case, factor: float) -> str:
    """What unit a factor speaks of."""
    height, width = case.batches[0][0].shape[1:3]
    known = {f"{stride} is a stride": stride for stride in case.detector.strides}
    known |= {f"{height} is the input's height": height, f"{width} is its width": width}
    name, nearest = min(known.items(), key=lambda one: abs(np.log(one[1] / max(factor, 1.0 / factor))))
    close = abs(np.log(nearest / max(factor, 1.0 / factor))) < 0.5
    return name if close else "strides and the input's sides are the usual ones"
