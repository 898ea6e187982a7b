"""Causes in decoding, suppression and metric: each is named, and its look-alikes are not."""

import contextlib
import copy
import dataclasses
import types

import keras
import numpy as np
import pytest
from small_cases import case_with, first, rules_of, verdicts
from small_runs import make_config

from multigrid.data.images import Letterbox
from multigrid.detection.decode import DecodeGrids
from multigrid.detection.pipeline import View
from multigrid.detection.suppression import Suppression
from multigrid.diagnosis.examinations import modes, oracle
from multigrid.diagnosis.examinations.coverage import is_norm
from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.diagnosis.rules import evaluation
from multigrid.training.trainer import MultiGridTrainer

RULES = rules_of(evaluation)
ORACLE = [one for one in RULES if one.id not in ("MG806", "MG809")]  # these run the network


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=12, val=8), tmp_path_factory.mktemp("evaluation") / "run"))
    made.build_model()
    return made


@contextlib.contextmanager
def predicting(trainer, **attributes):
    """The case with a copy of the predictor that has other attributes."""
    made = copy.copy(trainer.predictor(evaluating=True))
    for name, value in attributes.items():
        setattr(made, name, types.MethodType(value, made) if isinstance(value, types.FunctionType) else value)
    with case_with(trainer, predictor=made) as case:
        yield case


def decoding(trainer, **options):
    """A predictor's model with another decoder behind the detector."""
    detector = trainer.detector
    names = ("anchors", "strides", "offset_activation", "class_activation")
    options = {**{name: getattr(detector, name) for name in names}, **options}
    return keras.Model(detector.input, DecodeGrids(**options)(detector.outputs))


class ClassScores(DecodeGrids):
    """Scores that leave objectness out."""

    def call(self, grids):
        said = super().call(grids)
        return {**said, "scores": said["scores"] / keras.ops.maximum(said["objectness"], 1e-9)[..., None]}


class ScoresOfNothing(DecodeGrids):
    """1 - objectness for objectness."""

    def call(self, grids):
        said = super().call(grids)
        objectness = said["objectness"][..., None]
        return {**said, "scores": said["scores"] / keras.ops.maximum(objectness, 1e-9) * (1.0 - objectness)}


class OtherOrder(DecodeGrids):
    """Scores by the names of the classes in another order."""

    def call(self, grids):
        said = super().call(grids)
        return {**said, "scores": keras.ops.roll(said["scores"], 1, axis=-1)}


class Trains:
    """A network that is run in training mode."""

    def __init__(self, model):
        self.model, self.layers, self.output = model, model.layers, model.output

    def predict_on_batch(self, images):
        return {name: np.asarray(value) for name, value in self.model(images, training=True).items()}


def without_border(self, boxes, index, size):
    """The way back from the letterbox, the border forgotten."""
    letterbox = Letterbox.fit(size, self.views[index].size)
    return letterbox.undo_boxes(boxes + np.float32(letterbox.pad * 2), clip=False)


def test_a_sound_evaluation_raises_no_alarm(trainer):
    predictor = trainer.predictor(evaluating=True)
    kept = predictor.model, list(predictor.views), predictor.network_seconds
    with case_with(trainer) as case:
        assert verdicts(case, RULES) == {}
    assert (predictor.model, predictor.views) == kept[:2]


@pytest.mark.parametrize("rule", ["nms", "soft_nms", "diou_nms", "iol_nms", "wbf", "vote"])
def test_no_rule_of_suppression_raises_an_alarm(trainer, rule):
    with predicting(trainer, suppression=Suppression(rule)) as case:
        assert verdicts(case, ORACLE) == {}


def test_a_threshold_that_hides_detections_is_named(trainer):
    with predicting(trainer, score_threshold=0.5) as case:
        assert first(case, ORACLE) == "MG801"


@pytest.mark.parametrize("threshold", [0.95, 0.05])
def test_an_overlap_out_of_range_is_named(trainer, threshold):
    with predicting(trainer, suppression=Suppression("nms", threshold)) as case:
        assert first(case, ORACLE) == "MG802"


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"anchors": [[[66, 47], [79, 73]], [[33, 23], [23, 49]], [[13, 10], [20, 15]]]}, "other anchors"),
        ({"strides": (16, 8, 4)}, "another stride"),
        ({"offset_activation": "tanh"}, "another activation"),
    ],
)
def test_decoders_are_told_apart(trainer, options, word):
    with predicting(trainer, model=decoding(trainer, **options)) as case:
        assert first(case, ORACLE) == "MG803"
        assert word in evaluation.decoded_otherwise.function(case).why[0]


def test_a_forgotten_border_is_named_and_not_taken_for_a_decoder(trainer):
    with predicting(trainer, _undone=without_border) as case:
        assert first(case, ORACLE) == "MG804"
        assert "MG803" not in verdicts(case, ORACLE)


def test_another_reading_of_classes_is_named(trainer):
    with predicting(trainer, model=decoding(trainer, class_activation="softmax")) as case:
        assert first(case, ORACLE) == "MG805"


def test_training_mode_is_named_and_what_it_moved_is_put_back(trainer):
    before = [as_array(variable) for variable in trainer.detector.non_trainable_variables]
    with predicting(trainer, model=Trains(decoding(trainer))) as case:
        assert first(case, [evaluation.evaluates_in_training_mode, evaluation.other_network]) == "MG806"
    after = [as_array(variable) for variable in trainer.detector.non_trainable_variables]
    assert all(np.array_equal(*pair) for pair in zip(before, after, strict=True))


def test_another_network_is_named_and_not_taken_for_training_mode(trainer):
    other = copy.copy(trainer.config)
    stranger = MultiGridTrainer(other, train_data=trainer.train_data, val_data=trainer.val_data)
    stranger.vocabulary = trainer.vocabulary
    detector = stranger.build_model()
    for variable in detector.trainable_variables:
        if "grid_" in variable.path and "bias" in variable.path:
            variable.assign(as_array(variable) + 1.0)
    options = {name: getattr(detector, name) for name in ("offset_activation", "class_activation")}
    model = keras.Model(detector.input, DecodeGrids(detector.anchors, detector.strides, **options)(detector.outputs))
    with predicting(trainer, model=model) as case:
        assert first(case, [evaluation.evaluates_in_training_mode, evaluation.other_network]) == "MG809"


def test_labels_in_other_units_are_named(trainer):
    val = [
        dataclasses.replace(one, boxes=one.boxes / np.float32([one.size[1], one.size[0]] * 2))
        for one in trainer.samples["val"]
    ]
    with case_with(trainer, samples={**trainer.samples, "val": val}) as case:
        assert first(case, ORACLE) == "MG807"


@pytest.mark.parametrize(("scales", "cause"), [((0.34,), "MG812"), ((2.0,), "MG812"), ((0.5, 1.0), None)])
def test_prediction_at_another_size_is_named_and_decoding_is_still_asked(trainer, scales, cause):
    made = trainer.predictor(evaluating=True)
    size = trainer.train_data.input_size
    before = made.views
    made.look_by([View(tuple(max(1, round(side * one / 32)) * 32 for side in size), False) for one in scales])
    detection = trainer.config.detection.model_copy(update={"scales": scales})
    asked = trainer.config.model_copy(update={"detection": detection})
    try:
        with case_with(trainer, predictor=made, config=asked) as case:
            assert first(case, ORACLE) == cause
            assert case.examined(oracle.examine_findings).found == 1.0
            if cause:
                assert evaluation.other_input_size.function(case).remedy.settings == ("detection.scales=[1]",)
    finally:
        made.look_by(before)


@pytest.mark.parametrize("most", [1, 2])
def test_a_cap_is_named(trainer, most):
    with predicting(trainer, max_detections=most) as case:
        assert first(case, ORACLE) == "MG808"


@pytest.mark.parametrize("kind", [ClassScores, ScoresOfNothing])
def test_scores_without_objectness_are_named(trainer, kind):
    detector = trainer.detector
    options = {name: getattr(detector, name) for name in ("offset_activation", "class_activation")}
    decode = kind(detector.anchors, detector.strides, **options)
    with predicting(trainer, model=keras.Model(detector.input, decode(detector.outputs))) as case:
        assert first(case, ORACLE) == "MG808"


def settle(case, norms) -> None:
    """BatchNorm with the statistics of the weights as they are."""
    momenta = [norm.momentum for norm in norms]
    modes._count_anew(case, norms)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def test_classes_in_another_order_are_named_and_no_half_scores(trainer):
    detector = trainer.detector
    options = {name: getattr(detector, name) for name in ("offset_activation", "class_activation")}
    decode = OtherOrder(detector.anchors, detector.strides, **options)
    with predicting(trainer, model=keras.Model(detector.input, decode(detector.outputs))) as case:
        assert first(case, ORACLE) == "MG811"


@pytest.mark.parametrize(("change", "said"), [("none", False), ("statistics", True), ("kernels", False)])
def test_statistics_that_do_not_fit_are_told_from_weights_that_do_not(trainer, change, said):
    norms = [layer for layer in trainer.detector._flatten_layers() if is_norm(layer)]
    kernels = [layer.kernel for layer in trainer.detector._flatten_layers() if hasattr(layer, "kernel")]
    variables = [variable for norm in norms for variable in (norm.moving_mean, norm.moving_variance)] + kernels
    kept = [(variable, variable.numpy()) for variable in variables]
    with case_with(trainer) as case:
        case.step, case.history = 500, [{"epoch": 1}]
        try:
            settle(case, norms)
            if change == "statistics":
                for norm in norms[-6:]:
                    norm.moving_variance.assign(norm.moving_variance / 30.0)
            if change == "kernels":
                for kernel in kernels[-6:]:
                    kernel.assign(3.0 * kernel)
                settle(case, norms)
            verdict = evaluation.statistics_do_not_fit.function(case)
            case.step = 20  # so early they may be what they began with
            assert evaluation.statistics_do_not_fit.function(case) is None
        finally:
            for variable, value in kept:
                variable.assign(value)
    assert (verdict is not None) == said


@pytest.mark.parametrize("losses", [(np.nan, 2.0, 1.0), (1.0, np.nan, 1.0), (1.0, 2.0, np.nan), (1.0, np.inf, np.inf)])
def test_losses_that_are_no_numbers_say_nothing_of_statistics(trainer, losses):
    with case_with(trainer) as case:
        case.step, case.results[modes.examine] = 500, modes.Modes(*losses)
        assert evaluation.statistics_do_not_fit.function(case) is None


def test_a_predictor_that_cannot_be_asked_is_left_alone(trainer):
    with predicting(trainer, model=object()) as case:
        assert verdicts(case, RULES) == {}


def test_a_case_without_a_predictor_is_left_alone(trainer):
    with case_with(trainer, predictor=lambda: None) as case:
        assert verdicts(case, RULES) == {}


def test_the_perfect_answer_finds_everything(trainer):
    with case_with(trainer) as case:
        decoded, found = case.examined(oracle.examine_decoding), case.examined(oracle.examine_findings)
        metric = case.examined(oracle.examine_metric)
    assert decoded.overlap == pytest.approx(1.0, abs=1e-4) and decoded.score == pytest.approx(0.9 * 0.8, rel=1e-4)
    assert (found.found, found.found_padded, found.found_faint) == (1.0, 1.0, 1.0)
    assert found.crowd == found.crowd_objects and metric.ap50 > 0.9
