"""The parts of the loss in closed form."""

import math

import numpy as np
import pytest
from backends import compiled, value_and_gradients
from keras import ops

from multigrid.losses import components

pytestmark = pytest.mark.backend

LN2 = math.log(2.0)


def logits_of(shape, value=0.0):
    return ops.convert_to_tensor(np.full(shape, value, "float32"))


def entropy(*shares):
    return -sum(share * math.log(share) for share in shares)


# -------------------------------------------------------------------------------------------------------- localization


def test_overlap_losses_are_one_less_the_overlap():
    # Shared 6·3 of 50 + 96 - 18; see the table in test_boxes for the other terms.
    predicted = np.array([[2, 3, 12, 8], [2, 3, 12, 8]], "float32")
    true = np.array([[6, 5, 14, 17], [2, 3, 12, 8]], "float32")
    code = np.zeros((2, 4), "float32")
    expected = {"giou": 18 / 128 - 40 / 168, "diou": 18 / 128 - 39.25 / 340, "ciou": 0.0128659}
    for kind, overlap in expected.items():
        measured = np.asarray(components.localization(kind, predicted, true, code, code))
        np.testing.assert_allclose(measured, [1 - overlap, 0], atol=1e-5)


def test_mse_is_the_squared_error_of_the_code_and_knows_nothing_of_boxes():
    # 0.5² + 0.2² + 1² + 0.1² = 1.3
    boxes = np.full((1, 4), np.nan, "float32")
    predicted, true = np.array([[0.7, -0.1, 0.3, 0.2]], "float32"), np.array([[0.2, 0.1, -0.7, 0.3]], "float32")
    measured = components.localization("mse", boxes, boxes, predicted, true)
    assert float(measured[0]) == pytest.approx(1.3, abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- objectness


def test_objectness_of_a_zero_logit_costs_ln_two_whatever_the_target():
    target = np.array([[0.0, 1.0, 0.3], [0.5, 0.9, 0.01]], "float32")
    np.testing.assert_allclose(np.asarray(components.objectness(logits_of((2, 3)), target)), LN2, atol=1e-6)
    np.testing.assert_allclose(np.asarray(components.objectness(logits_of((2, 3)), 0.0)), LN2, atol=1e-6)


def test_objectness_at_known_probabilities():
    # Logits ±ln 3 are 3/4 and 1/4: -ln of what the target says, and their mix for a target of 0.2.
    logits = np.array([math.log(3), math.log(3), -math.log(3), math.log(3)], "float32")
    target = np.array([1.0, 0.0, 1.0, 0.2], "float32")
    expected = [-math.log(0.75), -math.log(0.25), -math.log(0.25), -0.2 * math.log(0.75) - 0.8 * math.log(0.25)]
    np.testing.assert_allclose(np.asarray(components.objectness(logits, target)), expected, atol=1e-6)


@pytest.mark.parametrize("logit, target, expected", [(50, 1, 0), (50, 0, 50), (-50, 1, 50), (-50, 0, 0), (1e4, 0, 1e4)])
def test_objectness_stays_exact_for_huge_logits(logit, target, expected):
    measured = components.objectness(logits_of((1,), logit), np.array([target], "float32"))
    assert float(measured[0]) == pytest.approx(expected, rel=1e-6, abs=1e-6)


# ------------------------------------------------------------------------------------------- cells of the same object


def statements(*rows):
    """Boxes, objectness and classes [1, K, …] of cells from (x1, y1, x2, y2, objectness, class, class)."""
    rows = np.array([rows], "float32")
    return rows[..., :4], rows[..., 4], rows[..., 5:]


def test_consensus_is_the_squared_distance_from_the_mean_in_sizes_of_the_object():
    # The object is 20 × 10. Both say its box but for the right side: 2 apart is 0.1 of the width, each 0.05 from the
    # mean. Objectness 0.2 from each other, one class 0.6: 0.05² + 0.1² + 0.3² each. The third does not answer.
    boxes, objectness, classes = statements(
        (5, 3, 25, 13, 0.5, 0.9, 0.2), (5, 3, 27, 13, 0.7, 0.3, 0.2), (np.nan, 0, 9, 9, np.nan, 0.1, np.nan)
    )
    true_boxes = np.broadcast_to(np.array([5, 3, 25, 13], "float32"), (1, 3, 4))
    measured = components.consensus(boxes, true_boxes, objectness, classes, np.array([[True, True, False]]))
    np.testing.assert_allclose(np.asarray(measured), [[0.1025, 0.1025, 0.0]], rtol=1e-5)


def test_consensus_is_the_same_at_any_size_and_has_no_unit_below_a_pixel():
    true_box, other = np.array([4, 8, 24, 18], "float32"), np.array([6, 9, 24, 20], "float32")
    answers, measured = np.ones((1, 2), bool), []
    for factor in (1.0, 16.0, 1e-3):
        boxes, objectness, classes = statements((*factor * true_box, 0.5, 0, 0), (*factor * other, 0.5, 0, 0))
        true_boxes = np.broadcast_to(factor * true_box, (1, 2, 4))
        found = np.asarray(components.consensus(boxes, true_boxes, objectness, classes, answers))
        np.testing.assert_allclose(found[0, 0], found[0, 1], rtol=1e-4)
        measured.append(found.sum())
    # half of (2/20)² + (1/10)² + (2/10)² in all, as the variance of two numbers has it
    np.testing.assert_allclose(measured[:2], 0.03, rtol=1e-4)
    # 20 × 10 thousandths of a pixel count as 1 × 1: half of (2² + 1² + 2²) millionths
    assert measured[2] == pytest.approx(4.5e-6, rel=1e-3)


@pytest.mark.parametrize("answering", [0, 1])
def test_consensus_of_one_cell_or_none_is_nothing(answering):
    boxes, objectness, classes = statements((1, 2, 9, 8, 0.3, 0.2, 0.9), (4, 2, 30, 9, 0.8, 0.5, 0.1))
    true_boxes = np.broadcast_to(np.array([2, 2, 13, 9], "float32"), (1, 2, 4))
    answers = np.array([[False, bool(answering)]])
    np.testing.assert_array_equal(
        np.asarray(components.consensus(boxes, true_boxes, objectness, classes, answers)), np.zeros((1, 2))
    )


def test_redundancy_is_the_share_that_a_box_is_worse_than_the_best():
    # half as good; nearly as good; as good; better; no other at all
    overlap, best = np.array([0.4, 0.63, 0.7, 0.9, 0.6], "float32"), np.array([0.8, 0.7, 0.7, 0.6, 0.0], "float32")
    np.testing.assert_allclose(np.asarray(components.redundancy(overlap, best)), [0.5, 0.1, 0, 0, 0], atol=1e-6)


# ---------------------------------------------------------------------------------------------------- anchor and class


@pytest.mark.parametrize("count", [2, 3, 9])
def test_equal_logits_cost_the_logarithm_or_ln_two_a_choice(count):
    index = np.array([0, count - 1, 1], "int32")
    zeros = logits_of((3, count))
    for function in (components.anchor, components.classification):
        np.testing.assert_allclose(np.asarray(function("softmax", zeros, index)), math.log(count), atol=1e-5)
        np.testing.assert_allclose(np.asarray(function("bce", zeros, index)), count * LN2, atol=1e-5)


def test_the_choice_at_known_logits():
    # exp is 1, 2, 5: softmax shares 1/8, 2/8, 5/8; sigmoids 1/2, 2/3, 5/6.
    logits, index = np.log(np.array([[1.0, 2.0, 5.0]], "float32")), np.array([1], "int32")
    for function in (components.anchor, components.classification):
        assert float(function("softmax", logits, index)[0]) == pytest.approx(math.log(4), abs=1e-6)
        expected = -math.log(1 / 2) - math.log(2 / 3) - math.log(1 / 6)
        assert float(function("bce", logits, index)[0]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [0.25, 0.6])
def test_focal_weighs_each_term_by_alpha_and_the_share_missed(gamma, alpha):
    # At zero logits half is missed everywhere: ln 2 · 2^-gamma, alpha for the true class, 1 - alpha for the others.
    measured = components.classification(
        "focal", logits_of((1, 4)), np.array([2]), focal_gamma=gamma, focal_alpha=alpha
    )
    assert float(measured[0]) == pytest.approx((alpha + 3 * (1 - alpha)) * LN2 * 2**-gamma, rel=1e-5)
    # One class, p = 3/4: a quarter is missed.
    measured = components.classification(
        "focal", logits_of((1, 1), math.log(3)), np.array([0]), focal_gamma=gamma, focal_alpha=alpha
    )
    assert float(measured[0]) == pytest.approx(-alpha * 0.25**gamma * math.log(0.75), rel=1e-5)


def test_focal_with_exponent_zero_and_even_weights_is_half_of_bce():
    logits = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    index = np.array([0, 3, 1, 1, 2], "int32")
    focal = components.classification("focal", logits, index, 0.1, focal_gamma=0.0, focal_alpha=0.5)
    bce = components.classification("bce", logits, index, 0.1)
    np.testing.assert_allclose(2 * np.asarray(focal), np.asarray(bce), rtol=1e-5)


@pytest.mark.parametrize(
    "smoothing, bce, softmax", [(0.01, 0.0315, 0.099), (0.05, 0.117, 0.412), (0.1, 0.199, 0.754), (0.2, 0.325, 1.36)]
)
def test_label_smoothing_sets_a_floor(smoothing, bce, softmax):
    # The loss is least where the prediction is the target, and its entropy is left: of (e/2, 1 - e/2) for each class,
    # and of (1 - e + e/C, e/C, …) over C = 80 classes.
    index = np.array([3], "int32")
    off = smoothing / 2
    floor = entropy(off, 1 - off)
    assert floor == pytest.approx(bce, abs=6e-4)
    logits = np.full((1, 80), math.log(off / (1 - off)), "float32")
    logits[0, 3] = -logits[0, 0]
    value, (gradient,) = value_and_gradients(
        lambda x: ops.sum(components.classification("bce", x, index, smoothing)), logits
    )
    assert value == pytest.approx(80 * floor, rel=1e-4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)

    off = smoothing / 80
    floor = entropy(1 - smoothing + off, *[off] * 79)
    assert floor == pytest.approx(softmax, abs=6e-3)
    logits = np.full((1, 80), math.log(off), "float32")
    logits[0, 3] = math.log(1 - smoothing + off)
    value, (gradient,) = value_and_gradients(
        lambda x: ops.sum(components.classification("softmax", x, index, smoothing)), logits
    )
    assert value == pytest.approx(floor, rel=1e-4)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-5)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("bce", {}),
        ("softmax", {}),
        ("focal", {"focal_gamma": 0.0}),
        ("focal", {"focal_gamma": 0.5}),
        ("focal", {"focal_gamma": 2.0, "focal_alpha": 1.0}),
    ],
)
def test_gradients_stay_finite_for_huge_logits(kind, options):
    logits = np.array([[50, -50, 0.3], [-50, 50, 200], [-200, 1e3, -1e4]], "float32")

    def loss(x):
        return ops.sum(components.classification(kind, x, np.array([0, 1, 2]), 0.1, **options))

    value, (gradient,) = value_and_gradients(loss, logits)
    assert math.isfinite(value) and np.isfinite(gradient).all()


def test_unknown_kinds_are_named_with_the_known_ones():
    boxes, logits = np.zeros((1, 4), "float32"), logits_of((1, 3))
    with pytest.raises(ValueError, match="localization: expected one of ciou, diou, giou, mse, received 'iou'"):
        components.localization("iou", boxes, boxes, boxes, boxes)
    with pytest.raises(ValueError, match="anchor: expected one of softmax, bce, received 'focal'"):
        components.anchor("focal", logits, np.array([0]))
    with pytest.raises(ValueError, match="classification: expected one of bce, softmax, focal, received 'mse'"):
        components.classification("mse", logits, np.array([0]))


def test_the_last_axis_is_the_choice_and_all_others_stay():
    rng = np.random.default_rng(1)
    logits, index = rng.normal(size=(2, 5, 9, 4)).astype("float32"), rng.integers(0, 4, (2, 5, 9))
    for kind in components.CLASSIFICATIONS:
        function = compiled(lambda x, i, kind=kind: components.classification(kind, x, i, 0.05))
        measured = np.asarray(function(logits, index))
        assert measured.shape == (2, 5, 9)
        alone = np.asarray(function(logits[1:, 2:3, 4:5], index[1:, 2:3, 4:5]))
        assert measured[1, 2, 4] == pytest.approx(alone.item(), rel=1e-5)


# -------------------------------------------------------------------------------------------------------- class weights


@pytest.mark.parametrize(
    "rule, expected",
    [
        # 100, 25 and none, counted as 1: 126 objects. 126 / (3 n).
        ("balanced", [0.42, 1.68, 42.0]),
        # 0.01, 0.04, 1 over their mean 0.35.
        ("inverse", [0.0285714, 0.1142857, 2.8571429]),
        # 0.1, 0.2, 1 over their mean over the objects, (10 + 5 + 1) / 126.
        ("sqrt_inverse", [0.7875, 1.575, 7.875]),
    ],
)
def test_rare_classes_weigh_more(rule, expected):
    assert components.balance_classes([100, 25, 0], rule) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("rule", ["balanced", "inverse", "sqrt_inverse"])
def test_classes_of_equal_count_weigh_one(rule):
    assert components.balance_classes([7, 7, 7, 7], rule) == pytest.approx([1.0] * 4)


def test_an_unknown_rule_is_an_error():
    with pytest.raises(ValueError, match="expected one of balanced, inverse, sqrt_inverse, received 'e'"):
        components.balance_classes([1, 2], "e")
