"""`multigrid export`, from a config and weights to an artefact and what is said about it."""

import argparse
import json
import pathlib
import re

import cv2
import keras
import numpy as np
import pytest
import yaml

from multigrid import assembly
from multigrid.cli import export as export_verb
from multigrid.cli import main
from multigrid.config import Config, ConfigLoader
from multigrid.data.images import Letterbox
from multigrid.export import GraphSuppression

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "export.md"


@pytest.fixture(scope="module")
def trained(draw_scenes, tmp_path_factory):
    """The config and the weights of a small detector, neither of them trained."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("artefacts are made by TensorFlow")
    folder = tmp_path_factory.mktemp("trained")
    files = draw_scenes(train=6, val=5)
    model = {"width": 0.0625, "depth": 0.125, "input_size": [64, 96]}
    values = {"data": files, "model": {**model, "precision": "mixed_bfloat16"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    config = Config(data=files, model={**model, "input_size": (64, 96)})
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    detector.save_weights(folder / "best.weights.h5")
    return folder


def run(trained, *words):
    weights = trained / "best.weights.h5"
    return main(["export", "--config", str(trained / "config.yaml"), "--weights", str(weights), *map(str, words)])


def test_int8_is_calibrated_on_a_folder_and_says_what_it_costs(trained, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    folder = next(path for path in trained.parent.rglob("*.jpg")).parent
    words = ("--format", "onnx", "--quantize", "int8", "--calibration", folder, "--calibration-images", 3, "--json")
    assert run(trained, *words) == 0
    output = capsys.readouterr()
    record = json.loads(output.out)
    assert record["path"] == "exports/best-int8.onnx" and pathlib.Path(record["path"]).is_file()
    assert record["quantization"] == {"type": "int8", "calibration_images": 3}
    assert record["mAP"]["images"] == 5 and record["mAP"]["lost"] is not None
    written = json.loads(pathlib.Path("exports/best-int8.onnx.json").read_text())
    assert written == {name: value for name, value in record.items() if name != "path"}
    for said in (f"calibration: 3 images of {folder}", "lost", "written to exports/best-int8.onnx"):
        assert said in output.err


def test_without_labels_and_images_the_check_is_on_drawn_scenes(trained, tmp_path, capsys):
    assert run(trained, "--format", "savedmodel", "--output", tmp_path / "made", "data.val=null") == 0
    assert "on drawn scenes" in capsys.readouterr().out
    assert json.loads((tmp_path / "made.json").read_text())["suppression"] is None


@pytest.mark.parametrize(
    ("rule", "graph", "said"),
    [
        ("soft_nms", "nms", "the graph has greedy NMS, not the config's soft_nms"),
        ("consensus", "consensus", ""),
    ],
)
def test_a_rule_that_the_graph_does_not_have_is_named(trained, capsys, rule, graph, said):
    overrides = [f"detection.suppression={rule}", "detection.nms_threshold=0.4", "detection.flip=true"]
    config = ConfigLoader.load(trained / "config.yaml", overrides)
    words = {"nms": True, "score_threshold": 0.002, "format": "onnx", "quantize": None, "batch_size": None}
    kind = export_verb._kind(argparse.Namespace(**words), config)
    output = capsys.readouterr().out
    assert said in output and "looks at an image once" in output
    assert ("greedy" in output) is bool(said)
    assert kind.suppression == GraphSuppression(0.002, 0.4, 300, rule=graph)


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (("--format", "savedmodel", "--quantize", "int8"), "expected the format onnx, litert, openvino"),
        (("--format", "onnx", "--output", "model.pb"), "--output: expected a file that ends with .onnx"),
        (("--format", "onnx", "--score-threshold", "0.5"), "expected 0 to 1 and --nms"),
        (("--format", "onnx", "--images", "nowhere"), "--images: expected a folder of images"),
        (("--format", "onnx", "--quantize", "int8", "data.train=null"), "--calibration: expected"),
    ],
)
def test_what_cannot_be_used_is_refused_and_nothing_is_written(
    trained, tmp_path, capsys, monkeypatch, words, complaint
):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    assert run(trained, *words) == 2
    assert complaint in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def letterbox_of_the_page():
    (source,) = re.findall(r"^```python\n(.*?def letterbox.*?)^```$", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    names = {}
    exec(compile(source, str(PAGE), "exec"), names)
    return names["letterbox"]


@pytest.mark.parametrize("size", [(50, 31), (64, 96), (300, 417), (70, 500), (33, 97)])
def test_the_letterbox_on_the_page_is_the_one_of_training(size):
    image = cv2.resize(np.random.default_rng(5).integers(0, 256, (9, 8, 3), "uint8"), size[::-1])
    found, undo = letterbox_of_the_page()(image, 64, 96)
    expected = Letterbox.fit(size, (64, 96))
    np.testing.assert_array_equal(found, expected.apply_image(image))
    boxes = np.array([[3.0, 4.0, 50.0, 31.0], [40.0, 0.0, 96.0, 64.0]])
    np.testing.assert_allclose(undo(boxes), expected.undo_boxes(boxes, clip=False), rtol=1e-5)
