"""Suppression rules, by hand-made boxes and by the definition."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigrid.detection.candidates import Candidates
from multigrid.detection.suppression import RULES, Suppression

GREEDY = ("nms", "diou_nms", "iol_nms")


def boxes_of(*corners):
    return np.array(corners, "float32").reshape(-1, 4)


def sorted_candidates(boxes, scores, classes):
    """The candidates by score, and the place that each had."""
    scores = np.array(scores, "float32")
    order = np.argsort(-scores, kind="stable")
    classes = np.array(classes, "int32")[order]
    return Candidates(np.asarray(boxes, "float32")[order], scores[order], classes, order), order


def keep(boxes, scores, classes, threshold=0.5, most=None, rule="nms"):
    """The places of the boxes that survive, best first."""
    candidates, order = sorted_candidates(boxes, scores, classes)
    found = Suppression(rule, threshold)(candidates, most)
    np.testing.assert_array_equal(found.boxes, candidates.boxes[found.leads])
    return order[found.leads].tolist()


def test_the_weaker_of_two_that_overlap_goes():
    # 10 × 20 and the same moved right by 2: 160 / (200 + 200 - 160) = 0.667; by 5: 100 / 300 = 0.333
    boxes = boxes_of((0, 0, 10, 20), (2, 0, 12, 20), (5, 0, 15, 20))
    # the third overlaps the second by 140 / 260 = 0.538, but the second is gone
    assert keep(boxes, [0.9, 0.8, 0.7], [0, 0, 0]) == [0, 2]
    assert keep(boxes, [0.7, 0.9, 0.8], [0, 0, 0]) == [1]
    assert keep(boxes, [0.9, 0.8, 0.7], [0, 0, 0], threshold=0.7) == [0, 1, 2]
    assert keep(boxes, [0.9, 0.8, 0.7], [0, 0, 0], threshold=0.3) == [0]


def test_only_more_than_the_threshold_is_too_much():
    # 100 / (200 + 100 - 100) is 0.5 exactly
    assert keep(boxes_of((0, 0, 10, 20), (0, 0, 10, 10)), [0.9, 0.8], [0, 0], threshold=0.5) == [0, 1]


def test_classes_leave_each_other_alone():
    boxes = boxes_of((3, 4, 13, 24), (3, 4, 13, 24), (3, 4, 13, 24))
    assert keep(boxes, [0.9, 0.8, 0.7], [2, 0, 2]) == [0, 1]


def test_classes_leave_each_other_alone_left_of_and_above_the_image_too():
    # OpenCV moves class c by c · (largest coordinate + 1) = 101 here: the third box would land on the first.
    boxes = boxes_of((10, 10, 50, 90), (80, 5, 100, 30), (10 - 101, 10 - 101, 50 - 101, 90 - 101))
    assert keep(boxes, [0.9, 0.8, 0.7], [0, 0, 1]) == [0, 1, 2]


def test_the_best_come_first_whatever_their_class_and_only_so_many():
    boxes = boxes_of(*((20 * index, 0, 20 * index + 9, 15) for index in range(5)))
    assert keep(boxes, [0.2, 0.9, 0.4, 0.8, 0.6], [0, 1, 0, 2, 1]) == [1, 3, 4, 2, 0]
    assert keep(boxes, [0.2, 0.9, 0.4, 0.8, 0.6], [0, 1, 0, 2, 1], most=3) == [1, 3, 4]


def overlap(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def shared_of_larger(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / max(np.prod(one[2:] - one[:2]), np.prod(other[2:] - other[:2]))


def less_the_distance(one, other):
    hull = np.maximum(one[2:], other[2:]) - np.minimum(one[:2], other[:2])
    apart = (one[:2] + one[2:] - other[:2] - other[2:]) / 2
    return overlap(one, other) - np.sum(apart**2) / np.sum(hull**2)


def greedy(boxes, scores, classes, threshold, overlap=overlap):
    """The definition, one pair at a time."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if all(classes[index] != classes[k] or overlap(boxes[index], boxes[k]) <= threshold for k in kept):
            kept.append(int(index))
    return kept


MEASURES = {"nms": overlap, "iol_nms": shared_of_larger, "diou_nms": less_the_distance, "consensus": overlap}


def crowd(seed, count):
    """Boxes that overlap much, three classes, no two scores alike, best first."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-60, 90, (count, 2)), rng.uniform(5, 80, (count, 2)) * (1.0, 0.6)
    boxes = np.concatenate([corner, corner + size], axis=1).astype("float32").astype("float64")
    return boxes, (np.arange(count, 0, -1) / count).astype("float32"), rng.integers(0, 3, count)


@given(
    seed=st.integers(0, 10**6),
    # above 64 the blocks of one class meet those of another
    count=st.one_of(st.integers(1, 40), st.integers(60, 150)),
    threshold=st.sampled_from([0.1, 0.37, 0.6]),
    rule=st.sampled_from(sorted(MEASURES)),
    limit=st.sampled_from([None, 1, 7, 30]),
)
@settings(max_examples=80, deadline=None)
def test_it_is_the_greedy_suppression_of_the_definition(seed, count, threshold, rule, limit):
    boxes, scores, classes = crowd(seed, count)
    candidates, _ = sorted_candidates(boxes, scores, classes)
    found = Suppression(rule, threshold)(candidates, limit)
    assert found.leads.tolist() == greedy(boxes, scores, classes, threshold, MEASURES[rule])[:limit]


def test_distance_iou_spares_neighbours_and_intersection_over_larger_spares_nobody():
    # 30 x 20 and the same moved right by 9: IoU 420 / 780 = 0.538; enclosing 39 x 20, so
    # DIoU = 0.538 - 81 / 1921 = 0.496; intersection over larger = 420 / 600 = 0.7
    boxes, scores, classes = boxes_of((0, 0, 30, 20), (9, 0, 39, 20)), [0.9, 0.8], [1, 1]
    assert keep(boxes, scores, classes, 0.5, rule="nms") == [0]
    assert keep(boxes, scores, classes, 0.5, rule="diou_nms") == [0, 1]
    assert keep(boxes, scores, classes, 0.6, rule="nms") == [0, 1]
    assert keep(boxes, scores, classes, 0.6, rule="iol_nms") == [0]


# --- rules that move boxes or scores


def test_soft_suppression_lowers_the_score_by_the_gaussian_of_the_overlap():
    # IoU .667 with the first; another class and a box apart keep their scores
    boxes = boxes_of((0, 0, 10, 20), (2, 0, 12, 20), (2, 0, 12, 20), (50, 0, 60, 20))
    candidates, _ = sorted_candidates(boxes, [0.9, 0.8, 0.7, 0.6], [0, 0, 1, 0])
    found = Suppression("soft_nms", sigma=0.4)(candidates)
    # .8 exp(-(2 / 3)^2 / .4) = .8 x .329193 = .263354
    assert found.leads.tolist() == [0, 2, 3, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.7, 0.6, 0.263354], atol=1e-5)
    kept = Suppression("soft_nms", sigma=0.4)(candidates, least_score=0.3)
    assert kept.leads.tolist() == [0, 2, 3]
    assert Suppression("soft_nms", sigma=0.4)(candidates, 2).leads.tolist() == [0, 2]


def test_soft_suppression_asks_who_is_best_after_every_step():
    # the second loses to the first, so the third, which overlaps only the second, is next and is lowered by nobody
    boxes = boxes_of((0, 0, 10, 20), (4, 0, 14, 20), (9, 0, 19, 20))
    candidates, _ = sorted_candidates(boxes, [0.9, 0.6, 0.5], [0, 0, 0])
    found = Suppression("soft_nms", sigma=0.2)(candidates)
    # IoU of first and second 120 / 280 = .428571: .6 exp(-.918367) = .239523; of first and third 20 / 380 = .052632:
    # .5 exp(-.013850) = .493123, which is best now; second and third 100 / 300: .239523 exp(-.555556) = .137423
    assert found.leads.tolist() == [0, 2, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.493123, 0.137423], atol=1e-5)


def test_consensus_moves_the_best_box_to_the_mean_of_those_that_agree_with_it():
    # against the first: IoU .667 and .538 (moved by 3: 140 / 260) go and have a say; .429 (moved by 4: 120 / 280) and
    # another class stay; the last (moved by 6) goes to the fourth, 160 / 240
    boxes = boxes_of((0, 0, 10, 20), (2, 0, 12, 20), (3, 0, 13, 20), (4, 0, 14, 20), (1, 5, 11, 25), (6, 0, 16, 20))
    candidates, _ = sorted_candidates(boxes, [0.9, 0.6, 0.5, 0.4, 0.3, 0.2], [0, 0, 0, 0, 1, 0])
    found = Suppression("consensus", 0.5)(candidates)
    assert found.leads.tolist() == [0, 3, 4]
    # x1 = (0 x .81 + 2 x .36 + 3 x .25) / 1.42 = 1.035211 and (4 x .16 + 6 x .04) / .2 = 4.4
    expected = [(1.035211, 0, 11.035211, 20), (4.4, 0, 14.4, 20), (1, 5, 11, 25)]
    np.testing.assert_allclose(found.boxes, expected, atol=1e-5)
    np.testing.assert_allclose(found.scores, [0.9, 0.4, 0.3], atol=1e-6)


def test_a_vote_puts_what_many_see_before_what_one_sees():
    # against the first: moved by 2 and by 3 go, as above; the one moved by 4 stays and takes the one moved by 6; the
    # one far away is alone
    boxes = boxes_of((0, 0, 10, 20), (2, 0, 12, 20), (50, 0, 60, 9), (3, 0, 13, 20), (4, 0, 14, 20), (6, 0, 16, 20))
    candidates, _ = sorted_candidates(boxes, [0.9, 0.6, 0.55, 0.5, 0.54, 0.2], [0, 0, 0, 0, 0, 0])
    found = Suppression("vote", 0.5)(candidates)
    # sums 0.9 + 0.6 + 0.5 = 2.0, 0.55, 0.54 + 0.2 = 0.74: 0.9 sqrt(2 / 3) = .734847, 0.55 sqrt(.55 / 1.55) = .327626,
    # 0.54 sqrt(.74 / 1.74) = .352156, which passes the one that scored more
    np.testing.assert_allclose(found.scores, [0.734847, 0.352156, 0.327626], atol=1e-6)
    assert candidates.boxes[found.leads, 0].tolist() == [0, 4, 50]
    np.testing.assert_allclose(found.boxes[0], [1.035211, 0, 11.035211, 20], atol=1e-5)
    assert len(Suppression("vote", 0.5)(candidates, least_score=0.34).scores) == 2


@given(seed=st.integers(0, 10**6), rule=st.sampled_from(sorted(RULES)), limit=st.sampled_from([1, 4, 20]))
@settings(max_examples=40, deadline=None)
def test_a_limit_leaves_the_first_of_what_is_left_without_it(seed, rule, limit):
    candidates, _ = sorted_candidates(*crowd(seed, 60))
    few, all_of_them = Suppression(rule, 0.4)(candidates, limit), Suppression(rule, 0.4)(candidates)
    np.testing.assert_array_equal(few.leads, all_of_them.leads[:limit])
    np.testing.assert_allclose(few.scores, all_of_them.scores[:limit], rtol=1e-6)


def test_fused_boxes_move_with_every_member_that_joins_them():
    # The third, moved by 4, overlaps the first by 120 / 280 = .43 alone, and the fused box of the first two, moved by
    # 2 x .6 / 1.5 = .8, by (10 - 3.2) x 20 / (400 - 136) = .515: it joins.
    boxes = boxes_of((0, 0, 10, 20), (2, 0, 12, 20), (4, 0, 14, 20), (0, 0, 10, 20))
    candidates, _ = sorted_candidates(boxes, [0.9, 0.6, 0.5, 0.4], [0, 0, 0, 1])
    found = Suppression("wbf", 0.5)(candidates)
    assert found.leads.tolist() == [0, 3]
    # x1 = (0 x .9 + 2 x .6 + 4 x .5) / 2 = 1.6
    np.testing.assert_allclose(found.boxes, [(1.6, 0, 11.6, 20), (0, 0, 10, 20)], atol=1e-5)
    np.testing.assert_allclose(found.scores, [0.9, 0.4], atol=1e-6)


# --- every rule


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("limit", [None, 5, 1000])
def test_every_rule_keeps_order_limit_and_classes_apart(rule, limit):
    boxes, scores, classes = crowd(5, 90)
    candidates, _ = sorted_candidates(boxes, scores, classes)
    found = Suppression(rule)(candidates, limit, least_score=0.05)
    assert 0 < len(found.leads) <= min(limit or 90, 90)
    assert np.all(np.diff(found.scores) <= 0) and found.scores.min() >= 0.05
    assert found.leads[0] == 0 and len(set(found.leads.tolist())) == len(found.leads)
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    for label in range(3):
        own = np.flatnonzero(classes == label)
        alone, _ = sorted_candidates(boxes[own], scores[own], classes[own])
        without = Suppression(rule)(alone, None, least_score=0.05)
        together = Suppression(rule)(candidates, None, least_score=0.05)
        same = classes[together.leads] == label
        assert own[without.leads].tolist() == together.leads[same].tolist()
        np.testing.assert_allclose(without.boxes, together.boxes[same], atol=1e-3)


@pytest.mark.parametrize("limit", [None, 5])
def test_a_score_of_nothing_is_a_score(limit):
    candidates, _ = sorted_candidates(boxes_of((0, 0, 10, 20), (50, 0, 60, 20)), [0.5, 0.0], [0, 0])
    assert Suppression("nms")(candidates, limit).leads.tolist() == [0, 1]


@pytest.mark.parametrize("rule", sorted(RULES))
def test_nothing_and_boxes_without_area_break_no_rule(rule):
    empty = Candidates(boxes_of(), np.zeros(0, "float32"), np.zeros(0, "int32"), np.zeros(0, "int64"))
    assert [len(part) for part in Suppression(rule)(empty, 10)] == [0, 0, 0]
    candidates, _ = sorted_candidates(boxes_of((5, 5, 5, 9), (5, 5, 5, 9), (1, 2, 9, 4)), [0.9, 0.0, 0.5], [0, 0, 0])
    found = Suppression(rule)(candidates)
    assert np.isfinite(found.boxes).all() and np.isfinite(found.scores).all() and len(found.leads) >= 2


def test_a_rule_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="suppression: expected one of nms, soft_nms, .*, received 'hard'"):
        Suppression("hard")
