"""Darknet53: the published network's layers, numbers and shapes, and its multipliers."""

import keras
import numpy as np
import pytest

from multigrid.models.darknet import BLOCK_GAMMA, darknet53, scaled

pytestmark = pytest.mark.backend


@pytest.fixture(scope="module")
def full_size():
    return darknet53()


@pytest.fixture(scope="module")
def narrow():
    return darknet53(width=1 / 16)


@pytest.fixture(scope="module")
def tiny():
    return darknet53(width=1 / 16, depth=1 / 8)


def layers_of(model, kind):
    """Layers of a kind, in the order in which the graph was built: the order of Darknet's own list."""
    return [layer for layer in model.layers if isinstance(layer, kind)]


def parameters(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def images(height=64, width=96, count=2):
    return np.random.default_rng(3).random((count, height, width, 3), dtype="float32")


def read_convolutions(path):
    """(filters, kernel, stride) of every [convolutional] section of a Darknet cfg."""
    found = []
    for section in path.read_text().split("[")[1:]:
        kind, _, body = section.partition("]")
        if kind == "convolutional":
            values = dict(line.split("=", 1) for line in body.split() if "=" in line)
            found.append((int(values["filters"]), int(values["size"]), int(values["stride"])))
    return found


def test_the_published_network_has_52_convolutions_each_with_its_batch_norm(full_size):
    assert len(layers_of(full_size, keras.layers.Conv2D)) == 52
    assert len(layers_of(full_size, keras.layers.BatchNormalization)) == 52
    assert len(layers_of(full_size, keras.layers.LeakyReLU)) == 52


def test_the_published_network_has_the_published_number_of_parameters(full_size):
    # Darknet's darknet53.conv.74 holds 40,620,640 floats. Of four a filter in BatchNorm two are moving statistics:
    # filters = 32 + 64 + 32 + 64 + 128 + 2 (64 + 128) + 256 + 8 (128 + 256) + 512 + 8 (256 + 512)
    #           + 1024 + 4 (512 + 1024) = 17,856, and 2 · 17,856 = 35,712.
    assert full_size.count_params() == 40_620_640
    assert parameters(full_size.non_trainable_variables) == 35_712


def test_filters_kernels_and_strides_follow_darknets_own_list(narrow, real_data):
    listed = read_convolutions(real_data("darknet_weights") / "models" / "yolov3-slim16_bccd.cfg")
    assert len(listed) == 75  # 52 of the backbone, 23 of YOLOv3's own neck and heads
    ours = [(layer.filters, *layer.kernel_size, *layer.strides) for layer in layers_of(narrow, keras.layers.Conv2D)]
    assert ours == [(filters, size, size, stride, stride) for filters, size, stride in listed[:52]]


def test_activation_and_normalization_are_darknets_and_not_keras_own(narrow):
    assert {layer.negative_slope for layer in layers_of(narrow, keras.layers.LeakyReLU)} == {0.1}
    assert {layer.epsilon for layer in layers_of(narrow, keras.layers.BatchNormalization)} == {1e-5}
    assert not any(layer.use_bias for layer in layers_of(narrow, keras.layers.Conv2D))


def test_a_negative_number_is_normalized_and_then_multiplied_by_a_tenth(tiny):
    convolution, norm, leaky = (tiny.get_layer(f"stem_{kind}") for kind in ("conv", "bn", "leaky"))
    raw = keras.ops.convert_to_numpy(convolution(images()))
    # fresh statistics: mean 0, variance 1, so (x - 0) / sqrt(1 + 1e-5)
    expected = raw / np.sqrt(1.0 + 1e-5)
    expected = np.where(expected < 0.0, 0.1 * expected, expected)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(leaky(norm(convolution(images())))), expected, atol=1e-6)


def test_a_stride_of_two_pads_the_upper_left_as_darknet_does(tiny):
    pad, convolution = tiny.get_layer("stage1_down_pad"), tiny.get_layer("stage1_down_conv")
    x = np.random.default_rng(4).normal(size=(1, 6, 10, convolution.kernel.shape[2])).astype("float32")
    found = keras.ops.convert_to_numpy(convolution(pad(x)))
    # Darknet's output (row, column) reads rows 2·row - 1 .. 2·row + 1: the first row reads one row of zeros above.
    kernel = keras.ops.convert_to_numpy(convolution.kernel)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = [
        [np.tensordot(padded[0, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3], kernel, 3) for column in range(5)]
        for row in range(3)
    ]
    np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_the_three_maps_are_named_by_their_stride_and_keep_the_images_proportions(narrow):
    maps = narrow.compute_output_spec(keras.KerasTensor((2, 64, 96, 3)))
    # 64 × 96 at strides 8, 16, 32; 256, 512 and 1024 filters by 1/16
    expected = {"stride_8": (2, 8, 12, 16), "stride_16": (2, 4, 6, 32), "stride_32": (2, 2, 3, 64)}
    assert {name: tuple(values.shape) for name, values in maps.items()} == expected


def test_one_network_takes_images_of_any_multiple_of_32(tiny):
    assert tiny.predict_on_batch(images())["stride_32"].shape == (2, 2, 3, 64)
    assert tiny.predict_on_batch(images(32, 160))["stride_32"].shape == (2, 1, 5, 64)


@pytest.mark.parametrize(
    ("width", "filters"), [(1.0, (32, 64, 1024)), (0.25, (8, 16, 256)), (0.3, (10, 20, 308)), (0.01, (2, 2, 10))]
)
def test_filters_times_a_width_are_even_and_at_least_2(width, filters):
    # 0.3: 9.6 -> 10, 19.2 -> 20, 307.2 -> 308; 0.01: 0.32 and 0.64 -> at least 2, 10.24 -> 10
    assert tuple(scaled(number, width) for number in (32, 64, 1024)) == filters


def test_the_width_multiplies_the_filters_of_every_convolution(full_size, narrow):
    wide, slim = ([layer.filters for layer in layers_of(model, keras.layers.Conv2D)] for model in (full_size, narrow))
    assert wide == [16 * filters for filters in slim]


@pytest.mark.parametrize(
    # blocks 1, 2, 8, 8, 4 times depth, rounded, at least 1 each; two convolutions a block, five downward, one stem
    ("depth", "convolutions"),
    [(0.5, 6 + 2 * (1 + 1 + 4 + 4 + 2)), (1 / 8, 6 + 2 * 5), (1.5, 6 + 2 * (2 + 3 + 12 + 12 + 6))],
)
def test_the_depth_multiplies_the_blocks_of_every_stage(depth, convolutions):
    assert len(layers_of(darknet53(1 / 16, depth), keras.layers.Conv2D)) == convolutions


def test_a_block_adds_its_input_and_a_fresh_one_adds_little_of_its_own(tiny):
    ends = [tiny.get_layer(f"stage3_{name}").output for name in ("down_leaky", "block1_expand_leaky", "block1_add")]
    before, branch, after = keras.Model(tiny.input, ends).predict_on_batch(images())
    np.testing.assert_allclose(after, before + branch, atol=1e-6)
    gammas = {
        layer.name: keras.ops.convert_to_numpy(layer.gamma)
        for layer in layers_of(tiny, keras.layers.BatchNormalization)
    }
    assert len(gammas) == 16
    for name, gamma in gammas.items():
        np.testing.assert_allclose(gamma, BLOCK_GAMMA if name.endswith("expand_bn") else 1.0)


def test_a_config_makes_the_same_network_again(tiny):
    again = keras.Model.from_config(tiny.get_config())
    again.set_weights(tiny.get_weights())
    found = again.predict_on_batch(images())
    for name, values in tiny.predict_on_batch(images()).items():
        np.testing.assert_allclose(found[name], values, atol=1e-6)
