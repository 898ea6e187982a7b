"""The encoder: which cells answer for an object, who wins a cell that two want; decoding gives the box back."""

import functools

import numpy as np
import pytest
from backends import compiled
from keras import ops

from multigrid.geometry import cells
from multigrid.losses import targets

pytestmark = pytest.mark.backend

STRIDES = (32, 16, 8)
SHAPES = ((2, 3), (4, 6), (8, 12))  # rows, columns of a 64 × 96 input (height × width)
FIRST_CELLS = (0, 6, 30)
CELLS = 126
MOST_OBJECTS = 60  # all images are padded to one size: another size is compiled anew on JAX
NUM_CLASSES = 4
# (width, height), coarse to fine; of unlike shapes, so that a swap of the two picks another anchor.
ANCHORS = np.array([[[60, 45], [33, 80]], [[28, 19], [15, 34]], [[7, 12], [13, 5]]], "float32")

# One object a scale whose nine cells all exist, and what should be found of it.
COARSE = (17.0, 9.0, 75.0, 51.0)  # 58 × 42 around (46, 30): stride 32, column 1, row 0; the row above does not exist
MIDDLE = (38.0, 20.2, 68.0, 38.2)  # 30 × 18 around (53, 29.2): stride 16, column 3, row 1
FINE = (20.1, 45.3, 26.3, 58.3)  # 6.2 × 13 around (23.2, 51.8): stride 8, column 2, row 6


def layout():
    return cells.layout_of([np.zeros((1, *shape, 1), "float32") for shape in SHAPES], STRIDES)


@functools.cache
def encoder(assignment):
    """`targets.encode` for a 64 × 96 input, of boxes, classes and predictions."""
    return compiled(lambda *arrays: targets.encode(*arrays[:2], layout(), ANCHORS, assignment, arrays[2]))


def encode_batch(boxes, classes, assignment="paper", predicted=None):
    """Targets of images [B, M] that are padded to `MOST_OBJECTS`."""
    more = ((0, 0), (0, MOST_OBJECTS - classes.shape[1]))
    boxes = np.pad(boxes, (*more, (0, 0))).astype("float32")
    classes = np.pad(classes, more, constant_values=-1).astype("int32")
    predicted = np.zeros((len(boxes), CELLS, 4)) if predicted is None else predicted
    return encoder(assignment)(boxes, classes, np.asarray(predicted, "float32"))


def encode(boxes, classes=None, assignment="paper", predicted=None):
    """Targets of one image as NumPy, without batch and padding; classes count up from 0 when not given."""
    boxes = np.array(boxes, "float32").reshape(1, -1, 4)
    classes = np.arange(boxes.shape[1])[None] if classes is None else np.array([classes])
    encoded = encode_batch(boxes, classes, assignment, None if predicted is None else predicted[None])
    return targets.Targets(*(np.asarray(field)[0, : boxes.shape[1]] for field in encoded))


def cell_index(scale, column, row):
    return FIRST_CELLS[scale] + row * SHAPES[scale][1] + column


def claims(encoded, index=0, which="positive", scale=None):
    """The cells of a scale, its own if none is named, that answer for an object, as (column, row)."""
    scale = encoded.own_scale[index] if scale is None else scale
    mine = getattr(encoded, which)[index] & (encoded.scale[index] == scale)
    columns = SHAPES[scale][1]
    return sorted((int(c) % columns, int(c) // columns) for c in encoded.cell[index][mine] - FIRST_CELLS[scale])


def random_boxes(rng, count):
    """Boxes of all sizes inside a 64 × 96 input."""
    size = rng.uniform((3, 3), (80, 55), (count, 2)) * rng.uniform(0.1, 1.0, (count, 1)) + 1.0
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (np.array([96, 64]) - size)
    return np.concatenate([corner, corner + size], axis=1).astype("float32")


# ------------------------------------------------------------------------------------------------------- matching


@pytest.mark.parametrize(
    "box, scale, anchor, anchor_size",
    [(COARSE, 0, 0, (60, 45)), (MIDDLE, 1, 0, (28, 19)), (FINE, 2, 0, (7, 12)), ((3, 2, 37, 62), 0, 1, (33, 80))],
)
def test_the_anchor_of_best_iol_takes_the_object(box, scale, anchor, anchor_size):
    encoded = encode([box])
    assert encoded.own_scale[0] == scale and (encoded.scale[0] == scale).all() and (encoded.anchor[0] == anchor).all()
    size = np.subtract(box[2:], box[:2])
    np.testing.assert_allclose(encoded.log_size[0], np.tile(np.log(size / anchor_size), (9, 1)), atol=1e-5)


@pytest.mark.parametrize(
    "size, match",
    [
        # 8 × 12 shares 7·12 of 96 with 7 × 12 and 8·5 of 96 with 13 × 5; 12 × 8 shares 7·8 and 12·5.
        ((8, 12), (2, 0)),
        ((12, 8), (2, 1)),
        # 16 × 33 shares 15·33 of 528 with 15 × 34 and 16·19 of 532 with 28 × 19; 33 × 16 shares 15·16 and 28·16.
        ((16, 33), (1, 1)),
        ((33, 16), (1, 0)),
    ],
)
def test_a_tall_box_and_its_wide_twin_go_to_different_anchors(size, match):
    encoded = encode([(41, 13, 41 + size[0], 13 + size[1])])
    assert {*zip(encoded.scale[0].tolist(), encoded.anchor[0].tolist(), strict=True)} == {match}


# ------------------------------------------------------------------------------------------------ which cells answer


def test_in_the_interior_paper_claims_nine_cells_and_single_one():
    for box, column, row in ((MIDDLE, 3, 1), (FINE, 2, 6)):
        nine = [(column + x, row + y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
        assert claims(encode([box])) == nine
        assert claims(encode([box], assignment="single")) == [(column, row)]


@pytest.mark.parametrize(
    "box, expected",
    [
        # Stride 16: x 38..68 holds the cell centres 40 and 56, not 72; y 20.2..38.2 holds 24, not 8 and 40.
        (MIDDLE, [(2, 1), (3, 1)]),
        # 14 × 36 around the same (53, 29.2): x 46..60 holds 56 alone; y 11.2..47.2 holds 24 and 40, not 8.
        ((46, 11.2, 60, 47.2), [(3, 1), (3, 2)]),
        # Stride 32, own cell (1, 0), no row above. x 17..75 holds 48, not 16 and 80; y 9..51 holds 16 and 48.
        (COARSE, [(1, 0), (1, 1)]),
        # Stride 8: x 20.1..26.3 holds 20? no, 20 < 20.1. y 45.3..58.3 holds 52, the own cell's, not 44 and 60. The own
        # cell (2, 6) has its centre (20, 52) outside the box and answers all the same.
        (FINE, [(2, 6)]),
        # 40 × 21 around (46, 33.5), stride 16, own cell (2, 2): x 26..66 holds 40, 56, not 24; y 23..44 holds 24, 40.
        ((26, 23, 66, 44), [(2, 1), (2, 2), (3, 1), (3, 2)]),
    ],
)
def test_inside_claims_the_neighbours_whose_centre_lies_in_the_box(box, expected):
    assert claims(encode([box], assignment="inside")) == expected


@pytest.mark.parametrize(
    "box, scale, expected",
    [
        # 6 × 11 in the upper left corner: own cell (0, 0) of stride 8 and three neighbours that exist.
        ((0, 0, 6, 11), 2, [(0, 0), (0, 1), (1, 0), (1, 1)]),
        # 6 × 12 at the right border, around (93, 21): column 11 is the last; row 2.
        ((90, 15, 96, 27), 2, [(10, 1), (10, 2), (10, 3), (11, 1), (11, 2), (11, 3)]),
        # 26 × 20 at the lower border, around (37, 54), stride 16: column 2, row 3 is the last.
        ((24, 44, 50, 64), 1, [(1, 2), (1, 3), (2, 2), (2, 3), (3, 2), (3, 3)]),
        # All of the image, stride 32, around (48, 32): own cell (1, 1) of 2 rows and 3 columns.
        ((0, 0, 96, 64), 0, [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]),
    ],
)
def test_at_the_border_only_cells_that_exist_answer(box, scale, expected):
    encoded = encode([box])
    assert encoded.own_scale[0] == scale
    assert claims(encoded) == claims(encoded, which="claimed") == expected


def test_a_centre_on_the_right_and_lower_border_belongs_to_the_last_cell():
    # Boxes that reach over the border, so that the centre lies on it: (96, 30) and (21, 64), stride 8.
    encoded = encode([(92.5, 24, 99.5, 36), (18, 58, 24, 70)])
    assert claims(encoded, 0) == [(10, 2), (10, 3), (10, 4), (11, 2), (11, 3), (11, 4)]
    own = encoded.cell[0] == cell_index(2, 11, 3)
    np.testing.assert_allclose(encoded.offset[0][own & encoded.positive[0]], [[1.0, 0.75]], atol=1e-6)
    assert claims(encoded, 1) == [(1, 6), (1, 7), (2, 6), (2, 7), (3, 6), (3, 7)]
    own = encoded.cell[1] == cell_index(2, 2, 7)
    np.testing.assert_allclose(encoded.offset[1][own & encoded.positive[1]], [[0.625, 1.0]], atol=1e-6)


def test_offsets_are_measured_from_each_cells_own_corner():
    # Centre (23.2, 51.8) at stride 8 is (2.9, 6.475): seen from (2, 6) that is (0.9, 0.475), from (1, 7) (1.9, -0.525).
    encoded = encode([FINE])
    for column, row, offset in ((2, 6, (0.9, 0.475)), (1, 7, (1.9, -0.525)), (3, 5, (-0.1, 1.475))):
        at = encoded.cell[0] == cell_index(2, column, row)
        np.testing.assert_allclose(encoded.offset[0][at], [offset], atol=1e-5)


def test_best_keeps_the_two_cells_of_the_nine_that_predict_the_box_best():
    rng = np.random.default_rng(8)
    truth = np.concatenate([random_boxes(rng, 6), [MIDDLE, FINE]])
    # Predictions around the true boxes, so that their overlaps differ widely.
    predicted = truth[rng.integers(0, len(truth), CELLS)] + rng.normal(scale=6.0, size=(CELLS, 4)).astype("float32")
    predicted = np.concatenate([np.minimum(predicted[:, :2], predicted[:, 2:] - 1), predicted[:, 2:]], axis=1)
    paper = encode(truth)
    encoded = encode(truth, assignment="best", predicted=predicted)
    for index, (x1, y1, x2, y2) in enumerate(truth):
        scores = []
        for slot in np.flatnonzero(paper.claimed[index]):
            px1, py1, px2, py2 = predicted[paper.cell[index, slot]]
            shared = max(0.0, min(x2, px2) - max(x1, px1)) * max(0.0, min(y2, py2) - max(y1, py1))
            overlap = shared / ((x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - shared)
            dx, dy = paper.offset[index, slot] - 0.5
            scores.append(((overlap + 0.05) * np.exp(-0.3 * (dx * dx + dy * dy)), slot))
        kept = sorted(slot for _, slot in sorted(scores)[-2:])
        assert np.flatnonzero(encoded.claimed[index]).tolist() == kept


def test_best_keeps_two_even_where_all_fit_alike():
    # The centre (44, 28) is the middle of cell (5, 3) of stride 8 and nothing is predicted there: four neighbours tie.
    nothing = np.tile(np.array([0, 0, 1, 1], "float32"), (CELLS, 1))
    encoded = encode([(40.5, 22, 47.5, 34)], assignment="best", predicted=nothing)
    assert encoded.claimed[0].sum() == 2 and encoded.claimed[0][cells.OWN_CELL]


def test_best_does_with_one_cell_where_the_grid_has_no_more():
    # A 32 × 32 input: one cell at stride 32, four and sixteen at the finer ones.
    one_cell = cells.layout_of([np.zeros((1, *shape, 1), "float32") for shape in ((1, 1), (2, 2), (4, 4))], STRIDES)
    boxes, predicted = np.array([[[1, 2, 31, 25]]], "float32"), np.tile(np.array([0, 0, 9, 5], "float32"), (1, 21, 1))
    encode_it = compiled(lambda *arrays: targets.encode(arrays[0], [[0]], one_cell, ANCHORS / 2, "best", arrays[1]))
    encoded = encode_it(boxes, predicted)
    assert np.asarray(encoded.own_scale).tolist() == [[0]] and np.asarray(encoded.claimed).sum() == 1


def best_two(truth, index, scale, predicted, guest=False):
    """The cells of a scale that fit an object best, as (column, row), by a plain sort; a guest needs cells inside."""
    x1, y1, x2, y2 = truth[index].astype("float64")
    scores = []
    for cell in range(FIRST_CELLS[scale], FIRST_CELLS[scale] + SHAPES[scale][0] * SHAPES[scale][1]):
        column, row = (cell - FIRST_CELLS[scale]) % SHAPES[scale][1], (cell - FIRST_CELLS[scale]) // SHAPES[scale][1]
        x, y = (x1 + x2) / 2 / STRIDES[scale], (y1 + y2) / 2 / STRIDES[scale]
        if abs(np.floor(x) - column) > 1 or abs(np.floor(y) - row) > 1:
            continue
        inside = x1 < (column + 0.5) * STRIDES[scale] < x2 and y1 < (row + 0.5) * STRIDES[scale] < y2
        if guest and not inside and (np.floor(x), np.floor(y)) != (column, row):
            continue
        px1, py1, px2, py2 = predicted[cell].astype("float64")
        shared = max(0.0, min(x2, px2) - max(x1, px1)) * max(0.0, min(y2, py2) - max(y1, py1))
        overlap = shared / ((x2 - x1) * (y2 - y1) + (px2 - px1) * (py2 - py1) - shared)
        away = (x - column - 0.5) ** 2 + (y - row - 0.5) ** 2
        scores.append(((overlap + 0.05) * np.exp(-0.3 * away), (column, row)))
    return sorted(place for _, place in sorted(scores)[-2:])


def test_across_keeps_two_cells_in_the_grid_beside_too_of_those_inside_the_box():
    truth = np.array([MIDDLE, FINE, COARSE])
    predicted = random_boxes(np.random.default_rng(5), CELLS)
    encoded = encode(truth, assignment="across", predicted=predicted)
    assert encoded.own_scale.tolist() == [1, 2, 0]
    for index, own, beside in ((0, 1, 0), (1, 2, 1), (2, 0, 1)):
        assert claims(encoded, index, "claimed") == best_two(truth, index, own, predicted)
        others = {scale: claims(encoded, index, "claimed", scale) for scale in range(3) if scale != own}
        expected = {
            other: best_two(truth, index, other, predicted, guest=True) if other == beside else [] for other in others
        }
        assert others == expected


def test_across_measures_each_claim_by_the_stride_and_anchors_of_its_own_grid():
    # 30 × 18 around (53, 29.2): at stride 16 (3.3125, 1.825), at stride 32 (1.65625, 0.9125), where it is a larger
    # share of the anchor 33 × 80 than of 60 × 45.
    encoded = encode([MIDDLE], assignment="across", predicted=random_boxes(np.random.default_rng(5), CELLS))
    assert encoded.scale[0].tolist() == [1] * 9 + [0] * 9
    assert encoded.cell[0][9 + cells.OWN_CELL] == cell_index(0, 1, 0)
    np.testing.assert_allclose(encoded.offset[0][9 + cells.OWN_CELL], [0.65625, 0.9125], atol=1e-5)
    beside = encoded.scale[0] == 0
    assert set(encoded.anchor[0][beside].tolist()) == {1}
    np.testing.assert_allclose(encoded.log_size[0][beside][0], np.log([30 / 33, 18 / 80]), atol=1e-5)
    np.testing.assert_allclose(encoded.log_size[0][~beside][0], np.log([30 / 28, 18 / 19]), atol=1e-5)


@pytest.mark.parametrize(
    ("scales", "reached"),
    [(1, [[0]]), (2, [[0], [1]]), (3, [[0, 1], [0, 1], [1, 2]]), (4, [[0, 1], [0, 1], [1, 2], [2, 3]])],
)
def test_across_sends_no_guests_into_the_finest_of_however_many_grids(scales, reached):
    shapes, strides = (*SHAPES, (16, 24))[:scales], (*STRIDES, 4)[:scales]
    anchors = np.concatenate([ANCHORS, [[[4, 6], [6, 3]]]])[:scales]
    grids = cells.layout_of([np.zeros((1, *shape, 1), "float32") for shape in shapes], strides)
    boxes = np.array([[COARSE, MIDDLE, FINE, (50, 20, 54, 26)][:scales]], "float32")
    encode_it = compiled(
        lambda *arrays: targets.encode(arrays[0], [list(range(scales))], grids, anchors, "across", arrays[1])
    )
    encoded = encode_it(boxes, np.zeros((1, grids.first_cells[-1], 4), "float32"))
    assert np.asarray(encoded.own_scale)[0].tolist() == list(range(scales))
    claimed, scale = np.asarray(encoded.claimed)[0], np.asarray(encoded.scale)[0]
    assert [sorted(set(scale[row][claimed[row]].tolist())) for row in range(scales)] == reached


def test_best_needs_predictions_and_a_word_must_be_known():
    with pytest.raises(ValueError, match="expected predicted_boxes, received None"):
        compiled(lambda boxes: targets.encode(boxes, [[1]], layout(), ANCHORS, "best"))(np.array([[FINE]], "float32"))
    with pytest.raises(ValueError, match="expected one of inside, paper, single, best, across, received 'all'"):
        encode([FINE], assignment="all")


# ---------------------------------------------------------------------------------------------------------- collisions


def test_a_cell_goes_to_the_object_whose_centre_lies_in_it_even_if_another_is_nearer():
    # Stride 8. The first centre (23.9, 51.9) lies in the last corner of cell (2, 6), 0.69 cells from its middle; the
    # second (24.1, 52) lies 0.01 cells right of that cell's border, in (3, 6).
    encoded = encode([(20.9, 45.9, 26.9, 57.9), (21.1, 46.5, 27.1, 57.5)])
    assert (2, 6) in claims(encoded, 0) and (2, 6) not in claims(encoded, 1)
    assert (3, 6) in claims(encoded, 1) and (3, 6) not in claims(encoded, 0)


def test_an_own_cell_beats_a_nearer_neighbour():
    # Stride 8, cell (4, 2), middle (36, 20). The first centre (39.9, 23.9) lies in it, 0.69 cells from its middle; the
    # second (36, 15.9) does not, and is 0.51 cells away.
    encoded = encode([(36.9, 17.9, 42.9, 29.9), (33, 10.4, 39, 21.4)])
    assert (4, 2) in claims(encoded, 0) and (4, 2) not in claims(encoded, 1)
    assert (4, 2) in claims(encoded, 1, "claimed")


def test_of_two_neighbours_the_nearer_centre_wins():
    # Stride 8. Centres (29, 20) and (46, 20) in columns 3 and 5, row 2; the middle of column 4 is 36: 7 and 10 away.
    encoded = encode([(26, 14, 32, 26), (43, 14, 49, 26)])
    for row in (1, 2, 3):
        assert (4, row) in claims(encoded, 0) and (4, row) not in claims(encoded, 1)
    assert len(claims(encoded, 0)) == 9 and len(claims(encoded, 1)) == 6


def test_of_two_centres_in_one_cell_the_nearer_to_its_middle_wins():
    # Cell (4, 2) of stride 8 has its middle at (36, 20): (33, 19) is √10 away, (37, 22) √5.
    encoded = encode([(30, 13, 36, 25), (34, 16, 40, 28)])
    assert (4, 2) not in claims(encoded, 0) and (4, 2) in claims(encoded, 1)


def test_on_one_centre_the_smaller_box_wins():
    # 8 × 14 and 6 × 11 around (36.5, 21.5), whichever comes first.
    large, small = (32.5, 14.5, 40.5, 28.5), (33.5, 16, 39.5, 27)
    for first, second, winner in ((large, small, 1), (small, large, 0)):
        encoded = encode([first, second])
        assert len(claims(encoded, winner)) == 9 and claims(encoded, 1 - winner) == []
        assert len(claims(encoded, 1 - winner, "claimed")) == 9


def test_of_identical_boxes_the_earlier_wins():
    encoded = encode([MIDDLE, FINE, FINE, FINE], classes=[3, 2, 1, 0])
    assert [len(claims(encoded, index)) for index in range(4)] == [9, 9, 0, 0]


def test_objects_of_different_scales_do_not_collide():
    # 30 × 18 and 7 × 12 on one centre (53, 29.2).
    encoded = encode([MIDDLE, (49.5, 23.2, 56.5, 35.2)])
    assert encoded.own_scale.tolist() == [1, 2]
    assert encoded.positive.all()


def test_no_cell_answers_for_two_objects_however_many_want_it():
    boxes = random_boxes(np.random.default_rng(3), 60)
    encoded = encode(boxes, classes=[0] * 60)
    won = encoded.cell[encoded.positive]
    assert len(won) == len(set(won.tolist()))
    # Every cell that is wanted is given to somebody.
    assert set(won.tolist()) == set(encoded.cell[encoded.claimed].tolist())
    assert encoded.claimed.sum() > 2 * encoded.positive.sum()


@pytest.mark.parametrize("assignment", ["paper", "across"])
def test_the_winners_of_a_crowd_are_those_of_a_plain_sort(assignment):
    boxes = random_boxes(np.random.default_rng(4), 40)
    encoded = encode(boxes, [0] * 40, assignment, random_boxes(np.random.default_rng(5), CELLS))
    wanted = {}
    for index, slot in zip(*np.nonzero(encoded.claimed), strict=True):
        x, y = encoded.offset[index, slot].astype("float64")
        own = 0.0 <= x < 1.0 and 0.0 <= y < 1.0
        area = np.prod(boxes[index, 2:] - boxes[index, :2])
        guest = encoded.scale[index, slot] != encoded.own_scale[index]
        rank = (guest, not own, round((x - 0.5) ** 2 + (y - 0.5) ** 2, 6), area, index)
        wanted.setdefault(int(encoded.cell[index, slot]), []).append((rank, index, slot))
    winners = {(index, slot) for ranked in wanted.values() for _, index, slot in [min(ranked)]}
    assert winners == set(zip(*np.nonzero(encoded.positive), strict=True))


# ------------------------------------------------------------------------------------------------ padding and batches


@pytest.mark.parametrize("rubbish", [0.0, 1e30, np.nan, np.inf])
def test_padding_claims_nothing_whatever_it_holds(rubbish):
    boxes = np.full((5, 4), rubbish, "float32")
    boxes[1], boxes[3] = MIDDLE, FINE
    padded = encode(boxes, classes=[-1, 1, -1, 0, -1])
    plain = encode([MIDDLE, FINE], classes=[1, 0])
    assert not padded.claimed[[0, 2, 4]].any() and not padded.positive[[0, 2, 4]].any()
    for field, expected in zip(padded, plain, strict=True):
        np.testing.assert_allclose(field[[1, 3]], expected, rtol=1e-6)


def test_padding_that_looks_like_a_box_claims_nothing():
    encoded = encode([MIDDLE, MIDDLE, (40.0, 21.0, 66.0, 38.0)], classes=[-1, 2, -1])
    assert encoded.positive.sum(axis=1).tolist() == [0, 9, 0]


@pytest.mark.parametrize("box", [(30, 20, 30, 40), (30, 20, 50, 20), (30, 20, 30, 20), (50, 40, 30, 20)])
def test_a_box_without_area_claims_nothing(box):
    encoded = encode([box, MIDDLE])
    assert encoded.claimed.sum(axis=1).tolist() == [0, 9]


@pytest.mark.parametrize("assignment", targets.ASSIGNMENTS)
def test_a_batch_is_encoded_as_its_images_one_by_one(assignment):
    rng = np.random.default_rng(6)
    boxes = random_boxes(rng, 3 * 12).reshape(3, 12, 4)
    classes = rng.integers(-1, NUM_CLASSES, (3, 12)).astype("int32")
    classes[1] = -1
    predicted = random_boxes(rng, 3 * CELLS).reshape(3, CELLS, 4)
    together = encode_batch(boxes, classes, assignment, predicted)
    positive = np.asarray(targets.positive_cells(together, layout()))
    for image in range(3):
        alone = encode(boxes[image], classes[image], assignment, predicted[image])
        for field, expected in zip(together, alone, strict=True):
            np.testing.assert_allclose(np.asarray(field)[image, :12], expected, rtol=1e-6)
        assert sorted(alone.cell[alone.positive]) == np.flatnonzero(positive[image]).tolist()
    assert not positive[1].any() and positive[2].any()


def test_gathered_values_are_those_of_the_claimed_cells_of_the_same_image():
    values = np.arange(2 * CELLS * 3, dtype="float32").reshape(2, CELLS, 3)
    cell = np.random.default_rng(1).integers(0, CELLS, (2, 5, 9)).astype("int32")
    gathered = np.asarray(targets.gather_cells(ops.convert_to_tensor(values), cell))
    for image in range(2):
        np.testing.assert_array_equal(gathered[image], values[image][cell[image]])


# --------------------------------------------------------------------------------------------------------- round trip


def test_target_grids_hold_offset_size_objectness_anchor_and_class_in_the_cells_that_answer():
    encoded = encode_batch(np.array([[FINE, MIDDLE]]), np.array([[3, 1]]))
    grids = [np.asarray(grid)[0] for grid in targets.target_grids(encoded, layout(), 2, NUM_CLASSES)]
    assert [grid.shape for grid in grids] == [(*shape, 5 + 2 + NUM_CLASSES) for shape in SHAPES]
    assert [int(grid[..., 4].sum()) for grid in grids] == [0, 9, 9]
    # 6.2 × 13 against 7 × 12 and 30 × 18 against 28 × 19, both the first anchor of their scale.
    fine = [0.9, 0.475, np.log(6.2 / 7), np.log(13 / 12), 1, 1, 0, 0, 0, 0, 1]
    np.testing.assert_allclose(grids[2][6, 2], fine, atol=1e-5)
    # (53, 29.2) / 16 = (3.3125, 1.825), seen from column 4, row 0.
    middle = [-0.6875, 1.825, np.log(30 / 28), np.log(18 / 19), 1, 1, 0, 0, 1, 0, 0]
    np.testing.assert_allclose(grids[1][0, 4], middle, atol=1e-5)
    assert (grids[2][..., 4] == 0.0)[0].all() and (grids[2][grids[2][..., 4] == 0.0] == 0.0).all()


@functools.cache
def way_back(activation):
    """From targets to grids, to the raw outputs that say just that, to the boxes and classes these decode to."""

    def decode(*fields):
        grids = targets.target_grids(targets.Targets(*fields), layout(), 2, NUM_CLASSES)
        logits = [cells.offset_logits(grid[..., :2], activation) for grid in grids]
        outputs = [ops.concatenate([xy, grid[..., 2:]], axis=-1) for xy, grid in zip(logits, grids, strict=True)]
        channels = cells.split_channels(cells.flatten(outputs), 2)
        return cells.decode_boxes(channels, layout(), ANCHORS, activation), ops.argmax(channels.classes, axis=-1)

    return compiled(decode)


@pytest.mark.parametrize("activation", ["sigmoid", "tanh"])
@pytest.mark.parametrize("assignment", targets.ASSIGNMENTS)
def test_every_cell_that_answers_decodes_to_its_object(assignment, activation):
    # In the interior; at two corners and over the whole image; with the centre on a cell's corner (40, 24), beside two
    # that want some of the same cells.
    images = [
        [MIDDLE, FINE, COARSE],
        [(0, 0, 6, 11), (91, 58, 96, 64), (0, 0, 96, 64)],
        [(36.5, 18, 43.5, 30), (34, 14, 40.2, 26), (60, 30, 75, 62)],
    ]
    boxes, classes = np.array(images, "float32"), np.array([[3, 0, 1], [2, 2, 0], [1, 3, 0]])
    predicted = random_boxes(np.random.default_rng(2), 3 * CELLS).reshape(3, CELLS, 4)
    encoded = encode_batch(boxes, classes, assignment, predicted)
    decoded, named = (np.asarray(array) for array in way_back(activation)(*encoded))
    won, cell = np.asarray(encoded.positive), np.asarray(encoded.cell)
    for image, index, slot in zip(*np.nonzero(won), strict=True):
        np.testing.assert_allclose(decoded[image, cell[image, index, slot]], boxes[image, index], atol=1e-3)
        assert named[image, cell[image, index, slot]] == classes[image, index]
    # The objects of the first image lie apart, in three scales: none loses a cell there. COARSE has no row above it.
    expected = {"single": [1, 1, 1], "paper": [9, 9, 6], "inside": [2, 1, 2]}.get(assignment, [2, 2, 2])
    assert won[0, :3, :9].sum(axis=-1).tolist() == expected
    assert won[:, :3].any(axis=-1).all()
