"""Causes in how images and batches come: each is named, and its look-alikes are not."""

import types

import keras
import numpy as np
import pytest
from small_runs import make_config
from spoilt_data import named, spoilt

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import pixels
from multigrid.diagnosis.examinations.course import Course
from multigrid.diagnosis.finding import LIKELY
from multigrid.diagnosis.rules import pipeline
from multigrid.training.trainer import MultiGridTrainer


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=48, val=8), tmp_path_factory.mktemp("pipeline") / "run"))
    made.build_model()
    return made


@pytest.fixture
def scaling(trainer):
    """The layer that scales images; it is as it was afterwards."""
    layer = trainer.detector.get_layer("scale_to_unit")
    before = layer.scale
    yield layer
    layer.scale = before


@pytest.fixture
def learned(trainer):
    """The detector after its first BatchNorm has seen images whose red is bright and whose blue is dark."""
    norm = next(
        layer for layer in trainer.detector.backbone.layers if isinstance(layer, keras.layers.BatchNormalization)
    )
    before = [keras.ops.copy(value) for value in norm.non_trainable_variables]
    images = np.concatenate([tinted(images) for images, _ in Case.of(trainer).batches])
    seen = keras.Model(trainer.detector.backbone.input, norm.input)(images.astype("float32") / 255)
    norm.moving_mean.assign(keras.ops.mean(seen, axis=(0, 1, 2)))
    norm.moving_variance.assign(keras.ops.var(seen, axis=(0, 1, 2)))
    yield trainer.detector
    for variable, value in zip(norm.non_trainable_variables, before, strict=True):
        variable.assign(value)


def tinted(images):
    """Red as it is, green at three quarters, blue at a quarter."""
    return (images * [1.0, 0.75, 0.25]).astype("uint8")


def test_sound_data_raise_no_alarm(trainer):
    epoch = trainer.train_data.epoch
    assert named(pipeline, Case.of(trainer)) == {}
    assert trainer.train_data.epoch == epoch


@pytest.mark.parametrize(("factor", "rule"), [(255.0, "MG901"), (4.0, "MG901"), (1 / 255, "MG902"), (1 / 20, "MG902")])
def test_wrong_scaling_of_images_is_named_by_its_direction(trainer, scaling, factor, rule):
    scaling.scale *= factor
    assert set(named(pipeline, Case.of(trainer))) == {rule}


def test_dark_images_were_not_scaled_twice(trainer):
    dark = spoilt(trainer, train=lambda images, boxes, classes, rng: np.floor_divide(images, 8, out=images))
    assert "MG902" not in named(pipeline, dark)


def test_a_backbone_that_scales_by_itself_may_be_given_anything(trainer, scaling):
    scaling.scale *= 255.0
    own = types.SimpleNamespace(layers=[keras.layers.Rescaling(1 / 255), *trainer.detector.backbone.layers])
    assert pixels._beginning(own)[0] is own.layers[0]
    assert not isinstance(own.layers[0], keras.layers.Conv2D)  # and then `received(…).plainly` is false


def test_what_batch_norm_has_learned_confirms_the_scaling(trainer, learned, scaling):
    scaling.scale *= 255.0
    verdict = named(pipeline, spoilt(trainer, train=tint))["MG901"]
    assert verdict.confidence > 0.9 and "mends" in verdict.why[-1]


def tint(images, boxes, classes, rng):
    images[...] = tinted(images)


def test_reversed_channels_are_told_from_what_batch_norm_has_learned(trainer, learned):
    def reverse(images, boxes, classes, rng):
        images[...] = tinted(images)[..., ::-1]

    assert named(pipeline, spoilt(trainer, train=reverse))["MG903"].confidence >= LIKELY
    assert "MG903" not in named(pipeline, spoilt(trainer, train=tint))


def test_a_lost_channel_is_named_and_grey_images_are_not(trainer):
    def lose(images, boxes, classes, rng):
        images[..., 1:] = 0

    def grey(images, boxes, classes, rng):
        images[...] = images.mean(-1, keepdims=True)

    assert named(pipeline, spoilt(trainer, train=lose, val=lose))["MG904"].confidence >= LIKELY
    assert named(pipeline, spoilt(trainer, train=grey, val=grey)) == {}


def test_blank_images_are_named(trainer):
    def blank(images, boxes, classes, rng):
        images[rng.random(len(images)) < 0.3] = 0

    assert set(named(pipeline, spoilt(trainer, train=blank))) == {"MG905"}


def in_order(case):
    """The case with data that do not shuffle."""
    case.train_data.shuffle = False
    case.train_data.epoch = 0
    return case


def test_samples_in_the_order_of_their_classes_are_not_shuffled(trainer):
    def by_class(samples):
        return sorted(samples, key=lambda one: np.bincount(one.classes).argmax() if len(one.classes) else -1)

    verdict = named(pipeline, in_order(spoilt(trainer, samples=by_class)))["MG906"]
    assert verdict.confidence >= LIKELY and not verdict.hygiene


def test_an_order_that_is_the_same_but_unsorted_is_hygiene(trainer):
    assert named(pipeline, in_order(spoilt(trainer)))["MG906"].hygiene


def test_sorted_files_that_are_shuffled_raise_no_alarm(trainer):
    assert "MG906" not in named(
        pipeline, spoilt(trainer, samples=lambda all: sorted(all, key=lambda one: len(one.boxes)))
    )


def test_an_epoch_that_shows_some_samples_alone_is_named_with_its_reason(trainer):
    again = spoilt(trainer)
    again.train_data.sample_indices = lambda index, own=again.train_data.sample_indices: own(0)
    verdict = named(pipeline, again)["MG909"]
    assert "batches enough" in verdict.why[0] and verdict.confidence == 0.9

    class Short(type(again.train_data)):
        def __len__(self):
            return 1

    short = spoilt(trainer)
    short.train_data.__class__ = Short
    assert "length is wrong" in named(pipeline, short)["MG909"].why[0]
    assert "MG909" not in named(pipeline, spoilt(trainer))


def test_draws_that_begin_anew_each_epoch_are_named(trainer):
    case = spoilt(trainer)
    drawn = case.train_data._rng
    case.train_data._rng = lambda epoch, purpose, index=0: drawn(0, purpose, index)
    case.train_data.epoch = 0
    assert named(pipeline, case)["MG908"].confidence >= LIKELY


def test_images_that_no_step_changes_may_come_again(trainer):
    plain = trainer.config.augmentation.model_copy(update={"steps": (), "mosaic": 0.0})
    config = trainer.config.model_copy(update={"augmentation": plain})
    assert "MG908" not in named(pipeline, spoilt(trainer, config=config))


@pytest.mark.parametrize(("seconds", "slow"), [(0.3, True), (0.005, False)])
def test_waiting_for_data_is_measured_on_the_course(trainer, seconds, slow):
    case = Case.of(trainer)
    assert pipeline.data_too_slow.function(case) is None  # before a step nothing is known
    case.course = Course(rows=[{"step": n, "data_seconds": seconds, "seconds": seconds + 0.1} for n in range(1, 9)])
    assert (pipeline.data_too_slow.function(case) is not None) == slow
