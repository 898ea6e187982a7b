"""Average precision with all classes as one: by hand, and by what must not matter."""

import copy

import numpy as np
import pytest
from labelled_boxes import drawn, results_of, truth_of

from multigrid.detection.records import records_of
from multigrid.errors import InputError
from multigrid.evaluation.agnostic import AGNOSTIC_FIGURES, class_agnostic_metrics
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.run import Evaluation

NAMES = ("one", "two", "six")
# Two objects that do not touch in the first image, one in the second.
TALL, WIDE, SMALL = (10, 20, 40, 110), (90, 31, 210, 71), (33, 5, 50, 16)
OBJECTS = [(1, 0, TALL), (1, 1, WIDE), (2, 2, SMALL)]
FOUND = [(1, 0, 0.9, TALL), (1, 1, 0.5, WIDE), (2, 2, 0.7, SMALL)]


def truth():
    return truth_of(OBJECTS, NAMES)


def figures_of(rows, **options):
    return class_agnostic_metrics(truth(), records_of(results_of(rows)), **options)


def figures(value):
    return pytest.approx(dict.fromkeys(AGNOSTIC_FIGURES, value))


def evaluation_of(ground_truth, results):
    records = records_of(results)
    return Evaluation(coco_metrics(ground_truth, records), records, ground_truth, 0.25, None, {})


def test_found_objects_of_wrong_classes_are_all_found():
    wrong = [(image_id, (label + 1) % 3, score, box) for image_id, label, score, box in FOUND]
    assert coco_metrics(truth(), results_of(wrong))["mAP"] == 0
    assert figures_of(wrong) == figures(1)


def test_the_same_boxes_under_other_classes_change_nothing():
    # Moved by a pixel, so that they are false where nothing removes them: WIDE by 1 of 120 has IoU 119 / 121 = .98.
    again = [
        (image_id, other, score - 0.05, (box[0] + 1, *box[1:]))
        for image_id, label, score, box in FOUND
        for other in range(3)
        if other != label
    ]
    assert figures_of(FOUND + again) == figures(1)
    assert figures_of(again[::-1] + FOUND) == figures(1)
    # With all nine left there are, by score, one right, two wrong, three times over: precision 1, 2/4 and 3/7 at recall
    # 1/3, 2/3 and 1, which are 34 (0 to .33), 33 and 34 of the 101 recall steps.
    left = figures_of(FOUND + again, nms_threshold=1.0)
    assert left["mAP50"] == pytest.approx((34 + 33 / 2 + 34 * 3 / 7) / 101)


def test_the_best_of_a_place_stays_whatever_its_class_and_is_counted_by_hand():
    # On WIDE (120 x 40) lies a box of a wrong class, moved by 20: IoU = 100 / 140 = .714; the right box scores less and
    # overlaps it by as much, so it goes. On TALL lies nothing, SMALL is found. Of 3 objects two are found at precision
    # 1: recall 2/3, of the 101 recall steps the first 67 (0 to .66), so 67 / 101 at the five thresholds .5 to .7. From
    # .75 on the first detection (.8) is wrong and the second (.6) right: precision 1/2 up to recall 1/3, 34 steps.
    # mAP = (5 · 67 / 101 + 5 · 17 / 101) / 10 = 42 / 101.
    rows = [(1, 0, 0.8, (110, 31, 230, 71)), (1, 1, 0.7, WIDE), (2, 2, 0.6, SMALL)]
    expected = {"mAP": 42 / 101, "mAP50": 67 / 101, "mAP75": 17 / 101}
    assert figures_of(rows) == pytest.approx(expected)
    # With both left, at .75 the .8 is wrong, the .7 and the .6 are right: precision 2/3 up to recall 2/3.
    assert figures_of(rows, nms_threshold=0.72)["mAP75"] == pytest.approx(67 * 2 / 3 / 101)


def test_boxes_of_other_images_and_of_other_places_stay():
    # The boxes of the first image also in the second, where better ones lie: nothing overlaps within an image.
    objects = [(image_id, label, box) for image_id in (1, 2) for label, box in ((0, TALL), (1, WIDE), (2, SMALL))]
    rows = [(image_id, 2 - label, 0.3 * image_id, box) for image_id, label, box in objects]
    moved = truth_of(objects, NAMES)
    # TALL (10 to 40) and SMALL (33 to 50) do not meet: 5 to 16 lies above 20.
    assert class_agnostic_metrics(moved, records_of(results_of(rows))) == figures(1)


def test_one_class_without_overlaps_has_cocos_figures():
    random = np.random.default_rng(4)
    objects, rows = [], []
    for image_id in range(1, 21):
        for column, row in ((0, 0), (1, 0), (2, 1)):
            corner = np.array([100 * column, 90 * row]) + random.uniform(0, 12, 2)
            box = (*corner, *(corner + random.uniform((30, 20), (70, 60))))
            objects.append((image_id, 0, box))
            # Equal scores and boxes that miss: the order of what is left matters.
            rows.append((image_id, 0, round(random.random(), 1), np.array(box) + random.normal(0, 4, 4)))
    ground_truth, results = truth_of(objects, ["die"], range(1, 21)), results_of(rows)
    expected = coco_metrics(ground_truth, results)
    assert 0.05 < expected["mAP"] < expected["mAP50"] < 0.99
    assert class_agnostic_metrics(ground_truth, results) == {name: expected[name] for name in AGNOSTIC_FIGURES}


def test_classes_play_no_part_and_the_order_of_images_neither():
    ground_truth, results = drawn(decimals=6, strays=3, crowds=0.1)
    expected = class_agnostic_metrics(ground_truth, results)
    assert 0.05 < expected["mAP"] < expected["mAP50"] < 0.95
    shuffled = [{**result, "category_id": 1 + index % 3} for index, result in enumerate(results)]
    assert class_agnostic_metrics(ground_truth, shuffled) == expected
    assert class_agnostic_metrics(ground_truth, results[::-1]) == expected


def test_more_detections_than_coco_looks_at_change_nothing():
    # 130 that hit nothing and score less than all that do; COCO looks at the 100 best of an image.
    strays = [(1, 0, 0.01 + index / 1e4, (index, 150, index + 0.5, 153)) for index in range(130)]
    assert figures_of(strays + FOUND) == figures(1)


def test_what_it_is_given_stays_as_it_is():
    ground_truth, records = truth(), records_of(results_of(FOUND))
    before = copy.deepcopy(ground_truth), records.copy()
    assert class_agnostic_metrics(ground_truth, records) == figures(1)
    assert ground_truth == before[0]
    np.testing.assert_array_equal(records, before[1])


def test_no_detections_are_zero_and_no_objects_no_figure():
    assert figures_of([]) == figures(0)
    nothing = dict.fromkeys(AGNOSTIC_FIGURES)
    empty = truth_of([], NAMES)
    assert class_agnostic_metrics(empty, records_of([])) == nothing
    assert class_agnostic_metrics(empty, results_of(FOUND)) == nothing


def test_results_of_an_unknown_image_are_refused():
    with pytest.raises(InputError, match="expected image_id .* 2 images, received 3"):
        figures_of([*FOUND, (3, 0, 0.9, TALL)])


def test_an_evaluation_has_them_and_with_one_class_they_are_its_own():
    ground_truth, results = drawn()
    many = evaluation_of(ground_truth, results).full_metrics
    assert many["class_agnostic"] == class_agnostic_metrics(ground_truth, results)
    assert many["class_agnostic"]["mAP"] > many["mAP"] > 0
    # Detections of one class that overlap are what the detector's own suppression left, so they stay.
    ground_truth, results = drawn(names=["die"])
    alone = evaluation_of(ground_truth, results).full_metrics
    assert alone["class_agnostic"] == {name: alone[name] for name in AGNOSTIC_FIGURES}
    assert alone["class_agnostic"] != class_agnostic_metrics(ground_truth, results)
