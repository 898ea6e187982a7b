"""Precision, recall and F1 over confidence, counted by hand."""

import numpy as np
import pytest

from multigrid.detection.records import records_of
from multigrid.evaluation.curves import curve, curves_of
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.matching import match
from multigrid.evaluation.run import Evaluation

# By score: .9 right, .8 wrong, .8 right, .6 right, .3 wrong; 4 objects. The two of score .8 are one point.
SCORES, CORRECT = [0.6, 0.9, 0.8, 0.3, 0.8], [True, True, False, False, True]


def test_a_point_is_a_score_that_occurs_and_counts_all_that_reach_it():
    found = curve(SCORES, CORRECT, 4)
    assert found.scores.tolist() == [0.9, 0.8, 0.6, 0.3]
    assert found.detections.tolist() == [1, 3, 4, 5]
    assert found.correct.tolist() == [1, 2, 3, 3]
    np.testing.assert_allclose(found.precision, [1, 2 / 3, 3 / 4, 3 / 5])
    np.testing.assert_allclose(found.recall, [1 / 4, 2 / 4, 3 / 4, 3 / 4])
    # F1 = 2 tp / (n + m): 2/5, 4/7, 6/8, 6/9
    np.testing.assert_allclose(found.f1, [2 / 5, 4 / 7, 6 / 8, 6 / 9])
    precision, recall = found.precision, found.recall
    np.testing.assert_allclose(found.f1, 2 * precision * recall / (precision + recall))


def test_the_envelope_is_the_best_precision_at_that_recall_or_a_higher_one():
    # The dip to 2/3 at recall 2/4 is filled by the 3/4 at recall 3/4.
    np.testing.assert_allclose(curve(SCORES, CORRECT, 4).envelope, [1, 3 / 4, 3 / 4, 3 / 5])


def test_the_best_threshold_is_where_f1_is_highest():
    assert curve(SCORES, CORRECT, 4).best() == {"precision": 0.75, "recall": 0.75, "f1": 0.75, "best_threshold": 0.6}


def test_of_equally_good_thresholds_the_highest_is_chosen():
    # Of 2 objects, 1 of 1 right: 2/3; 1 of 2: 2/4; 1 of 3: 2/5; 2 of 4: 4/6, the same as at first.
    found = curve([0.7, 0.5, 0.4, 0.2], [True, False, False, True], 2)
    np.testing.assert_allclose(found.f1, [2 / 3, 2 / 4, 2 / 5, 4 / 6])
    assert found.best()["best_threshold"] == 0.7


def test_f1_at_a_threshold_counts_detections_of_exactly_that_score():
    found = curve(SCORES, CORRECT, 4).f1_at([0.0, 0.3, 0.31, 0.8, 0.81, 0.9, 0.91, 1.0])
    np.testing.assert_allclose(found, [6 / 9, 6 / 9, 6 / 8, 4 / 7, 2 / 5, 2 / 5, 0, 0])


def test_without_detections_f1_and_recall_are_zero_and_the_threshold_is_none():
    empty = curve([], [], 3)
    assert empty.best() == {"precision": None, "recall": 0.0, "f1": 0.0, "best_threshold": None}
    assert empty.f1_at([0.5]).tolist() == [0]
    assert curve([0.9, 0.2], [False, False], 3).best() == empty.best()


def test_without_objects_there_are_no_figures():
    found = curve([0.9, 0.2], [False, False], 0)
    assert set(found.best().values()) == {None}
    assert np.isnan(found.recall).all() and np.isnan(found.f1).all() and found.precision.tolist() == [0, 0]


def entry(image_id, category_id, box, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, **more}


TRUTH = {
    "images": [{"id": 7, "width": 96, "height": 64}, {"id": 9, "width": 96, "height": 64}],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "owl"}],
    "annotations": [
        entry(7, 1, [0, 0, 20, 10], id=1, area=200, iscrowd=0),
        entry(7, 1, [40, 0, 20, 10], id=2, area=200, iscrowd=0),
        entry(9, 2, [5, 5, 30, 10], id=3, area=300, iscrowd=0),
    ],
}
RESULTS = [
    entry(7, 1, [0, 0, 20, 10], score=0.9),
    entry(9, 1, [40, 0, 20, 10], score=0.8),  # the other image: wrong
    entry(9, 2, [5, 5, 30, 11], score=0.7),
    entry(9, 3, [5, 5, 30, 10], score=0.6),  # a class without objects: wrong
]
# All in one list: 1 of 1 right, 1 of 2, 2 of 3, 2 of 4, of 3 objects: F1 = 2/4, 2/5, 4/6, 4/7.
POOLED_BEST = {"precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3, "best_threshold": 0.7}
# 1 of 1 right of 2 objects: F1 = 2/3.
CAT_BEST = {"precision": 1, "recall": 1 / 2, "f1": 2 / 3, "best_threshold": 0.9}
DOG_BEST = {"precision": 1, "recall": 1, "f1": 1, "best_threshold": 0.7}


def test_all_in_one_list_weighs_objects_alike_and_classes_are_apart():
    pooled, (cat, dog, owl) = curves_of(match(TRUTH, RESULTS), 3)
    assert (pooled.objects, cat.objects, dog.objects, owl.objects) == (3, 2, 1, 0)
    assert pooled.best() == pytest.approx(POOLED_BEST)
    assert cat.best() == pytest.approx(CAT_BEST) and dog.best() == pytest.approx(DOG_BEST)
    assert set(owl.best().values()) == {None} and owl.detections.tolist() == [1]


def test_the_metrics_have_the_best_threshold_of_all_and_of_each_class():
    records = records_of(RESULTS)
    found = Evaluation(coco_metrics(TRUTH, records), records, TRUTH, 0.75, None, {}).full_metrics
    assert {name: found[name] for name in POOLED_BEST} == pytest.approx(POOLED_BEST)
    for name, best in (("cat", CAT_BEST), ("dog", DOG_BEST)):
        assert {key: found["per_class"][name][key] for key in best} == pytest.approx(best)
    assert found["per_class"]["owl"] == dict.fromkeys(found["per_class"]["owl"]) | {"objects": 0, "detections": 1}
    # From .75 on: a cat found, one missed, the dog missed, and a cat where nothing is.
    assert found["confusion"]["counts"] == [[1, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]
    # Cats: 1 of 2 right at recall 1/2, so 1/2 at every point, and 6 of 11 recalls (0 to .5). Dogs: 1.
    assert found["voc"] == pytest.approx({"iou": 0.5, "AP_every_point": 3 / 4, "AP_11point": (6 / 11 + 1) / 2})
    # .9 right, .8 wrong, .7 right, .6 wrong: off by .1, .8, .3 and .6.
    assert found["calibration"]["expected_calibration_error"] == pytest.approx(1.8 / 4)
