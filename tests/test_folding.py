"""BatchNorm folded into convolutions: the same function, and the original left alone."""

import keras
import numpy as np
import pytest
from keras import layers

from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.models.folding import fold_batch_norm

ANCHORS = [[[40, 28], [48, 44]], [[20, 14], [14, 30]], [[8, 6], [12, 9]]]


def randomized(model, seed=5):
    """The model as if it were trained: scales, shifts and moving statistics that differ from channel to channel."""
    rng = np.random.default_rng(seed)
    for layer in all_layers(model):
        if isinstance(layer, layers.BatchNormalization):
            for weight in layer.weights:
                low = 0.3 if weight.path.endswith(("gamma", "moving_variance")) else -0.4
                weight.assign(rng.uniform(low, 1.3, weight.shape))
    return model


def all_layers(model):
    return [part for layer in model.layers for part in (all_layers(layer) if hasattr(layer, "layers") else [layer])]


def norms_of(model):
    return [layer for layer in all_layers(model) if isinstance(layer, layers.BatchNormalization)]


def assert_equal_outputs(model, folded, inputs):
    expected, found = model(inputs, training=False), folded(inputs, training=False)
    for one, other in zip(keras.tree.flatten(expected), keras.tree.flatten(found), strict=True):
        one, other = (keras.ops.convert_to_numpy(keras.ops.cast(part, "float32")) for part in (one, other))
        assert np.abs(one - other).max() <= 1e-4 * np.abs(one).max()


@pytest.fixture(scope="module")
def detector():
    keras.utils.set_random_seed(2)
    return randomized(MultiGridDetector(ANCHORS, 3, width=0.0625, depth=0.125))


def test_the_folded_detector_says_the_same_without_a_batch_norm(detector):
    folded = fold_batch_norm(detector)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 96, 3), "uint8")
    # backbone: the stem, 5 strided, 2 in the one block of each of 5 stages; above it 3 a scale, 1 a grid, 2 carried up
    assert norms_of(folded) == [] and len(norms_of(detector)) == 1 + 5 + 10 + 9 + 3 + 2
    assert_equal_outputs(detector, folded, images)


def test_the_original_keeps_its_weights_and_its_layers(detector):
    before = [np.array(weight) for weight in detector.get_weights()]
    count = len(norms_of(detector))
    folded = fold_batch_norm(detector)
    folded.set_weights([np.zeros_like(weight) for weight in folded.get_weights()])
    assert len(norms_of(detector)) == count
    for one, other in zip(before, detector.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_of_half_precision_is_folded_to_float32():
    backbone = darknet53(0.0625, 0.125)
    detector = randomized(MultiGridDetector(ANCHORS, 3, width=0.0625, backbone=backbone, dtype="mixed_bfloat16"))
    folded = fold_batch_norm(detector)
    assert {layer.compute_dtype for layer in all_layers(folded) if layer.weights} == {"float32"}


def functional(make):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((7, 5, 3))
    return randomized(keras.Model(inputs, make(inputs)))


INPUTS = np.random.default_rng(4).normal(size=(2, 7, 5, 3)).astype("float32")


@pytest.mark.parametrize("options", [{"scale": False}, {"center": False}, {"epsilon": 0.2}, {}])
def test_every_kind_of_batch_norm_is_folded_into_a_convolution_with_a_bias(options):
    def make(x):
        x = layers.Conv2D(4, 3, bias_initializer="random_normal", name="first")(x)
        return layers.BatchNormalization(**options)(x)

    model = functional(make)
    folded = fold_batch_norm(model)
    assert norms_of(folded) == []
    assert_equal_outputs(model, folded, INPUTS)


def behind_an_activation(x):
    return layers.BatchNormalization()(layers.Conv2D(4, 3, activation="tanh")(x))


def behind_no_convolution(x):
    return layers.Conv2D(4, 3)(layers.BatchNormalization()(x))


def behind_a_convolution_that_is_read_twice(x):
    x = layers.Conv2D(4, 3, use_bias=False)(x)
    return layers.Add()([x, layers.BatchNormalization()(x)])


def behind_a_convolution_that_is_an_output(x):
    x = layers.Conv2D(4, 3)(x)
    return [x, layers.BatchNormalization()(x)]


def behind_a_convolution_that_is_applied_twice(x):
    convolution = layers.Conv2D(3, 3, padding="same")
    return layers.BatchNormalization()(convolution(convolution(x)))


@pytest.mark.parametrize(
    "make",
    [
        behind_an_activation, behind_no_convolution, behind_a_convolution_that_is_read_twice,
        behind_a_convolution_that_is_an_output, behind_a_convolution_that_is_applied_twice,
    ],
)  # fmt: skip
def test_a_batch_norm_that_cannot_be_folded_stays(make):
    model = functional(make)
    folded = fold_batch_norm(model)
    assert len(norms_of(folded)) == 1
    assert_equal_outputs(model, folded, INPUTS)
