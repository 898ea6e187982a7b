"""Errors sorted by kind and their costs: by hand, by property, and by the figures of the method's own program."""

import numpy as np
import pytest
from labelled_boxes import drawn, results_of, truth_of

from multigrid.data.samples import read_samples
from multigrid.evaluation.errors import FALSE_POSITIVES, KINDS, MEANINGS, costs, error_values, find_errors
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth, to_coco_results
from multigrid.evaluation.matching import match
from multigrid.report import json_text

NAMES = ("red", "green")
A, B = (10, 10, 50, 30), (100, 90, 130, 150)
B_TOP = (100, 90, 130, 110)  # a third of B


def analysed(truths, rows, images=(1, 2, 3)):
    truth = truth_of(truths, NAMES, images)
    errors = find_errors(match(truth, results_of(rows)))
    return errors, costs(errors, truth)


def test_each_kind_of_error_is_told():
    truths = [(1, 0, A), (1, 1, B), (3, 1, A), (4, 0, A), (4, 1, A)]
    rows = [
        (1, 0, 0.95, A),
        (1, 0, 0.9, (14, 12, 54, 32)),  # IoU with A is 648 / 952, and A is found
        (1, 1, 0.85, B_TOP),
        (1, 0, 0.8, B),
        (1, 0, 0.75, B_TOP),
        (1, 0, 0.7, (200, 10, 220, 30)),
        (2, 1, 0.65, A),  # nothing is labelled in this image
        (1, 1, 0.6, (97, 88, 140, 190)),  # IoU with B is 1800 / 4386
        (1, 1, 0.55, (10, 26, 50, 46)),  # IoU with A is 160 / 1440, just above 0.1
        (1, 1, 0.5, (10, 27, 50, 47)),  # 120 / 1480, just under
        (4, 0, 0.45, A),
        (4, 0, 0.4, A),  # twice the red one, but as well a green one by the wrong name
    ]
    errors, _ = analysed(truths, rows, (1, 2, 3, 4))
    kinds = ["", "dupe", "loc", "cls", "both", "bkg", "bkg", "loc", "both", "bkg", "", "cls"]
    assert errors.kind.tolist() == kinds
    assert errors.truth.tolist() == [-1, 0, 1, 1, 1, -1, -1, 1, 0, -1, -1, 4]
    overlaps = [0, 648 / 952, 1 / 3, 1, 1 / 3, 0, 0, 1800 / 4386, 160 / 1440, 0, 0, 1]
    np.testing.assert_allclose(errors.iou, overlaps, atol=1e-6)
    # B is not found, but a loc and a cls lie on it, as a cls does on the green one of image 4; image 3 is overlooked.
    assert errors.missed.tolist() == [False, False, True, False, False]
    assert errors.explained.tolist() == [False, True, False, False, True]
    assert errors.counts() == {"cls": 2, "loc": 2, "both": 2, "dupe": 1, "bkg": 3, "missed": 1, "explained": 2}
    assert errors.counts(1) == {"cls": 0, "loc": 2, "both": 1, "dupe": 0, "bkg": 2, "missed": 1, "explained": 2}
    assert tuple(MEANINGS) == KINDS


@pytest.mark.parametrize("overlap, kind", [(0.49, "loc"), (0.5, ""), (0.1, "loc"), (0.09, "bkg")])
def test_the_limits_are_half_and_a_tenth(overlap, kind):
    # A box on the lower left part of a 40 × 20 one, whose area is the IoU.
    errors, _ = analysed([(1, 0, A)], [(1, 0, 0.7, (10, 30 - 20 * overlap, 50, 30))])
    assert errors.kind.tolist() == [kind]


def test_a_box_on_just_half_of_an_object_that_is_found_came_too_late():
    # The lower half of A: IoU 0.5 exactly, which finds an object that is free.
    half = (A[0], (A[1] + A[3]) / 2, A[2], A[3])
    errors, _ = analysed([(1, 0, A)], [(1, 0, 0.9, A), (1, 0, 0.7, half)])
    assert errors.kind.tolist() == ["", "dupe"]
    other, _ = analysed([(1, 0, A)], [(1, 1, 0.7, half)])
    assert other.kind.tolist() == ["cls"]


def test_a_misplaced_box_costs_what_its_object_is_worth():
    errors, found = analysed([(1, 0, A), (1, 0, B)], [(1, 0, 0.9, A), (1, 0, 0.8, B_TOP), (1, 0, 0.7, B_TOP)])
    # Precision is 1 up to a recall of 0.5, at 51 of COCO's 101 points, and 0 beyond. Mended, one of the two boxes finds
    # the object and the other goes.
    assert errors.kind.tolist() == ["", "loc", "loc"] and errors.explained.tolist() == [False, True]
    assert found["AP50"] == pytest.approx(51 / 101)
    assert found["cost"] == pytest.approx({"cls": 0, "loc": 50 / 101, "both": 0, "dupe": 0, "bkg": 0, "missed": 0})
    assert found["false_negatives"] == pytest.approx(50 / 101) and found["false_positives"] == pytest.approx(0)


def test_a_wrong_name_costs_the_class_that_it_should_have_had():
    errors, found = analysed([(1, 0, A), (1, 1, B)], [(1, 0, 0.9, A), (1, 0, 0.8, B)])
    # Red is found whatever comes behind it, green is not: (1 + 0) / 2.
    assert errors.kind.tolist() == ["", "cls"]
    assert found["AP50"] == pytest.approx(0.5)
    assert found["cost"] == pytest.approx({"cls": 0.5, "loc": 0, "both": 0, "dupe": 0, "bkg": 0, "missed": 0})


@pytest.mark.parametrize("kind, box", [("bkg", (200, 10, 220, 30)), ("both", B_TOP)])
def test_a_box_on_nothing_costs_the_precision_of_what_comes_behind_it(kind, box):
    # Of the two red ones the first is false: precision is 1/2. Green is found.
    errors, found = analysed([(1, 0, A), (1, 1, B)], [(1, 0, 0.95, box), (1, 0, 0.7, A), (1, 1, 0.9, B)])
    assert errors.kind.tolist() == [kind, "", ""]
    assert found["AP50"] == pytest.approx((0.5 + 1) / 2)
    assert found["cost"] == pytest.approx({name: 0.25 if name == kind else 0 for name in KINDS})
    assert found["false_positives"] == pytest.approx(0.25)


def test_a_duplicate_costs_the_precision_of_what_comes_behind_it():
    # Precision is 1 up to a recall of 0.5, at 51 points, and 2/3 at the other 50.
    other = (60, 10, 90, 50)
    rows = [(1, 0, 0.8, A), (1, 0, 0.7, (10, 11, 50, 31)), (1, 0, 0.6, other)]
    errors, found = analysed([(1, 0, A), (1, 0, other)], rows)
    assert errors.kind.tolist() == ["", "dupe", ""]
    assert found["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert found["cost"] == pytest.approx({name: 50 / 303 if name == "dupe" else 0 for name in KINDS})


def test_an_overlooked_object_costs_its_recall():
    _, found = analysed([(1, 0, A), (2, 0, B)], [(1, 0, 0.9, A)])
    assert found["cost"] == pytest.approx({"cls": 0, "loc": 0, "both": 0, "dupe": 0, "bkg": 0, "missed": 50 / 101})


@pytest.mark.parametrize("crowds", [0.0, 0.2])
@pytest.mark.parametrize("seed", [4, 5])
def test_errors_are_a_partition_and_cost_no_less_than_nothing(seed, crowds):
    truth, results = drawn(seed=seed, crowds=crowds, strays=2)
    matches = match(truth, results)
    errors = find_errors(matches)
    counts = errors.counts()
    assert all(counts.values()) and set(errors.kind) == {"", *FALSE_POSITIVES}
    np.testing.assert_array_equal(errors.kind == "", matches.true_positive)
    assert sum(counts[kind] for kind in FALSE_POSITIVES) == np.count_nonzero(~matches.true_positive)
    np.testing.assert_array_equal(errors.missed.astype(int) + errors.explained, matches.detection < 0)
    assert counts == {kind: sum(errors.counts(label)[kind] for label in range(3)) for kind in counts}
    found = costs(errors, truth)
    assert found["AP50"] == pytest.approx(coco_metrics(truth, results)["mAP50"], abs=1e-12)
    assert all(cost >= -1e-12 for cost in found["cost"].values())
    assert found["false_negatives"] >= found["cost"]["missed"]
    assert found["false_positives"] >= max(found["cost"][kind] for kind in ("both", "dupe", "bkg"))


def test_counts_and_costs_are_those_of_tidecv():
    truth, results = drawn(seed=21, images=60, decimals=9, strays=2)
    errors = find_errors(match(truth, results))
    found = costs(errors, truth)
    # tidecv 1.0.1, TIDE().evaluate(truth, results, mode=TIDE.BOX) with no limit to the detections of an image.
    assert [errors.counts()[kind] for kind in KINDS] == [33, 38, 20, 149, 88, 61]
    assert found["AP50"] == pytest.approx(0.4251439937632357, abs=1e-12)
    expected = {
        "cls": 0.03413725030086098, "loc": 0.06587231962601002, "both": 0.014385784529997992,
        "dupe": 0.04437720663497977, "bkg": 0.060931046111110235, "missed": 0.13224134845791483,
    }  # fmt: skip
    assert found["cost"] == pytest.approx(expected, abs=1e-12)
    assert found["false_positives"] == pytest.approx(0.2679253131674574, abs=1e-12)
    assert found["false_negatives"] == pytest.approx(0.18631863253484646, abs=1e-12)


def test_a_kind_does_not_depend_on_detections_of_lower_score():
    truth, results = drawn(seed=9, strays=1)
    matches = match(truth, results)
    everything, above = find_errors(matches), find_errors(matches.above(0.5))
    assert above.kind.tolist() == everything.kind[: len(above.kind)].tolist()
    assert above.counts()["missed"] > everything.counts()["missed"]


def test_no_objects_or_no_detections_are_a_case_like_others():
    errors, found = analysed([], [(1, 0, 0.9, A)])
    assert errors.kind.tolist() == ["bkg"]
    assert found["AP50"] is None and set(found["cost"].values()) == {None} and found["false_positives"] is None
    errors, found = analysed([(1, 0, A)], [])
    assert errors.counts()["missed"] == 1
    # Nothing is left to be found once the object that is missed is none any more.
    assert found["AP50"] == 0 and found["cost"]["missed"] == 1 and found["cost"]["cls"] == 0
    errors, found = analysed([], [])
    assert not any(errors.counts().values())


def test_all_of_it_becomes_json():
    truth, results = drawn(seed=6, strays=1)
    matches = match(truth, results)
    values = error_values(find_errors(matches), truth, ("red", "green", "blue"), 0.6)
    assert json_text(values)
    seen, everything = values["counts_at_threshold"], values["counts_of_all"]
    assert seen["all"]["true"] == np.count_nonzero(matches.above(0.6).true_positive) < everything["all"]["true"]
    for counts in (seen, everything):
        for kind, number in counts["all"].items():
            assert number == sum(of_class[kind] for of_class in counts["by_class"].values())
        # Every object is found, missed or explained.
        assert sum(counts["all"][name] for name in ("true", "missed", "explained")) == len(matches.detection)


def test_errors_are_a_partition_on_real_labels(real_data):
    names = ("RBC", "WBC", "Platelets")
    samples = read_samples(real_data("bccd") / "test.txt", names)[0][:20]
    random = np.random.default_rng(3)
    results = []
    for sample in samples:
        moved = sample.boxes + random.normal(0, 12, sample.boxes.shape)
        boxes = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1)
        classes = np.where(random.random(len(boxes)) < 0.8, sample.classes, random.integers(0, 3, len(boxes)))
        results += to_coco_results(sample.image_id, boxes, random.random(len(boxes)), classes)
    matches = match(to_coco_ground_truth(samples, names), results)
    counts = find_errors(matches).counts()
    right = np.count_nonzero(matches.true_positive)
    assert right + sum(counts[kind] for kind in FALSE_POSITIVES) == len(results) > 100
    assert right + counts["missed"] + counts["explained"] == len(matches.detection)
