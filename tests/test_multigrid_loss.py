"""The loss against a slow one in plain Python, and what must hold of it whatever the batch."""

import functools
import itertools
import json
import math

import keras
import numpy as np
import pytest
from backends import compiled, with_gradients
from keras import ops

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS, with_objectness
from multigrid.geometry import cells
from multigrid.losses import targets
from multigrid.losses.multigrid_loss import LossBreakdown, MultiGridLoss

pytestmark = pytest.mark.backend

STRIDES = (32, 16, 8)
SHAPES = ((2, 3), (4, 6), (8, 12))  # rows, columns of a 64 × 96 input (height × width)
CELLS = (6, 24, 96)
ANCHORS = [[[60, 45], [33, 80]], [[28, 19], [15, 34]], [[7, 12], [13, 5]]]
NUM_CLASSES = 3
FIRST_CLASS = 5 + 2
CHANNELS = FIRST_CLASS + NUM_CLASSES
# No two alike, none 1: a coefficient dropped, doubled or mistaken for another shows.
COEFFICIENTS = {
    "coord_scale": 0.7,
    "object_scale": 1.3,
    "no_object_scale": 0.4,
    "anchor_scale": 1.9,
    "class_scale": 1.1,
}
# Said here and not left to the defaults, which may change.
OPTIONS = {
    "offset_activation": "sigmoid",
    "assignment": "inside",
    "localization": "ciou",
    "classification": "bce",
    "anchor": "softmax",
    "label_smoothing": 0.0,
    "class_weights": None,
    "focal_gamma": 2.0,
    "focal_alpha": 0.25,
    "iou_power": 1.0,
    "iou_blend": 1.0,
    "ignore_threshold": 0.5,
    "loss_normalization": "batch",
}
BOTH_EXTRAS = {"consensus_scale": 0.6, "suppression_scale": 1.7}
OF_POSITIVES = ("localization", "object", "anchor", "classification")

FINE = (20.0, 45.0, 27.0, 57.0)  # 7 × 12 around (23.5, 51): the first anchor of stride 8, in column 2, row 6
MIDDLE = (38.0, 20.2, 68.0, 38.2)  # 30 × 18 around (53, 29.2): stride 16, column 3, row 1


def criterion(**options):
    return MultiGridLoss(ANCHORS, NUM_CLASSES, **{**OPTIONS, **options})


def as_numpy(breakdown) -> LossBreakdown:
    return LossBreakdown(
        np.asarray(breakdown.total),
        *({name: np.asarray(value) for name, value in part.items()} for part in (breakdown.parts, breakdown.sums)),
        np.asarray(breakdown.normalizers),
        {name: np.asarray(value) for name, value in breakdown.counts.items()},
        breakdown.coefficients,
        breakdown.regularization,
    )


# Targets and loss are compiled apart, and coefficients are arguments: that saves JAX much compiling.
@functools.cache
def encoder(assignment="inside", offset_activation="sigmoid"):
    """`MultiGridLoss.encode` of boxes, classes and grids."""
    loss = criterion(assignment=assignment, offset_activation=offset_activation)
    return compiled(lambda boxes, classes, grids: loss.encode({"boxes": boxes, "classes": classes}, grids))


@functools.cache
def measurer(**options):
    """`MultiGridLoss.breakdown` of grids, targets and coefficients."""
    return compiled(lambda grids, encoded, coefficients: criterion(**options, **coefficients).breakdown(encoded, grids))


@functools.cache
def differentiator(**options):
    """The total and its gradient with respect to every grid, of grids, targets and coefficients."""
    return with_gradients(
        lambda grids, encoded, coefficients: criterion(**options, **coefficients).breakdown(encoded, grids).total
    )


def run(kind, batch, assignment="inside", coefficients=COEFFICIENTS, **options):
    boxes, classes, grids = batch
    encoded = encoder(assignment, options.get("offset_activation", "sigmoid"))(boxes, classes, grids)
    return kind(**options)(grids, encoded, coefficients)


def breakdown_of(batch, **options) -> LossBreakdown:
    return as_numpy(run(measurer, batch, **options))


def gradients_of(batch, **options):
    """The total, a float, and its gradient with respect to every grid."""
    return run(differentiator, batch, **options)


def make_batch(images, seed=0, spread=1.0, objects=6):
    """Boxes and classes, padded to so many objects, from lists of (box, class), and random grids for them."""
    rng = np.random.default_rng(seed)
    boxes, classes = np.zeros((len(images), objects, 4), "float32"), np.full((len(images), objects), -1, "int32")
    for image, labels in enumerate(images):
        for index, (box, label) in enumerate(labels):
            boxes[image, index], classes[image, index] = box, label
    grids = [rng.normal(scale=spread, size=(len(images), *shape, CHANNELS)).astype("float32") for shape in SHAPES]
    return boxes, classes, grids


@functools.cache
def small_batch():
    """Three images: objects of all scales, one at a border, some that collide; none; a crowd of two kinds."""
    return make_batch(
        [
            [(FINE, 2), ((19, 41, 27, 54), 0), ((17, 9, 75, 51), 1), ((88.5, 1.5, 96, 13), 1)],
            [],
            [(MIDDLE, 0), ((40, 18, 70, 39), 2), ((61, 30, 73, 35.5), 2), ((63, 31, 75, 37), 1), ((3, 2, 37, 62), 0)],
        ]
    )


# ------------------------------------------------------------------------------------- the same loss in plain Python


def plain_sigmoid(x):
    return 1.0 / (1.0 + math.exp(-x))


def plain_bce(target, logit):
    p = plain_sigmoid(logit)
    return -target * math.log(p) - (1.0 - target) * math.log(1.0 - p)


def plain_overlap(kind, a, b):
    def area(x1, y1, x2, y2):
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)

    shared = area(max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3]))
    union = area(*a) + area(*b) - shared
    iou = shared / union
    hull = (min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3]))
    if kind == "iou":
        return iou
    if kind == "giou":
        return iou - (area(*hull) - union) / area(*hull)
    apart = ((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2
    diou = iou - apart / ((hull[2] - hull[0]) ** 2 + (hull[3] - hull[1]) ** 2)
    if kind == "diou":
        return diou
    angles = [math.atan((x2 - x1) / (y2 - y1)) for x1, y1, x2, y2 in (a, b)]
    aspect = 4 / math.pi**2 * (angles[0] - angles[1]) ** 2
    return diou - aspect**2 / (1 - iou + aspect)


def plain_offset(cell, activation):
    if activation == "sigmoid":
        return [3 * plain_sigmoid(t) - 1 for t in cell[:2]]
    return [math.tanh(0.15 * t) + plain_sigmoid(0.15 * t) for t in cell[:2]]


def plain_box(cell, anchor, key, activation):
    scale, row, column = key
    x, y = plain_offset(cell, activation)
    center_x, center_y = (column + x) * STRIDES[scale], (row + y) * STRIDES[scale]
    width, height = anchor[0] * math.exp(cell[2]), anchor[1] * math.exp(cell[3])
    return (center_x - width / 2, center_y - height / 2, center_x + width / 2, center_y + height / 2)


def plain_match(width, height):
    """The scale of the best intersection over the larger area, and the best anchor of every scale."""
    shares = {}
    for scale, anchors in enumerate(ANCHORS):
        for index, (w, h) in enumerate(anchors):
            shares[scale, index] = min(width, w) * min(height, h) / max(width * height, w * h)
    of_scale = lambda scale: max((key for key in shares if key[0] == scale), key=shares.get)[1]  # noqa: E731
    return max(shares, key=shares.get)[0], [of_scale(scale) for scale in range(len(ANCHORS))]


def plain_scales(own, assignment):
    """The scales whose cells want an object that belongs to one of the three."""
    return (own, {0: 1, 1: 0, 2: 1}[own]) if assignment == "across" else (own,)


def plain_claims(box, scale, predicted, assignment, guest):
    """The cells that an object wants: key -> rank, the least of which has the cell."""
    x1, y1, x2, y2 = box
    stride, (rows, columns) = STRIDES[scale], SHAPES[scale]
    x, y = (x1 + x2) / 2 / stride, (y1 + y2) / 2 / stride
    ranks, fits = {}, {}
    for row, column in itertools.product(range(rows), range(columns)):
        if abs(row - math.floor(y)) > 1 or abs(column - math.floor(x)) > 1:
            continue
        own = (row, column) == (math.floor(y), math.floor(x))
        inside = x1 < (column + 0.5) * stride < x2 and y1 < (row + 0.5) * stride < y2
        if assignment == "single" and not own or (guest or assignment == "inside") and not (own or inside):
            continue
        squared = (x - column - 0.5) ** 2 + (y - row - 0.5) ** 2
        ranks[scale, row, column] = (not own, squared, (x2 - x1) * (y2 - y1))
        overlap = plain_overlap("iou", predicted[scale, row, column], box)
        fits[scale, row, column] = (overlap + 0.05) * math.exp(-0.3 * squared)
    best = sorted(fits, key=fits.get)[-2:]
    return {key: rank for key, rank in ranks.items() if assignment not in targets.COMPETING or key in best}


def plain_choice(kind, logits, index, smoothing=0.0, gamma=2.0, alpha=0.25):
    count, loss = len(logits), 0.0
    for k, logit in enumerate(logits):
        true = k == index
        if kind == "softmax":
            log_share = logit - math.log(sum(math.exp(other) for other in logits))
            loss -= (true * (1 - smoothing) + smoothing / count) * log_share
            continue
        term = plain_bce(true * (1 - smoothing) + smoothing / 2, logit)
        if kind == "focal":
            p = plain_sigmoid(logit)
            term *= alpha * (1 - p) ** gamma if true else (1 - alpha) * p**gamma
        loss += term
    return loss


def plain_confidence(predicted, box, options):
    """What the objectness of a cell that answers for the box should say."""
    quality = plain_overlap("iou", predicted, box) ** options["iou_power"]
    return 1 - options["iou_blend"] + options["iou_blend"] * quality


def plain_positive(cell, key, box, label, anchor, predicted, options):
    """The four parts of one cell that answers for one object."""
    scale, row, column = key
    size = ANCHORS[scale][anchor]
    activation, kind = options["offset_activation"], options["localization"]
    if kind == "mse":
        stride = STRIDES[scale]
        true = [(box[0] + box[2]) / 2 / stride - column, (box[1] + box[3]) / 2 / stride - row]
        true += [math.log((box[2] - box[0]) / size[0]), math.log((box[3] - box[1]) / size[1])]
        code = [*plain_offset(cell, activation), *cell[2:4]]
        localization = sum((p - t) ** 2 for p, t in zip(code, true, strict=True))
    else:
        localization = 1 - plain_overlap(kind, plain_box(cell, size, key, activation), box)
    weight = options["class_weights"][label] if options["class_weights"] else 1.0
    focal = (options["focal_gamma"], options["focal_alpha"])
    return {
        "localization": localization,
        "object": plain_bce(plain_confidence(predicted, box, options), cell[4]),
        "anchor": plain_choice(options["anchor"], cell[5:FIRST_CLASS], anchor),
        "classification": weight
        * plain_choice(options["classification"], cell[FIRST_CLASS:], label, options["label_smoothing"], *focal),
    }


def plain_consensus(raw, owned, box, anchors, options):
    """Squared distances of what the cells of one object say from what they say on average, cell by cell."""
    said = []
    for key in owned:
        cell = raw[key]
        predicted = plain_box(cell, ANCHORS[key[0]][anchors[key[0]]], key, options["offset_activation"])
        sides = [max(1.0, box[2] - box[0]), max(1.0, box[3] - box[1])] * 2
        shares = [plain_sigmoid(logit) for logit in cell[FIRST_CLASS:]]
        if options["classification"] == "softmax":
            together = sum(math.exp(logit) for logit in cell[FIRST_CLASS:])
            shares = [math.exp(logit) / together for logit in cell[FIRST_CLASS:]]
        corners = [p / side for p, side in zip(predicted, sides, strict=True)]
        said.append([*corners, plain_sigmoid(cell[4]), *shares])
    return ((np.array(said) - np.mean(said, axis=0)) ** 2).sum(axis=1) if said else []


def plain_suppression(cell, predicted, key, objects, owned):
    """What an ignored cell costs: ln(1 + e^logit) by how much worse its box is than the best of the object's cells."""
    overlaps = [plain_overlap("iou", predicted[key], box) for box, _ in objects]
    nearest = max(range(len(objects)), key=overlaps.__getitem__)
    best = max((plain_overlap("iou", predicted[k], objects[nearest][0]) for k in owned[nearest]), default=0.0)
    return max(0.0, 1.0 - overlaps[nearest] / max(best, 1e-7)) * plain_bce(0.0, cell[4])


def plain_sums(batch, **changes):
    """Sums of every part and counts of cells, by scale: two dicts name -> [3]."""
    options = {**OPTIONS, **changes}
    boxes, classes, grids = batch
    sums = {name: np.zeros(3) for name in (*LOSS_PARTS, *OPTIONAL_LOSS_PARTS)}
    counts = {name: np.zeros(3) for name in ("positives", "ignored", "negatives", "confidence")}
    for image in range(len(boxes)):
        objects = [(b, int(c)) for b, c in zip(boxes[image].tolist(), classes[image], strict=True) if c >= 0]
        raw = {
            (scale, row, column): grids[scale][image, row, column].tolist()
            for scale, (rows, columns) in enumerate(SHAPES)
            for row, column in itertools.product(range(rows), range(columns))
        }
        predicted = {}
        for key, cell in raw.items():
            preferred = max(range(2), key=lambda index, cell=cell: cell[5 + index])
            predicted[key] = plain_box(cell, ANCHORS[key[0]][preferred], key, options["offset_activation"])
        owners = {}
        for index, (box, label) in enumerate(objects):
            own, anchors = plain_match(box[2] - box[0], box[3] - box[1])
            for scale in plain_scales(own, options["assignment"]):
                claims = plain_claims(box, scale, predicted, options["assignment"], guest=scale != own)
                for key, rank in claims.items():
                    owners.setdefault(key, []).append(((scale != own, *rank, index), box, label, anchors[scale]))
        winners = {key: min(claims)[0][-1] for key, claims in owners.items()}
        owned = [[key for key, winner in winners.items() if winner == index] for index in range(len(objects))]
        for index, (box, _) in enumerate(objects):
            _, anchors = plain_match(box[2] - box[0], box[3] - box[1])
            distances = plain_consensus(raw, owned[index], box, anchors, options)
            for key, distance in zip(owned[index], distances, strict=True):
                sums["consensus"][key[0]] += distance
        for key, cell in raw.items():
            scale = key[0]
            if key in owners:
                _, box, label, anchor = min(owners[key])
                counts["positives"][scale] += 1
                counts["confidence"][scale] += plain_confidence(predicted[key], box, options)
                for name, value in plain_positive(cell, key, box, label, anchor, predicted[key], options).items():
                    sums[name][scale] += value
            elif any(plain_overlap("iou", predicted[key], box) > options["ignore_threshold"] for box, _ in objects):
                counts["ignored"][scale] += 1
                sums["suppression"][scale] += plain_suppression(cell, predicted, key, objects, owned)
            else:
                counts["negatives"][scale] += 1
                sums["no_object"][scale] += plain_bce(0.0, cell[4])
    return sums, counts


CASES = (
    {"localization": "ciou", "classification": "bce", "label_smoothing": 0.1, "ignore_threshold": 0.2, **BOTH_EXTRAS},
    {"localization": "ciou", "classification": "softmax", "iou_blend": 0.0, "class_weights": (0.3, 4.0, 1.5)},
    {"localization": "diou", "classification": "softmax", "anchor": "bce", "label_smoothing": 0.2, "iou_power": 2.0},
    {
        "localization": "giou",
        "classification": "focal",
        "offset_activation": "tanh",
        "iou_power": 0.5,
        "iou_blend": 0.6,
        "class_weights": (2.0, 0.5, 3.0),
        "consensus_scale": 1.5,
    },
    {
        "localization": "mse",
        "classification": "focal",
        "focal_gamma": 0.7,
        "focal_alpha": 0.6,
        "iou_power": 0.0,
        "ignore_threshold": 0.1,
        "suppression_scale": 0.9,
    },
    {"localization": "giou", "classification": "softmax", "ignore_threshold": 0.15, **BOTH_EXTRAS},
)


@pytest.mark.parametrize("assignment", targets.ASSIGNMENTS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['localization']}-{case['classification']}")
def test_every_part_agrees_with_the_plain_loss(case, assignment):
    options = {**case, "assignment": assignment}
    measured = breakdown_of(small_batch(), loss_normalization=("batch", "positives"), **options)
    sums, counts = plain_sums(small_batch(), **options)
    for name, count in counts.items():
        np.testing.assert_allclose(measured.counts[name], count, rtol=1e-5, err_msg=name)
    normalizers = 3 * np.maximum(counts["positives"], 1)
    np.testing.assert_allclose(measured.normalizers, normalizers)
    extras = {name: options[scale] for name, scale in OPTIONAL_LOSS_PARTS.items() if scale in options}
    scales = {name: COEFFICIENTS[scale] for name, scale in LOSS_PARTS.items()} | extras
    assert measured.parts.keys() == measured.sums.keys() == scales.keys()
    for name in scales:
        np.testing.assert_allclose(measured.sums[name], sums[name], rtol=1e-4, atol=1e-4, err_msg=name)
        np.testing.assert_allclose(measured.parts[name], sums[name] / normalizers, rtol=1e-4, atol=1e-4, err_msg=name)
    total = sum(scale * (sums[name] / normalizers).sum() for name, scale in scales.items())
    assert float(measured.total) == pytest.approx(total, rel=1e-4)


def test_the_plain_cases_reach_every_branch():
    # Objects of every scale answer, some cells are ignored, and a collision takes cells from someone.
    sums, counts = plain_sums(small_batch(), assignment="paper", ignore_threshold=0.1)
    assert (counts["positives"] > 0).all() and counts["ignored"].sum() > 0
    assert sums["consensus"].all() and sums["suppression"].any()
    measured = breakdown_of(small_batch(), assignment="paper")
    assert (measured.counts["claims"] > measured.counts["positives"]).any()


# ------------------------------------------------------------------------------------------- total and coefficients


def test_the_total_is_the_sum_of_coefficient_times_part():
    measured = breakdown_of(small_batch())
    assert measured.coefficients.keys() == measured.parts.keys() == LOSS_PARTS.keys()
    total = 0.0
    for name, scale in LOSS_PARTS.items():
        assert float(measured.coefficients[name]) == pytest.approx(COEFFICIENTS[scale])
        total += COEFFICIENTS[scale] * measured.parts[name].astype("float64").sum()
    assert float(measured.total) == pytest.approx(total, rel=1e-6)
    assert measured.total.dtype == "float32" and measured.total.shape == ()


@pytest.mark.parametrize("name", LOSS_PARTS)
def test_doubling_a_coefficient_doubles_its_part_of_the_total_and_no_part(name):
    plain, scale = breakdown_of(small_batch()), LOSS_PARTS[name]
    doubled = breakdown_of(small_batch(), coefficients={**COEFFICIENTS, scale: 2 * COEFFICIENTS[scale]})
    contribution = COEFFICIENTS[scale] * plain.parts[name].sum()
    assert contribution > 0.01
    assert float(doubled.total - plain.total) == pytest.approx(contribution, rel=1e-4)
    for part in LOSS_PARTS:
        np.testing.assert_allclose(doubled.parts[part], plain.parts[part], rtol=1e-6)
        np.testing.assert_allclose(doubled.sums[part], plain.sums[part], rtol=1e-6)


def test_calling_the_loss_gives_the_total():
    loss, (boxes, classes, grids) = criterion(**COEFFICIENTS), small_batch()
    called = compiled(lambda *arrays: loss({"boxes": arrays[0], "classes": arrays[1]}, arrays[2:]))
    assert float(called(boxes, classes, *grids)) == pytest.approx(float(breakdown_of(small_batch()).total), rel=1e-6)


def test_a_part_is_the_sum_over_the_scales():
    measured = breakdown_of(small_batch())
    assert float(measured.part("anchor")) == pytest.approx(measured.parts["anchor"].sum(), rel=1e-6)


def test_the_weighted_parts_are_coefficient_times_part_and_add_up_to_the_total():
    measured = breakdown_of(small_batch())
    for name, scale in LOSS_PARTS.items():
        np.testing.assert_allclose(measured.weighted[name], COEFFICIENTS[scale] * measured.parts[name], rtol=1e-6)
    total = sum(float(np.asarray(values).sum()) for values in measured.weighted.values())
    assert float(measured.total) == pytest.approx(total, rel=1e-6)


def test_objectness_is_that_of_cells_with_and_without_an_object():
    named = with_objectness({"object": np.array([1.0, 2.0]), "no_object": np.array([10.0, 30.0]), "anchor": 7.0})
    assert named["objectness"].tolist() == [11.0, 32.0] and named["anchor"] == 7.0


# ----------------------------------------------------------------------------------------- the parts that are options


def agreeing_batch(box=FINE, label=1, assignment="paper"):
    """One object, and cells all of which say exactly its box, no objectness and their class: a perfect head."""
    boxes, classes, grids = make_batch([[(box, label)]], spread=0.0)
    encoded = encoder(assignment)(boxes, classes, grids)
    layout = cells.layout_of(grids, STRIDES)
    said = np.asarray(cells.flatten(grids)).copy()
    won = np.asarray(encoded.positive)[0, 0]
    rows = np.asarray(encoded.cell)[0, 0][won]
    said[0, rows, :2] = np.asarray(cells.offset_logits(ops.convert_to_tensor(encoded.offset)[0, 0], "sigmoid"))[won]
    said[0, rows, 2:4] = np.asarray(encoded.log_size)[0, 0][won]
    said[0, rows, 5 + np.asarray(encoded.anchor)[0, 0][won]] = 4.0
    said[0, rows, FIRST_CLASS + label] = 3.0
    return boxes, classes, [np.asarray(grid) for grid in cells.unflatten(ops.convert_to_tensor(said), layout)]


def test_options_that_are_off_leave_no_trace():
    measured = breakdown_of(small_batch())
    for named in (measured.parts, measured.sums, measured.coefficients, measured.weighted):
        assert named.keys() == LOSS_PARTS.keys()
    assert criterion().parts == LOSS_PARTS
    both = LOSS_PARTS | OPTIONAL_LOSS_PARTS
    assert criterion(**BOTH_EXTRAS).parts == both
    extended = breakdown_of(small_batch(), ignore_threshold=0.1, **BOTH_EXTRAS)
    plain = breakdown_of(small_batch(), ignore_threshold=0.1)
    assert extended.parts.keys() == extended.weighted.keys() == both.keys()
    for name in LOSS_PARTS:
        np.testing.assert_allclose(extended.parts[name], plain.parts[name], rtol=1e-6, err_msg=name)
    added = sum(BOTH_EXTRAS[scale] * extended.parts[name].sum() for name, scale in OPTIONAL_LOSS_PARTS.items())
    assert added > 0.1
    assert float(extended.total - plain.total) == pytest.approx(added, rel=1e-4)


def test_nine_cells_that_say_the_same_box_cost_nothing_though_their_offsets_differ():
    batch = agreeing_batch()
    measured = breakdown_of(batch, assignment="paper", **BOTH_EXTRAS)
    np.testing.assert_array_equal(measured.counts["positives"], [0, 0, 9])
    assert np.ptp(batch[2][2][0, 5:8, 1:4, :2]) > 1.0
    np.testing.assert_allclose(measured.sums["consensus"], 0.0, atol=1e-9)


@pytest.mark.parametrize(
    "channel, change, expected",
    [
        # One of nine says something else by d: Σ (x - mean)² = d² · 8/9. Objectness 0.5 becomes 0.75: d = 1/4.
        (4, math.log(3), 1 / 16 * 8 / 9),
        # Class 0 was 0.5 and becomes 0.2: d = 0.3.
        (FIRST_CLASS, -math.log(4), 0.09 * 8 / 9),
        # A box 1.5 times as wide about its centre: both sides move out by a quarter of the width.
        (2, math.log(1.5), 2 / 16 * 8 / 9),
        # Which anchor is said is no part of it: boxes are decoded against the one that was matched.
        (5, 9.0, 0.0),
    ],
)
@pytest.mark.parametrize("box", [FINE, MIDDLE], ids=["fine", "middle"])
def test_one_cell_of_nine_that_differs_costs_its_squared_distance_in_sizes_of_the_object(
    channel, change, expected, box
):
    boxes, classes, grids = agreeing_batch(box)
    scale, row, column = (2, 6, 3) if box == FINE else (1, 1, 2)  # beside the cell of the centre
    grids = [np.array(grid) for grid in grids]
    grids[scale][0, row, column, channel] += change
    measured = breakdown_of((boxes, classes, grids), assignment="paper", **BOTH_EXTRAS)
    np.testing.assert_allclose(measured.sums["consensus"][scale], expected, rtol=1e-4, atol=1e-9)


def test_a_single_cell_has_no_one_to_disagree_with():
    measured = breakdown_of(small_batch(), assignment="single", **BOTH_EXTRAS)
    assert measured.counts["positives"].sum() > 3
    np.testing.assert_allclose(measured.sums["consensus"], 0.0, atol=1e-12)


def test_consensus_pulls_cells_together():
    off = {**dict.fromkeys(COEFFICIENTS, 0.0)}
    batch = small_batch()
    options = {"assignment": "paper", "coefficients": off, "consensus_scale": 1.0}
    before, gradients = gradients_of(batch, **options)
    moved = [grid - 1e-4 * gradient for grid, gradient in zip(batch[2], gradients, strict=True)]
    after, _ = gradients_of((*batch[:2], moved), **options)
    slope = sum((gradient.astype("float64") ** 2).sum() for gradient in gradients)
    # as much as the gradient promises, to first order
    assert before - after == pytest.approx(1e-4 * slope, rel=0.02)


def redundant_batch():
    """One object; the cell that answers shares 0.8 of its box, and the one on its right is ignored at IoU 0.647.

    The own cell says a box 12 / 0.8 pixels high around the true one of 12: IoU 0.8. The neighbour as in the test of
    the ignored cells, 1.5 px too far right. All objectness logits are 0 but the neighbour's, ln 3.
    """
    batch = quiet_batch((FINE, 1))
    exact = np.asarray(cells.offset_logits(ops.convert_to_tensor([0.9375, 0.375]), "sigmoid"))
    batch[2][2][0, 6, 2, :4] = [*exact, 0.0, math.log(1 / 0.8)]
    shifted = np.asarray(cells.offset_logits(ops.convert_to_tensor([0.125, 0.375]), "sigmoid"))
    batch[2][2][0, 6, 3, :5] = [*shifted, 0.0, 0.0, math.log(3)]
    return batch


def test_an_ignored_cell_is_silenced_by_how_much_worse_it_is_than_the_best():
    # (1 - (66 / 102) / 0.8) · ln(1 + 3)
    measured = breakdown_of(redundant_batch(), assignment="single", ignore_threshold=0.6, **BOTH_EXTRAS)
    np.testing.assert_array_equal(measured.counts["ignored"], [0, 0, 1])
    expected = (1 - 66 / 102 / 0.8) * math.log(4)
    assert expected > 0.2
    np.testing.assert_allclose(measured.sums["suppression"], [0, 0, expected], rtol=1e-4)
    # the cell is ignored all the same: no_object has the other 94 of 96, at ln 2
    np.testing.assert_allclose(measured.sums["no_object"][2], 94 * math.log(2), rtol=1e-5)


def test_an_ignored_cell_no_worse_than_the_best_costs_nothing():
    batch = redundant_batch()
    batch[2][2][0, 6, 2, 3] = math.log(1 / 0.6)  # the one that answers now has an IoU of 0.6, below 0.647
    measured = breakdown_of(batch, assignment="single", ignore_threshold=0.6, **BOTH_EXTRAS)
    np.testing.assert_array_equal(measured.counts["ignored"], [0, 0, 1])
    np.testing.assert_array_equal(measured.sums["suppression"], 0.0)


def test_suppression_moves_the_objectness_of_ignored_cells_and_nothing_else():
    off = dict.fromkeys(COEFFICIENTS, 0.0)
    options = {"assignment": "single", "ignore_threshold": 0.6, "coefficients": off, "suppression_scale": 1.7}
    _, gradients = gradients_of(redundant_batch(), **options)
    # the slope of ln(1 + e^x) at ln 3 is 3/4; the weight has no gradient
    expected = 1.7 * (1 - 66 / 102 / 0.8) * 0.75
    assert gradients[2][0, 6, 3, 4] == pytest.approx(expected, rel=1e-4)
    assert [np.count_nonzero(gradient) for gradient in gradients] == [0, 0, 1]


# ------------------------------------------------------------------------------------------------------- normalizers


@pytest.mark.parametrize(
    "words, expected",
    [
        # Three images; 9 cells answer at stride 16 and 18 at stride 8, none at 32; 18, 72 and 288 cells.
        ("batch", [3, 3, 3]),
        ("positives", [1, 9, 18]),
        ("grid", [18, 72, 288]),
        (("positives", "grid", "batch"), [54, 1944, 15552]),
        ((), [1, 1, 1]),
    ],
)
def test_normalizers_by_hand(words, expected):
    batch = make_batch([[(FINE, 0), (MIDDLE, 1)], [(FINE, 2)], []])
    measured = breakdown_of(batch, assignment="paper", loss_normalization=words)
    np.testing.assert_array_equal(measured.normalizers, expected)
    for name in LOSS_PARTS:
        np.testing.assert_allclose(measured.parts[name], measured.sums[name] / expected, rtol=1e-6)


# --------------------------------------------------------------------------------------- which cells count as what


def test_positive_negative_and_ignored_cells_are_all_cells():
    measured = breakdown_of(small_batch(), ignore_threshold=0.1, assignment="paper")
    together = sum(measured.counts[name] for name in ("positives", "negatives", "ignored"))
    np.testing.assert_array_equal(together, np.multiply(3, CELLS))
    np.testing.assert_array_equal(measured.counts["cells"], np.multiply(3, CELLS))
    np.testing.assert_array_equal(measured.counts["images"], [3, 3, 3])
    # The list of small_batch by hand, coarse to fine: (17..75) and (3..37); two around MIDDLE; five small ones.
    np.testing.assert_array_equal(measured.counts["objects"], [2, 2, 5])
    assert measured.counts["ignored"].sum() > 0


def quiet_batch(*labels):
    """One image whose cells predict specks, so that no cell is ignored, with zeros for all logits."""
    boxes, classes, grids = make_batch([labels], spread=0.0)
    for grid in grids:
        grid[..., 2:4] = -10.0
    return boxes, classes, grids


@pytest.mark.parametrize("threshold, ignored", [(0.6, 1), (0.69, 0)])
def test_a_negative_cell_that_overlaps_by_more_than_the_threshold_is_left_alone(threshold, ignored):
    # The cell right of the object's own predicts its box 1.5 px too far right: offset (25/8 - 3, 51/8 - 6). They share
    # 5.5·12 of 7·12 + 7·12 - 66: IoU 66 / 102 = 0.647. Zero logits cost ln 2 in each of the 94 or 95 cells left.
    batch = quiet_batch((FINE, 1))
    shifted = cells.offset_logits(ops.convert_to_tensor([0.125, 0.375]), "sigmoid")
    batch[2][2][0, 6, 3, :4] = [*np.asarray(shifted), 0.0, 0.0]
    measured = breakdown_of(batch, assignment="single", ignore_threshold=threshold)
    np.testing.assert_array_equal(measured.counts["ignored"], [0, 0, ignored])
    np.testing.assert_array_equal(measured.counts["positives"], [0, 0, 1])
    np.testing.assert_allclose(measured.sums["no_object"], np.log(2) * np.array([6, 24, 95 - ignored]), rtol=1e-5)


def test_a_positive_cell_is_never_ignored_and_a_perfect_one_costs_what_its_logits_say():
    # The own cell predicts the object's box: offset (23.5/8 - 2, 51/8 - 6), sizes those of the anchor.
    batch = quiet_batch((FINE, 1))
    exact = cells.offset_logits(ops.convert_to_tensor([0.9375, 0.375]), "sigmoid")
    batch[2][2][0, 6, 2, :4] = [*np.asarray(exact), 0.0, 0.0]
    measured = breakdown_of(batch, assignment="single", ignore_threshold=0.6)
    np.testing.assert_array_equal(measured.counts["ignored"], 0)
    expected = {"localization": 0.0, "object": np.log(2), "anchor": np.log(2), "classification": 3 * np.log(2)}
    for name, value in expected.items():
        np.testing.assert_allclose(measured.parts[name], [0, 0, value], atol=1e-5, err_msg=name)


def test_padding_ignores_no_cell():
    # The same box as padding: the cell that predicts it is negative.
    batch = quiet_batch((FINE, -1))
    exact = cells.offset_logits(ops.convert_to_tensor([0.9375, 0.375]), "sigmoid")
    batch[2][2][0, 6, 2, :4] = [*np.asarray(exact), 0.0, 0.0]
    measured = breakdown_of(batch, assignment="single", ignore_threshold=0.6)
    np.testing.assert_array_equal(measured.counts["negatives"], CELLS)
    np.testing.assert_array_equal(measured.counts["objects"], 0)


# --------------------------------------------------------------------------------------------------- whole batches


@pytest.mark.parametrize("words", ["batch", "positives", "grid"])
def test_a_batch_and_its_double_have_one_loss(words):
    boxes, classes, grids = make_batch([[(FINE, 2), ((17, 9, 75, 51), 1)], [], [(MIDDLE, 0)]])
    twice = (np.tile(boxes, (2, 1, 1)), np.tile(classes, (2, 1)), [np.tile(grid, (2, 1, 1, 1)) for grid in grids])
    once, double = (breakdown_of(b, loss_normalization=words) for b in ((boxes, classes, grids), twice))
    for name in LOSS_PARTS:
        np.testing.assert_allclose(double.parts[name], once.parts[name], rtol=1e-5, err_msg=name)
    assert float(double.total) == pytest.approx(float(once.total), rel=1e-5)


def test_the_order_of_images_and_of_objects_does_not_matter():
    boxes, classes, grids = small_batch()
    images, objects = [2, 0, 1], [4, 0, 5, 2, 1, 3]
    mixed = (boxes[images][:, objects], classes[images][:, objects], [grid[images] for grid in grids])
    plain, mixed = breakdown_of(small_batch()), breakdown_of(mixed)
    for name in LOSS_PARTS:
        np.testing.assert_allclose(mixed.parts[name], plain.parts[name], rtol=1e-5, err_msg=name)


def test_more_padding_changes_nothing():
    boxes, classes, grids = small_batch()
    more = np.concatenate([np.full((3, 7, 4), np.nan, "float32"), boxes], axis=1)
    padded = breakdown_of((more, np.concatenate([np.full((3, 7), -1, "int32"), classes], axis=1), grids))
    plain = breakdown_of(small_batch())
    for name in LOSS_PARTS:
        np.testing.assert_allclose(padded.parts[name], plain.parts[name], rtol=1e-5, err_msg=name)
    for name in plain.counts:
        np.testing.assert_allclose(padded.counts[name], plain.counts[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("objects", [0, 6])
def test_images_without_objects_cost_only_objectness_and_have_finite_gradients(objects):
    batch = make_batch([[], [], []], objects=objects)
    measured = breakdown_of(batch, loss_normalization="positives", **BOTH_EXTRAS)
    for name in (*OF_POSITIVES, *OPTIONAL_LOSS_PARTS):
        np.testing.assert_array_equal(measured.parts[name], 0.0, err_msg=name)
    # Every cell is negative: the sum over them of ln(1 + e^logit), divided by no less than 1.
    expected = [np.log1p(np.exp(grid[..., 4].astype("float64"))).sum() for grid in batch[2]]
    np.testing.assert_allclose(measured.parts["no_object"], expected, rtol=1e-5)
    _, gradients = gradients_of(batch, **BOTH_EXTRAS)
    for gradient, grid in zip(gradients, batch[2], strict=True):
        slope = COEFFICIENTS["no_object_scale"] / 3 / (1 + np.exp(-grid[..., 4]))
        np.testing.assert_allclose(gradient[..., 4], slope, rtol=1e-4)
        assert not np.delete(gradient, 4, axis=-1).any()


def test_weights_of_classes_multiply_the_classification_of_their_class_alone():
    weights = (2.0, 0.5, 3.0)
    for label, weight in enumerate(weights):
        batch = make_batch([[(FINE, label)], [], []], seed=label)
        plain, weighted = breakdown_of(batch), breakdown_of(batch, class_weights=weights)
        for name in LOSS_PARTS:
            factor = weight if name == "classification" else 1.0
            np.testing.assert_allclose(weighted.parts[name], factor * plain.parts[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_grids_of_low_precision_give_a_float32_loss(dtype):
    boxes, classes, grids = small_batch()
    low = [ops.cast(grid, dtype) for grid in grids]
    measured = breakdown_of((boxes, classes, low))
    same = breakdown_of((boxes, classes, [np.asarray(ops.cast(grid, "float32")) for grid in low]))
    assert measured.total.dtype == measured.normalizers.dtype == "float32"
    for name in LOSS_PARTS:
        assert measured.parts[name].dtype == "float32"
        np.testing.assert_allclose(measured.parts[name], same.parts[name], rtol=1e-5)


# ---------------------------------------------------------------------------------------------- NaN and the gradients


@functools.cache
def positive_cells_of_the_small_batch():
    """Which cells answer for an object, a list of [B, rows, columns] bool."""

    boxes, classes, grids = small_batch()
    layout = cells.layout_of(grids, STRIDES)
    positive = targets.positive_cells(encoder()(boxes, classes, grids), layout)
    return [np.asarray(grid)[..., 0] for grid in cells.unflatten(positive[..., None], layout)]


SMOOTH = (
    {"localization": "ciou", **BOTH_EXTRAS},
    {"localization": "diou", "classification": "focal", "focal_gamma": 0.5},
    {"localization": "giou", "classification": "softmax", "anchor": "bce", "iou_power": 0.5, **BOTH_EXTRAS},
    {"localization": "mse", "classification": "focal", "focal_gamma": 0.0, "offset_activation": "tanh"},
)
smooth_cases = pytest.mark.parametrize("options", SMOOTH, ids=lambda options: options["localization"])


@smooth_cases
def test_nan_in_what_a_negative_cell_says_beside_objectness_reaches_nothing(options):
    clean, spoilt = small_batch(), [np.array(grid) for grid in small_batch()[2]]
    assert not breakdown_of(clean).counts["ignored"].any()
    rubbish = [channel for channel in range(CHANNELS) if channel != 4]
    for grid, positive in zip(spoilt, positive_cells_of_the_small_batch(), strict=True):
        grid[..., rubbish] = np.where(positive[..., None], grid[..., rubbish], np.nan)
    assert all(np.isnan(grid).any() for grid in spoilt)
    total, gradients = gradients_of((*clean[:2], spoilt), **options)
    expected, clean_gradients = gradients_of(clean, **options)
    assert total == pytest.approx(expected, rel=1e-5)
    for gradient, without in zip(gradients, clean_gradients, strict=True):
        np.testing.assert_allclose(gradient, without, rtol=1e-4, atol=1e-6)


def test_nan_in_the_objectness_of_a_negative_cell_is_a_real_loss():
    boxes, classes, grids = small_batch()
    spoilt = [np.array(grid) for grid in grids]
    spoilt[2][1, 7, 11, 4] = np.nan
    measured = breakdown_of((boxes, classes, spoilt))
    assert np.isnan(measured.total) and np.isnan(measured.parts["no_object"][2])
    assert np.isfinite(measured.parts["no_object"][:2]).all()
    assert all(np.isfinite(measured.parts[name]).all() for name in OF_POSITIVES)


def test_nan_in_the_objectness_and_classes_of_an_ignored_cell_reaches_nothing():
    batch = quiet_batch((FINE, 1))
    shifted = cells.offset_logits(ops.convert_to_tensor([0.125, 0.375]), "sigmoid")
    batch[2][2][0, 6, 3, :4] = [*np.asarray(shifted), 0.0, 0.0]
    batch[2][2][0, 6, 3, [4, *range(FIRST_CLASS, CHANNELS)]] = np.nan
    total, gradients = gradients_of(batch, assignment="single", ignore_threshold=0.6)
    assert math.isfinite(total)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    assert not gradients[2][0, 6, 3].any()


@pytest.mark.parametrize("channel, name", [(0, "localization"), (3, "localization"), (8, "classification")])
def test_nan_in_a_positive_cell_is_a_real_loss(channel, name):
    batch = quiet_batch((FINE, 1))
    batch[2][2][0, 6, 2, channel] = np.nan
    measured = breakdown_of(batch, assignment="single", ignore_threshold=0.6)
    assert np.isnan(measured.parts[name][2]) and np.isnan(measured.total)
    assert np.isfinite(np.asarray(measured.parts[name])[:2]).all()


@smooth_cases
@pytest.mark.parametrize("spread", [0.0, 1.0, 50.0])
def test_gradients_are_finite_for_border_boxes_tiny_boxes_and_huge_logits(options, spread):
    border = [((0, 0, 6, 11), 0), ((88.9, 57, 96, 64), 1), ((0, 0, 96, 64), 2), ((0, 30.5, 96, 31), 0)]
    tiny = [((41.3, 20.7, 41.3 + 1e-3, 20.7 + 2e-3), 1), ((8, 8, 8.01, 60), 2), ((5, 9, 5, 9), 0), (FINE, 1)]
    batch = make_batch([border, tiny, []], spread=0.0)
    signs = np.random.default_rng(7)
    for grid in batch[2]:
        grid += spread * signs.choice([-1.0, 1.0], grid.shape)
    total, gradients = gradients_of(batch, assignment="paper", **options)
    assert math.isfinite(total) and total > 0.0
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        if spread == 0.0:
            assert gradient.any()


def test_the_iou_in_the_target_of_objectness_takes_no_gradient():
    coefficients = {**dict.fromkeys(COEFFICIENTS, 0.0), "object_scale": 1.3}
    _, gradients = gradients_of(small_batch(), coefficients=coefficients)
    for gradient in gradients:
        assert gradient[..., 4].any()
        np.testing.assert_array_equal(np.delete(gradient, 4, axis=-1), 0.0)


# ------------------------------------------------------------------------------------------------------ construction


def test_the_config_gives_the_same_loss_back():
    options = {
        "offset_activation": "tanh",
        "assignment": "paper",
        "localization": "giou",
        "classification": "focal",
        "anchor": "bce",
        "label_smoothing": 0.1,
        "class_weights": [0.5, 2.0, 1.5],
        "focal_gamma": 1.5,
        "focal_alpha": 0.4,
        "iou_power": 0.5,
        "iou_blend": 0.8,
        "ignore_threshold": 0.35,
        "loss_normalization": ["batch", "positives"],
        "strides": [32, 16, 8],
        **BOTH_EXTRAS,
    }
    loss = criterion(**options, **COEFFICIENTS)
    kept = loss.get_config()
    stored = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    for again in (MultiGridLoss.from_config(kept), keras.saving.deserialize_keras_object(stored)):
        assert isinstance(again, MultiGridLoss) and again.get_config() == kept
    for name, value in {**options, **COEFFICIENTS}.items():
        assert kept[name] == (tuple(value) if name in ("loss_normalization", "strides") else value)
    scales = COEFFICIENTS | BOTH_EXTRAS
    assert again.coefficients == {part: scales[scale] for part, scale in (LOSS_PARTS | OPTIONAL_LOSS_PARTS).items()}


@pytest.mark.parametrize(
    "options, message",
    [
        ({"assignment": "all"}, "assignment: expected one of inside, paper, single, best, across, received 'all'"),
        ({"localization": "iou"}, "localization: expected one of ciou, diou, giou, mse, received 'iou'"),
        ({"classification": "mse"}, "classification: expected one of bce, softmax, focal, received 'mse'"),
        ({"anchor": "focal"}, "anchor: expected one of softmax, bce, received 'focal'"),
        ({"loss_normalization": "mean"}, "loss_normalization: expected one of batch, positives, grid, received 'mean'"),
        ({"loss_normalization": ["grid", "cells"]}, "received 'cells'"),
        ({"class_weights": [1.0, 2.0]}, "class_weights: expected 3 numbers, one a class, received 2"),
    ],
)
def test_a_word_that_is_not_known_is_an_error_at_once(options, message):
    with pytest.raises(ValueError) as error:
        criterion(**options)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------------------------- graphs


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="on JAX every test here runs compiled")
@pytest.mark.parametrize("xla", [False, True], ids=["any size", "XLA"])
def test_in_a_graph_the_loss_is_the_same(xla):
    import tensorflow as tf

    def spec(array, free, dtype="float32"):
        """The array's own shape for XLA; else its first axes may be of any size."""
        return tf.TensorSpec(array.shape if xla else (*[None] * free, *array.shape[free:]), dtype)

    boxes, classes, grids = small_batch()
    signature = [spec(boxes, 2), spec(classes, 2, "int32"), *(spec(grid, 3) for grid in grids)]

    def whole(boxes, classes, *grids):
        loss = criterion(assignment="across", **COEFFICIENTS, **BOTH_EXTRAS)
        return loss.breakdown(loss.encode({"boxes": boxes, "classes": classes}, grids), grids)

    traced = tf.function(whole, input_signature=signature, jit_compile=xla)
    measured, plain = (
        as_numpy(traced(boxes, classes, *grids)),
        breakdown_of(small_batch(), assignment="across", **BOTH_EXTRAS),
    )
    for name in plain.parts:
        np.testing.assert_allclose(measured.parts[name], plain.parts[name], rtol=1e-4, err_msg=name)
    for name in plain.counts:
        np.testing.assert_allclose(measured.counts[name], plain.counts[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_makes_the_loss_nan_instead_of_going_unseen(wrong):
    criterion = MultiGridLoss(ANCHORS, 3)
    outputs = [ops.zeros((1, 64 // stride, 96 // stride, 5 + len(ANCHORS[0]) + 3)) for stride in (32, 16, 8)]
    boxes = np.array([[[3, 5, 51, 40], [20, 11, 36, 40], [0, 0, 0, 0]]], "float32")
    classes = np.array([[0, 2, -1]], "int32")
    assert np.isfinite(float(criterion({"boxes": boxes, "classes": classes}, outputs)))
    padded, labelled = boxes.copy(), boxes.copy()
    padded[0, 2, 1] = labelled[0, 1, 2] = wrong
    assert np.isfinite(float(criterion({"boxes": padded, "classes": classes}, outputs)))
    assert np.isnan(float(criterion({"boxes": labelled, "classes": classes}, outputs)))
