"""Which class was taken for which, counted by hand."""

import numpy as np

from multigrid.evaluation.confusion import confusion_matrix, greedy_pairs


def entry(image_id, category_id, box, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": box, **more}


def truth_of(*annotations):
    return {"annotations": list(annotations), "categories": [{"id": 2, "name": "dog"}, {"id": 1, "name": "cat"}]}


CAT, DOG = 1, 2


def test_rows_are_the_truth_and_columns_what_was_predicted():
    truth = truth_of(
        entry(5, CAT, [0, 0, 20, 10]),
        entry(5, CAT, [40, 0, 20, 10]),
        entry(5, DOG, [0, 30, 10, 30]),
        entry(6, DOG, [0, 30, 10, 30]),
    )
    results = [
        entry(5, CAT, [0, 0, 20, 11], score=0.9),  # a cat that is one
        entry(5, DOG, [40, 1, 20, 10], score=0.4),  # a cat taken for a dog
        entry(6, CAT, [50, 30, 10, 30], score=0.5),  # nothing is there: background taken for a cat
        entry(6, DOG, [51, 30, 10, 30], score=0.25),  # nor for this dog
        entry(6, DOG, [0, 30, 10, 30], score=0.2499),  # does not count
    ]
    found = confusion_matrix(truth, results, 0.25)
    assert found["labels"] == ["cat", "dog", "background"]
    assert (found["threshold"], found["iou"]) == (0.25, 0.5)
    assert found["counts"] == [[1, 1, 0], [0, 0, 2], [1, 1, 0]]


def test_sums_of_rows_are_objects_and_sums_of_columns_are_detections():
    random = np.random.default_rng(3)
    boxes = np.column_stack([random.uniform(0, 60, (50, 2)), random.uniform(10, 50, (50, 2))]).tolist()
    labels = random.integers(1, 3, 50).tolist()
    truth = truth_of(*(entry(index % 3, labels[index], box) for index, box in enumerate(boxes)))
    results = [entry(index % 3, 1 + index % 2, box, score=0.5) for index, box in enumerate(boxes[:41])]
    counts = np.array(confusion_matrix(truth, results, 0.25)["counts"])
    assert counts.sum(axis=1).tolist()[:2] == [labels.count(CAT), labels.count(DOG)]
    assert counts.sum(axis=0).tolist()[:2] == [21, 20]
    assert counts[:2, :2].sum() > 10 and counts[2, 2] == 0


def test_the_pair_that_overlaps_most_goes_first_whatever_its_class_and_score():
    # The dog box lies on the cat exactly, the cat box by 16/24; an object has one detection, so the other has none.
    truth = truth_of(entry(5, CAT, [0, 0, 20, 10]))
    results = [entry(5, CAT, [4, 0, 20, 10], score=0.9), entry(5, DOG, [0, 0, 20, 10], score=0.3)]
    assert confusion_matrix(truth, results, 0.25)["counts"] == [[0, 1, 0], [0, 0, 0], [1, 0, 0]]


def test_an_overlap_of_just_the_threshold_is_a_match():
    # 20 x 10 against its half: IoU = .5.
    truth, results = truth_of(entry(5, CAT, [0, 0, 20, 10])), [entry(5, CAT, [0, 0, 10, 10], score=0.9)]
    assert confusion_matrix(truth, results, 0.25)["counts"][CAT - 1][CAT - 1] == 1
    assert confusion_matrix(truth, results, 0.25, iou_threshold=0.51)["counts"] == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_nothing_and_crowds_leave_zeros():
    truth = truth_of(entry(5, CAT, [0, 0, 20, 10], iscrowd=1))
    assert np.sum(confusion_matrix(truth, [], 0.25)["counts"]) == 0


def test_pairs_are_taken_greedily_from_the_largest_on():
    # .9 at (0, 1) bars .8 at (0, 0) and .85 at (1, 1); what is left of row 1 is .6 at (1, 2); .4 does not reach.
    overlaps = np.array([[0.8, 0.9, 0.0], [0.4, 0.85, 0.6]])
    assert greedy_pairs(overlaps, 0.5) == [(0, 1), (1, 2)]
    assert greedy_pairs(np.zeros((0, 3)), 0.5) == []
