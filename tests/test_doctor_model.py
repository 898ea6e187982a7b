"""Causes in the network and its head: each is named, and its look-alikes are not."""

import contextlib
import dataclasses

import faulty_losses as faults
import keras
import numpy as np
import pytest
from keras import ops
from small_cases import case_with, first, rules_of, verdicts
from small_runs import make_config

from multigrid.diagnosis.doctor import diagnose
from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.diagnosis.rules import dynamics, loss_functions, model
from multigrid.models.head import grid_name
from multigrid.models.listening import listening
from multigrid.training.trainer import MultiGridTrainer

RULES = rules_of(model)
PLACES = [model.answers_at_random, model.cells_look_elsewhere]
HEAD = [model.no_prior, model.prior_of_the_wrong_sign, model.saturated_outputs, model.map_does_not_arrive]


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=12, val=4), tmp_path_factory.mktemp("model") / "run"))
    made.build_model()
    return made


@contextlib.contextmanager
def altered(trainer, change):
    """The detector after `change(detector)`; its weights are put back."""
    kept = trainer.detector.get_weights()
    change(trainer.detector)
    try:
        with case_with(trainer) as case:
            yield case
    finally:
        trainer.detector.set_weights(kept)


def layer(detector, name):
    """A layer by its name."""
    return next(one for one in detector._flatten_layers(include_self=False) if one.name == name)


def objectness_bias(value):
    def change(detector):
        for stride in detector.strides:
            bias = detector.get_layer(grid_name(stride)).bias
            bias.assign(np.where(np.arange(bias.shape[0]) == 4, value, as_array(bias)))

    return change


def large_outputs(detector):
    for stride in detector.strides:
        kernel = detector.get_layer(grid_name(stride)).kernel
        kernel.assign(np.random.default_rng(0).normal(0.0, 5.0, kernel.shape))


def one_filter(detector):
    kernel = layer(detector, "neck_16_conv1_conv").kernel
    kernel.assign(np.repeat(as_array(kernel)[..., :1], kernel.shape[-1], axis=-1))


def no_filter(detector):
    kernel = layer(detector, "neck_16_conv1_conv").kernel
    kernel.assign(np.zeros(kernel.shape))


def cut_skip(detector):
    """The finest grid's neck reads what is carried up, and nothing of the backbone's own map."""
    kernel = layer(detector, "neck_8_conv1_conv").kernel
    inputs = np.arange(kernel.shape[2]) < kernel.shape[2] // 3
    kernel.assign(as_array(kernel) * inputs[None, None, :, None])


def still_grid(detector):
    kernel = detector.get_layer(grid_name(16)).kernel
    kernel.assign(np.zeros(kernel.shape))


def test_a_sound_network_raises_no_alarm(trainer):
    before = [as_array(variable) for variable in trainer.detector.variables]
    with case_with(trainer) as case:
        assert verdicts(case, RULES) == {}
    assert all(np.array_equal(a, as_array(b)) for a, b in zip(before, trainer.detector.variables, strict=True))


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        (objectness_bias(0.0), "MG702"),
        (objectness_bias(4.6), "MG703"),
        (large_outputs, "MG704"),
        (cut_skip, "MG707"),
        (still_grid, "MG707"),
    ],
)
def test_heads_are_told_apart(trainer, change, cause):
    with altered(trainer, change) as case:
        assert first(case, HEAD) == cause


def test_a_head_that_has_learnt_raises_no_alarm(trainer):
    def learnt(detector):  # ten times the kernels of a start, and a surer background
        objectness_bias(-7.0)(detector)
        for stride in detector.strides:
            kernel = detector.get_layer(grid_name(stride)).kernel
            kernel.assign(10.0 * as_array(kernel))

    with altered(trainer, learnt) as case:
        assert verdicts(case, HEAD) == {}


@pytest.mark.parametrize("change", [one_filter, no_filter])
def test_filters_that_are_alike_are_named(trainer, change):
    with altered(trainer, change) as case:
        assert first(case, [model.filters_alike, model.map_does_not_arrive]) == "MG708"


@contextlib.contextmanager
def through(trainer, function, strides=(16, 8)):
    """The detector with a function behind the last feature map of these grids."""
    layers = [trainer.detector.get_layer(f"head_{stride}_leaky") for stride in strides]
    for one in layers:
        one.call = lambda inputs, before=one.call: function(before(inputs))
    try:
        with case_with(trainer) as case:
            yield case
    finally:
        for one in layers:
            del one.call


def test_features_that_a_reshape_scatters_are_not_of_their_place(trainer):
    scattered = lambda maps: ops.reshape(ops.transpose(maps, (0, 3, 1, 2)), ops.shape(maps))  # noqa: E731
    with through(trainer, scattered) as case:
        assert verdicts(case, PLACES)["MG710"].confidence > 0.5


def test_a_dropout_that_is_always_on_is_named_and_no_scatter(trainer):
    seeds = keras.random.SeedGenerator(1)
    with through(trainer, lambda maps: keras.random.dropout(maps, 0.5, seed=seeds)) as case:
        assert set(verdicts(case, PLACES)) == {"MG709"}


def test_maps_that_are_blurred_or_still_raise_no_alarm(trainer):
    blurred = lambda maps: ops.average_pool(maps, 3, 1, "same")  # noqa: E731
    for change in (blurred, ops.zeros_like):
        with through(trainer, change) as case:
            assert verdicts(case, PLACES) == {}


def test_output_layers_may_start_at_zero(trainer):
    def zero(detector):
        for stride in detector.strides:
            kernel = detector.get_layer(grid_name(stride)).kernel
            kernel.assign(np.zeros(kernel.shape))

    with altered(trainer, zero) as case:
        assert verdicts(case, [model.filters_alike, model.map_does_not_arrive]) == {}


def test_output_layers_of_zeros_behind_a_norm_of_zeros_never_learn(trainer):
    def zero(detector):
        stride = detector.strides[1]
        for variable in (detector.get_layer(grid_name(stride)).kernel, detector.get_layer(f"head_{stride}_bn").gamma):
            variable.assign(np.zeros(variable.shape))

    with altered(trainer, zero) as case:
        assert first(case, [model.filters_alike, model.map_does_not_arrive, dynamics.dead_channels]) == "MG708"


@pytest.mark.parametrize("kind", [faults.WidthForHeight, faults.RolledClasses, faults.CrossedSizes])
def test_exchanged_channels_are_named(trainer, kind):
    with case_with(trainer, kind) as case:
        others = [model.channels_exchanged, loss_functions.loss_reads_otherwise, loss_functions.deaf_part]
        assert first(case, others) == "MG706"


def test_another_activation_is_not_taken_for_exchanged_channels(trainer):
    with case_with(trainer, faults.RawOffsets) as case:
        assert verdicts(case, [model.channels_exchanged]) == {}


def test_another_number_of_classes_is_named(trainer):
    with case_with(trainer, num_classes=4) as case:
        assert model.other_classes.function(case).confidence > 0.9


def test_classes_without_labels_are_mentioned_but_are_no_alarm(trainer):
    low = [dataclasses.replace(one, classes=one.classes % 3) for one in trainer.samples["train"]]
    with case_with(trainer, samples={"train": low}) as case:
        verdict = model.other_classes.function(case)
    assert verdict.hygiene and verdict.seen[1].value == 3


def test_a_call_of_ones_own_on_a_layer_is_heard_and_stays(trainer):
    """What listens to layers puts its own call on each for a while."""
    heard = []
    with through(trainer, lambda maps: maps * 0.0) as case:
        own = trainer.detector.get_layer("head_16_leaky").call
        with listening(trainer.detector, lambda layer, inputs, outputs: heard.append((layer.name, outputs))):
            trainer.detector(case.batch[0], training=False)
        assert trainer.detector.get_layer("head_16_leaky").call is own
        diagnose(case)
        assert trainer.detector.get_layer("head_16_leaky").call is own
    assert "call" not in vars(trainer.detector.get_layer("head_32_leaky"))
    assert not as_array(dict(heard)["head_16_leaky"]).any() and "darknet53" not in dict(heard)
