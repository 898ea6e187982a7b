"""`multigrid weights`: the layers of a file, what fits a network, and another format that holds nothing random."""

import pathlib
import re

import keras
import pytest
from loading import bytes_of, shake

from multigrid.cli import main
from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.models.weights import load_weights, save_weights

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
CONFIG = """
data: {classes: classes.txt, anchors: anchors.txt}
model: {input_size: [64, 96], width: 0.0625, depth: 0.125}
weights: none.h5
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a config; the weights that it names are not there, and are not looked for."""
    (tmp_path / "config.yaml").write_text(CONFIG)
    (tmp_path / "classes.txt").write_text("cat\ndog\nfish\n")
    (tmp_path / "anchors.txt").write_text("".join(f"{' '.join(f'{w},{h}' for w, h in scale)}\n" for scale in ANCHORS))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def detector():
    return shake(MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8), 1)


def run(*words):
    return main(["weights", *words])


def fresh():
    return MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8)


def test_without_a_config_the_layers_of_a_file_are_listed(folder, detector, capsys):
    save_weights(detector, "a.h5")
    assert run("a.h5") == 0
    shown = capsys.readouterr().out
    assert "Keras 2 HDF5, weights" in shown and "kernel 3×3×3×2" in shown
    # 30 convolutions with BatchNorm and 3 grids
    assert f"63 layers, 156 tensors, {detector.count_params():,} numbers, all finite" in shown


def test_a_darknet_file_needs_a_config(folder, detector, capsys):
    save_weights(detector.backbone, "a.weights")
    assert run("a.weights") == 2
    assert "a.weights: expected --config with a Darknet file" in capsys.readouterr().err


def test_the_ledger_of_a_network_is_shown(folder, detector, capsys):
    save_weights(detector.backbone, "a.weights")
    assert run("a.weights", "--config", "config.yaml") == 0
    shown = capsys.readouterr().out
    assert "Darknet binary, matched by order and shape" in shown
    assert "80 of 156 tensors" in shown and "76 missing, first neck_32_conv1_conv/kernel" in shown


def test_settings_change_the_network(folder, detector, capsys):
    save_weights(detector.backbone, "a.weights")
    assert run("a.weights", "--config", "config.yaml", "model.width=0.125") == 2
    assert "floats for the 16 convolutions" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["b.weights.h5", "b.keras", "b.h5"])
def test_a_whole_detector_is_converted_whole(folder, detector, capsys, name):
    save_weights(detector, "a.h5")
    assert run("a.h5", "--config", "config.yaml", "--convert", name) == 0
    assert f"written: {name}\n" in capsys.readouterr().out
    other = fresh()
    load_weights(other, name)
    assert bytes_of(other) == bytes_of(detector)


@pytest.mark.parametrize(("source", "name"), [("a.weights", "b.h5"), ("a.weights", "b.keras"), ("a.h5", "b.weights")])
def test_a_backbone_is_converted_alone(folder, detector, capsys, source, name):
    save_weights(detector if source == "a.h5" else detector.backbone, source)
    assert run(source, "--config", "config.yaml", "--convert", name) == 0
    assert f"written: {name}, the backbone alone" in capsys.readouterr().out
    backbone = darknet53(1 / 16, 1 / 8)
    load_weights(backbone, name)
    assert bytes_of(backbone) == bytes_of(detector.backbone)


def test_a_head_for_other_classes_is_not_converted(folder, capsys):
    save_weights(shake(MultiGridDetector(ANCHORS, 5, width=1 / 16, depth=1 / 8), 2), "a.h5")
    assert run("a.h5", "--config", "config.yaml", "--convert", "b.h5") == 0
    shown = capsys.readouterr().out
    assert "the file is for 5 classes, the model for 3" in shown and "the backbone alone" in shown


def test_less_than_a_backbone_is_shown_on_demand_and_never_converted(folder, capsys):
    images = keras.Input((None, None, 3))
    part = keras.Model(images, keras.layers.Conv2D(2, 3, use_bias=False, name="stem_conv")(images))
    save_weights(part, "a.h5")
    assert run("a.h5", "--config", "config.yaml") == 2
    assert "received 1 that fit" in capsys.readouterr().err
    assert run("a.h5", "--config", "config.yaml", "--allow-partial") == 0
    assert "1 of 156 tensors" in capsys.readouterr().out
    assert run("a.h5", "--config", "config.yaml", "--allow-partial", "--convert", "b.h5") == 2
    assert "--convert: expected a file with the whole backbone" in capsys.readouterr().err
    assert not pathlib.Path("b.h5").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("none.h5",), "none.h5: expected a weights file"),
        (
            ("none.h5", "model.width=1"),
            "--config: expected a YAML file of the network for model.width=1, received none",
        ),
        (("none.h5", "--convert", "b.h5"), "--config: expected a YAML file of the network for --convert"),
        (("none.h5", "--config", "config.yaml"), "none.h5: expected a weights file"),
        (("none.h5", "--config", "config.yaml", "--convert", "b.pt"), "b.pt: expected a name ending in .weights.h5"),
        (("none.h5", "--config", "config.yaml", "--convert", "classes.txt/b.h5"), "--convert: expected a folder"),
    ],
)
def test_what_cannot_be_done_is_said(folder, capsys, words, message):
    assert run(*words) == 2
    assert message in capsys.readouterr().err


def test_the_ledger_on_the_page_is_what_the_command_shows(real_data, tmp_path, monkeypatch, capsys):
    page = (CHECKOUT / "docs" / "weights.md").read_text(encoding="utf-8")
    command, ledger = re.search(
        r"`python tools/weights.py ([^`]*)`:\n\n<!-- ledger -->\n```\n(.*?)```", page, re.DOTALL
    ).groups()
    models = real_data("darknet_weights") / "models"
    words = (
        command.replace("yolov3-slim16", f"{models}/yolov3-slim16").replace("configs/", f"{CHECKOUT}/configs/").split()
    )
    monkeypatch.chdir(tmp_path)
    assert run(*words) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.replace(f"{models}/", "").splitlines()]
    assert shown == ledger.splitlines() and len(shown) > 20


def test_the_tool_is_the_verb():
    assert 'main(["weights", *sys.argv[1:]])' in (CHECKOUT / "tools" / "weights.py").read_text()
