"""Darknet's own files: the published layout, Darknet's own outputs, and every file that is not what it should be."""

import logging
import math
import struct

import keras
import numpy as np
import pytest
from loading import assert_refused, bytes_of, shake

from multigrid.errors import InputError
from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.models.weights import load_weights, save_weights

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
FLOATS = 162910  # of Darknet53 at width 1/16, by the table beside the files
HEADER = struct.pack("<3iq", 0, 2, 5, 0)


@pytest.fixture(scope="module")
def files(real_data):
    return real_data("darknet_weights")


@pytest.fixture(scope="module")
def backbone():
    return darknet53(1 / 16)


@pytest.fixture(scope="module")
def small():
    """Darknet53 of one block a stage, each number its own: file and model of the tests that need no real file."""
    return shake(darknet53(1 / 16, 1 / 8), 1)


def golden_layers(path):
    """{Darknet's layer number: (mean, rms)} of a "…_layers.txt"."""
    lines = [line.split() for line in path.read_text().splitlines()]
    return {int(words[0]): (float(words[9]), float(words[11])) for words in lines}


# --- real files


@pytest.mark.backend
def test_the_real_files_load_whole(files, backbone):
    for name, others in (("darknet53-slim16.conv.74", 0), ("yolov3-slim16_bccd.weights", 106)):
        shake(backbone, 2)
        ledger = load_weights(backbone, files / "models" / name)
        assert ledger.format == "Darknet binary"
        # 52 convolutions, each a kernel and four vectors of its BatchNorm
        assert len(ledger.of_kind("loaded")) == len(ledger.wanted) == 52 * 5 == 260
        assert ledger.tensor_share == ledger.parameter_share == 1
        assert sum(entry.parameters for entry in ledger.entries) == FLOATS
        assert len(ledger.of_kind("unexpected")) == others
        assert ledger.norms.layers == 52 and ledger.norms.smallest > 0 and not ledger.norms.untrained


def test_every_layer_of_the_backbone_agrees_with_darknets_own_output(files, backbone):
    load_weights(backbone, files / "models" / "yolov3-slim16_bccd.weights")
    image = np.load(files / "golden" / "yolov3-slim16_bccd__bccd0.npz")["input"].reshape(3, 160, 160)
    expected = golden_layers(files / "golden" / "yolov3-slim16_bccd__bccd0_layers.txt")
    # layers 0 to 74 of the cfg are 52 convolutions and 23 shortcuts: an output after each LeakyReLU and each addition
    outputs = [layer.output for layer in backbone.layers if layer.name.endswith(("_leaky", "_add"))]
    assert len(outputs) == 75
    everything = keras.Model(backbone.input, [outputs, backbone.output])
    found, maps = everything.predict(image.transpose(1, 2, 0)[None], verbose=0)
    for number, values in enumerate(found):
        values = values.astype("float64")
        assert (values.mean(), math.sqrt((values**2).mean())) == pytest.approx(expected[number], rel=1e-4)
    for stride, number in ((8, 36), (16, 61), (32, 74)):  # the shortcuts that end the last three stages
        assert maps[f"stride_{stride}"].shape[1:3] == (160 // stride, 160 // stride)
        np.testing.assert_array_equal(maps[f"stride_{stride}"], found[number])


def test_a_detector_takes_the_same_numbers_into_its_backbone(files, backbone):
    load_weights(backbone, files / "models" / "darknet53-slim16.conv.74")
    detector = MultiGridDetector(ANCHORS, 3, width=1 / 16)
    ledger = load_weights(detector, files / "models" / "darknet53-slim16.conv.74", required="backbone")
    assert bytes_of(detector.backbone) == bytes_of(backbone)
    assert {entry.block.split("_")[0] for entry in ledger.of_kind("missing")} == {"neck", "head", "grid"}


def test_a_slim_neck_leaves_the_neck_and_head_of_yolov3(files):
    detector = MultiGridDetector(ANCHORS, 3, width=1 / 16)
    path = files / "models" / "yolov3-slim16_bccd.weights"
    assert_refused(detector, path, "received 260 that fit", "76 missing, first neck_32_conv1_conv/kernel")
    ledger = load_weights(detector, path, required="backbone")
    # 23 convolutions behind the backbone in yolov3.cfg: 20 with BatchNorm, 3 grids with a bias
    assert len(ledger.of_kind("unexpected")) == 20 * 5 + 3 * 2
    assert not ledger.of_kind("misshapen") and not ledger.of_kind("partial")
    assert "behind the backbone are the neck and head of YOLOv3 for 3 classes" in ledger.notes


def test_a_full_neck_takes_that_of_yolov3_and_only_the_grids_are_missing(files):
    # 16 classes and 3 anchors: 5 + 3 + 16 = 24 channels, as many as YOLOv3's 3 (5 + 3), which mean something else
    detector = MultiGridDetector([scale + [[3.0, 5.0]] for scale in ANCHORS], 16, width=1 / 16, neck="full")
    ledger = load_weights(detector, files / "models" / "yolov3-slim16_bccd.weights", required="backbone")
    assert [entry.name for entry in ledger.of_kind("missing")] == [
        f"grid_{stride}/{role}" for stride in (32, 16, 8) for role in ("kernel", "bias")
    ]
    assert [entry.name.split("/")[0] for entry in ledger.of_kind("unexpected")] == [
        f"yolov3_grid_{stride}" for stride in (32, 16, 8) for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("name", "floats"),
    [
        ("yolov3-tiny-slim8.conv.15", 122262),
        ("yolov3-tiny-slim8_bccd.weights", 139142),
        ("yoloface-50k.weights", 11248),
    ],
)
def test_other_networks_are_refused_with_both_counts(files, backbone, name, floats):
    assert_refused(backbone, files / "models" / name, f"expected {FLOATS:,} floats", f"received {floats:,}")


def test_another_width_is_refused(files, small):
    # what comes behind the backbone of a narrower network is not taken for YOLOv3's neck either
    assert_refused(small, files / "models" / "yolov3-slim16_bccd.weights", "floats for the 16 convolutions", "249,382")
    assert_refused(darknet53(1 / 8), files / "models" / "darknet53-slim16.conv.74", f"received {FLOATS:,}")


@pytest.mark.parametrize("channels", [3 * 8 - 1, 3 * 8 + 2, 3 * 5])
def test_grids_that_are_not_three_boxes_with_classes_are_refused(files, backbone, tmp_path, channels):
    numbers = np.fromfile(files / "models" / "yolov3-slim16_bccd.weights", "<f4", offset=20)
    # one channel takes a bias and a kernel of 64, 32 and 16 filters: 65 + 33 + 17 = 115 numbers; the file has 3 (5 + 3)
    numbers = np.resize(numbers, len(numbers) + 115 * (channels - 24))
    (tmp_path / "a.weights").write_bytes(HEADER + numbers.tobytes())
    words = ("or 246,622 + 345 · (5 + classes) with YOLOv3's", f"received {246622 + 115 * channels:,}")
    assert_refused(backbone, tmp_path / "a.weights", *words)


@pytest.mark.parametrize("name", ["darknet53-slim16.conv.74", "yolov3-slim16_bccd.weights"])
def test_a_file_of_another_length_is_refused(files, backbone, tmp_path, name):
    content = (files / "models" / name).read_bytes()
    floats = (len(content) - len(HEADER)) // 4
    for part, words in (
        (content[: len(content) * 9 // 10 // 4 * 4], ("floats for the 52 convolutions", "received")),
        (content[: len(content) * 9 // 10 // 4 * 4 + 1], ("whole floats", "cut off")),
        (content + bytes(4), (f"expected {FLOATS:,} floats", f"received {floats + 1:,}")),
        (content[:18], ("20 bytes", "cut off")),
    ):
        (tmp_path / name).write_bytes(part)
        assert_refused(backbone, tmp_path / name, *words)


def test_the_first_tensor_with_nan_is_named(files, backbone, tmp_path):
    numbers = np.fromfile(files / "models" / "darknet53-slim16.conv.74", "<f4", offset=20)
    # the stem is 4 · 2 numbers of BatchNorm and a kernel of 3·3·3·2 = 54; the next vector is stage1_down's beta (4)
    numbers[8 + 54 + 4 : 8 + 54 + 6] = (np.nan, np.inf)  # in stage1_down's gamma
    numbers[-1] = np.nan
    (tmp_path / "a.weights").write_bytes(HEADER + numbers.tobytes())
    assert_refused(backbone, tmp_path / "a.weights", "received 2 that are NaN or infinite in stage1_down_bn/gamma")


def test_numbers_in_the_wrong_places_give_variances_below_0_and_are_refused(files, backbone, tmp_path):
    numbers = np.fromfile(files / "models" / "darknet53-slim16.conv.74", "<f4", offset=20)
    (tmp_path / "a.weights").write_bytes(HEADER + np.roll(numbers, 1).tobytes())  # of the right count, but moved by one
    assert_refused(backbone, tmp_path / "a.weights", "expected variances of BatchNorm from 0 up, received -")


# --- the format


@pytest.mark.backend
def test_what_is_written_is_what_darknet_wrote(files, backbone, tmp_path):
    path = files / "models" / "darknet53-slim16.conv.74"
    load_weights(backbone, path)
    save_weights(backbone, tmp_path / "again.weights")
    assert (tmp_path / "again.weights").read_bytes() == path.read_bytes()


def test_the_layout_is_the_published_one(small, tmp_path):
    save_weights(small, tmp_path / "a.weights")
    content = (tmp_path / "a.weights").read_bytes()
    assert content[:20] == HEADER
    numbers = np.frombuffer(content, "<f4", offset=20)
    norm, kernel = small.get_layer("stem_bn"), small.get_layer("stem_conv").kernel
    vectors = [norm.beta, norm.gamma, norm.moving_mean, norm.moving_variance]
    for index, vector in enumerate(vectors):  # two filters
        np.testing.assert_array_equal(numbers[2 * index : 2 * index + 2], keras.ops.convert_to_numpy(vector))
    kernel = keras.ops.convert_to_numpy(kernel)  # [3, 3, 3, 2]
    assert numbers[8 + ((1 * 3 + 2) * 3 + 0) * 3 + 1] == kernel[0, 1, 2, 1]  # filter 1, channel 2, row 0, column 1


@pytest.mark.parametrize(
    ("version", "width"), [((0, 1, 0), "<i"), ((0, 2, 0), "<q"), ((1, 0, 0), "<q"), ((0, 0, 9), "<i")]
)
def test_both_headers_are_read(small, tmp_path, version, width):
    save_weights(small, tmp_path / "a.weights")
    body = (tmp_path / "a.weights").read_bytes()[20:]
    (tmp_path / "a.weights").write_bytes(struct.pack("<3i", *version) + struct.pack(width, 32000) + body)
    other = darknet53(1 / 16, 1 / 8)
    ledger = load_weights(other, tmp_path / "a.weights")
    assert bytes_of(other) == bytes_of(small)
    assert ledger.notes == ("trained on 32,000 images",)


def test_the_header_and_not_the_name_says_the_format(small, tmp_path):
    save_weights(small, tmp_path / "a.weights")
    (tmp_path / "a.weights").rename(tmp_path / "a.h5")
    other = darknet53(1 / 16, 1 / 8)
    assert load_weights(other, tmp_path / "a.h5").format == "Darknet binary"
    assert bytes_of(other) == bytes_of(small)


@pytest.mark.backend
def test_a_detector_writes_its_backbone_and_says_what_is_not_in_it(small, tmp_path, caplog):
    detector = MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8)
    detector.backbone.set_weights(small.get_weights())
    with caplog.at_level(logging.WARNING, "multigrid.models.weights"):
        save_weights(detector, tmp_path / "a.weights")
    # 14 convolutions of neck and head with BatchNorm, three grids: 14 · 5 + 3 · 2
    assert "76 tensors of neck and head are not in it" in caplog.text
    save_weights(small, tmp_path / "b.weights")
    assert (tmp_path / "a.weights").read_bytes() == (tmp_path / "b.weights").read_bytes()


def test_a_backbone_of_ones_own_with_biases_makes_the_round_trip(tmp_path):
    def build():
        images = keras.Input((None, None, 3))
        x = keras.layers.Conv2D(5, (3, 2), strides=8, padding="same", name="a")(images)
        y = keras.layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="b")(x)
        y = keras.layers.BatchNormalization(name="b_norm")(y)
        return keras.Model(images, [x, y])

    one, other = shake(build(), 3), build()
    save_weights(one, tmp_path / "a.weights")
    # 5 biases, 3·2·3·5 = 90; 4 · 4, 3·3·5·4 = 180
    assert (tmp_path / "a.weights").stat().st_size == 20 + 4 * (5 + 90 + 16 + 180)
    load_weights(other, tmp_path / "a.weights")
    assert bytes_of(other) == bytes_of(one)


@pytest.mark.parametrize("layer", [keras.layers.DepthwiseConv2D(3, name="odd"), keras.layers.PReLU(name="odd")])
def test_a_backbone_that_the_format_cannot_hold_is_refused(tmp_path, layer):
    images = keras.Input((64, 96, 3))
    x = keras.layers.Conv2D(4, 3, name="a")(images)
    model = keras.Model(images, layer(x))
    with pytest.raises(InputError, match=r"a\.weights: expected a backbone of convolutions, .*, received odd"):
        save_weights(model, tmp_path / "a.weights")
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.weights").write_bytes(HEADER + bytes(4 * model.count_params()))
    assert_refused(model, tmp_path / "b.weights", "received odd")
