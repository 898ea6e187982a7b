"""The IoU family against numbers worked out by hand, its invariants, and its gradients where boxes degenerate."""

import math

import numpy as np
import pytest
from backends import value_and_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from multigrid.geometry import boxes

pytestmark = pytest.mark.backend

FAMILY = (boxes.iou, boxes.giou, boxes.diou, boxes.ciou)
MANY = settings(max_examples=60, deadline=None)

# Multiples of 1/8 up to some hundreds: sums, differences and shifts of them are exact in float32.
eighths = st.integers(-400, 800).map(lambda n: n / 8.0)
sides = st.integers(8, 1600).map(lambda n: n / 8.0)
box = st.tuples(eighths, eighths, sides, sides).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))


def measured(function, first, second):
    return float(function(np.array(first, "float32"), np.array(second, "float32")))


@pytest.mark.parametrize(
    "first, second, iou, giou, diou, ciou",
    [
        # Areas 10·5 = 50 and 8·12 = 96, shared 6·3 = 18, union 128: IoU 18/128. Enclosing box 12·14 = 168: less 40/168.
        # Centres (7, 5.5) and (10, 11): 39.25 of the diagonal 144 + 196 = 340. Aspect: atan(10/5) - atan(8/12) =
        # 1.1071487 - 0.5880026, squared 0.2695127, times 4/π² is v = 0.1092295; v² / (1 - IoU + v) = 0.0123179.
        ((2, 3, 12, 8), (6, 5, 14, 17), 18 / 128, 18 / 128 - 40 / 168, 18 / 128 - 39.25 / 340, 0.0251838 - 0.0123179),
        # One inside the other, same aspect 2:1: 4·2 of 12·6. The enclosing box is the union. Centres (3, 2) and (7, 4):
        # 20 of 144 + 36.
        ((1, 1, 5, 3), (1, 1, 13, 7), 8 / 72, 8 / 72, 8 / 72 - 20 / 180, 8 / 72 - 20 / 180),
        # Apart: areas 2·3 and 4·6 in an enclosing box of 11·9. Centres (1, 1.5) and (9, 6): 84.25 of 121 + 81. Both
        # aspects are 2:3.
        ((0, 0, 2, 3), (7, 3, 11, 9), 0.0, -(99 - 30) / 99, -84.25 / 202, -84.25 / 202),
        # They touch along an edge: areas 3·2 and 5·2 fill the enclosing 8·2. Centres 4 apart: 16 of 64 + 4.
        # atan(3/2) - atan(5/2) = 0.9827937 - 1.1902899, squared 0.0430547, v = 0.0174494; v² / (1 + v) = 0.0002993.
        ((0, 4, 3, 6), (3, 4, 8, 6), 0.0, 0.0, -16 / 68, -16 / 68 - 0.0002993),
    ],
)
def test_the_family_agrees_with_hand_derived_numbers(first, second, iou, giou, diou, ciou):
    for function, expected in zip(FAMILY, (iou, giou, diou, ciou), strict=True):
        assert measured(function, first, second) == pytest.approx(expected, abs=1e-5), function.__name__


def test_areas_are_width_times_height_and_nothing_for_inverted_boxes():
    # 4·7; inverted in x; inverted in both, where a plain product would say 6.
    measured_areas = boxes.areas(np.array([[1, 2, 5, 9], [5, 2, 1, 9], [3, 4, 1, 1]], "float32"))
    np.testing.assert_array_equal(np.asarray(measured_areas), [28, 0, 0])


def test_pairs_broadcast_to_a_table():
    first = np.array([[0, 0, 4, 2], [2, 1, 8, 4]], "float32")
    second = np.array([[0, 0, 4, 2], [3, 1, 5, 7], [20, 30, 21, 33]], "float32")
    # Shared with the first: itself 8; x 3..4, y 1..2: 1; none. With the second: x 2..4, y 1..2: 2; x 3..5, y 1..4: 6.
    expected = [[8, 1, 0], [2, 6, 0]]
    np.testing.assert_allclose(np.asarray(boxes.intersection(first[:, None], second[None])), expected)
    # Areas 8, 18 and 8, 12, 3.
    expected = [[1, 1 / 19, 0], [2 / 24, 6 / 24, 0]]
    np.testing.assert_allclose(np.asarray(boxes.iou(first[:, None], second[None])), expected, atol=1e-6)


@MANY
@given(box, box)
def test_the_family_is_symmetric(first, second):
    for function in FAMILY:
        assert measured(function, first, second) == pytest.approx(measured(function, second, first), abs=1e-5)


@MANY
@given(box, box, eighths, eighths)
def test_moving_both_boxes_changes_nothing(first, second, x, y):
    moved = [np.array(b) + (x, y, x, y) for b in (first, second)]
    for function in FAMILY:
        assert measured(function, *moved) == pytest.approx(measured(function, first, second), abs=1e-5)


@MANY
@given(box, box, st.floats(0.5, 16.0))
def test_a_scale_common_to_both_boxes_changes_nothing(first, second, factor):
    scaled = [np.array(b) * factor for b in (first, second)]
    for function in FAMILY:
        assert measured(function, *scaled) == pytest.approx(measured(function, first, second), abs=1e-3)


@MANY
@given(box, box)
def test_every_penalty_lowers_the_measure_and_all_stay_in_range(first, second):
    iou, giou, diou, ciou = (measured(function, first, second) for function in FAMILY)
    assert 0.0 <= iou <= 1.0
    assert -1.0 <= giou <= iou + 1e-6
    assert -1.0 <= diou <= iou + 1e-6
    assert -2.0 <= ciou <= diou + 1e-6


@MANY
@given(box)
def test_a_box_agrees_with_itself(only):
    for function in FAMILY:
        assert measured(function, only, only) == pytest.approx(1.0, abs=1e-5)


shifts = st.tuples(*[st.floats(-0.4, 0.4)] * 4)


@MANY
@given(box, shifts, st.sampled_from((0.0, 0.05, 0.3, 0.5, 0.75, 1.0)))
def test_overlaps_says_whether_the_iou_exceeds_a_threshold(first, shift, threshold):
    # Each side moves by a share of the box's own: IoU from 1 down to 0.02.
    second = np.array(first) + np.array(shift) * np.tile(np.subtract(first[2:], first[:2]), 2)
    iou = measured(boxes.iou, first, second)
    said = bool(boxes.overlaps(np.array(first, "float32"), np.array(second, "float32"), threshold))
    if abs(iou - threshold) > 1e-5:
        assert said == (iou > threshold)


def test_overlaps_at_the_threshold_itself():
    # Shared 4·3 = 12 of 24 + 18 - 12 = 30: IoU 0.4.
    first, second = np.array([0, 0, 8, 3], "float32"), np.array([4, 0, 10, 3], "float32")
    assert bool(boxes.overlaps(first, second, 0.3999))
    assert not bool(boxes.overlaps(first, second, 0.4001))


@pytest.mark.parametrize("threshold", [0.0, 0.5])
def test_boxes_without_area_overlap_nothing(threshold):
    point, around = np.array([3, 4, 3, 4], "float32"), np.array([0, 0, 9, 5], "float32")
    for first, second in ((point, around), (around, point), (point, point)):
        assert not bool(boxes.overlaps(first, second, threshold))


DEGENERATE = {
    "identical": ((3, 4, 13, 9), (3, 4, 13, 9)),
    "zero area": ((5, 6, 5, 6), (2, 1, 9, 30)),
    "both zero area": ((5, 6, 5, 6), (5, 6, 5, 6)),
    "a line": ((5, 6, 25, 6), (2, 1, 9, 30)),
    "two lines": ((5, 6, 25, 6), (5, 6, 25, 6)),
    "inverted": ((9, 30, 2, 1), (2, 1, 9, 30)),
    "far apart": ((0, 0, 3, 2), (1e6, 2e6, 1e6 + 50, 2e6 + 20)),
    "sides of 1e-8 at the origin": ((0, 0, 1e-8, 1e-8), (0, 0, 2e-8, 1e-8)),
    "sides of 1e-8 in a large box": ((0, 0, 1e-8, 3e-8), (-300, -200, 300, 100)),
    "sides of 1e-20": ((0, 0, 1e-20, 1e-20), (0, 0, 1e-20, 2e-20)),
    "touching": ((0, 0, 4, 2), (4, 0, 7, 2)),
    "huge": ((-1e6, -2e6, 1e6, 3e6), (-1e6, -2e6, 1e6, 3e6)),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("function", FAMILY, ids=lambda function: function.__name__)
def test_values_and_gradients_stay_finite_on_degenerate_boxes(function, name):
    first, second = (np.array(b, "float32") for b in DEGENERATE[name])
    value, gradients = value_and_gradients(function, first, second)
    assert math.isfinite(value) and -2.0 <= value <= 1.0 + 1e-6
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_only_giou_and_the_distance_pull_boxes_together_that_are_apart():
    # The first box lies left of the second: moving it right must gain. Its x1 alone pulls the other way in `diou`: the
    # enclosing box, and with it the tolerated distance, grows as x1 falls.
    first, second = np.array([0, 0, 4, 7], "float32"), np.array([10, 1, 16, 5], "float32")
    to_the_right = {}
    for function in FAMILY:
        _, (gradient, _) = value_and_gradients(function, first, second)
        to_the_right[function.__name__] = gradient[0] + gradient[2]
    assert to_the_right["iou"] == 0.0
    assert min(to_the_right[name] for name in ("giou", "diou", "ciou")) > 0.01


def test_the_trade_off_of_ciou_takes_no_gradient():
    # One width grows by h on both sides of a box on the same centre and height, so the distance stays 0 and
    # d ciou = d iou - α dv, α held. w = 6, h = 4 against 3 × 4: IoU = 12/24, dIoU/dw = -12·4/24² = -1/12;
    # angle = atan(6/4) - atan(3/4) = 0.9827937 - 0.6435011 = 0.3392926; v = 4/π² · 0.3392926² = 0.0466562;
    # α = v / (0.5 + v) = 0.0853495; dv/dw = 8/π² · 0.3392926 · 4/(36 + 16) = 0.0211556; -1/12 - α·dv = -0.0851390.
    # Only x2 grows here, so the centre moves by half as much: its square has no gradient at distance 0.
    _, (gradient, _) = value_and_gradients(
        boxes.ciou, np.array([-3, -2, 3, 2], "float32"), np.array([-1.5, -2, 1.5, 2], "float32")
    )
    assert gradient[2] == pytest.approx(-1 / 12 - 0.0853495 * 0.0211556, abs=1e-5)


def test_iol_agrees_with_hand_derived_numbers():
    anchors = np.array([[20, 12], [5, 40], [10, 30]], "float32")
    # 10 × 30: shares 10·12 of max(300, 240); 5·30 of max(300, 200); all.  60 × 4: 20·4 of 240; 5·4 of 240; 10·4 of 300.
    expected = [[120 / 300, 150 / 300, 1.0], [80 / 240, 20 / 240, 40 / 300]]
    sizes = np.array([[10, 30], [60, 4]], "float32")
    np.testing.assert_allclose(np.asarray(boxes.iol(sizes, anchors)), expected, atol=1e-6)
    batched = boxes.iol(np.stack([sizes, sizes[::-1]]), anchors)
    np.testing.assert_allclose(np.asarray(batched), [expected, expected[::-1]], atol=1e-6)


@MANY
@given(sides, sides, sides, sides)
def test_iol_is_symmetric_and_no_less_than_the_iou_on_a_common_centre(width, height, other_width, other_height):
    first, second = np.array([[width, height]], "float32"), np.array([[other_width, other_height]], "float32")
    share = float(boxes.iol(first, second)[0, 0])
    assert share == pytest.approx(float(boxes.iol(second, first)[0, 0]), abs=1e-6)
    iou = measured(boxes.iou, np.append(-first[0], first[0]) / 2, np.append(-second[0], second[0]) / 2)
    assert iou - 1e-5 <= share <= 1.0


def test_centers_and_sizes_are_x_before_y():
    centers, sizes = boxes.centers_and_sizes(np.array([[2, 30, 12, 33]], "float32"))
    np.testing.assert_array_equal(np.asarray(ops.concatenate([centers, sizes], axis=-1)), [[7, 31.5, 10, 3]])
