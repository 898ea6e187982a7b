"""The comparison of an artefact with its model, by numbers made by hand; and its mAP."""

import numpy as np
import pytest

from multigrid.data.samples import Sample
from multigrid.detection.suppression import Suppression
from multigrid.export import ExportOptions, GraphSuppression
from multigrid.export.check import Tolerance, compare, tolerance_of
from multigrid.export.exporter import _scores
from multigrid.export.runtimes import Runtime
from multigrid.export.scoring import ArtefactPipeline, mean_average_precision

TOLERANCE = Tolerance(0.5, 1e-3, 1.0)


def outputs(boxes, scores, classes):
    return {
        "boxes": np.array([boxes], "float32"),
        "scores": np.array([scores], "float32"),
        "classes": np.array([classes], "int32"),
    }


def three(moved=0.0, scored=0.0, label=1):
    boxes = [[10 + moved, 20, 40, 35], [5, 6, 25, 60], [50, 8, 70, 19]]
    return outputs(boxes, [0.9, 0.6 + scored, 0.3], [0, label, 2])


def test_equal_outputs_differ_by_nothing():
    found = compare(three(), three(), TOLERANCE, suppressed=False)
    assert (found.compared, found.other_class, found.largest_box, found.largest_score) == (3, 0, 0.0, 0.0)
    assert found.passed and found.within == 1.0


@pytest.mark.parametrize("suppressed", [False, True])
@pytest.mark.parametrize(
    ("change", "passes"),
    [
        ({"moved": 0.45}, True), ({"moved": 0.75}, False), ({"scored": 9e-4}, True), ({"scored": 2e-3}, False),
        ({"label": 2}, False), ({"moved": np.nan}, False), ({"scored": np.nan}, False),
    ],
)  # fmt: skip
def test_a_difference_beyond_the_tolerance_is_seen(suppressed, change, passes):
    found = compare(three(), three(**change), TOLERANCE, suppressed=suppressed)
    assert found.passed is passes
    if passes:
        assert found.largest_box == pytest.approx(change.get("moved", 0.0), abs=1e-5)
        assert found.largest_score == pytest.approx(change.get("scored", 0.0), abs=1e-6)


def test_only_the_share_that_is_asked_has_to_be_within():
    for share, passes in ((0.66, True), (0.67, False)):  # two of three are
        assert compare(three(), three(moved=9.0), Tolerance(0.5, 1e-3, share), suppressed=False).passed is passes


def test_the_order_of_detections_does_not_matter_and_that_of_cells_does():
    turned = {name: values[:, ::-1] for name, values in three().items()}
    assert compare(three(), turned, TOLERANCE, suppressed=True).passed
    assert not compare(three(), turned, TOLERANCE, suppressed=False).passed


def test_a_detection_that_is_missing_or_too_many_is_counted():
    gone = three()
    gone["scores"][0, 1], gone["classes"][0, 1], gone["boxes"][0, 1] = 0.0, -1, 0.0
    missing = compare(three(), gone, TOLERANCE, suppressed=True)
    extra = compare(gone, three(), TOLERANCE, suppressed=True)
    assert (missing.compared, missing.other_class, missing.passed) == (3, 1, False)
    assert (extra.compared, extra.other_class, extra.passed) == (3, 1, False)


def test_cells_that_say_nothing_are_left_out_but_for_the_best():
    scores = np.linspace(0.009, 0.001, 130)
    boxes = np.tile([[3.0, 4.0, 9.0, 12.0]], (130, 1))
    quiet = outputs(boxes, scores, np.zeros(130))
    assert compare(quiet, quiet, TOLERANCE, suppressed=False).compared == 100
    loud = outputs(boxes, [*scores[:-1], 0.5], np.zeros(130))
    found = compare(quiet, loud, TOLERANCE, suppressed=False)
    assert (found.compared, found.passed) == (101, False)


def test_int8_is_not_judged_by_its_boxes():
    assert tolerance_of("int8", suppressed=True) is None
    found = compare(three(), three(moved=9.0), None, suppressed=False)
    assert found.passed and found.within is None and "9 px" in found.describe()


def test_a_little_is_left_to_the_rounding_of_suppression():
    assert tolerance_of(None, suppressed=False).share == 1.0
    assert tolerance_of(None, suppressed=True).share == 0.99


class Oracle(Runtime):
    """Says the same of every image, in pixels of its input."""

    batch, input_size = None, (64, 96)

    def __init__(self, boxes, scores, classes):
        self.said = outputs(boxes, scores, classes)

    def _run(self, images):
        return {name: np.repeat(values, len(images), axis=0) for name, values in self.said.items()}


@pytest.fixture
def sample(tmp_path):
    """One image of 128 × 192, half as large in the input of 64 × 96, with two boxes of class 1."""
    import cv2

    path = tmp_path / "one.png"
    cv2.imwrite(str(path), np.full((128, 192, 3), 90, "uint8"))
    boxes = np.array([[20, 10, 60, 50], [100, 40, 150, 120]], "float32")
    return Sample(str(path), boxes, np.array([1, 1], "int32"), 1, (128, 192))


def test_the_precision_of_an_artefact_is_measured_in_pixels_of_the_image(sample):
    # the second row repeats the first a little weaker and moved: suppression has to take it away
    runtime = Oracle([[10, 5, 30, 25], [11, 5, 31, 25], [50, 20, 75, 60]], [0.9, 0.8, 0.7], [1, 1, 1])
    pipeline = ArtefactPipeline(runtime, "abc", Suppression("nms"), score_threshold=0.1, max_detections=9)
    (found,) = pipeline.stream([sample.path])
    np.testing.assert_allclose(found.boxes, sample.boxes)
    assert mean_average_precision(pipeline, [sample], "abc") == pytest.approx({"mAP": 1.0, "mAP50": 1.0})


def test_padding_and_boxes_of_which_the_image_holds_no_more_than_a_line_are_no_detections(sample):
    """As in the `DetectionPipeline`."""
    boxes = [[10, 5, 30, 25], [-9, -9, 0, 0], [20, 30, 20.0004, 60], [30, 10, np.inf, 20], [np.nan, 1, 9, 9]]
    runtime = Oracle([*boxes, [0, 0, 0, 0]], [0.9, 0.8, 0.7, 0.6, 0.5, 0.0], [1, 1, 1, 1, 1, -1])
    pipeline = ArtefactPipeline(runtime, "abc", None, score_threshold=0.0, max_detections=9)
    (found,) = pipeline.stream([sample.path])
    assert len(found) == 1
    # half of the objects: precision is 1 at the recalls up to 0.5, which are 51 of COCO's 101
    assert mean_average_precision(pipeline, [sample], "abc")["mAP"] == pytest.approx(51 / 101)


@pytest.mark.parametrize("inside", [None, GraphSuppression(0.1, 0.5, 9)])
def test_a_figure_of_one_class_a_cell_is_said_to_be_none_of_evaluate(sample, inside):
    said, found = [], Oracle([[10, 5, 30, 25], [50, 20, 75, 60]], [0.9, 0.7], [1, 1])
    options = ExportOptions("onnx", (64, 96), inside, quantize="int8")
    scores = _scores({"keras": found, "onnx": found}, options, "abc", [sample], said.append)
    assert (scores["keras"]["mAP"], scores["lost"]) == (pytest.approx(1.0), 0.0)
    assert "1.0000 in Keras" in said[0] and ("not the mAP of multigrid evaluate" in said[0]) is (inside is None)
