"""The pipeline's views, cells and trace: what each says is in the pixels of the image."""

import keras
import numpy as np
import pytest

from multigrid.detection.pipeline import DetectionPipeline, View
from multigrid.detection.suppression import Suppression
from multigrid.detection.trace import STEPS
from multigrid.geometry.boxes import iou
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
NAMES = ("red", "green", "blue")
SIZE = (64, 96)


@pytest.fixture(scope="module")
def detector():
    """Random, and loud enough for many cells to pass."""
    keras.utils.set_random_seed(5)
    made = MultiGridDetector(ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8, objectness_prior=0.5)
    for stride in made.strides:
        kernel = made.get_layer(f"grid_{stride}").kernel
        kernel.assign(keras.ops.convert_to_numpy(kernel) * 30)
    return made


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(2).integers(0, 256, (90, 200, 3), dtype=np.uint8)


def pipeline_of(detector, size=SIZE, **options):
    return DetectionPipeline(detector, NAMES, size, **{"score_threshold": 0.1, **options})


@pytest.fixture(scope="module")
def pipeline(detector):
    """The plain one, which many tests share: each traces a graph of its own."""
    return pipeline_of(detector)


def found_by(pipeline, image, **options):
    return next(pipeline.stream([image], **options))


def test_a_mirrored_view_finds_what_stands_there_in_the_mirrored_image(detector, pipeline, image):
    mirrored = pipeline_of(detector)
    # 96 of 96 columns are image, so that mirroring the letterboxed image is letterboxing the mirrored one
    mirrored.views = [View(SIZE, True)]
    found = found_by(mirrored, image)
    other = found_by(pipeline, np.ascontiguousarray(image[:, ::-1]))
    assert len(found) == len(other) > 5
    np.testing.assert_allclose(found.boxes, other.boxes[:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (200, 0, 200, 0), atol=1e-3)
    np.testing.assert_allclose(found.scores, other.scores, atol=1e-6)


def test_a_larger_view_finds_what_a_larger_input_does(detector, image):
    found = found_by(pipeline_of(detector, scales=(2.0,)), image)
    other = found_by(pipeline_of(detector, (128, 192)), image)
    assert len(found) == len(other) > 5
    np.testing.assert_array_equal(found.boxes, other.boxes)


def test_views_are_whole_cells_and_share_one_suppression(detector, image):
    options = {"suppression": "nms", "score_threshold": 0.2, "max_detections": 2000}
    both = pipeline_of(detector, flip=True, scales=(1.0, 1.2, 1.01), **options)
    # 1.2 x (64, 96) = (76.8, 115.2) -> (64, 128) in steps of 32; 1.01 is 1 again
    assert both.views == [View(size, flipped) for size in ((64, 96), (64, 128)) for flipped in (False, True)]
    alone, found = found_by(pipeline_of(detector, **options), image), found_by(both, image)
    assert found.scores[0] >= alone.scores[0] and len(found) > len(alone)
    # boxes are compared before they are clipped to the image, so only those within it tell
    within = np.all((found.boxes > 0) & (found.boxes < (200, 90, 200, 90)), axis=1)
    boxes, labels = found.boxes[within], found.class_ids[within]
    pairs = np.triu(iou(boxes[:, None], boxes[None]) * (labels[:, None] == labels), 1)
    assert len(boxes) > 5 and pairs.max() <= 0.5


def test_cells_are_those_whose_boxes_a_detection_covers(pipeline, image):
    # 90 x 200 pixels become 43 x 96, on rows 10 to 53 of 64: a cell of stride 8 is 16.67 pixels wide and 16.74 high
    found = found_by(pipeline, image, cells=True)
    assert len(found.cells) == len(found) and {int(stride) for stride in found.strides} <= {8, 16, 32}
    for stride, cells in zip(found.strides, found.cells, strict=True):
        widths, heights = cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]
        inside = (cells[:, 1] > 0) & (cells[:, 3] < 90)
        whole = np.isclose(widths / (200 / 96), stride) & np.isclose(heights / (90 / 43), stride)
        assert np.any(whole[inside]) or not inside.any()
        assert len(np.unique(cells, axis=0)) == len(cells) >= 1
    assert found_by(pipeline, image).cells is None


def test_rescoring_is_the_decoders(detector):
    assert [pipeline_of(detector, rescore=word).model.get_layer("decode").rescore for word in (False, True)] == [0, 1]


@pytest.mark.parametrize("rule", ["nms", "soft_nms", "wbf", "consensus", "vote"])
def test_no_step_of_the_trace_counts_more_than_the_one_before(pipeline, image, rule, monkeypatch):
    monkeypatch.setattr(pipeline, "suppression", Suppression(rule))
    monkeypatch.setattr(pipeline, "max_detections", 7)
    trace = pipeline.new_trace([0.1, 0.3])
    found = [len(one) for one in pipeline.stream([image, image[:50]], trace=trace)]
    assert trace.images == 2
    # 2 x 3 + 4 x 6 + 8 x 12 cells, three classes, two images
    assert trace.counts[0, 0].sum() == 126 * 3 * 2
    assert np.all(np.diff(trace.counts.sum(axis=(2, 3)), axis=1) <= 0)
    assert np.all(np.diff(trace.counts[:, STEPS.index("score") : STEPS.index("suppression")], axis=1) <= 0)
    assert trace.counts[0, STEPS.index("cap")].sum() == sum(found) <= 14
    assert np.all(trace.counts[1] <= trace.counts[0])
    assert trace.objectness.sum() == 126 * 2 and trace.scores.sum() == 126 * 3 * 2
    without = [one.boxes for one in pipeline.stream([image, image[:50]])]
    with_trace = [one.boxes for one in pipeline.stream([image, image[:50]], trace=pipeline.new_trace([0.1]))]
    for one, other in zip(without, with_trace, strict=True):
        np.testing.assert_array_equal(one, other)


def test_broken_images_are_told_and_left_out_where_somebody_listens(pipeline, image, tmp_path):
    (tmp_path / "empty.png").write_bytes(b"")
    told = []
    sources = [image, tmp_path / "empty.png", image[:50], tmp_path / "none.jpg"]
    found = list(pipeline.stream(sources, on_broken=told.append))
    assert [one.size for one in found] == [(90, 200), (50, 200)]
    assert ["empty.png" in str(told[0]), "none.jpg" in str(told[1])] == [True, True]
