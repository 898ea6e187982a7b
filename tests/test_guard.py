"""The guard: every kind of fault is caught at its step, named, kept in a bundle, and moves no weight."""

import json
import logging
import math

import cv2
import keras
import numpy as np
import pytest

from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.samples import Sample
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector
from multigrid.training.checkpoints import RestOfEpoch
from multigrid.training.faults import Fault, first_fault
from multigrid.training.guard import NonFiniteGuard, NonFiniteLossError
from multigrid.training.optimizers import build_optimizer

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
STEPS = 3  # of an epoch: batches of 2, 2 and 1


class Broken(MultiGridDataGenerator):
    """Makes the right edge of a box infinite in one batch of one epoch, or as often as it is told."""

    when, seen = (), 0

    def __getitem__(self, index):
        images, truth = super().__getitem__(index)
        if (self.epoch, index) in self.when:
            truth["boxes"][-1, 0, 2] = math.inf
        return images, truth


@keras.saving.register_keras_serializable("tests")
class NanInTraining(keras.layers.Layer):
    """Says NaN for bright images where it trains, and nothing of its own otherwise."""

    def call(self, inputs, training=False):
        if not training:
            return inputs
        bright = keras.ops.max(inputs, axis=(1, 2, 3), keepdims=True) > 0.9
        return keras.ops.where(bright, math.nan, inputs)


@keras.saving.register_keras_serializable("tests")
class RootOfZero(keras.layers.Layer):
    """Adds 0 by a way whose slope is infinite: the loss stays finite, the gradient does not."""

    def call(self, inputs):
        return inputs + keras.ops.sqrt(0.0 * keras.ops.mean(keras.ops.square(inputs)))


@keras.saving.register_keras_serializable("tests")
class Plain(MultiGridLoss):
    """Lets a box that is not finite into the total, which the loss itself keeps out."""

    def breakdown(self, encoded, outputs):
        found = super().breakdown(encoded, outputs)
        return found._replace(total=found.total * (1.0 + 0.0 * keras.ops.sum(encoded.boxes)))


def backbone(layer, after):
    """Three maps by one convolution each, with a layer after the second, or before all."""
    images = keras.Input((None, None, 3))
    x, maps = images if after else layer(images), {}
    for stride, filters in ((8, 4), (16, 4), (32, 6)):
        step = stride if stride == 8 else 2
        x = keras.layers.Conv2D(filters, step, strides=step, name=f"map_{stride}")(x)
        x = keras.layers.BatchNormalization(name=f"norm_{stride}")(x)
        if after and stride == 16:
            x = layer(x)
        maps[f"stride_{stride}"] = x
    return keras.Model(images, maps, name="own")


def build(layer=None, *, after=True, learning_rate=0.01, traced=False, **loss):
    keras.utils.set_random_seed(2)
    criterion = Plain(ANCHORS, 3, **loss)
    detector = MultiGridDetector(
        ANCHORS, 3, width=1 / 16, backbone=backbone(layer or keras.layers.Identity(), after), criterion=criterion
    )
    options = {"momentum": 0.9, "weight_decay": 0.0, "max_grad_norm": None, "ema": None}
    # tracing takes TensorFlow longer than these few steps do, and compiling JAX less
    how = {"run_eagerly": True} if keras.backend.backend() == "tensorflow" and not traced else {}
    detector.compile(build_optimizer("sgd", learning_rate, **options), jit_compile=detector.prefers_xla, **how)
    return detector


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("images"), []
    rng = np.random.default_rng(8)
    for number in range(5):
        path = str(folder / f"image {number}.png")
        # image 3 is the only one with white in it
        cv2.imwrite(path, rng.integers(0, 256 if number == 3 else 200, (64, 96, 3), dtype=np.uint8))
        # 22 × 15 fits the anchor (20, 14) of stride 16 best; class 2 stands in image 2 alone
        box = np.array([[10 + 3 * number, 20, 32 + 3 * number, 35]], "float32")
        made.append(Sample(path, box, np.array([(0, 1, 2, 0, 1)[number]], "int32"), number + 1, (64, 96)))
    return made


def make_data(samples, *when, shuffle=False):
    data = Broken(samples, input_size=(64, 96), batch_size=2, shuffle=shuffle, seed=3)
    data.when = when
    return data


class Poison(keras.callbacks.Callback):
    """Makes a bias of the middle grid NaN before a step."""

    def __init__(self, epoch, step):
        super().__init__()
        self.when, self.epoch = (epoch, step), 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.when:
            if hasattr(self.model, "jax_state_sync"):
                self.model.jax_state_sync()
            bias = self.model.get_layer("grid_16").bias
            value = np.array(keras.ops.convert_to_numpy(bias))
            value[7] = math.nan
            bias.assign(value)


class Weights(keras.callbacks.Callback):
    """Keeps the weights that gradients move as they are after every step."""

    def __init__(self):
        super().__init__()
        self.after, self.logs = [], []

    def on_train_batch_end(self, batch, logs=None):
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()
        self.after.append([np.array(keras.ops.convert_to_numpy(v)) for v in self.model.trainable_variables])

    def on_epoch_end(self, epoch, logs=None):
        self.logs.append(dict(logs))


def fit(detector, data, *callbacks, epochs=2):
    detector.fit(data, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def stopped(detector, data, folder, *before, epochs=2):
    """The message of a training that stops, and what step.json of its only bundle says."""
    with pytest.raises(NonFiniteLossError) as caught:
        fit(detector, data, *before, NonFiniteGuard(data, folder), epochs=epochs)
    (bundle,) = folder.iterdir()
    return str(caught.value), bundle, json.loads((bundle / "step.json").read_text())


# --- what is named first


def test_a_box_that_is_not_finite_is_a_target_of_one_image(samples, tmp_path):
    data = make_data(samples, (1, 1))
    message, bundle, figures = stopped(build(traced=True), data, tmp_path)
    # images 2 and 3 are the second batch, and the box is that of the last
    expected = f"target boxes is the first that is not finite; 1 of 2 images; image files: {samples[3].path}"
    assert message == f"epoch 2, step 2: {expected}; to make this step again: multigrid replay {bundle}"
    assert bundle.name == "nan-epoch-2-step-2" and figures["verdict"] == expected
    assert (figures["epoch"], figures["step"], figures["images"]) == (2, 2, 2)
    assert figures["files"] == [[samples[2].path], [samples[3].path]]
    assert figures["first"] == {"kind": "target", "name": "boxes", "stride": None, "images": [1], "note": ""}


def test_a_weight_comes_before_everything(samples, tmp_path):
    data = make_data(samples, (0, 1))
    message, bundle, figures = stopped(build(), data, tmp_path, Poison(0, 1))
    assert message.startswith("epoch 1, step 2: weight grid_16/bias is the first that is not finite, 1 of ")
    assert figures["first"]["kind"] == "weights" and "image files" not in figures["verdict"]


def test_a_layer_that_fails_only_in_training_is_named_with_the_image_before_the_batch_spreads_it(samples, tmp_path):
    detector = build(NanInTraining(name="sometimes"), after=False)
    data = make_data(samples)
    assert np.isfinite(detector.predict_on_batch(data[1][0])[0]).all()
    before = detector.get_weights()
    message, bundle, figures = stopped(detector, data, tmp_path)
    # only image 3 has white in it: that of the second batch; it is the first batch that moves the weights before
    assert message.startswith(
        "epoch 1, step 2: output of layer sometimes is the first that is not finite; 1 of 2 images"
    )
    assert f"image files: {samples[3].path};" in message and figures["first"]["images"] == [1]
    assert all(np.isfinite(value).all() for value in detector.get_weights())
    assert not any(np.isnan(value).any() for value in before)


@pytest.mark.backend
def test_a_class_weight_is_seen_in_the_component_of_the_images_that_have_the_class(samples, tmp_path):
    data = make_data(samples)
    # class 2 stands in image 2, the first of the second batch: an object of stride 16, of which cells of 32 speak too
    message, bundle, figures = stopped(build(class_weights=[1.0, 1.0, math.nan]), data, tmp_path)
    assert message.startswith(
        "epoch 1, step 2: component classification at stride 32 is the first that is not finite; "
        f"1 of 2 images; image files: {samples[2].path}; "
    )
    assert figures["first"] == {
        "kind": "component", "name": "classification", "stride": 32, "images": [0], "note": ""
    }  # fmt: skip


def test_a_gradient_is_caught_though_the_loss_is_finite(samples, tmp_path):
    detector, data = build(RootOfZero(name="root")), make_data(samples)
    before = detector.get_weights()
    assert np.isfinite(float(keras.ops.convert_to_numpy(detector.loss_breakdown(*data[0], training=True).total)))
    message, bundle, figures = stopped(detector, data, tmp_path)
    # norm_16 is what the root comes after: its scale and shift are the first that the infinite slope meets
    assert message.startswith("epoch 1, step 1: gradient of norm_16/beta is the first that is not finite, from the out")
    assert figures["first"]["kind"] == "gradient"
    trainable = {variable.path for variable in detector.trainable_variables}
    for variable, value in zip(detector.weights, before, strict=True):
        if variable.path in trainable:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_a_learning_rate_that_explodes_is_stopped(samples, tmp_path):
    detector = build(learning_rate=1e30)
    message, bundle, figures = stopped(detector, make_data(samples), tmp_path, epochs=3)
    assert figures["learning_rate"] == pytest.approx(1e30)
    assert figures["first"]["kind"] in ("weights", "output", "component", "gradient")


def test_gradients_of_which_only_the_common_norm_overflows_are_a_fault_too(samples):
    detector, data = build(coord_scale=1e22), make_data(samples)
    # about 1e22 each, below float32's 3.4e38; squared about 1e44, above
    fault = first_fault(detector, *data[0])
    assert fault.kind == "gradient" and fault.name == "all variables" and "their common norm; up to" in fault.note


def test_a_step_without_a_fault_has_none(samples):
    detector, data = build(), make_data(samples)
    before = detector.get_weights()
    assert first_fault(detector, *data[0]) is None
    trained = [variable.trainable for variable in detector.weights]
    for same, one, other in zip(trained, before, detector.get_weights(), strict=True):
        assert not same or np.array_equal(one, other)


def test_a_fault_in_words():
    fault = Fault("component", "localization", stride=16, images=(0, 2))
    expected = (
        "component localization at stride 16 is the first that is not finite; 2 of 3 images; image files: a, b, c"
    )
    assert fault.describe(3, [["a", "b"], ["d"], ["c", "a"]]) == expected
    assert fault.describe(3, []).endswith("2 of 3 images; image files: unknown")


# --- stop


def test_a_training_without_a_fault_is_left_alone(samples, tmp_path):
    data, watch = make_data(samples), Weights()
    fit(build(), data, NonFiniteGuard(data, tmp_path), watch)
    assert list(tmp_path.iterdir()) == [] and len(watch.after) == 2 * STEPS
    assert "dropped_batches" not in watch.logs[0]


def test_without_a_folder_the_fault_is_named_and_nothing_is_written(samples, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = make_data(samples, (0, 0))
    with pytest.raises(NonFiniteLossError) as caught:
        fit(build(), data, NonFiniteGuard(data))
    assert str(caught.value).endswith(f"image files: {samples[1].path}") and list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_does_not_hide_the_fault(samples, tmp_path):
    (tmp_path / "file").write_text("")
    data = make_data(samples, (0, 0))
    with pytest.raises(NonFiniteLossError, match="epoch 1, step 1: .*loss became nan.*; no replay bundle could be"):
        fit(build(), data, NonFiniteGuard(data, tmp_path / "file"))


def test_data_that_is_another_batch_the_second_time_is_said_not_to_reproduce(samples, tmp_path):
    class Mend(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            data.when = () if batch == 1 else data.when

    data = make_data(samples, (0, 1))
    message, bundle, figures = stopped(build(), data, tmp_path, Mend())
    assert "became " in message and "; it could not be reproduced: everything is finite in the batch" in message
    assert figures["first"] is None and figures["verdict"].startswith("could not be reproduced")


def test_the_rest_of_an_epoch_counts_its_steps_from_the_epochs_first(samples, tmp_path):
    data = RestOfEpoch(make_data(samples, (4, 1)), 1)
    with pytest.raises(NonFiniteLossError, match=rf"epoch 5, step 2: target boxes.*image files: .*{samples[3].path};"):
        build().fit(
            data, initial_epoch=4, epochs=5, shuffle=False, verbose=0,
            callbacks=[DataEpochOf(data), NonFiniteGuard(data, tmp_path)],
        )  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["nan-epoch-5-step-2"]


class DataEpochOf(keras.callbacks.Callback):
    """Tells the data which epoch it is."""

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_begin(self, epoch, logs=None):
        self.data.epoch = epoch


def test_a_loss_scale_that_shrinks_is_no_fault_until_it_is_below_1():
    guard = NonFiniteGuard(data=None)
    guard.on_train_begin()
    states = iter([32768.0, 16384.0, 1.0, 0.5, 0.5])
    guard._optimizer_state = lambda: {"non_finite_steps": 0.0, "dynamic_scale": next(states)}
    guard.on_train_batch_begin(0)
    assert [guard._wrong({"loss": 1.0}) for _ in range(4)] == [
        [], [], ["a gradient was not finite with its loss scaled by 1"], []
    ]  # fmt: skip


# --- skip


def skipping(layer=None, **options):
    detector = build(layer, **options)
    detector.drops_non_finite = True
    return detector


@pytest.mark.backend
def test_skipped_batches_move_nothing_are_counted_and_left_out_of_the_means(samples, tmp_path, caplog):
    data, watch = make_data(samples, (0, 1), (1, 0), (1, 2)), Weights()
    detector = skipping()
    with caplog.at_level(logging.WARNING):
        fit(detector, data, NonFiniteGuard(data, tmp_path, "skip"), watch, epochs=3)
    assert [logs["dropped_batches"] for logs in watch.logs] == [1, 2, 0]
    assert all(math.isfinite(logs["loss"]) for logs in watch.logs)
    assert all(np.isfinite(value).all() for value in detector.get_weights())
    same = [
        all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
        for before, after in zip(watch.after[:-1], watch.after[1:], strict=True)
    ]
    # steps 1, 3 and 5 of all nine are dropped; the first has none before it
    assert same == [True, False, True, False, True, False, False, False]
    # said once, kept once
    assert [record.getMessage()[:29] for record in caplog.records] == ["epoch 1, step 2: target boxes"]
    assert "batches like this are dropped and counted" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["nan-epoch-1-step-2"]


def test_the_means_of_an_epoch_are_those_of_the_kept_batches(samples):
    # no weight moves at learning rate 0, so that each batch can be measured alone
    data, watch = make_data(samples, (0, 1)), Weights()
    detector = skipping(learning_rate=0.0)
    totals = [float(keras.ops.convert_to_numpy(detector.loss_breakdown(*data[i], training=True).total)) for i in (0, 2)]
    fit(detector, data, NonFiniteGuard(data, None, "skip"), watch, epochs=1)
    # batches of 2 and 1 images
    assert watch.logs[0]["loss"] == pytest.approx((2 * totals[0] + totals[1]) / 3, rel=1e-4)


def test_a_gradient_alone_drops_a_batch_too(samples, tmp_path):
    data, detector = make_data(samples), skipping(RootOfZero(name="root"))
    with pytest.raises(NonFiniteLossError, match="epoch 1: all 3 batches were dropped, none was finite"):
        fit(detector, data, NonFiniteGuard(data, tmp_path, "skip"))
    assert [path.name for path in tmp_path.iterdir()] == ["nan-epoch-1-step-1"]


def test_weights_that_are_not_finite_cannot_be_skipped(samples, tmp_path):
    data = make_data(samples)
    with pytest.raises(NonFiniteLossError, match="step 2: weight grid_16/bias .*; to skip batches is of no use"):
        fit(skipping(), data, Poison(0, 1), NonFiniteGuard(data, tmp_path, "skip"))
