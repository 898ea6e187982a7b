"""Suppression in the graph is the suppression outside of it."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops

from multigrid.detection.candidates import best_candidates, passing
from multigrid.detection.graph_suppression import RULES, kept_by, rivalry, suppressed
from multigrid.detection.suppression import Suppression

CELLS, CLASSES = 15, 3


def in_graph(boxes, scores, **options):
    """`suppressed` of one image, as NumPy and without the padding."""
    settings = {"score_threshold": 0.1, "iou_threshold": 0.5, "max_detections": 20, **options}
    found = suppressed(ops.convert_to_tensor(boxes[None]), ops.convert_to_tensor(scores[None]), **settings)
    found = {name: ops.convert_to_numpy(values)[0] for name, values in found.items()}
    rows = found["classes"] >= 0
    assert not found["scores"][~rows].any() and not found["boxes"][~rows].any()
    assert rows[: rows.sum()].all()  # padding only follows
    return found["boxes"][rows], found["scores"][rows], found["classes"][rows]


def outside(boxes, scores, rule, threshold, limit):
    candidates = best_candidates(boxes, scores, *passing(scores, 0.1))
    left = Suppression(rule, threshold)(candidates, limit, 0.1)
    return left.boxes, left.scores, candidates.classes[left.leads]


def random_cells(seed):
    """Boxes that overlap a lot, and scores of which no two are equal."""
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(-20, 40, (CELLS, 2)), rng.uniform(15, 60, (CELLS, 2)) * (1.0, 0.6)
    scores = rng.permutation(CELLS * CLASSES).reshape(CELLS, CLASSES) / (CELLS * CLASSES)
    return np.concatenate([corner, corner + size], axis=1).astype("float32"), scores.astype("float32")


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 10**6), threshold=st.sampled_from([0.1, 0.37, 0.6]), limit=st.sampled_from([4, 50]))
@settings(max_examples=25, deadline=None)
def test_the_graph_leaves_what_the_predictor_leaves(rule, seed, threshold, limit):
    boxes, scores = random_cells(seed)
    found = in_graph(boxes, scores, rule=rule, iou_threshold=threshold, max_detections=limit)
    expected = outside(boxes, scores, rule, threshold, limit)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6 if rule == "vote" else 0)
    np.testing.assert_array_equal(found[2], expected[2])


def row_of_boxes(count):
    """10 × 20 boxes, each moved right by 2 from the one before: neighbours share 160 / 240 = 0.67, others 0.43."""
    left = 2.0 * np.arange(count)
    return np.stack([left, 0 * left, left + 10, 0 * left + 20], axis=1).astype("float32")


def test_a_long_chain_is_decided_to_its_end():
    # each removes its neighbour, which therefore does not remove the next: 0, 2, 4, ... stay
    boxes, scores = row_of_boxes(41), np.linspace(0.9, 0.2, 41, dtype="float32")[:, None]
    found, _, _ = in_graph(boxes, scores, max_detections=41)
    np.testing.assert_array_equal(found[:, 0], 4.0 * np.arange(21))


def test_without_a_loop_a_chain_is_decided_as_far_as_the_rounds_reach():
    boxes, valid = ops.convert_to_tensor(row_of_boxes(9)[None]), ops.ones((1, 9), "bool")
    rivals = rivalry(boxes, ops.zeros((1, 9), "int32"), 0.5)
    right = [True, False] * 4 + [True]
    few, enough = (ops.convert_to_numpy(kept_by(rivals, valid, rounds))[0].tolist() for rounds in (3, 9))
    assert few[:4] == right[:4] and few != right
    assert enough == right


def test_what_is_below_the_threshold_neither_stays_nor_removes():
    boxes = row_of_boxes(3)
    scores = np.array([[0.09, 0.5], [0.4, 0.05], [0.3, 0.02]], "float32")
    found = in_graph(boxes, scores)
    # class 0: the second removes the third; the first is too weak to remove the second
    np.testing.assert_array_equal(found[0], boxes[[0, 1]])
    assert found[2].tolist() == [1, 0]


def test_the_threshold_is_the_least_score_that_passes():
    scores = np.array([[0.25], [np.nextafter(np.float32(0.25), np.float32(0))]], "float32")
    boxes = np.array([[0, 0, 9, 5], [50, 40, 59, 45]], "float32")
    assert in_graph(boxes, scores, score_threshold=0.25)[1].tolist() == [0.25]


def test_the_images_of_a_batch_do_not_touch_each_other():
    (boxes, scores), (other_boxes, other_scores) = random_cells(1), random_cells(2)
    together = suppressed(
        ops.convert_to_tensor(np.stack([boxes, other_boxes])),
        ops.convert_to_tensor(np.stack([scores, other_scores])),
        score_threshold=0.1, iou_threshold=0.5, max_detections=60,
    )  # fmt: skip
    shapes = {
        name: (tuple(values.shape), keras.backend.standardize_dtype(values.dtype)) for name, values in together.items()
    }
    assert shapes == {
        "boxes": ((2, 60, 4), "float32"), "scores": ((2, 60), "float32"), "classes": ((2, 60), "int32")
    }  # fmt: skip
    singles = [in_graph(*image, max_detections=60) for image in ((boxes, scores), (other_boxes, other_scores))]
    for index, alone in enumerate(singles):
        rows = ops.convert_to_numpy(together["classes"])[index] >= 0
        np.testing.assert_array_equal(ops.convert_to_numpy(together["scores"])[index][rows], alone[1])


def test_nothing_that_passes_gives_padding_alone():
    boxes, scores = random_cells(3)
    found = in_graph(boxes, 0.05 * scores)
    assert [len(part) for part in found] == [0, 0, 0]


def test_of_too_many_candidates_the_best_are_looked_at():
    boxes = np.array([[30 * index, 0, 30 * index + 20, 11] for index in range(6)], "float32")
    scores = np.array([0.3, 0.8, 0.2, 0.6, 0.9, 0.4], "float32")[:, None]
    assert in_graph(boxes, scores, max_candidates=3)[1].tolist() == pytest.approx([0.9, 0.8, 0.6])
