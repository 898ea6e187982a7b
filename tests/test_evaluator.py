"""Samples and detections in COCO's formats, and the metrics against two other implementations."""

import contextlib
import copy
import dataclasses
import gc
import io
import json

import numpy as np
import pytest

from multigrid.detection.records import records_of
from multigrid.errors import InputError
from multigrid.evaluation import evaluator
from multigrid.evaluation.evaluator import SUMMARY, coco_metrics, to_coco_ground_truth, to_coco_results

NAMES = ("red", "green", "blue")


@dataclasses.dataclass(frozen=True)
class Labelled:
    """What the evaluator reads of a sample."""

    path: str
    boxes: np.ndarray
    classes: np.ndarray
    image_id: int
    size: tuple


def labelled(image_id, boxes, classes, path=None, size=(64, 96)):
    boxes = np.asarray(boxes, dtype="float32").reshape(-1, 4)
    return Labelled(path or f"/data/{image_id}.jpg", boxes, np.asarray(classes, dtype="int32"), image_id, size)


def scenes(seed=7, images=40, names=NAMES):
    """Drawn truth and detections near it: (ground truth, results); every score and size occurs, and equal scores."""
    random = np.random.default_rng(seed)
    samples, results = [], []
    for image_id in range(3, 3 + images):
        count = int(random.integers(0, 7))
        corners = random.uniform(0, [300, 200], (count, 2))
        sides = np.exp(random.uniform(np.log(8), np.log(180), (count, 2)))
        boxes = np.concatenate([corners, corners + sides], axis=1)
        classes = random.integers(0, len(names), count)
        samples.append(labelled(image_id, boxes, classes, size=(400, 600)))
        found = np.repeat(np.arange(count), random.integers(0, 3, count))
        moved = boxes[found] + random.normal(0, 0.06, (len(found), 4)) * np.tile(sides[found], 2)
        moved = np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], axis=1)
        guessed = np.where(random.random(len(found)) < 0.8, classes[found], random.integers(0, len(names), len(found)))
        results += to_coco_results(image_id, moved, np.round(random.random(len(found)), 1), guessed)
    return to_coco_ground_truth(samples, names), results


def pycocotools_stats(ground_truth, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def test_the_ground_truth_is_a_coco_dictionary():
    samples = [
        labelled(7, [[1.5, 2, 11.5, 32]], [2], path="/data/a/one.jpg", size=(40, 90)),
        labelled(4, [], [], path="/data/b/one.jpg", size=(50, 30)),
        labelled(9, [[0, 1, 4, 3], [5, 6, 8, 16]], [0, 1], path="/data/b/three.png", size=(20, 60)),
    ]
    truth = to_coco_ground_truth(samples, NAMES)
    assert truth["categories"] == [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}, {"id": 3, "name": "blue"}]
    assert truth["images"] == [
        {"id": 7, "file_name": "a/one.jpg", "width": 90, "height": 40},
        {"id": 4, "file_name": "b/one.jpg", "width": 30, "height": 50},
        {"id": 9, "file_name": "b/three.png", "width": 60, "height": 20},
    ]
    # (1.5, 2)-(11.5, 32) is 10 wide and 30 high; (0, 1)-(4, 3) is 4 by 2; (5, 6)-(8, 16) is 3 by 10.
    assert truth["annotations"] == [
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1.5, 2, 10, 30], "area": 300, "iscrowd": 0},
        {"id": 2, "image_id": 9, "category_id": 1, "bbox": [0, 1, 4, 2], "area": 8, "iscrowd": 0},
        {"id": 3, "image_id": 9, "category_id": 2, "bbox": [5, 6, 3, 10], "area": 30, "iscrowd": 0},
    ]
    assert json.loads(json.dumps(truth)) == truth


def test_images_of_one_folder_are_named_without_it():
    samples = [labelled(1, [], [], path="/data/images/one.jpg"), labelled(2, [], [], path="/data/images/two.jpg")]
    assert [image["file_name"] for image in to_coco_ground_truth(samples, NAMES)["images"]] == ["one.jpg", "two.jpg"]


def test_labels_that_cannot_be_measured_are_refused_with_their_file():
    with pytest.raises(InputError, match=r"/data/3.jpg: expected classes from 0 to 2, received 3"):
        to_coco_ground_truth([labelled(3, [[1, 2, 3, 5]], [3])], NAMES)
    twice = [labelled(3, [], [], path="/data/a.jpg"), labelled(3, [], [], path="/data/b.jpg")]
    with pytest.raises(InputError, match=r"/data/a.jpg: expected an image id of its own, received 3"):
        to_coco_ground_truth(twice, NAMES)


def test_detections_are_rounded_when_they_become_results():
    boxes = np.asarray([[10.12345, 20.5, 40.98765, 31.25], [0, 0, 3, 5]], dtype="float32")
    results = to_coco_results(12, boxes, np.asarray([0.12345678, 1], dtype="float32"), np.asarray([2, 0]))
    # 40.98765 - 10.12345 = 30.8642
    assert results == [
        {"image_id": 12, "category_id": 3, "bbox": [10.123, 20.5, 30.864, 10.75], "score": 0.123457},
        {"image_id": 12, "category_id": 1, "bbox": [0, 0, 3, 5], "score": 1},
    ]
    assert json.loads(json.dumps(results)) == results


def test_no_detections_are_an_empty_list():
    assert to_coco_results(1, np.zeros((0, 4)), np.zeros(0), np.zeros(0, dtype="int32")) == []


def test_detections_that_are_not_finite_or_not_complete_are_refused():
    with pytest.raises(ValueError, match="image 5: expected finite"):
        to_coco_results(5, [[0, 1, np.nan, 9]], [0.5], [1])
    with pytest.raises(ValueError, match="image 5: expected finite"):
        to_coco_results(5, [[0, 1, 4, 9]], [np.inf], [1])
    with pytest.raises(ValueError, match="received 1 boxes, 2 scores, 1 classes"):
        to_coco_results(5, [[0, 1, 4, 9]], [0.5, 0.6], [1])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_metrics_equal_those_of_pycocotools(seed):
    truth, results = scenes(seed)
    assert len(truth["annotations"]) > 60 and len(results) > 60
    metrics, reference = coco_metrics(truth, results, NAMES), pycocotools_stats(truth, results)
    assert reference.stats.min() > 0.1, "a figure at its end would not show a difference"
    np.testing.assert_allclose([metrics[name] for name in SUMMARY], reference.stats, atol=1e-6)
    for index, name in enumerate(NAMES):
        precision = reference.eval["precision"][:, :, index, 0, 2]
        figures = metrics["per_class"][name]
        np.testing.assert_allclose(
            [figures["AP"], figures["AP50"], figures["AP75"]],
            [precision.mean(), precision[0].mean(), precision[5].mean()],
            atol=1e-6,
        )
    assert np.mean([figures["AP"] for figures in metrics["per_class"].values()]) == pytest.approx(metrics["mAP"])


def test_the_metrics_equal_the_published_ones_on_coco_boxes(real_data):
    folder = real_data("metric_reference")
    truth = json.loads((folder / "coco" / "gts.json").read_text())
    results = json.loads((folder / "coco" / "dets_list.json").read_text())
    expected = json.loads((folder / "expected.json").read_text())["coco"]["expected"]
    assert len(expected) == 12 and len(results) == 734
    metrics = coco_metrics(truth, results)
    published = [value for value in expected.values()]
    np.testing.assert_allclose([metrics[name] for name in SUMMARY], published, atol=1e-6)
    assert (metrics["images"], metrics["objects"], metrics["detections"]) == (100, 830, 734)
    assert len(metrics["per_class"]) == 80


def test_the_metrics_are_those_of_the_written_files(tmp_path):
    truth, results = scenes()
    written = json.loads(json.dumps(results))
    assert coco_metrics(json.loads(json.dumps(truth)), written) == coco_metrics(truth, results)


def test_records_have_the_metrics_of_their_results():
    truth, results = scenes()
    assert coco_metrics(truth, records_of(results)) == coco_metrics(truth, results)


def test_classes_that_are_measured_in_groups_have_the_metrics_of_all_at_once(monkeypatch):
    names = tuple("abcdefg")
    truth, results = scenes(names=names)
    results = [result for result in results if result["category_id"] != 3]
    expected, measured = coco_metrics(truth, results), []
    true_measure = evaluator._evaluate_classes
    monkeypatch.setattr(evaluator, "DETECTIONS_AT_ONCE", 45)
    monkeypatch.setattr(
        evaluator,
        "_evaluate_classes",
        lambda truth, records, group, params: (
            measured.append([one["name"] for one in group]) or true_measure(truth, records, group, params)
        ),
    )
    assert coco_metrics(truth, results) == expected and expected["mAP"] > 0.1
    assert sum(measured, []) == list(names) and 3 <= len(measured) < 7


def test_measuring_leaves_truth_and_results_and_the_collector_as_they_were():
    truth, results = scenes(images=5)
    before = copy.deepcopy((truth, results))
    coco_metrics(truth, results)
    assert (truth, results) == before and gc.isenabled()
    gc.disable()
    try:
        coco_metrics(truth, results)
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_detections_equal_to_the_truth_have_every_figure_one():
    truth, _ = scenes()
    results = [
        {"image_id": entry["image_id"], "category_id": entry["category_id"], "bbox": entry["bbox"], "score": 0.9}
        for entry in truth["annotations"]
    ]
    metrics = coco_metrics(truth, results)
    # At one detection an image the second object of a class is missed, at ten none is.
    assert all(metrics[name] == pytest.approx(1) for name in SUMMARY if name != "AR1")
    assert 0 < metrics["AR1"] < 1


def test_no_detections_are_figures_of_zero():
    truth, _ = scenes()
    metrics = coco_metrics(truth, [], NAMES)
    assert all(metrics[name] == 0 for name in SUMMARY)
    assert metrics["detections"] == 0 and metrics["objects"] == len(truth["annotations"])
    assert all(figures["AP"] == 0 and figures["detections"] == 0 for figures in metrics["per_class"].values())


def test_a_class_and_a_size_without_objects_have_no_figure_and_count_in_no_mean():
    # One object of 20 x 50 = 1000 pixels is small (< 32 * 32); blue has none, and one false detection.
    truth = to_coco_ground_truth([labelled(1, [[10, 5, 30, 55]], [1])], NAMES)
    results = to_coco_results(1, [[10, 5, 30, 55], [40, 2, 60, 9]], [0.8, 0.9], [1, 2])
    metrics = coco_metrics(truth, results, NAMES)
    assert metrics["mAP"] == pytest.approx(1) and metrics["mAP_small"] == pytest.approx(1)
    assert metrics["mAP_medium"] is None and metrics["AR_large"] is None
    nothing = {"AP": None, "AP50": None, "AP75": None, "objects": 0}
    assert metrics["per_class"]["red"] == nothing | {"detections": 0}
    assert metrics["per_class"]["blue"] == nothing | {"detections": 1}
    assert metrics["per_class"]["green"]["AP"] == pytest.approx(1)
    assert "NaN" not in json.dumps(metrics) and json.dumps(metrics, allow_nan=False)


@pytest.mark.parametrize("samples", [[], [labelled(1, [], []), labelled(2, [], [])]])
def test_images_without_any_object_have_no_figures(samples):
    metrics = coco_metrics(to_coco_ground_truth(samples, NAMES), [], NAMES)
    assert all(metrics[name] is None for name in SUMMARY) and metrics["images"] == len(samples)


def test_a_class_found_half_of_the_time_at_half_iou_is_counted_by_hand():
    # Two green objects, one found: recall .5 at precision 1, so of the 101 recall steps 0, .01, ... 1 the first 51
    # have precision 1: AP = 51 / 101. The detection is shifted by 10 of 60 pixels: IoU = 50 / 70 = .714, so it counts
    # at .5, .55, .6, .65 and .7, five of the ten thresholds.
    truth = to_coco_ground_truth([labelled(1, [[0, 0, 60, 20], [0, 30, 60, 50]], [1, 1])], NAMES)
    metrics = coco_metrics(truth, to_coco_results(1, [[10, 0, 70, 20]], [0.3], [1]))
    assert metrics["mAP50"] == pytest.approx(51 / 101)
    assert metrics["mAP75"] == 0
    assert metrics["mAP"] == pytest.approx(51 / 101 / 2)
    assert metrics["AR100"] == pytest.approx(0.5 / 2)


def test_results_of_an_unknown_image_or_category_are_refused():
    truth, results = scenes(images=5)
    known = results[0]
    with pytest.raises(InputError, match="detection 2: expected image_id .* 5 images, received 99"):
        coco_metrics(truth, [known, known | {"image_id": 99}])
    with pytest.raises(InputError, match="detection 1: expected category_id .* 3 categories, received 0"):
        coco_metrics(truth, [known | {"category_id": 0}])


def test_class_names_in_another_order_are_refused():
    truth, results = scenes(images=5)
    with pytest.raises(InputError, match=r"expected the classes \['green', 'red', 'blue'\], received"):
        coco_metrics(truth, results, ("green", "red", "blue"))


def test_measuring_prints_nothing(capfd):
    truth, results = scenes(images=5)
    coco_metrics(truth, results)
    captured = capfd.readouterr()
    assert captured.out == "" and captured.err == ""
