"""`multigrid export`, from a config and weights to an artefact and what is said about it."""

import argparse
import json
import pathlib
import shutil

import keras
import numpy as np
import pytest
import yaml

from multigrid import assembly
from multigrid.cli import export as export_verb
from multigrid.cli import main
from multigrid.config import Config, ConfigLoader
from multigrid.errors import InputError
from multigrid.export import GraphSuppression
from multigrid.export.pictures import drawn_batch, letterboxed_batch


@pytest.fixture(scope="module")
def trained(draw_scenes, tmp_path_factory):
    """The config and the weights of a small detector, neither of them trained."""
    folder = tmp_path_factory.mktemp("trained")
    files = draw_scenes(train=6, val=5)
    model = {"width": 0.0625, "depth": 0.125, "input_size": [64, 96]}
    values = {"data": files, "model": {**model, "precision": "mixed_bfloat16"}}
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    config = Config(data=files, model={**model, "input_size": (64, 96)})
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    detector.save_weights(folder / "best.weights.h5")
    return folder


needs_tensorflow = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="artefacts are made by TensorFlow"
)


def run(trained, *words):
    weights = trained / "best.weights.h5"
    return main(["export", "--config", str(trained / "config.yaml"), "--weights", str(weights), *map(str, words)])


def scenes_of(trained) -> pathlib.Path:
    """The folder of the images that the labels name."""
    labels = pathlib.Path(yaml.safe_load((trained / "config.yaml").read_text())["data"]["train"])
    return (labels.parent / labels.read_text().split(" ")[0]).parent


@needs_tensorflow
def test_int8_is_calibrated_on_a_folder_and_says_what_it_costs(trained, tmp_path, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    folder = scenes_of(trained)
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


def calibrated(trained, folder):
    options = argparse.Namespace(quantize="int8", calibration=str(folder), calibration_images=100)
    return export_verb._calibration(options, ConfigLoader.load(trained / "config.yaml"), ("a", "b", "c"))


def test_broken_images_of_the_calibration_are_named_and_left_out(trained, tmp_path, capsys):
    whole = sorted(scenes_of(trained).glob("*.jpg"))[:2]
    for path, name in zip(whole, ("b.jpg", "d.jpg"), strict=True):
        shutil.copy(path, tmp_path / name)
    (tmp_path / "a.jpg").write_text("no image")
    (tmp_path / "c.jpg").write_bytes(whole[0].read_bytes()[:400])  # a header with nothing behind it
    images = calibrated(trained, tmp_path)
    np.testing.assert_array_equal(images, letterboxed_batch(whole, (64, 96)))
    output = "".join(capsys.readouterr().out.split())  # however wide the terminal is
    assert "2of4imagescannotbereadandareleftout" in output and f"calibration:2imagesof{tmp_path}" in output
    for name, listed in {"a.jpg": True, "b.jpg": False, "c.jpg": True, "d.jpg": False}.items():
        assert (f"{tmp_path}/{name}" in output) is listed


def test_a_calibration_without_an_image_that_can_be_read_is_refused(trained, tmp_path):
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_text("no image")
    with pytest.raises(InputError, match=r"--calibration: .* 2 files that cannot be read, first .*a\.jpg"):
        calibrated(trained, tmp_path)


@pytest.mark.parametrize("words", [(), ("--quantize", "float16")])
def test_a_calibration_of_nothing_is_a_usage_error(trained, tmp_path, capsys, words):
    with pytest.raises(SystemExit) as raised:
        run(trained, "--format", "onnx", "--calibration", tmp_path, *words)
    assert raised.value.code == 2
    assert "--calibration: expected --quantize int8" in capsys.readouterr().err


def test_without_labels_and_images_the_check_is_on_drawn_scenes(trained, capsys):
    config = ConfigLoader.load(trained / "config.yaml", ["data.val=null"])
    options = argparse.Namespace(images=None, quantize=None, map_images=7, check_images=3)
    samples = export_verb._samples(options, config, ("a", "b", "c"))
    np.testing.assert_array_equal(export_verb._images(options, config, samples), drawn_batch(3, (64, 96)))
    assert "on drawn scenes" in capsys.readouterr().out


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="there artefacts can be made")
def test_another_backend_is_refused_and_nothing_is_written(trained, tmp_path, capsys):
    assert run(trained, "--format", "savedmodel", "--output", tmp_path / "made") == 2
    assert "expected the backend tensorflow (KERAS_BACKEND=tensorflow), received" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rule", "graph", "said"),
    [
        ("soft_nms", "nms", "the graph has greedy NMS, not the config's soft_nms"),
        ("consensus", "consensus", ""),
        ("vote", "vote", ""),
    ],
)
def test_a_rule_that_the_graph_does_not_have_is_named(trained, capsys, rule, graph, said):
    overrides = [f"detection.suppression={rule}", "detection.nms_threshold=0.4", "detection.flip=true"]
    overrides += ["detection.score_threshold=0.003", "detection.max_detections=70"]
    config = ConfigLoader.load(trained / "config.yaml", overrides)
    words = {"nms": True, "score_threshold": 0.002, "format": "onnx", "quantize": None, "batch_size": None}
    kind = export_verb._kind(argparse.Namespace(**words), config)
    output = capsys.readouterr().out
    assert said in output and "looks at an image once" in output
    assert ("greedy" in output) is bool(said)
    assert kind.suppression == GraphSuppression(0.002, 0.4, 70, rule=graph)
    assert (kind.score_threshold, kind.max_detections) == (0.003, 70)


@needs_tensorflow
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
