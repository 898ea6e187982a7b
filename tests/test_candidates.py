"""Candidates: which pairs of cell and class pass, and which of them are the best."""

import numpy as np

from multigrid.detection.candidates import best_candidates, passing


def boxes_of(*corners):
    return np.array(corners, "float32").reshape(-1, 4)


def candidates(boxes, scores, threshold, most=3000):
    return best_candidates(boxes, scores, *passing(scores, threshold), most)


def test_a_cell_stands_for_every_class_that_passes():
    boxes = boxes_of((0, 0, 10, 20), (5, 1, 25, 11), (3, 3, 4, 9))
    scores = np.array([[0.2, 0.7], [0.6, 0.9], [0.1, 0.29]], "float32")
    found = candidates(boxes, scores, 0.3)
    np.testing.assert_array_equal(found.boxes, boxes[[1, 0, 1]])
    np.testing.assert_array_equal(found.scores, np.array([0.9, 0.7, 0.6], "float32"))
    assert (found.classes.tolist(), found.classes.dtype) == ([1, 1, 0], np.int32)
    assert found.cells.tolist() == [1, 0, 1]


def test_the_threshold_is_the_least_score_that_passes():
    scores = np.array([[0.25, np.nextafter(np.float32(0.25), np.float32(0)), np.nan]], "float32")
    assert [part.tolist() for part in passing(scores, 0.25)] == [[0], [0]]


def test_nothing_passes_and_nothing_breaks():
    found = candidates(boxes_of((0, 0, 9, 5)), np.zeros((1, 4), "float32"), 0.5)
    assert [part.shape for part in found] == [(0, 4), (0,), (0,), (0,)]


def test_of_too_many_candidates_the_best_are_taken():
    scores = np.random.default_rng(3).random((40, 3), dtype="float32")
    boxes = np.arange(160, dtype="float32").reshape(40, 4)
    found = candidates(boxes, scores, 0.1, most=5)
    np.testing.assert_array_equal(found.scores, np.sort(scores.ravel())[::-1][:5])
    np.testing.assert_array_equal(scores[found.cells, found.classes], found.scores)
    np.testing.assert_array_equal(found.boxes, boxes[found.cells])
