"""Candidates and suppression, by hand-made boxes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigrid.detection import suppression
from multigrid.detection.suppression import candidates, nms


def boxes_of(*corners):
    return np.array(corners, "float32").reshape(-1, 4)


def keep(boxes, scores, classes, threshold=0.5, most=100):
    return nms(boxes, np.array(scores, "float32"), np.array(classes, "int32"), threshold, most).tolist()


# --- candidates


def test_a_cell_stands_for_every_class_that_passes():
    boxes = boxes_of((0, 0, 10, 20), (5, 1, 25, 11), (3, 3, 4, 9))
    scores = np.array([[0.2, 0.7], [0.6, 0.9], [0.1, 0.29]], "float32")
    found, score, label = candidates(boxes, scores, 0.3)
    np.testing.assert_array_equal(found, boxes[[1, 0, 1]])
    np.testing.assert_array_equal(score, np.array([0.9, 0.7, 0.6], "float32"))
    assert (label.tolist(), label.dtype) == ([1, 1, 0], np.int32)


def test_the_threshold_is_the_least_score_that_passes():
    scores = np.array([[0.25, np.nextafter(np.float32(0.25), np.float32(0))]], "float32")
    assert candidates(boxes_of((0, 0, 9, 5)), scores, 0.25)[2].tolist() == [0]


def test_nothing_passes_and_nothing_breaks():
    boxes, scores, classes = candidates(boxes_of((0, 0, 9, 5)), np.zeros((1, 4), "float32"), 0.5)
    assert (boxes.shape, scores.shape, classes.shape) == ((0, 4), (0,), (0,))
    assert nms(boxes, scores, classes, 0.5, 10).shape == (0,)


def test_of_too_many_candidates_the_best_are_taken(monkeypatch):
    monkeypatch.setattr(suppression, "MAX_CANDIDATES", 5)
    scores = np.random.default_rng(3).random((40, 3), dtype="float32")
    boxes = np.arange(160, dtype="float32").reshape(40, 4)
    found, score, label = candidates(boxes, scores, 0.1)
    best = np.sort(scores.ravel())[::-1][:5]
    np.testing.assert_array_equal(score, best)
    np.testing.assert_array_equal(scores[found[:, 0].astype(int) // 4, label], best)


# --- suppression


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


def greedy(boxes, scores, classes, threshold):
    """The definition, one pair at a time."""
    kept = []
    for index in np.argsort(-scores, kind="stable"):
        if all(classes[index] != classes[k] or overlap(boxes[index], boxes[k]) <= threshold for k in kept):
            kept.append(int(index))
    return kept


@given(seed=st.integers(0, 10**6), count=st.integers(1, 40), threshold=st.sampled_from([0.1, 0.37, 0.6]))
@settings(max_examples=60, deadline=None)
def test_it_is_the_greedy_suppression_of_the_definition(seed, count, threshold):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-60, 90, (count, 2)), rng.uniform(5, 80, (count, 2)) * (1.0, 0.6)
    boxes = np.concatenate([corner, corner + size], axis=1)
    scores = rng.permutation(count) / count + 0.01
    classes = rng.integers(0, 3, count)
    assert keep(boxes, scores, classes, threshold) == greedy(boxes, scores, classes, threshold)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_scores_of_any_float_type_do(dtype):
    found = nms(boxes_of((0, 0, 10, 20), (1, 0, 11, 20)), np.array([0.5, 0.75], dtype), np.zeros(2, "int64"), 0.5, 9)
    assert found.tolist() == [1]
