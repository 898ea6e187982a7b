"""What a pipeline counts: how many pairs get past each step."""

import numpy as np
import pytest
from everywhere import NAMES, SIZE, everywhere

from multigrid.detection.trace import SCORE_BINS, STEPS
from multigrid.prediction.predictor import Predictor


@pytest.fixture(scope="module")
def detector():
    return everywhere()


def traced(detector, image, thresholds=(0.3, 0.6), **options):
    predictor = Predictor(detector, NAMES, SIZE, score_threshold=min(thresholds), **options)
    trace = predictor.new_trace(thresholds)
    (found,) = predictor.stream([image], trace=trace)
    return trace, found


def test_each_step_is_counted_by_threshold_scale_and_class(detector):
    image = np.zeros((*SIZE, 3), np.uint8)
    # No IoU is more than 1: suppression leaves all, and of those the cap leaves the 17 best, which are green.
    trace, found = traced(detector, image, suppression="nms", nms_threshold=1.0, max_detections=17)
    assert trace.images == 1 and len(found) == 17
    cells = np.array([6, 24, 96])
    for step in ("cells", "objectness", "score", "box", "candidate", "suppression"):
        low, high = trace.counts[:, STEPS.index(step)]
        np.testing.assert_array_equal(low, np.repeat(cells[:, None], 3, axis=1), err_msg=step)
        above = (1, 1, 1) if step in ("cells", "objectness") else (0, 1, 0)  # 0.496654 is under 0.6
        np.testing.assert_array_equal(high, cells[:, None] * above, err_msg=step)
    assert trace.counts[:, STEPS.index("cap")].sum(axis=(1, 2)).tolist() == [17, 17]


def test_boxes_outside_the_image_are_lost_at_the_box(detector):
    # 12 × 192 pixels become 6 × 96, rows 29 to 35 of 64. Centres of stride 32 lie in rows 16 and 48, and 28 pixels
    # high a box reaches row 30: all 6 are seen. Of stride 16, rows 8, 24, 40, 56 ± 7: only 17-31 and 33-47, 12 cells.
    # Of stride 8, rows 4, 12, … ± 3: 25-31 and 33-39, 24 cells.
    trace, _ = traced(detector, np.zeros((12, 192, 3), np.uint8))
    assert trace.counts[1, STEPS.index("score"), :, 1].tolist() == [6, 24, 96]
    assert trace.counts[1, STEPS.index("box"), :, 1].tolist() == [6, 12, 24]


def test_no_step_counts_more_than_the_step_before(detector):
    for suppression in ("nms", "soft_nms", "wbf", "consensus", "vote"):
        trace, found = traced(detector, np.zeros((70, 45, 3), np.uint8), suppression=suppression, max_detections=9)
        assert np.all(np.diff(trace.counts, axis=1) <= 0)
        assert trace.counts[0, -1].sum() == len(found) == 9


def test_histograms_and_highest_values_hold_every_cell(detector):
    trace, _ = traced(detector, np.zeros((*SIZE, 3), np.uint8))
    assert trace.objectness.sum(axis=1).tolist() == [6, 24, 96]
    assert trace.objectness[:, int(0.993307 * SCORE_BINS)].tolist() == [6, 24, 96]
    for label, score in enumerate((0.496654, 0.986659, 0.496654)):
        assert trace.scores[:, label, int(score * SCORE_BINS)].tolist() == [6, 24, 96]
        np.testing.assert_allclose(trace.highest_score[:, label], score, atol=1e-5)
    np.testing.assert_allclose(trace.highest_objectness, 0.993307, atol=1e-5)


def test_what_is_not_finite_is_in_no_histogram_and_gets_past_nothing():
    trace, _ = traced(everywhere(stride_8=np.nan), np.zeros((*SIZE, 3), np.uint8))
    assert trace.objectness.sum(axis=1).tolist() == [6, 24, 0]
    assert trace.scores.sum(axis=(1, 2)).tolist() == [18, 72, 0]
    assert trace.highest_objectness[2] == -np.inf and trace.highest_score[2].tolist() == [-np.inf] * 3
    assert trace.counts[:, STEPS.index("cells"), 2].tolist() == [[96] * 3] * 2
    assert not trace.counts[:, STEPS.index("objectness") :, 2].any()


def test_a_trace_changes_no_detection(detector):
    image = np.zeros((70, 45, 3), np.uint8)
    predictor = Predictor(detector, NAMES, SIZE, score_threshold=0.3, max_detections=40)
    (plain,), (seen,) = predictor.stream([image]), predictor.stream([image], trace=predictor.new_trace([0.3]))
    np.testing.assert_array_equal(plain.boxes, seen.boxes)
    np.testing.assert_array_equal(plain.scores, seen.scores)


def test_images_and_views_add_up(detector):
    predictor = Predictor(detector, NAMES, SIZE, score_threshold=0.3, flip=True)
    trace = predictor.new_trace([0.3])
    assert len(list(predictor.stream([np.zeros((*SIZE, 3), np.uint8)] * 3, trace=trace))) == 3
    # Two views of 126 cells, of three images.
    assert trace.images == 3 and trace.counts[0, 0].sum() == 3 * 2 * 378
