"""What of a file fits a model: one strategy for all of it, as much as is asked for, and a ledger that says the rest."""

import json

import h5py
import keras
import numpy as np
import pytest
from loading import assert_refused, bytes_of, shake

from multigrid import report
from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.models.ledger import BatchNorms, percent
from multigrid.models.matching import BY_NAME, BY_ORDER, model_layers
from multigrid.models.weights import load_weights, save_weights

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
KERAS_FILES = ("a.weights.h5", "a.keras", "a.h5")


def build(classes=3, anchors=2, **options):
    anchors = [scale + [[5.0, 9.0]] * (anchors - 2) for scale in ANCHORS]
    return MultiGridDetector(anchors, classes, **{"width": 1 / 16, "depth": 1 / 8, **options})


def value(model, name):
    layer, role = name.split("/")
    return keras.ops.convert_to_numpy(next(v for v in model.get_layer(layer).weights if v.name == role))


def test_layers_stand_in_the_order_in_which_a_detector_runs_them():
    names = [layer.name for layer in model_layers(build())]
    assert names[:4] == ["stem_conv", "stem_bn", "stage1_down_conv", "stage1_down_bn"]
    assert names.index("stage5_block1_expand_bn") < names.index("neck_32_conv1_conv") and names[-1] == "grid_8"
    inside = [layer.name for layer in model_layers(build().backbone)]
    assert names[: len(inside)] == inside


# --- one strategy for the whole file


def chain(numbers, kind="conv2d"):
    """Convolutions 1×1 of 3 channels, under the given numbers; the first and the last have another shape."""
    x = images = keras.Input((None, None, 2))
    for index, number in enumerate(numbers):
        x = keras.layers.Conv2D(4 if index == len(numbers) - 1 else 3, 1, name=f"{kind}_{number}")(x)
    return keras.Model(images, x)


def test_names_that_agree_by_accident_do_not_mix_with_the_order(tmp_path):
    # the file's conv2d_5 … conv2d_9 are the model's conv2d_1 … conv2d_5: one name agrees, and so does its shape
    source, model = shake(chain(range(5, 10)), 1), chain([1, 2, 3, 5, 4])
    save_weights(source, tmp_path / "a.h5")
    ledger = load_weights(model, tmp_path / "a.h5")
    assert ledger.strategy == BY_ORDER and ledger.tensor_share == 1
    assert bytes_of(model) == bytes_of(source)


def test_most_names_may_agree_by_accident(tmp_path):
    # 7 of 8 names agree, each one place on; 5 of those (3 of 3 channels to 3) in shape too, and are not what is meant
    source, model = shake(chain(range(1, 9)), 1), chain(range(2, 10))
    save_weights(source, tmp_path / "a.h5")
    assert load_weights(model, tmp_path / "a.h5").strategy == BY_ORDER
    assert bytes_of(model) == bytes_of(source)


def test_names_go_before_the_order_where_all_agree(tmp_path):
    source, model = shake(chain([1, 2, 3, 4]), 1), chain([1, 3, 2, 4])
    save_weights(source, tmp_path / "a.h5")
    assert load_weights(model, tmp_path / "a.h5").strategy == BY_NAME
    for name in ("conv2d_2/kernel", "conv2d_3/kernel"):
        np.testing.assert_array_equal(value(model, name), value(source, name))


@pytest.mark.parametrize("name", KERAS_FILES)
def test_layers_of_other_kinds_load_under_other_names_too(tmp_path, name):
    def build_one(prefix):
        images = keras.Input((8, 12, 3))
        x = keras.layers.Conv2D(4, 3, name=f"{prefix}_a")(images)
        x = keras.layers.LayerNormalization(name=f"{prefix}_b")(x)
        x = keras.layers.PReLU(shared_axes=(1, 2), name=f"{prefix}_c")(x)
        return keras.Model(images, keras.layers.Dense(5, name=f"{prefix}_d")(x))

    source, model = shake(build_one("one"), 1), build_one("other")
    save_weights(source, tmp_path / name)
    assert load_weights(model, tmp_path / name).strategy == BY_ORDER
    assert bytes_of(model) == bytes_of(source)


def test_two_layers_of_one_name_in_two_models_stay_apart(tmp_path):
    def build_one():
        images = keras.Input((8, 12, 3))
        one, other = (keras.Sequential([keras.layers.Conv2D(3, 3, name="a")], name=name) for name in ("x", "y"))
        return keras.Model(images, other(one(images)))

    source, model = shake(build_one(), 1), build_one()
    save_weights(source, tmp_path / "a.weights.h5")
    assert load_weights(model, tmp_path / "a.weights.h5").tensor_share == 1
    assert bytes_of(model) == bytes_of(source)
    # a model with one such layer cannot know by name which of the two is meant: the first by order is
    single = keras.Sequential([keras.Input((8, 12, 3)), keras.layers.Conv2D(3, 3, name="a")])
    ledger = load_weights(single, tmp_path / "a.weights.h5")
    assert ledger.strategy == BY_ORDER and len(ledger.of_kind("unexpected")) == 2
    assert bytes_of(single) == bytes_of(source)[:2]


# --- as much as is asked for


@pytest.mark.backend
@pytest.mark.parametrize("name", [*KERAS_FILES, "a.weights"])
def test_a_backbone_is_enough_where_the_backbone_is_required(tmp_path, name):
    source = shake(darknet53(1 / 16, 1 / 8), 1)
    save_weights(source, tmp_path / name)
    detector = build()
    head = [weight.tobytes() for weight in detector.get_layer("head_8_conv").get_weights()]
    ledger = load_weights(detector, tmp_path / name, required="backbone")
    assert bytes_of(detector.backbone) == bytes_of(source)
    assert [weight.tobytes() for weight in detector.get_layer("head_8_conv").get_weights()] == head
    # 16 convolutions of 5 tensors in the backbone; 14 with BatchNorm and 3 grids behind it
    assert (len(ledger.of_kind("loaded")), len(ledger.of_kind("missing"))) == (80, 14 * 5 + 6)
    assert_refused(detector, tmp_path / name, "the 156 tensors", "received 80 that fit", "76 missing, first neck_32_")


def test_a_share_of_the_parameters_may_be_required(tmp_path):
    save_weights(shake(darknet53(1 / 16, 1 / 8), 1), tmp_path / "a.h5")
    detector = build()
    share = detector.backbone.count_params() / detector.count_params()
    ledger = load_weights(detector, tmp_path / "a.h5", required=share - 0.001)
    assert ledger.parameter_share == pytest.approx(share) and 0.5 < share < 0.9
    words = (f"expected {100 * (share + 0.001):.4g} % of the parameters", "received 80 that fit")
    assert_refused(detector, tmp_path / "a.h5", *words, required=share + 0.001)


@pytest.mark.parametrize("required", ["most", 1.5, -0.1, None])
def test_other_requirements_are_no_requirements(tmp_path, required):
    with pytest.raises(ValueError, match="required: expected 'all', 'backbone' or a number from 0 to 1, received"):
        load_weights(build(), tmp_path / "a.h5", required=required)


def test_less_than_the_backbone_needs_allow_partial(tmp_path):
    save_weights(shake(darknet53(1 / 16, 1 / 8), 1), tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["stage5_down_bn"]
    detector = build()
    words = ("the 80 tensors of the backbone", "received 76 that fit", "first stage5_down_bn/gamma")
    assert_refused(detector, tmp_path / "a.h5", *words, required="backbone")
    ledger = load_weights(detector, tmp_path / "a.h5", allow_partial=True)
    assert len(ledger.of_kind("loaded")) == 76
    assert bytes_of(detector.backbone) != bytes_of(darknet53(1 / 16, 1 / 8))


def test_nothing_that_fits_is_an_error_even_so(tmp_path):
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(7, name="a")]).save_weights(tmp_path / "a.weights.h5")
    for options in ({"required": "backbone"}, {"required": 0.0}, {"allow_partial": True}):
        assert_refused(
            build(), tmp_path / "a.weights.h5", "received 0 that fit", "2 that the model has no place", **options
        )


def test_other_blocks_in_a_stage_are_refused(tmp_path):
    # two blocks in stages 3 and 4 against one: the third convolution of stage 3 is a 1×1 where the model halves the map
    save_weights(shake(darknet53(1 / 16, 1 / 4), 1), tmp_path / "a.weights.h5")
    with h5py.File(tmp_path / "a.weights.h5", "a") as file:
        for name in file["layers"]:
            file[f"layers/{name}/vars"].attrs.pop("name", None)
    words = ("of another shape, first stage4_down_conv/kernel: expected (3, 3, 16, 32), received (1, 1, 16, 8)",)
    assert_refused(build(), tmp_path / "a.weights.h5", *words, required="backbone")


# --- other classes, other anchors


@pytest.mark.parametrize("name", KERAS_FILES)
def test_other_classes_keep_their_channels_and_all_else_is_loaded(tmp_path, name):
    source, detector = shake(build(5), 1), shake(build(3), 2)
    save_weights(source, tmp_path / name)
    before = {
        f"grid_{stride}/{role}": value(detector, f"grid_{stride}/{role}")
        for stride in (32, 16, 8)
        for role in ("kernel", "bias")
    }
    assert_refused(detector, tmp_path / name, "6 for other classes, first grid_32/kernel: expected (1, 1, 32, 10)")
    ledger = load_weights(detector, tmp_path / name, required="backbone")
    assert [entry.name for entry in ledger.of_kind("partial")] == list(before)
    assert not ledger.of_kind("missing") and not ledger.of_kind("misshapen") and not ledger.of_kind("unexpected")
    for grid, old in before.items():  # 5 + A = 7 channels, then the classes
        np.testing.assert_array_equal(value(detector, grid)[..., :7], value(source, grid)[..., :7])
        np.testing.assert_array_equal(value(detector, grid)[..., 7:], old[..., 7:])
    # at stride 32: 32 filters and a bias, of which 7 of 10 channels
    assert [entry.parameters for entry in ledger.of_kind("partial")][:2] == [32 * 7, 7]
    assert "the file is for 5 classes, the model for 3: the class channels of its grids do not fit" in ledger.notes
    np.testing.assert_array_equal(value(detector, "head_8_conv/kernel"), value(source, "head_8_conv/kernel"))


@pytest.mark.parametrize("name", KERAS_FILES)
def test_grids_for_as_many_channels_but_other_anchors_are_not_taken(tmp_path, name):
    # 5 + 3 + 3 = 5 + 2 + 4 channels
    save_weights(shake(build(3, anchors=3), 1), tmp_path / name)
    detector = build(4)
    note = "its grids are made for 3 anchors a scale, those of the model for 2"
    assert_refused(detector, tmp_path / name, note, "6 of another shape, first grid_32/kernel")
    ledger = load_weights(detector, tmp_path / name, required="backbone")
    assert len(ledger.of_kind("misshapen")) == 6 and note in ledger.notes


def test_an_epochs_checkpoint_of_keras_itself_is_read_for_other_classes(tmp_path):
    build(5).save_weights(tmp_path / "a.weights.h5")  # says nothing of anchors: they are taken to be as many
    assert len(load_weights(build(3), tmp_path / "a.weights.h5", required="backbone").of_kind("partial")) == 6


# --- the ledger


@pytest.fixture(scope="module")
def ledger(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "a.h5"
    save_weights(shake(build(5), 1), path)
    with h5py.File(path, "a") as file:
        del file["neck_8_conv1_bn"]
        file["else/kernel:0"] = np.ones((2, 3), "float32")
    return load_weights(build(3), path, required="backbone")


def test_the_rows_are_the_blocks_from_the_image_on(ledger):
    rows = {row[0]: dict(zip(ledger.COLUMNS, row, strict=True)) for row in ledger.rows()}
    assert list(rows)[:7] == ["stem", "stage1", "stage2", "stage3", "stage4", "stage5", "neck_32"]
    assert list(rows)[-2:] == ["all", "not in the model"]
    # the stem: a kernel 3·3·3·2 and four vectors of 2
    expected = {
        "tensors": 5,
        "loaded": 5,
        "partial": 0,
        "missing": 0,
        "misshapen": 0,
        "parameters": 62,
        "share": "100 %",
    }
    assert rows["stem"] == {"block": "stem", **expected}
    # a bias of 10 channels and a kernel of 8 filters, of which 7 channels came
    assert (rows["grid_8"]["partial"], rows["grid_8"]["parameters"], rows["grid_8"]["share"]) == (2, 90, "70 %")
    assert (rows["neck_8"]["tensors"], rows["neck_8"]["missing"]) == (20, 4)
    assert (rows["not in the model"]["tensors"], rows["not in the model"]["parameters"]) == (1, 6)
    assert rows["all"]["tensors"] == 156 and rows["all"]["parameters"] == build(3).count_params()


def test_the_ledger_shows_as_a_table(ledger, capsys):
    report.table("Weights", ledger.COLUMNS, ledger.rows())
    assert "not in the model" in capsys.readouterr().out


def test_the_ledger_is_plain_json(ledger, tmp_path):
    report.write_json(tmp_path / "weights.json", ledger.plain())
    plain = json.loads((tmp_path / "weights.json").read_text())
    assert plain["counts"] == {"loaded": 146, "partial": 6, "missing": 4, "misshapen": 0, "unexpected": 1}
    assert plain["tensor_share"] == 146 / 156 and 0.9 < plain["parameter_share"] < 1
    assert plain["format"] == "Keras 2 HDF5, weights" and plain["strategy"] == "by name"
    assert plain["tensors"][0] == {
        "kind": "loaded", "name": "stem_conv/kernel", "block": "stem", "expected": [3, 3, 3, 2],
        "received": [3, 3, 3, 2], "parameters": 54, "place": "stem_conv/stem_conv/kernel",
    }  # fmt: skip
    assert plain["batch_norm"]["layers"] == 29 and not plain["batch_norm"]["untrained"]
    assert len(plain["blocks"]) == len(ledger.rows())


def test_a_line_says_it_all(ledger):
    line = ledger.describe()
    assert line.startswith(f"{ledger.path}: Keras 2 HDF5, weights, matched by name: 146 of 156 tensors, ")
    assert ", 6 partial, 4 missing, 1 unexpected; BatchNorm statistics of 29 layers, smallest variance 1." in line
    assert ledger.complaint() == (
        "4 missing, first neck_8_conv1_bn/gamma; 6 for other classes, first grid_32/kernel: expected (1, 1, 32, 10), "
        "received (1, 1, 32, 12); 1 that the model has no place for, first else/kernel (2, 3)"
    )


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100 %"), (0.99996, "99.9 %"), (0.9943, "99.4 %"), (0.5, "50 %"), (0.00001, "0.1 %"), (0.0, "0 %")],
)
def test_a_share_is_never_rounded_to_all_or_nothing(share, text):
    assert percent(share) == text


def test_statistics_are_untrained_only_where_all_are():
    zeros, ones = np.zeros(3), np.ones(3)
    assert BatchNorms.of([zeros, zeros], [ones, ones]).untrained
    assert not BatchNorms.of([zeros, zeros], [ones, 2 * ones]).untrained
    assert not BatchNorms.of([zeros, -0.1 * ones], [ones, ones]).untrained
    assert not BatchNorms.of([], []).untrained
