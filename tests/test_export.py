"""Artefacts of every format say what the Keras model says, and take their place only then."""

import functools
import gc
import importlib.util
import json
import pathlib
import re
import shutil
import sys

import cv2
import keras
import numpy as np
import pytest

from multigrid.config import DetectionConfig
from multigrid.data.images import Letterbox
from multigrid.data.shapes import draw_scene
from multigrid.errors import InputError
from multigrid.export import CheckError, ExportOptions, GraphSuppression, check, export, exported_graph, load
from multigrid.export.formats import check_can_write
from multigrid.export.kinds import ENDINGS, FORMATS, LIBRARIES
from multigrid.export.libraries import library
from multigrid.export.pictures import drawn_batch
from multigrid.export.runtimes import SAVED_MODEL_FILE, KerasRuntime
from multigrid.models.darknet import convolution
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40, 28], [48, 44]], [[20, 14], [14, 30]], [[8, 6], [12, 9]]]
NAMES = ("bar", "disc", "star")
SIZE = (64, 96)
CELLS = 2 * 3 + 4 * 6 + 8 * 12
NMS = GraphSuppression(0.001, 0.5, 40, rule="vote")
KINDS = [(format, None, nms) for format in FORMATS for nms in (NMS, None)]
KINDS += [("onnx", "float16", None), ("litert", "int8", None)]  # onnx in int8 is made by the command's test
KINDS += [
    pytest.param(*kind, marks=pytest.mark.slow) for kind in (("onnx", "float16", NMS), ("openvino", "int8", None))
]
PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "export.md"


def backbone():
    """A convolution a stride, for all that is converted costs seconds."""
    x = images = keras.Input((None, None, 3))
    maps = {}
    for stride in (2, 4, 8, 16, 32):
        maps[f"stride_{stride}"] = x = convolution(x, stride, 3, stride=2, name=f"down_{stride}")
    return keras.Model(images, {f"stride_{stride}": maps[f"stride_{stride}"] for stride in (8, 16, 32)})


@pytest.fixture(scope="module", autouse=True)
def nothing_imported_is_garbage():
    """Converters make millions of objects: looking through those of TensorFlow time and again takes a tenth of it."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def detector():
    """With grids as wide apart as those of a trained one, so that there is something to be wrong about."""
    keras.utils.set_random_seed(6)
    detector = MultiGridDetector(ANCHORS, len(NAMES), width=0.0625, backbone=backbone())
    rng = np.random.default_rng(7)
    for layer in (detector.get_layer(f"grid_{stride}") for stride in detector.strides):
        layer.kernel.assign(rng.normal(0.0, 8.0, layer.kernel.shape))
        layer.bias.assign(rng.normal(0.0, 1.0, layer.bias.shape))
    return detector


@pytest.fixture(scope="module")
def images():
    return drawn_batch(3, SIZE)


def needed(format, quantize):
    for name in LIBRARIES[format] + (("nncf",) if (format, quantize) == ("openvino", "int8") else ()):
        pytest.importorskip(name)
    if keras.backend.backend() != "tensorflow":
        pytest.skip("artefacts are made by TensorFlow")


@pytest.fixture(scope="module")
def make(detector, images, tmp_path_factory):
    """A function from a kind to the path and the record of its artefact, made once and in place of an older one."""
    folder = tmp_path_factory.mktemp("artefacts")

    @functools.cache
    def made(format, quantize, suppression):
        needed(format, quantize)
        name = "-".join(["mine", *(["nms"] if suppression else []), *([quantize] if quantize else [])])
        path = folder / format / "exports" / f"{name}{ENDINGS[format]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if format == "savedmodel":
            path.mkdir()
            (path / SAVED_MODEL_FILE).write_text("goes")
            (path / "of_the_older_one").write_text("goes")
        else:
            path.write_text("goes")
        batch = 2 if (format, suppression) == ("litert", None) else None
        options = ExportOptions(format, SIZE, suppression, quantize=quantize, batch_size=batch)
        return path, export(detector, path, NAMES, options, images, calibration=images)

    return made


@pytest.mark.parametrize(
    ("format", "quantize", "suppression"),
    KINDS,
    ids=lambda value: "nms" if value is NMS else str(value or "plain"),
)
def test_an_artefact_says_what_the_model_says(make, images, format, quantize, suppression):
    path, record = make(format, quantize, suppression)
    artefact = load(path)
    assert (artefact.format, artefact.input_size) == (format, SIZE)
    assert artefact.batch == record["batch"] == ((1 if suppression else 2) if format == "litert" else None)
    found = artefact.predict(images)
    rows = 40 if suppression else CELLS
    assert {name: (values.shape, values.dtype.name) for name, values in found.items()} == {
        "boxes": ((3, rows, 4), "float32"), "scores": ((3, rows), "float32"), "classes": ((3, rows), "int32"),
    }  # fmt: skip
    # the rows of one image do not depend on how many come with it
    np.testing.assert_allclose(artefact.predict(images[1:2])["scores"], found["scores"][1:2], atol=1e-5)

    assert record == json.loads(path.with_name(f"{path.name}.json").read_text())
    assert record["check"]["compared"] >= 3 * 20 and record["classes"] == list(NAMES)
    if quantize is None:
        assert record["check"]["largest_box"] <= 0.01 and record["check"]["largest_score"] <= 1e-4
    files = path.rglob("*") if path.is_dir() else path.parent.glob(f"{path.stem}.*")
    sizes = {file.name: file.stat().st_size for file in files if file.is_file() and file.suffix != ".json"}
    assert record["bytes"] == sum(sizes.values()) and "of_the_older_one" not in sizes
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]


def blocks_of_the_page() -> tuple[list, dict]:
    """The page's Python: what comes first, and {format: what runs its artefact}."""
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    runs = {
        format: [block for block in blocks if f'"exports/mine-nms{ending}"' in block]
        for format, ending in ENDINGS.items()
    }
    return [block for block in blocks if [block] not in runs.values()], runs


@pytest.fixture(scope="module")
def expected(detector, tmp_path_factory):
    """An image file, and its (class name, score, box in pixels of the image) of at least 0.25 by the Keras model."""
    path, size = tmp_path_factory.mktemp("pictures") / "image.jpg", (90, 163)
    cv2.imwrite(str(path), draw_scene(11, image_size=size).image)
    letterbox = Letterbox.fit(size, SIZE)
    pixels = letterbox.apply_image(cv2.imread(str(path))[..., ::-1])
    found = KerasRuntime(exported_graph(detector, SIZE, NMS)).predict(pixels[None])
    rows = np.flatnonzero(found["scores"][0] >= 0.25)
    boxes = letterbox.undo_boxes(found["boxes"][0, rows], clip=False)
    return path, [NAMES[label] for label in found["classes"][0, rows]], found["scores"][0, rows], boxes


@pytest.mark.parametrize("format", FORMATS)
def test_what_the_page_says_runs_the_artefact(make, expected, monkeypatch, format):
    path, _ = make(format, None, NMS)
    first, runs = blocks_of_the_page()
    assert len(first) == 2 and len(runs[format]) == 1
    monkeypatch.chdir(path.parents[1])
    if format != "onnx":  # the page reads the size and the names of this one
        shutil.copy(f"{path}.json", "exports/mine-nms.onnx.json")
    image, names, scores, boxes = expected
    shutil.copy(image, "image.jpg")
    shown = []
    variables = {"print": lambda *values: shown.append(values)}
    for block in (*first, *runs[format]):
        exec(compile(block, str(PAGE), "exec"), variables)
    assert len(names) >= 3 and [name for name, _, _ in shown] == names
    np.testing.assert_allclose([score for _, score, _ in shown], scores, atol=1e-3)
    np.testing.assert_allclose([box for _, _, box in shown], boxes, atol=0.5)


@pytest.mark.parametrize("size", [(50, 31), (64, 96), (300, 417), (70, 500), (33, 97)])
def test_the_letterbox_on_the_page_is_the_one_of_training(size):
    image = cv2.resize(np.random.default_rng(5).integers(0, 256, (9, 8, 3), "uint8"), size[::-1])
    names = {}
    exec(compile(blocks_of_the_page()[0][0], str(PAGE), "exec"), names)
    found, undo = names["letterbox"](image, 64, 96)
    expected = Letterbox.fit(size, (64, 96))
    np.testing.assert_array_equal(found, expected.apply_image(image))
    boxes = np.array([[3.0, 4.0, 50.0, 31.0], [40.0, 0.0, 96.0, 64.0]])
    np.testing.assert_allclose(undo(boxes), expected.undo_boxes(boxes, clip=False), rtol=1e-5)


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


def test_a_missing_library_is_named_with_what_the_page_installs():
    install = "pip install -e '.[export]'"
    with pytest.raises(InputError, match=f"no_such_library, received none; install it with {re.escape(install)}"):
        library("no_such_library.part")
    assert f"```bash\n{install}\n" in PAGE.read_text("utf-8")


@pytest.fixture
def benchmark(monkeypatch):
    """The script, whose environment is taken back; without options and the weights that it then looks for."""
    for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "TF_CPP_MIN_LOG_LEVEL", "NO_ALBUMENTATIONS_UPDATE"):
        monkeypatch.setenv(name, "")
    spec = importlib.util.spec_from_file_location("export_speed", PAGE.parents[1] / "benchmarks" / "export_speed.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "WEIGHTS", pathlib.Path("/nowhere/model.h5"))
    monkeypatch.setattr("sys.argv", ["export_speed.py"])
    return script


def test_the_benchmark_without_a_detector_says_what_it_needs(benchmark, capsys, monkeypatch):
    assert benchmark.main() == 0
    assert "needs a trained detector: expected --weights or" in " ".join(capsys.readouterr().out.split())
    monkeypatch.setattr("sys.argv", ["export_speed.py", "--weights", "model.h5"])
    with pytest.raises(SystemExit) as raised:
        benchmark.main()
    assert raised.value.code == 2 and "expected both or neither" in capsys.readouterr().err


def test_the_benchmark_finds_the_detector_of_the_quickstart(benchmark, tmp_path, monkeypatch):
    weights = tmp_path / "model.h5"
    weights.touch()
    monkeypatch.setattr(benchmark, "WEIGHTS", weights)
    options = benchmark._options()
    assert options.weights == weights and options.config == PAGE.parents[1] / "configs" / "quickstart.yaml"
    assert options.config.is_file()


def test_the_benchmark_leaves_out_what_cannot_be_made_only_where_it_is_not_asked_for(benchmark, capsys, monkeypatch):
    needed("savedmodel", None)
    for name in ("tf2onnx", "ai_edge_litert", "openvino"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    assert benchmark._kinds(benchmark._options()) == [("savedmodel", None)]
    output = " ".join(capsys.readouterr().out.split())
    for kind in ("onnx", "onnx int8", "litert", "litert int8", "openvino", "openvino int8"):
        assert f"{kind}: left out: export: expected the library" in output
    monkeypatch.setattr("sys.argv", ["export_speed.py", "--formats", "savedmodel", "litert"])
    with pytest.raises(InputError, match="expected the library ai_edge_litert, received none"):
        benchmark._kinds(benchmark._options())


def test_no_images_or_those_of_another_size_or_type_are_refused(detector, images):
    runtime = KerasRuntime(exported_graph(detector, SIZE))
    for wrong in (images.astype("float32"), images.transpose(0, 2, 1, 3), images[:0]):
        with pytest.raises(ValueError, match=r"expected uint8 \[B, 64, 96, 3\] with at least one image"):
            runtime.predict(wrong)


def test_what_is_not_said_of_detections_is_as_in_a_config():
    options, config = ExportOptions("onnx", SIZE), DetectionConfig()
    assert (options.rescore, options.score_threshold, options.max_detections) == (
        config.rescore, config.score_threshold, config.max_detections,
    )  # fmt: skip
