"""Artefacts of every format say what the Keras model says, and take their place only then."""

import json

import keras
import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.export import CheckError, ExportOptions, GraphSuppression, check, export, exported_graph, load
from multigrid.export.formats import check_can_write
from multigrid.export.kinds import ENDINGS, LIBRARIES
from multigrid.export.pictures import drawn_batch
from multigrid.models.darknet import convolution
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40, 28], [48, 44]], [[20, 14], [14, 30]], [[8, 6], [12, 9]]]
NAMES = ("bar", "disc", "star")
SIZE = (64, 96)
CELLS = 2 * 3 + 4 * 6 + 8 * 12
NMS = GraphSuppression(0.001, 0.5, 40, rule="consensus")
VARIANTS = [(format, None, NMS) for format in ("savedmodel", "litert", "openvino")]
VARIANTS += [("onnx", "float16", NMS), ("openvino", "int8", None), ("litert", "int8", None)]


def backbone():
    """A convolution a stride, for all that is converted costs seconds."""
    x = images = keras.Input((None, None, 3))
    maps = {}
    for stride in (2, 4, 8, 16, 32):
        maps[f"stride_{stride}"] = x = convolution(x, stride, 3, stride=2, name=f"down_{stride}")
    return keras.Model(images, {f"stride_{stride}": maps[f"stride_{stride}"] for stride in (8, 16, 32)})


@pytest.fixture(scope="module")
def detector():
    """With grids as wide apart as those of a trained one, so that there is something to be wrong about."""
    keras.utils.set_random_seed(6)
    detector = MultiGridDetector(ANCHORS, len(NAMES), width=0.0625, backbone=backbone())
    rng = np.random.default_rng(7)
    for layer in (detector.get_layer(f"grid_{stride}") for stride in detector.strides):
        layer.kernel.assign(rng.normal(0.0, 0.6, layer.kernel.shape))
    return detector


@pytest.fixture(scope="module")
def images():
    return drawn_batch(3, SIZE)


def needed(format, quantize):
    for name in LIBRARIES[format] + (("nncf",) if (format, quantize) == ("openvino", "int8") else ()):
        pytest.importorskip(name)
    if keras.backend.backend() != "tensorflow":
        pytest.skip("artefacts are made by TensorFlow")


@pytest.mark.parametrize(
    ("format", "quantize", "suppression"),
    VARIANTS,
    ids=[f"{format}-{quantize}-{'nms' if suppression else 'cells'}" for format, quantize, suppression in VARIANTS],
)
def test_an_artefact_says_what_the_model_says(tmp_path, detector, images, format, quantize, suppression):
    needed(format, quantize)
    path = tmp_path / f"made{ENDINGS[format]}"
    options = ExportOptions(format, SIZE, suppression, quantize=quantize)
    record = export(detector, path, NAMES, options, images, calibration=images)

    artefact = load(path)
    assert (artefact.format, artefact.input_size) == (format, SIZE)
    assert artefact.batch == (1 if format == "litert" else None)
    found = artefact.predict(images)
    rows = 40 if suppression else CELLS
    assert {name: (values.shape, values.dtype.name) for name, values in found.items()} == {
        "boxes": ((3, rows, 4), "float32"), "scores": ((3, rows), "float32"), "classes": ((3, rows), "int32"),
    }  # fmt: skip
    # the rows of one image do not depend on how many come with it
    np.testing.assert_allclose(artefact.predict(images[1:2])["scores"], found["scores"][1:2], atol=1e-5)

    assert record == json.loads((tmp_path / f"{path.name}.json").read_text())
    assert record["check"]["compared"] >= 3 * 20 and record["classes"] == list(NAMES)
    if quantize is None:
        assert record["check"]["largest_box"] <= 0.01 and record["check"]["largest_score"] <= 1e-4
    assert record["bytes"] == sum(
        file.stat().st_size for file in tmp_path.rglob("*") if file.is_file() and file.suffix != ".json"
    )
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".")]


def test_the_graph_has_the_predictors_boxes_and_the_best_class_of_each_cell(detector, images):
    from multigrid.detection.decode import with_decoder

    decoded, found = (
        {name: keras.ops.convert_to_numpy(values) for name, values in model(images).items()}
        for model in (with_decoder(detector), exported_graph(detector, SIZE))
    )
    np.testing.assert_allclose(found["boxes"], decoded["boxes"], atol=1e-2)
    np.testing.assert_allclose(found["scores"], decoded["scores"].max(axis=-1), atol=1e-5)
    np.testing.assert_array_equal(found["classes"], decoded["scores"].argmax(axis=-1))


def test_rescored_cells_have_lower_scores(detector, images):
    plain, rescored = (exported_graph(detector, SIZE, rescore=rescore) for rescore in (False, True))
    plain, rescored = (keras.ops.convert_to_numpy(model(images)["scores"]) for model in (plain, rescored))
    assert np.all(rescored < plain)


def test_an_artefact_that_says_something_else_leaves_no_file(tmp_path, detector, images, monkeypatch):
    needed("savedmodel", None)
    (tmp_path / "other.txt").write_text("stays")
    monkeypatch.setitem(check.TOLERANCES, None, check.Tolerance(-1.0, 1e-3, 1.0))  # nothing is within it
    with pytest.raises(CheckError, match=r"largest box difference .* 0\.00 % within -1 px") as raised:
        export(detector, tmp_path / "made", NAMES, ExportOptions("savedmodel", SIZE), images)
    assert raised.value.differences.within == 0.0
    assert [file.name for file in tmp_path.iterdir()] == ["other.txt"]


def test_an_artefact_takes_the_place_of_an_older_one(tmp_path, detector, images):
    needed("savedmodel", None)
    path = tmp_path / "made"
    path.mkdir()
    for name in ("saved_model.pb", "of_the_older_one"):
        (path / name).write_text("goes")
    export(detector, path, NAMES, ExportOptions("savedmodel", SIZE, batch_size=2), images[:1])
    assert not (path / "of_the_older_one").exists()
    assert load(path).batch == 2 and load(path).predict(images)["scores"].shape == (3, CELLS)


@pytest.mark.parametrize(
    ("format", "name", "complaint"),
    [
        ("onnx", "made.tflite", "expected a file that ends with .onnx"),
        ("savedmodel", "holds_something", "expected a new folder or that of a SavedModel"),
        ("litert", "folder.tflite", "which is a folder"),
    ],
)
def test_a_place_that_will_not_do_is_refused_before_any_work(tmp_path, detector, images, format, name, complaint):
    (tmp_path / "holds_something").mkdir()
    (tmp_path / "folder.tflite").mkdir()
    with pytest.raises(InputError, match=complaint):
        export(detector, tmp_path / name, NAMES, ExportOptions(format, SIZE), images)


def test_a_saved_model_is_not_quantized():
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(InputError, match="expected the backend tensorflow"):
            check_can_write("savedmodel", "int8")
        return
    with pytest.raises(InputError, match="--quantize int8: expected the format onnx, litert, openvino"):
        check_can_write("savedmodel", "int8")


def test_what_is_no_artefact_is_not_loaded(tmp_path):
    for name in ("missing.onnx", "model.h5"):
        with pytest.raises(InputError, match="expected a SavedModel's folder, .onnx, .tflite or .xml"):
            load(tmp_path / name)


def test_images_of_another_size_or_type_are_refused(detector, images):
    from multigrid.export.runtimes import KerasRuntime

    runtime = KerasRuntime(exported_graph(detector, SIZE))
    for wrong in (images.astype("float32"), images.transpose(0, 2, 1, 3)):
        with pytest.raises(ValueError, match=r"expected uint8 \[B, 64, 96, 3\]"):
            runtime.predict(wrong)
