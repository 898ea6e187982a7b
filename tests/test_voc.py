"""VOC's average precision: by hand, and the figures of another implementation."""

import json

import numpy as np
import pytest

from multigrid.detection.records import records_of
from multigrid.evaluation.voc import average_precisions, voc_ap


def entry(image_id, box, score=None, category_id=1, **more):
    scored = {} if score is None else {"score": score}
    return {"image_id": image_id, "category_id": category_id, "bbox": box, **scored, **more}


def truth_of(*annotations, classes=("cat",)):
    categories = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    return {"annotations": list(annotations), "categories": categories}


def test_both_average_precisions_of_a_ranking_are_counted_by_hand():
    # right, wrong, right, wrong, wrong, right of 4 objects: recall 1/4, 2/4, 3/4 at precision 1, 2/3, 3/6.
    # Every point: 1/4 · (1 + 2/3 + 1/2) = 13/24.
    # Eleven: 0, .1, .2 have 1; .3, .4, .5 have 2/3; .6, .7 have 1/2; .8, .9, 1 have 0: (3 + 2 + 1) / 11.
    found = average_precisions([True, False, True, False, False, True], 4)
    assert found == pytest.approx({"AP_every_point": 13 / 24, "AP_11point": 6 / 11})


def test_all_found_and_nothing_else_is_one():
    assert average_precisions([True] * 3, 3) == {"AP_11point": 1, "AP_every_point": 1}


def test_nothing_found_is_zero_and_nothing_to_find_is_no_figure():
    assert average_precisions([], 3) == {"AP_11point": 0, "AP_every_point": 0}
    assert average_precisions([False, False], 3) == {"AP_11point": 0, "AP_every_point": 0}
    assert average_precisions([False], 0) == {"AP_11point": None, "AP_every_point": None}


def read_toy(folder):
    """Ground truth and results of the files "class x y w h" and "class score x y w h"."""
    annotations, results = [], []
    for kind, entries in (("gts", annotations), ("dets", results)):
        files = sorted((folder / kind).glob("*.txt"))
        assert len(files) == 7
        for file in files:
            for line in file.read_text().splitlines():
                name, *score, x, y, width, height = line.split()
                assert name == "object"
                box = [float(side) for side in (x, y, width, height)]
                entries.append(entry(int(file.stem), box, *map(float, score)))
    return truth_of(*annotations), results


def test_the_toy_set_has_its_published_figures(real_data):
    folder = real_data("metric_reference")
    truth, results = read_toy(folder / "voc_toy")
    assert (len(truth["annotations"]), len(results)) == (15, 24)
    expected = json.loads((folder / "expected.json").read_text())["voc_toy"]["expected_AP"]
    assert len(expected["11point"]) == len(expected["everypoint"]) == 4
    for threshold in expected["11point"]:
        found = voc_ap(truth, results, float(threshold), inclusive=True)
        assert found["AP_11point"] == pytest.approx(expected["11point"][threshold], abs=1e-6)
        assert found["AP_every_point"] == pytest.approx(expected["everypoint"][threshold], abs=1e-6)
    # With corners as edges the boxes are smaller, and some no longer overlap by 0.1.
    assert voc_ap(truth, results, 0.1)["AP_every_point"] < expected["everypoint"]["0.1"] - 0.01


def test_an_inclusive_box_is_one_pixel_wider_and_higher():
    # 9 x 4 against 9 x 4 moved by 3: IoU = 6·4 / (72 - 24) = .5; inclusive, 10 x 5 moved by 3: 7·5 / (100 - 35) = .538.
    truth, results = truth_of(entry(3, [10, 20, 9, 4])), [entry(3, [13, 20, 9, 4], 0.8)]
    assert voc_ap(truth, results, 0.5)["AP_every_point"] == 1
    assert voc_ap(truth, results, 0.52)["AP_every_point"] == 0
    assert voc_ap(truth, results, 0.52, inclusive=True)["AP_every_point"] == 1
    assert voc_ap(truth, results, 0.54, inclusive=True)["AP_every_point"] == 0


def test_a_detection_belongs_to_the_object_that_it_overlaps_most_even_if_that_is_taken():
    # Both detections overlap the first object most (IoU 1 and 17/23 = .74) and the second by 13/27 and 16/24 = .67,
    # so one of them is false; COCO would give the second object to the second detection.
    truth = truth_of(entry(3, [0, 0, 20, 10]), entry(3, [7, 0, 20, 10]))
    results = [entry(3, [0, 0, 20, 10], 0.9), entry(3, [3, 0, 20, 10], 0.8)]
    assert voc_ap(truth, results)["AP_every_point"] == pytest.approx(1 / 2)


def test_equal_scores_keep_their_order_and_a_higher_score_goes_first():
    truth = truth_of(entry(3, [0, 0, 20, 10]))
    right, wrong = entry(3, [0, 0, 20, 10], 0.7), entry(4, [0, 0, 20, 10], 0.7)
    assert voc_ap(truth, [right, wrong])["AP_every_point"] == 1
    assert voc_ap(truth, [wrong, right])["AP_every_point"] == pytest.approx(1 / 2)
    assert voc_ap(truth, [wrong, right | {"score": 0.71}])["AP_every_point"] == 1


def test_classes_without_objects_count_in_no_mean_and_crowds_are_no_objects():
    truth = truth_of(
        entry(3, [0, 0, 20, 10]),
        entry(3, [30, 5, 8, 40], category_id=3, iscrowd=1),
        classes=("cat", "dog", "owl"),
    )
    results = [entry(3, [0, 0, 20, 10], 0.9), entry(3, [30, 5, 8, 40], 0.95, category_id=3)]
    found = voc_ap(truth, results)
    assert (found["AP_11point"], found["AP_every_point"], found["iou"]) == (1, 1, 0.5)
    nothing = {"AP_11point": None, "AP_every_point": None}
    assert found["per_class"] == {"cat": {"AP_11point": 1, "AP_every_point": 1}, "dog": nothing, "owl": nothing}


def test_nothing_at_all_has_no_figure():
    found = voc_ap(truth_of(classes=("cat", "dog")), [])
    assert found["AP_every_point"] is None and list(found["per_class"]) == ["cat", "dog"]


def test_the_order_of_images_and_the_form_of_results_do_not_matter():
    random = np.random.default_rng(5)
    boxes = np.column_stack([random.uniform(0, 60, (30, 2)), random.uniform(5, 40, (30, 2))]).round(1)
    truth = truth_of(*(entry(index % 4 + 11, box.tolist()) for index, box in enumerate(boxes)))
    results = [entry(index % 4 + 11, (box + 2).tolist(), index / 31) for index, box in enumerate(boxes)]
    expected = voc_ap(truth, results)
    assert 0.05 < expected["AP_every_point"] < 0.95
    assert voc_ap(truth, results[::-1]) == expected
    assert voc_ap(truth, records_of(results)) == expected
