"""Weights in files: whole round trips in four formats, and a load that fails leaves the model as it was."""

import os
import stat

import h5py
import keras
import numpy as np
import pytest
from loading import assert_refused, bytes_of, shake

from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.models.weights import load_weights, save_weights

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
NAMES = ("a.weights.h5", "a.keras", "a.h5")
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)


def build(classes=3, **options):
    options = {"width": 1 / 16, "depth": 1 / 8, "criterion": MultiGridLoss(ANCHORS, classes), **options}
    return MultiGridDetector(ANCHORS, classes, **options)


@pytest.fixture(scope="module")
def source():
    return shake(build(), 1)


@pytest.fixture(scope="module")
def other():
    """A detector of the same kind; every test gives it new weights."""
    return build()


@pytest.fixture(scope="module")
def five_classes():
    return shake(build(5), 2)


@pytest.fixture(scope="module")
def expected(source):
    return source.predict_on_batch(IMAGES)


# --- round trips


@pytest.mark.parametrize("name", NAMES)
def test_every_weight_survives_the_round_trip(source, other, expected, tmp_path, name):
    save_weights(source, tmp_path / "new folder" / name)
    shake(other, 3)
    load_weights(other, tmp_path / "new folder" / name)
    # BatchNorm's statistics are among them: 16 convolutions in the backbone, 13 in neck and head
    assert sum(v.name in ("moving_mean", "moving_variance") for v in other.weights) == 2 * (16 + 14)
    for one, wanted in zip(other.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(one, wanted)
    for found, wanted in zip(other.predict_on_batch(IMAGES), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


@pytest.mark.parametrize("name", [*NAMES, "a.weights"])
def test_a_backbone_gives_the_same_maps_after_the_round_trip(source, tmp_path, name):
    images = (IMAGES / 255.0).astype("float32")
    save_weights(source.backbone, tmp_path / name)
    again = shake(darknet53(1 / 16, 1 / 8), 3)
    load_weights(again, tmp_path / name)
    assert bytes_of(again) == bytes_of(source.backbone)
    wanted = source.backbone.predict_on_batch(images)
    for key, found in again.predict_on_batch(images).items():
        np.testing.assert_allclose(found, wanted[key], atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_content_and_not_the_name_says_the_format(source, other, tmp_path, name):
    save_weights(source, tmp_path / name)
    (tmp_path / name).rename(tmp_path / "model.h5")
    shake(other, 4)
    load_weights(other, tmp_path / "model.h5")
    assert bytes_of(other) == bytes_of(source)


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_trained_detector_loads_into_one_that_is_not_compiled(other, tmp_path, name):
    trained = build()
    trained.compile(keras.optimizers.Adam(1e-3))
    trained.optimizer.build(trained.trainable_variables)
    save_weights(shake(trained, 5), tmp_path / name)
    load_weights(other, tmp_path / name)
    assert bytes_of(other) == bytes_of(trained)


def test_the_h5_file_has_the_layout_of_keras_2(source, tmp_path):
    save_weights(source, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5") as file:
        names = [name.decode() for name in file.attrs["layer_names"]]
        assert set(names) == set(file) and "stem_conv" in names and "grid_8" in names
        assert [name.decode() for name in file["stem_bn"].attrs["weight_names"]] == [
            "stem_bn/gamma:0", "stem_bn/beta:0", "stem_bn/moving_mean:0", "stem_bn/moving_variance:0"
        ]  # fmt: skip
        kernel = source.backbone.get_layer("stem_conv").kernel
        np.testing.assert_array_equal(file["stem_conv"]["stem_conv/kernel:0"], keras.ops.convert_to_numpy(kernel))


def test_keras_own_reader_of_the_old_layout_reads_the_h5_file(source, tmp_path):
    save_weights(source.backbone, tmp_path / "a.h5")
    again = darknet53(1 / 16, 1 / 8)
    again.load_weights(tmp_path / "a.h5")
    assert bytes_of(again) == bytes_of(source.backbone)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_the_old_layout_as_keras_writes_it_is_read(source, other, tmp_path):
    source.save(tmp_path / "a.h5")  # the whole model: weights lie under "model_weights"
    load_weights(shake(other, 6), tmp_path / "a.h5")
    assert bytes_of(other) == bytes_of(source)


def test_a_backbone_takes_its_part_of_a_detectors_h5_file(source, tmp_path):
    save_weights(source, tmp_path / "a.h5")
    backbone = shake(darknet53(1 / 16, 1 / 8), 7)
    load_weights(backbone, tmp_path / "a.h5")
    assert bytes_of(backbone) == bytes_of(source.backbone)


# --- what is refused, and that nothing happens then


@pytest.mark.parametrize("name", NAMES)
def test_a_head_for_other_classes_is_refused_whole(five_classes, other, tmp_path, name):
    save_weights(five_classes, tmp_path / name)
    # 5 + 2 + 3 = 10 channels of 2 · 16 = 32 filters wanted, 5 + 2 + 5 = 12 found
    assert_refused(other, tmp_path / name, "grid_32", "(1, 1, 32, 10)", "(1, 1, 32, 12)")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_lacks_layers_is_refused_whole(source, tmp_path, name):
    save_weights(source.backbone, tmp_path / name)
    assert_refused(shake(build(), 8), tmp_path / name)


def test_what_is_missing_is_counted_and_named(source, other, tmp_path):
    save_weights(source, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["stage2_block1_expand_bn"]
    count = len(source.weights)
    words = (f"the {count} tensors", f"received {count - 4} that fit", "4 missing, first stage2_block1_expand_bn/gamma")
    assert_refused(other, tmp_path / "a.h5", *words)


def test_a_failed_load_leaves_the_optimizer_alone_too(five_classes, tmp_path):
    five_classes.compile(keras.optimizers.Adam(1e-3))
    five_classes.optimizer.build(five_classes.trainable_variables)
    five_classes.optimizer.iterations.assign(77)
    save_weights(five_classes, tmp_path / "a.weights.h5")
    compiled = build()
    compiled.compile(keras.optimizers.Adam(1e-3))
    compiled.optimizer.build(compiled.trainable_variables)
    assert_refused(compiled, tmp_path / "a.weights.h5")
    assert int(compiled.optimizer.iterations) == 0


@pytest.mark.parametrize("content", [b"", b"416,416\n10,13 16,30\n", b"PK\x03\x04 cut"])
def test_a_file_of_another_kind_is_refused(other, tmp_path, content):
    path = tmp_path / "a.weights.h5"
    path.write_bytes(content)
    assert_refused(other, path, "HDF5", "received another format")


def test_a_missing_file_is_refused(other, tmp_path):
    assert_refused(other, tmp_path / "none.h5", "received no file of this name")
    assert_refused(other, tmp_path, "received no file of this name")


@pytest.mark.parametrize("share", [0.1, 0.6, 0.999])
@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_was_cut_off_is_refused(source, other, tmp_path, name, share):
    path = tmp_path / name
    save_weights(source, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert_refused(other, path)


def test_an_archive_that_is_no_model_is_refused(source, other, tmp_path):
    np.savez(tmp_path / "a.npz", kernel=np.zeros(3))
    assert_refused(other, tmp_path / "a.npz")


def test_an_archive_with_damaged_bytes_is_refused(source, other, tmp_path):
    path = tmp_path / "a.keras"
    save_weights(source, path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 400] = bytes(400)
    path.write_bytes(content)
    assert_refused(other, path)


# --- writing


def test_another_ending_is_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"a\.npz: expected a name ending in \.weights\.h5, \.keras or \.h5"):
        save_weights(source, tmp_path / "a.npz")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(source, tmp_path, monkeypatch, name):
    path = tmp_path / name
    path.write_bytes(b"old")

    def fill_the_disk(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr(h5py.Group, "__setitem__", fill_the_disk)
    monkeypatch.setattr(h5py.Group, "create_dataset", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        save_weights(source, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [*NAMES, "a.weights"])
def test_the_content_is_on_the_disk_before_the_name_and_the_name_before_all_is_said(
    source, tmp_path, monkeypatch, name
):
    order = []
    fsync, replace = os.fsync, os.replace

    def see_fsync(descriptor):
        order.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def see_replace(one, other):
        order.append("rename")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", see_fsync)
    monkeypatch.setattr(os, "replace", see_replace)
    save_weights(source.backbone, tmp_path / name)
    assert order[-3:] == ["file", "rename", "folder"]
    assert [path.name for path in tmp_path.iterdir()] == [name]
