"""Detections matched to objects: by hand, and against pycocotools' own record of each image."""

import contextlib
import copy
import io

import numpy as np
import pytest
from labelled_boxes import drawn, results_of, truth_of

from multigrid.evaluation import evaluator
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.matching import average_precision, match


def pycocotools_matches(truth, results, threshold):
    """{index of the result: annotation id, 0 where it found none}, without those that COCO leaves out."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.iouThrs = np.array([threshold])
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return {
        int(detection) - 1: int(found)
        for image in filter(None, evaluation.evalImgs)
        for detection, found, ignored in zip(image["dtIds"], image["dtMatches"][0], image["dtIgnore"][0], strict=True)
        if not ignored
    }


def test_the_best_score_takes_the_object_and_the_next_finds_it_taken():
    # 40 × 20 at (10, 10). Moved by 4 and 2: 36 · 18 = 648 shared of 1600 - 648 = 952: 0.681; by 2 and 0: 760 of 840.
    truth = truth_of([(1, 0, (10, 10, 50, 30)), (2, 0, (10, 10, 50, 30)), (1, 1, (100, 90, 130, 150))])
    results = results_of(
        [
            (1, 0, 0.5, (12, 10, 52, 30)),
            (1, 0, 0.9, (14, 12, 54, 32)),
            (2, 1, 0.7, (10, 10, 50, 30)),  # another class
            (1, 1, 0.5, (100, 90, 130, 120)),  # half of it: IoU is 0.5, and that is enough
        ]
    )
    matches = match(truth, results)
    assert matches.result.tolist() == [1, 2, 0, 3]
    assert matches.score.tolist() == [0.9, 0.7, 0.5, 0.5]
    assert matches.image_id.tolist() == [1, 2, 1, 1] and matches.class_index.tolist() == [0, 1, 0, 1]
    assert matches.truth.tolist() == [0, -1, -1, 2]
    assert matches.true_positive.tolist() == [True, False, False, True]
    np.testing.assert_allclose(matches.iou, [648 / 952, 0, 0, 0.5])
    assert matches.detection.tolist() == [0, -1, 3]
    assert matches.boxes[0].tolist() == [14, 12, 54, 32]
    assert matches.truth_boxes[2].tolist() == [100, 90, 130, 150]
    assert matches.truth_class.tolist() == [0, 0, 1] and matches.truth_image_id.tolist() == [1, 2, 1]
    assert match(truth, results, 0.69).truth.tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("crowds", [0.0, 0.2])
def test_matches_are_those_of_pycocotools(threshold, crowds):
    truth, results = drawn(crowds=crowds)
    before = copy.deepcopy((truth, results))
    matches = match(truth, results, threshold)
    assert (truth, results) == before
    ids = [entry["id"] for entry in truth["annotations"] if not entry["iscrowd"]]
    found = {int(index): ids[of] if of >= 0 else 0 for index, of in zip(matches.result, matches.truth, strict=True)}
    assert found == pycocotools_matches(truth, results, threshold)
    assert 30 < np.count_nonzero(matches.true_positive) < len(matches.truth) - 30
    for index in np.flatnonzero(matches.detection >= 0):
        assert matches.truth[matches.detection[index]] == index
    assert np.all(np.diff(matches.score) <= 0)


def test_only_the_hundred_best_of_an_image_and_class_are_looked_at():
    # 130 detections of one image and class, the worst of them on the object; five more of the other class.
    random = np.random.default_rng(2)
    rows = [(1, 0, 0.9 - number / 1000, (200, 10 + number, 230, 25 + number)) for number in range(129)]
    rows.append((1, 0, 0.2, (10, 10, 50, 30)))
    rows += [(1, 1, 0.1, (10, 10, 50, 30)) for _ in range(5)]
    random.shuffle(rows)
    truth, results = truth_of([(1, 0, (10, 10, 50, 30))]), results_of(rows)
    matches = match(truth, results)
    assert len(matches.score) == 105 and matches.detection.tolist() == [-1]
    assert matches.score[:100].min() == pytest.approx(0.801)
    assert set(matches.result.tolist()) == set(pycocotools_matches(truth, results, 0.5))


def test_what_reaches_a_score_is_matched_as_if_there_were_nothing_else():
    truth, results = drawn(seed=8)
    kept = [entry for entry in results if entry["score"] >= 0.6]
    above, alone = match(truth, results).above(0.6), match(truth, kept)
    for name in ("image_id", "class_index", "score", "boxes", "truth", "iou", "detection", "truth_boxes"):
        np.testing.assert_array_equal(getattr(above, name), getattr(alone, name), err_msg=name)
    assert 0 < len(alone.score) < len(results)


@pytest.mark.parametrize("crowds", [0.0, 0.2])
def test_the_average_precision_is_that_of_the_metrics(crowds):
    truth, results = drawn(seed=3, crowds=crowds)
    metrics = coco_metrics(truth, results)
    assert average_precision(truth, results) == pytest.approx(metrics["mAP50"], abs=1e-12)
    assert average_precision(truth, results, 0.75) == pytest.approx(metrics["mAP75"], abs=1e-12)


def test_classes_in_groups_are_matched_as_all_at_once(monkeypatch):
    truth, results = drawn(seed=5, crowds=0.2)
    expected, precision = match(truth, results), average_precision(truth, results)
    monkeypatch.setattr(evaluator, "DETECTIONS_AT_ONCE", 1)  # each class is a group
    matches = match(truth, results)
    for name in ("result", "truth", "iou", "detection"):
        np.testing.assert_array_equal(getattr(matches, name), getattr(expected, name), err_msg=name)
    assert average_precision(truth, results) == pytest.approx(precision, abs=1e-12)
    assert len(truth["categories"]) > 1 and matches.true_positive.sum() > 30


@pytest.mark.parametrize("objects, found", [(0, 0), (0, 3), (2, 0)])
def test_no_objects_or_no_detections_are_a_case_like_others(objects, found):
    truth = truth_of([(1, 0, (10, 10 + number, 50, 30 + number)) for number in range(objects)])
    results = results_of([(2, 1, 0.3, (10, 10, 50, 30 + number)) for number in range(found)])
    matches = match(truth, results)
    assert len(matches.score) == found and matches.boxes.shape == (found, 4)
    assert not matches.true_positive.any()
    assert matches.detection.tolist() == [-1] * objects and matches.truth_boxes.shape == (objects, 4)
    assert average_precision(truth, results) == (0.0 if objects else None)
