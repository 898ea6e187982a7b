"""HDF5 of other Keras versions: built here from the documented layouts, loaded whole, and read as data only."""

import h5py
import keras
import numpy as np
import pytest
from loading import assert_refused, bytes_of, shake

from multigrid.models.darknet import darknet53
from multigrid.models.hdf5_file import read_hdf5
from multigrid.models.matching import BY_NAME, BY_ORDER, model_layers
from multigrid.models.weights import load_weights, save_weights


@pytest.fixture(scope="module")
def source():
    return shake(darknet53(1 / 16, 1 / 8), 1)


@pytest.fixture(scope="module")
def other():
    return darknet53(1 / 16, 1 / 8)


def tensors_of(model):
    """[(layer, {variable: array})] in the order in which the model runs them."""
    return [
        (layer.name, {name: keras.ops.convert_to_numpy(variable) for name, variable in layer.tensors.items()})
        for layer in model_layers(model)
    ]


def write_names(group, attribute, names, parts=1):
    for number, part in enumerate(np.array_split(np.array([name.encode() for name in names]), parts)):
        group.attrs[f"{attribute}{number}" if parts > 1 else attribute] = part


def write_keras_2(path, layers, *, root="model_weights", nested="", names=True, parts=1):
    """A file as tf.keras 2 writes it: [root/]<layer>/[nested/]<layer>/<variable>:0, its order in attributes."""
    with h5py.File(path, "w") as file:
        top = file.create_group(root) if root else file
        if names:
            write_names(top, "layer_names", [name for name, _ in layers], parts)
        top.attrs["backend"], top.attrs["keras_version"] = b"tensorflow", b"2.4.0"
        for name, tensors in layers:
            group = top.create_group(name)
            places = [f"{nested}{name}/{variable}:0" for variable in tensors]
            if names:
                write_names(group, "weight_names", places)
            for place, value in zip(places, tensors.values(), strict=True):
                group[place] = value


def renamed(layers, seed=0):
    """The layers under names that say nothing, and whose alphabetical order is not that of the layers."""
    numbers = np.random.default_rng(seed).permutation(len(layers))
    return [(f"x{number:03}_q", tensors) for number, (_, tensors) in zip(numbers, layers, strict=True)]


def assert_loads_whole(model, path, source, strategy):
    shake(model, 9)
    ledger = load_weights(model, path)
    assert ledger.strategy == strategy
    assert ledger.tensor_share == ledger.parameter_share == 1
    assert not ledger.of_kind("unexpected")
    assert bytes_of(model) == bytes_of(source)
    return ledger


# --- Keras 2


@pytest.mark.parametrize("root", ["model_weights", ""])
@pytest.mark.parametrize("nested", ["", "model_1/"])
def test_files_of_tf_keras_2_load_whole(source, other, tmp_path, root, nested):
    layers = tensors_of(source)
    write_keras_2(tmp_path / "a.h5", layers, root=root, nested=nested)
    ledger = assert_loads_whole(other, tmp_path / "a.h5", source, BY_NAME)
    assert ledger.norms.layers == 16 and ledger.norms.smallest > 1
    write_keras_2(tmp_path / "b.h5", renamed(layers), root=root, nested=nested)
    assert_loads_whole(other, tmp_path / "b.h5", source, BY_ORDER)


@pytest.mark.backend
def test_all_of_darknet53_loads_under_random_names(tmp_path):
    source, other = shake(darknet53(1 / 16), 2), darknet53(1 / 16)
    write_keras_2(tmp_path / "a.h5", renamed(tensors_of(source)))
    ledger = assert_loads_whole(other, tmp_path / "a.h5", source, BY_ORDER)
    assert len(ledger.of_kind("loaded")) == 52 * 5 and ledger.norms.layers == 52


def test_names_that_are_split_over_several_attributes_are_read(source, other, tmp_path):
    write_keras_2(tmp_path / "a.h5", renamed(tensors_of(source)), parts=3)
    with h5py.File(tmp_path / "a.h5") as file:
        assert "layer_names" not in file["model_weights"].attrs and "layer_names2" in file["model_weights"].attrs
    assert_loads_whole(other, tmp_path / "a.h5", source, BY_ORDER)


def test_long_names_are_split_when_written(tmp_path):
    images = x = keras.Input((8, 8, 2))
    for number in range(12):
        x = keras.layers.Conv2D(2, 1, name=f"{'a' * 6000}_{number}")(x)
    save_weights(keras.Model(images, x), tmp_path / "a.h5")  # 12 · 6,002 bytes and more are beyond HDF5's 64 KB
    with h5py.File(tmp_path / "a.h5") as file:
        assert "layer_names" not in file.attrs and "layer_names1" in file.attrs
    assert [layer.name[-2:] for layer in read_hdf5(tmp_path / "a.h5").layers] == [
        *(f"_{number}" for number in range(10)), "10", "11"
    ]  # fmt: skip


def test_without_attributes_names_are_sorted_by_their_numbers(source, other, tmp_path):
    counts, layers = {}, []
    for _, tensors in tensors_of(source):  # conv2d, conv2d_1, … conv2d_15, which the alphabet puts before conv2d_2
        kind = "conv2d" if "kernel" in tensors else "batch_normalization"
        counts[kind] = counts.get(kind, -1) + 1
        layers.append((f"{kind}_{counts[kind]}" if counts[kind] else kind, tensors))
    write_keras_2(tmp_path / "a.h5", layers, names=False)
    assert_loads_whole(other, tmp_path / "a.h5", source, BY_ORDER)


def test_a_model_nested_in_one_group_is_taken_apart(source, other, tmp_path):
    layers = renamed(tensors_of(source))
    trained = [(f"{name}/{key}:0", value) for name, one in layers for key, value in one.items() if "moving" not in key]
    counted = [(f"{name}/{key}:0", value) for name, one in layers for key, value in one.items() if "moving" in key]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        write_names(file, "layer_names", ["body"])
        group = file.create_group("body")
        write_names(group, "weight_names", [name for name, _ in trained + counted])  # as Keras orders a nested model's
        for name, value in trained + counted:
            group[name] = value
    assert_loads_whole(other, tmp_path / "a.h5", source, BY_ORDER)


def test_variables_of_unknown_names_are_known_by_their_order(source, other, tmp_path):
    layers = [(name, {f"w{n}": one[key] for n, key in enumerate(one)}) for name, one in renamed(tensors_of(source))]
    write_keras_2(tmp_path / "a.h5", layers)
    assert_loads_whole(other, tmp_path / "a.h5", source, BY_ORDER)


def test_what_the_file_has_beyond_the_model_is_unexpected(source, other, tmp_path):
    top = ("predictions", {"kernel": np.ones((1, 1, 64, 10), "float32"), "bias": np.zeros(10, "float32")})
    write_keras_2(tmp_path / "a.h5", [*renamed(tensors_of(source)), top])
    ledger = load_weights(shake(other, 3), tmp_path / "a.h5")
    assert bytes_of(other) == bytes_of(source)
    assert [entry.name for entry in ledger.of_kind("unexpected")] == [
        "predictions/predictions/kernel", "predictions/predictions/bias"
    ]  # fmt: skip


@pytest.mark.parametrize("random_names", [True, False])
def test_two_swapped_layers_are_refused(source, other, tmp_path, random_names):
    layers = tensors_of(source)
    first, second = 4, 6  # the convolutions 1×1, 4 to 2, and 3×3, 2 to 4, of the first block
    assert [layers[index][0] for index in (first, second)] == ["stage1_block1_reduce_conv", "stage1_block1_expand_conv"]
    (one, tensors), (two, others) = layers[first], layers[second]
    layers[first], layers[second] = (one, others), (two, tensors)
    write_keras_2(tmp_path / "a.h5", renamed(layers) if random_names else layers)
    words = ("stage1_block1_reduce_conv/kernel: expected (1, 1, 4, 2), received (3, 3, 2, 4)",)
    for required in ("all", "backbone"):
        assert_refused(shake(other, 4), tmp_path / "a.h5", *words, required=required)


def test_a_batch_norm_in_the_wrong_place_is_refused(source, other, tmp_path):
    layers = renamed(tensors_of(source))
    layers.append(layers.pop(1))  # the stem's, of 2 channels, is the last now
    write_keras_2(tmp_path / "a.h5", layers)
    assert_refused(other, tmp_path / "a.h5", "received 0 that fit")


# --- Keras 3


def strip_names(path):
    """Takes the layers' names out of a file of Keras 3: older versions write none."""
    with h5py.File(path, "a") as file:
        found = []
        file.visititems(lambda name, item: found.append(name) if name.split("/")[-1] == "vars" else None)
        for name in found:
            file[name].attrs.pop("name", None)
    assert found


@pytest.mark.parametrize("container", ["layers", "_layer_checkpoint_dependencies"])
def test_keras_3_files_without_names_load_by_class_and_number(source, other, tmp_path, container):
    save_weights(source, tmp_path / "a.weights.h5")
    strip_names(tmp_path / "a.weights.h5")
    if container != "layers":  # tf.keras 2.12's name for it
        with h5py.File(tmp_path / "a.weights.h5", "a") as file:
            file.move("layers", container)
    assert_loads_whole(other, tmp_path / "a.weights.h5", source, BY_ORDER)


def test_bfloat16_is_read(tmp_path):
    def build():
        return keras.Sequential([keras.Input((5, 7, 3)), keras.layers.Conv2D(4, 3, name="a")], name="b")

    keras.config.set_dtype_policy("bfloat16")
    try:
        one = shake(build(), 5)
        one.save_weights(tmp_path / "a.weights.h5")
    finally:
        keras.config.set_dtype_policy("float32")
    other = build()
    load_weights(other, tmp_path / "a.weights.h5")
    for found, wanted in zip(other.get_weights(), one.get_weights(), strict=True):
        np.testing.assert_array_equal(found, wanted.astype("float32"))


@pytest.mark.backend
@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4"])
def test_numbers_of_another_width_become_the_models(source, other, tmp_path, dtype):
    layers = [
        (name, {role: one.astype(dtype) for role, one in tensors.items()}) for name, tensors in tensors_of(source)
    ]
    write_keras_2(tmp_path / "a.h5", layers)
    load_weights(shake(other, 7), tmp_path / "a.h5")
    for found, wanted in zip(other.get_weights(), source.get_weights(), strict=True):
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, wanted.astype(dtype).astype("float32"))


# --- nothing but data


def spoilt(path, source, spoil):
    write_keras_2(path, tensors_of(source), root="")
    with h5py.File(path, "a") as file:
        spoil(file)
    return path


def link_outside(file):
    file["outside"] = h5py.ExternalLink("/etc/hostname", "/")


def link_inside(file):
    file["inside"] = h5py.SoftLink("/stem_conv")


def put_reference(file):
    file.create_dataset("reference", data=file["stem_conv"].ref, dtype=h5py.ref_dtype)


def put_text(file):
    file["text"] = "import os"


def put_virtual(file):
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", (4,))
    file.create_virtual_dataset("virtual", layout)


def put_endless(file):
    file.create_dataset("endless", (2**31,), "f4", chunks=(2**20,), compression="gzip")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (link_outside, ("link", "outside")),
        (link_inside, ("link", "inside")),
        (put_reference, ("expected numbers", "/reference")),
        (put_text, ("expected numbers", "/text")),
        (put_virtual, ("expected numbers", "/virtual")),
        (put_endless, ("bytes of tensors",)),
    ],
)
def test_what_is_no_tensor_is_refused(source, other, tmp_path, spoil, words):
    assert_refused(other, spoilt(tmp_path / "a.h5", source, spoil), *words)


def test_a_group_that_holds_itself_is_refused(source, other, tmp_path):
    def spoil(file):
        file["stem_conv"]["again"] = file["/"]

    assert_refused(other, spoilt(tmp_path / "a.h5", source, spoil))


def test_the_model_in_a_file_is_not_built(source, other, tmp_path):
    def spoil(file):
        file.attrs["model_config"] = '{"class_name": "Lambda", "config": {"function": ["4wEAAAA=", null, null]}}'

    assert_loads_whole(other, spoilt(tmp_path / "a.h5", source, spoil), source, BY_NAME)


def test_the_first_tensor_with_nan_is_named(source, other, tmp_path):
    def spoil(file):
        file["stage2_down_bn/stage2_down_bn/beta:0"][3] = np.nan
        file["stage3_down_bn/stage3_down_bn/beta:0"][0] = np.inf

    path = spoilt(tmp_path / "a.h5", source, spoil)
    assert_refused(other, path, "1 that are NaN or infinite in stage2_down_bn/stage2_down_bn/beta")


def test_variances_below_0_are_refused(source, other, tmp_path):
    def spoil(file):
        file["stage2_down_bn/stage2_down_bn/moving_variance:0"][3] = -1.0

    assert_refused(other, spoilt(tmp_path / "a.h5", source, spoil), "variances of BatchNorm from 0 up, received -1")


def test_a_file_without_tensors_is_refused(other, tmp_path):
    h5py.File(tmp_path / "a.h5", "w").close()
    assert_refused(other, tmp_path / "a.h5", "received one without")


def test_untrained_statistics_are_said(other, tmp_path):
    fresh = darknet53(1 / 16, 1 / 8)
    save_weights(fresh, tmp_path / "a.h5")
    ledger = load_weights(other, tmp_path / "a.h5")
    assert ledger.norms.untrained and "never trained" in ledger.describe()
    fresh.get_layer("stage3_down_bn").moving_mean.assign([0.0] * 15 + [0.1])
    save_weights(fresh, tmp_path / "a.h5")
    assert not load_weights(other, tmp_path / "a.h5").norms.untrained


def test_variances_that_are_0_are_counted(other, tmp_path):
    model = shake(darknet53(1 / 16, 1 / 8), 6)
    model.get_layer("stage3_down_bn").moving_variance.assign([0.0, 0.0] + [1.5] * 14)  # 256 / 16 channels
    save_weights(model, tmp_path / "a.h5")
    assert "2 variances are 0" in load_weights(other, tmp_path / "a.h5").describe()
