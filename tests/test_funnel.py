"""The funnel: its counts add up, and it names the step at which objects are lost."""

import numpy as np
import pytest
from everywhere import ANCHORS, NAMES, SIZE, everywhere, scenes

from multigrid.data.samples import read_samples
from multigrid.detection.trace import SCORE_BINS, Trace
from multigrid.evaluation.funnel import FUNNEL_STEPS, at_confidences, build_funnel, quantiles
from multigrid.evaluation.funnel_words import MEANINGS, funnel_values, verdict
from multigrid.evaluation.matching import match
from multigrid.evaluation.run import evaluate
from multigrid.models.detector import MultiGridDetector
from multigrid.prediction.predictor import Predictor
from multigrid.report import json_text

# The boxes of the second cell of each row of stride 32, and a spot that no box suits.
UPPER, LOWER, SPOT = (28, 2, 68, 30), (28, 34, 68, 62), (79, 49, 82, 51)
OBJECTS = ((1, UPPER), (0, LOWER), (2, SPOT))


@pytest.fixture(scope="module")
def detector():
    return everywhere()


def funnel_of(detector, samples, least=0.3, confidence=0.6, **options):
    predictor = Predictor(detector, NAMES, SIZE, score_threshold=least, **options)
    found = evaluate(predictor, samples, NAMES, predict_threshold=confidence, trace=True)
    return build_funnel(found.trace, found.matches, NAMES), found


def made_up(counts, objects, scores=(), thresholds=(0.25,)):
    """A funnel of one scale and class: its trace counts this at every threshold, and detections of these scores lie on
    the first objects."""
    trace = Trace(1, [8], thresholds)
    trace.counts[:, :, 0, 0], trace.images = counts, 1
    boxes = [{"image_id": 1, "category_id": 1, "bbox": [10 + 40 * number, 20, 30, 15]} for number in range(objects)]
    truth = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "red"}],
        "annotations": [{**box, "id": number, "area": 450, "iscrowd": 0} for number, box in enumerate(boxes, start=1)],
    }
    matches = match(truth, [{**box, "score": score} for box, score in zip(boxes, scores, strict=False)])
    matches.stride[:] = 8
    return build_funnel(trace, matches, ["red"])


def test_the_last_step_is_what_the_metric_counts_as_found(detector, tmp_path):
    funnel, found = funnel_of(detector, scenes(tmp_path, OBJECTS, [(1, LOWER)]))
    # At 0.3 red and green are found, at 0.6 green alone; all of them by the coarsest grid.
    np.testing.assert_array_equal(funnel.counts[:, -1], [[[1, 2, 0], [0] * 3, [0] * 3], [[0, 2, 0], [0] * 3, [0] * 3]])
    for row, threshold in enumerate((0.3, 0.6)):
        assert funnel.counts[row, -1].sum() == found.matches.above(threshold).true_positive.sum()
        assert funnel.counts[row, -2].sum() == np.count_nonzero(found.records["score"] >= threshold)
    assert funnel.counts[:, 0].sum(axis=(1, 2)).tolist() == [2 * 378] * 2
    assert funnel.objects.tolist() == [1, 2, 1] and funnel.images == 2
    assert np.all(np.diff(funnel.counts, axis=1) <= 0)


def test_objects_whose_boxes_score_too_low_are_lost_at_the_score(detector, tmp_path):
    funnel, _ = funnel_of(detector, scenes(tmp_path, OBJECTS))
    assert funnel.scored_too_low().tolist() == [1, 0, 0] and funnel.scored_too_low(0).tolist() == [0, 0, 0]
    # At 0.6 no pair of red or blue passes; at 0.3 all do, and blue finds nothing because no box suits it.
    assert (funnel.worst_step(), funnel.worst_step(0)) == ("score", "true")
    assert [funnel.worst_step(1, label) for label in range(3)] == ["score", None, "score"]
    assert verdict(funnel) == (
        "1 of 3 objects are found at confidence 0.6. Most others are lost at one step, 2 objects of all classes "
        "(1 of class red). score: of class red, no pair reaches 0.6; the highest objectness × class is 0.497 (stride "
        "32); boxes of a lower score find 1 more object of all classes at 0.3."
    )


def test_what_lower_scores_find_is_counted_over_all_classes_and_says_so(detector, tmp_path):
    # A second red one below, which the scene of the blue one has too: two more red ones are found at 0.3, and one blue.
    objects = [(0, LOWER)], [(0, UPPER)], [(2, LOWER)]
    funnel, _ = funnel_of(detector, scenes(tmp_path, *objects))
    assert funnel.scored_too_low().tolist() == [2, 0, 1]
    assert "lost at one step, 3 objects of all classes (2 of class red). score: of class red, no " in verdict(funnel)
    assert verdict(funnel).endswith("; boxes of a lower score find 3 more objects of all classes at 0.3.")


@pytest.mark.parametrize(
    "threshold, words",
    [
        (0.99, "score: of class green, no pair reaches 0.99; the highest objectness × class is 0.987 (stride 32)."),
        (0.995, "objectness: no cell reaches 0.995; the highest objectness is 0.993 (stride 32)."),
    ],
)
def test_a_threshold_above_all_scores_is_named_with_the_highest_of_them(detector, tmp_path, threshold, words):
    funnel, _ = funnel_of(detector, scenes(tmp_path, [(1, UPPER)]), threshold, threshold)
    assert verdict(funnel).startswith(f"0 of 1 objects are found at confidence {threshold:g}.")
    assert verdict(funnel).endswith(words)


def test_the_scale_with_the_highest_value_is_named(tmp_path):
    # sigmoid(-1) = 0.269, sigmoid(-2) = 0.119
    quiet = everywhere(stride_32=-2.0, stride_16=-1.0, stride_8=-2.0)
    funnel, _ = funnel_of(quiet, scenes(tmp_path, [(1, UPPER)]))
    assert verdict(funnel).endswith("objectness: no cell reaches 0.6; the highest objectness is 0.269 (stride 16).")


def test_a_head_that_says_no_number_is_named_first(tmp_path):
    funnel, _ = funnel_of(everywhere(stride_8=np.nan), scenes(tmp_path, [(1, UPPER)]))
    assert funnel.not_finite.tolist() == [[0, 0, 96], [0, 0, 288]]
    assert verdict(funnel) == (
        "objectness: 96 of 96 cells of stride 8 say no finite number. 1 of 1 objects are found at confidence 0.6."
    )
    funnel, _ = funnel_of(everywhere(stride_32=np.nan, stride_16=np.nan, stride_8=np.nan), scenes(tmp_path, OBJECTS))
    assert verdict(funnel).endswith("objectness: no cell has a finite objectness.")


def test_random_weights_are_told_by_their_highest_objectness(tmp_path):
    untrained = MultiGridDetector(ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8)
    samples = scenes(tmp_path, OBJECTS)
    funnel, found = funnel_of(untrained, samples, 0.001, 0.99)
    decoded = Predictor(untrained, NAMES, SIZE).model.predict_on_batch(np.full((1, *SIZE, 3), 80, np.uint8))
    highest = float(decoded["objectness"].max())
    assert highest < 0.99
    assert f"objectness: no cell reaches 0.99; the highest objectness is {highest:.3g}" in verdict(funnel)
    assert funnel.worst_step() == "objectness"


def test_no_images_and_no_objects_are_said(detector, tmp_path):
    funnel, _ = funnel_of(detector, [])
    assert verdict(funnel) == "No image was looked at." and not funnel.counts.any()
    assert {row["per_image"] for row in funnel.confidences} == {None}
    funnel, _ = funnel_of(detector, scenes(tmp_path, []), max_detections=7)
    assert verdict(funnel) == "No object is labelled; 7 detections reach confidence 0.6, all of them false."
    assert funnel.worst_step() is None


@pytest.mark.parametrize("step", FUNNEL_STEPS[1:-1])
def test_the_step_that_leaves_fewer_pairs_than_objects_is_named(step):
    index = FUNNEL_STEPS.index(step)
    funnel = made_up([100] * index + [2] * (7 - index), objects=10)
    assert funnel.worst_step() == step
    assert f"Most others are lost at one step, 8 objects. {step}: " in verdict(funnel)
    assert funnel.in_reach()[:, 0].tolist() == [10] * index + [2] * (7 - index) + [0]


def test_detections_that_lie_on_no_object_are_lost_at_the_last_step():
    funnel = made_up([100] * 7, objects=4, scores=[0.9])
    assert verdict(funnel).endswith(
        "3 objects. true: 1 of 100 detections lie on an object of their class that no better one found."
    )


def test_a_trace_of_another_evaluation_is_refused():
    with pytest.raises(ValueError, match="expected every step to count at most what the step before does"):
        made_up([0] * 7, objects=1, scores=[0.9])


def test_an_object_that_only_a_lower_threshold_finds_is_lost_at_the_score():
    funnel = made_up([100] * 7, objects=4, scores=[0.9, 0.3, 0.2], thresholds=(0.1, 0.6))
    # Pairs enough pass every step at 0.6. Two of three objects that are not found there are found at 0.1.
    assert funnel.in_reach()[:, 0].tolist() == [4, 4, 2, 2, 2, 2, 2, 1]
    assert (funnel.worst_step(), funnel.worst_step(0)) == ("score", "true")
    assert verdict(funnel).endswith("2 objects. score: boxes of a lower score find 2 more objects at 0.1.")


def test_a_score_that_rounding_lifted_to_the_threshold_is_counted_as_the_trace_does():
    assert made_up([0] * 7, objects=1, scores=[0.25]).counts[0, -1].tolist() == [[0]]
    assert made_up([1] * 7, objects=1, scores=[0.25]).counts[0, -1].tolist() == [[1]]


def test_other_confidences_are_counted_from_the_matches(detector, tmp_path):
    _, found = funnel_of(
        detector, scenes(tmp_path, OBJECTS, [(1, LOWER)]), suppression="nms", nms_threshold=1.0, max_detections=400
    )
    rows = at_confidences(found.matches, images=2, least=0.3, confidences=(0.2, 0.4, 0.9, 0.99))
    # Of each image and class 100 at most are looked at, so 300 an image at 0.4 and 100 green ones at 0.9.
    assert rows == [
        {"confidence": 0.4, "detections": 600, "per_image": 300, "precision": 3 / 600, "recall": 3 / 4},
        {"confidence": 0.9, "detections": 200, "per_image": 100, "precision": 2 / 200, "recall": 2 / 4},
        {"confidence": 0.99, "detections": 0, "per_image": 0, "precision": None, "recall": 0},
    ]


def test_quantiles_are_those_of_the_values_to_half_a_bin():
    values = np.random.default_rng(1).beta(0.4, 3, 5000)
    histogram = np.bincount((values * SCORE_BINS).astype(int), minlength=SCORE_BINS)
    found = quantiles(histogram, values.max())
    assert list(found) == ["50%", "90%", "99%", "99.9%", "max"]
    expected = np.quantile(values, (0.5, 0.9, 0.99, 0.999), method="inverted_cdf")
    np.testing.assert_allclose(list(found.values())[:4], expected, atol=0.5 / SCORE_BINS + 1e-9)
    assert found["max"] == values.max()
    assert set(quantiles(np.zeros(SCORE_BINS, int), -np.inf).values()) == {None}


def test_all_of_it_becomes_json(detector, tmp_path):
    funnel, _ = funnel_of(detector, scenes(tmp_path, OBJECTS))
    values = funnel_values(funnel)
    assert tuple(MEANINGS) == FUNNEL_STEPS and json_text(values)
    (low, high) = values["thresholds"]
    assert (low["threshold"], high["threshold"]) == (0.3, 0.6) and values["verdict"] == high["verdict"]
    assert high["by_class"]["green"]["cells"] == 126 and high["by_class"]["red"]["worst_step"] == "score"
    assert high["by_stride"][16]["score"] == 24 and low["by_stride_and_class"][32]["red"]["true"] == 1
    for name in FUNNEL_STEPS:
        assert sum(row[name] for row in low["by_class"].values()) == low["all"][name]
        assert sum(row[name] for row in low["by_stride"].values()) == low["all"][name]


def test_counts_add_up_on_real_images(real_data):
    samples = read_samples(real_data("bccd") / "test.txt", ["RBC", "WBC", "Platelets"])[0][:6]
    untrained = MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8)
    funnel, found = funnel_of(untrained, samples, 0.001, 0.1)
    assert np.all(np.diff(funnel.counts, axis=1) <= 0)
    assert funnel.counts[0, -1].sum() == found.matches.true_positive.sum()
    assert funnel.counts[1, -1].sum() == found.matches.above(0.1).true_positive.sum()
    assert funnel.objects.sum() == sum(len(sample.boxes) for sample in samples)
