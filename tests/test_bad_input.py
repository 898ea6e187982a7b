"""Bad input of every kind: one line that names the place, exit code 2, and nothing written.

All cases start from one small project that trains, and spoil one thing in it; the last test trains it as it is.
"""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import warnings
from typing import NamedTuple

import numpy as np
import pytest

from multigrid.cli import main
from multigrid.data.samples import read_samples, write_samples
from multigrid.data.shapes import CLASS_NAMES, draw_data_set

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """\
data:
  train: train.txt
  val: val.txt
  classes: classes.txt
  anchors: anchors.txt
  strict: true
  workers: 0
model:
  width: 0.0625
  depth: 0.125
  input_size: [64, 96]
augmentation:
  steps:
    - {name: Blur, p: 0.5}
  mosaic: 0.0
training:
  epochs: 1
  batch_size: 2
"""
ANCHORS = "5,5, 8,9, 10,14\n13,17, 22,14, 18,22\n26,21, 25,32, 40,38\n"
VERBS = ("train", "evaluate", "predict", "probe", "anchors")


# --- a project that works ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    """A folder with five scenes to train on and three to validate on, and everything that a training needs."""
    folder = tmp_path_factory.mktemp("drawn") / "project"
    draw_data_set(folder, counts={"train": 5, "val": 3}, seed=3)
    for name, text in {"config.yaml": CONFIG, "anchors.txt": ANCHORS, "model.h5": "no weights\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in CLASS_NAMES), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def foreign_weights(tmp_path_factory):
    """Weights of the same network for one class less, as "Keras 3" and as "Keras 2" file."""
    from multigrid.models.detector import MultiGridDetector
    from multigrid.models.weights import save_weights

    detector = MultiGridDetector([[[30, 20]] * 3] * 3, len(CLASS_NAMES) - 1, width=0.0625, depth=0.125)
    files = {"keras3": "other.weights.h5", "keras2": "other.h5"}
    files = {name: tmp_path_factory.mktemp("weights") / file for name, file in files.items()}
    for path in files.values():
        save_weights(detector, path)
    return files


class Project(NamedTuple):
    """The project in the folder `project` of the working directory."""

    request: pytest.FixtureRequest

    def path(self, name: str) -> pathlib.Path:
        return pathlib.Path("project") / name

    def replace(self, name: str, old: str, new: str) -> None:
        """Puts `new` in the one place where `old` stands in a file."""
        text = self.path(name).read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        self.path(name).write_text(text.replace(old, new), encoding="utf-8")

    def relabel(self, layout: str, destination: str) -> None:
        """The training labels once more in another layout, named in the config."""
        samples, _ = read_samples(self.path("train.txt"), CLASS_NAMES)
        write_samples(samples, CLASS_NAMES, self.path(destination), layout)
        self.replace("config.yaml", "train: train.txt", f"train: {destination}")


@pytest.fixture
def project(drawn, tmp_path, monkeypatch, request):
    """A copy of the project; the working directory holds nothing else."""
    shutil.copytree(drawn, tmp_path / "project")
    monkeypatch.chdir(tmp_path)
    return Project(request)


# --- ways to spoil it -------------------------------------------------------------------------------------------------


def replaced(name, old, new):
    return lambda project: project.replace(name, old, new)


def config(old, new):
    return replaced("config.yaml", old, new)


def written(name, content):
    content = content if isinstance(content, bytes) else content.encode()

    def spoil(project):
        project.path(name).parent.mkdir(exist_ok=True)
        project.path(name).write_bytes(content)

    return spoil


def gone(name):
    return lambda project: project.path(name).unlink()


def halved(name):
    def spoil(project):
        content = project.path(name).read_bytes()
        project.path(name).write_bytes(content[: len(content) // 2])

    return spoil


def third_line(boxes):
    """Other boxes for the third training image."""

    def spoil(project):
        lines = project.path("train.txt").read_text().splitlines()
        assert lines[2].startswith("images/train/000003.jpg ")
        lines[2] = f"images/train/000003.jpg {boxes}"
        project.path("train.txt").write_text("\n".join(lines))

    return spoil


def png_instead_of_the_second_image(project):
    project.path("images/train/000002.jpg").rename(project.path("images/train/000002.png"))
    project.replace("train.txt", "000002.jpg", "000002.png")


def broken_coco(project):
    project.relabel("coco", "train.json")
    project.replace("train.json", '], "annotations": [', '],\n"annotations": ')


def annotation_of_no_image(project):
    project.relabel("coco", "train.json")
    labels = json.loads(project.path("train.json").read_text())
    labels["annotations"][2]["image_id"] = 77
    project.path("train.json").write_text(json.dumps(labels))


def coco_image_that_is_missing(project):
    project.relabel("coco", "train.json")
    project.replace("train.json", "000004.jpg", "000009.jpg")


def other_names_in_data_yaml(project):
    project.relabel("yolo", "data.yaml")
    first, second = CLASS_NAMES[:2]
    project.replace("data.yaml", f"- {first}\n- {second}\n", f"- {second}\n- {first}\n")


def yolo_to_evaluate(project):
    project.relabel("yolo", "data.yaml")
    project.replace("data.yaml", "train:", "val:")


def broken_xml(project):
    project.relabel("voc", "Annotations")
    # <annotation>, <filename>, then <path>: the third line.
    project.replace("Annotations/000002.xml", "</path>", "</pth>")


def foreign(layout):
    def spoil(project):
        shutil.copy(project.request.getfixturevalue("foreign_weights")[layout], project.path("other.h5"))

    return spoil


def foreign_half(layout):
    def spoil(project):
        foreign(layout)(project)
        halved("other.h5")(project)

    return spoil


# --- what is bad ------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """One kind of bad input.

    Attributes:
        says: what the line must hold; the place first.
        spoil: what is done to the project.
        verb: the command that is given.
        words: what stands behind `multigrid <verb> --config project/config.yaml`.
        usage: argparse refuses it, with its usage above the line.
    """

    says: tuple
    spoil: object = None
    verb: str = "train"
    words: tuple = ()
    usage: bool = False


EVALUATE = ("--weights", "project/model.h5", "--output-dir", "out")
FOREIGN = ("--weights", "project/other.h5", "--output-dir", "out")
PREDICT = (*EVALUATE, "--source")
NOT_EXISTING = "expected an existing file"
KINDS = {
    # the config file
    "broken YAML": Kind(("config.yaml, line 7: expected YAML",), config("strict: true", "strict: [true")),
    "a config that is a list": Kind(("config.yaml, line 1", "expected a mapping"), written("config.yaml", "- data\n")),
    "a config that is empty": Kind(("config.yaml, line 1", "an empty file"), written("config.yaml", "")),
    "a config file that is missing": Kind(("project/config.yaml", "No such file"), gone("config.yaml")),
    "an unknown key": Kind(
        ("config.yaml, line 17: training.epoch:", "nearest known key is training.epochs"),
        config("epochs: 1", "epoch: 1"),
    ),
    "a duplicate key": Kind(
        ("config.yaml, line 18: training.epochs", "received twice (line 17)"),
        config("epochs: 1\n", "epochs: 1\n  epochs: 2\n"),
    ),
    "a value of the wrong type": Kind(
        ("config.yaml, line 17: training.epochs:", 'an integer >= 1, received "many"'),
        config("epochs: 1", "epochs: many"),
    ),
    "a value out of range": Kind(
        ("config.yaml, line 9: model.width:", "received 20"), config("width: 0.0625", "width: 20")
    ),
    "a batch size of 0": Kind(
        ("config.yaml, line 18: training.batch_size:", "received 0"), config("batch_size: 2", "batch_size: 0")
    ),
    "an input size off the grid": Kind(
        ("config.yaml, line 11: model.input_size:", "multiple of 32", "[100, 96]"), config("[64, 96]", "[100, 96]")
    ),
    "an input size that is no pair": Kind(
        ("config.yaml, line 11: model.input_size:", "[height, width]", "received 64"), config("[64, 96]", "64")
    ),
    "a model file that is missing": Kind(
        ("config.yaml, line 1: model_config:", "expected an existing YAML file", "wide.yaml"),
        config("data:\n", "model_config: wide.yaml\ndata:\n"),
    ),
    "a labels file that is missing": Kind(
        ("config.yaml, line 2: data.train:", NOT_EXISTING, "project/train.txt"), gone("train.txt")
    ),
    "an anchors file that is missing": Kind(
        ("config.yaml, line 5: data.anchors:", NOT_EXISTING, "project/anchors.txt"), gone("anchors.txt")
    ),
    "a classes file that is missing": Kind(
        ("config.yaml, line 4: data.classes:", NOT_EXISTING, "project/classes.txt"), gone("classes.txt")
    ),
    # the command line
    "an unknown key on the command line": Kind(
        ("command line: training.epochz:", "nearest known key is training.epochs"), words=("training.epochz=3",)
    ),
    "an override without =": Kind(("command line", 'received "training.epochs"'), words=("training.epochs",)),
    "an override without = behind an option": Kind(
        ("command line", 'received "training.epochs"'),
        words=("training.seed=3", "--save-weights", "w.h5", "training.epochs"),
    ),
    "a value of the wrong type on the command line": Kind(
        ("command line: data.cache:", 'received "perhaps"'), words=("data.cache=perhaps",)
    ),
    "an unknown option": Kind(("--epochs",), words=("--epochs", "3"), usage=True),
    "weights that are missing": Kind(
        ("command line: weights:", NOT_EXISTING, "none.h5"), verb="evaluate", words=("--weights", "none.h5")
    ),
    "weights of an empty name": Kind(
        ("command line: weights:", NOT_EXISTING, 'received ""'), verb="evaluate", words=("--weights", "")
    ),
    "backbone weights that are missing": Kind(
        ("command line: backbone_weights:", "none.h5"), words=("--backbone-weights", "none.h5")
    ),
    "no anchors to count": Kind(
        ("--count: expected a multiple of 3", "received 0"), verb="anchors", words=("--count", "0")
    ),
    "ten anchors for three scales": Kind(
        ("--count: expected a multiple of 3", "received 10"), verb="anchors", words=("--count", "10")
    ),
    "anchors in the place of the labels": Kind(
        ("--output: expected a file of another name", "project/train.txt", "which is read here"),
        verb="anchors",
        words=("--output", "project/train.txt"),
    ),
    "anchors in the place of the config": Kind(
        ("--output: expected a file of another name", "project/config.yaml"),
        verb="anchors",
        words=("--output", "project/../project/config.yaml"),
    ),
    "a picture of anchors in the place of an image": Kind(
        ("--output: expected a file of another name", "project/images/train/000002.png"),
        png_instead_of_the_second_image,
        verb="anchors",
        words=("--output", "project/images/train/000002.txt"),
    ),
    "anchors in the place of a label file of YOLO": Kind(
        ("--output: expected a file of another name", "project/labels/train/000002.txt"),
        lambda project: project.relabel("yolo", "data.yaml"),
        verb="anchors",
        words=("--output", "project/labels/train/000002.txt"),
    ),
    "anchors in the place of their picture": Kind(
        ("--output: expected a text file, received", "new.png, the name of its picture"),
        verb="anchors",
        words=("--output", "project/new.png"),
    ),
    "figures among the labels": Kind(
        ("--output-dir: expected a folder other than that of the images and labels", "project/val.txt"),
        verb="evaluate",
        words=("--weights", "project/model.h5", "--output-dir", "project"),
    ),
    "figures among the label files of YOLO": Kind(
        ("--output-dir: expected a folder other than that of the images and labels", "project/labels/train"),
        yolo_to_evaluate,
        verb="evaluate",
        words=("data.val=project/data.yaml", "--weights", "project/model.h5")
        + ("--output-dir", "project/labels/train"),
    ),
    "findings among the images": Kind(
        ("--output-dir: expected a folder other than that of the images and labels", "project/images/train/000001.jpg"),
        verb="data",
        words=("--output-dir", "project/images/train"),
    ),
    "labels without a box": Kind(
        ("data.train (", "project/train.txt): expected at least one box that can be used, received none in 2 images"),
        written("train.txt", "images/train/000001.jpg\nimages/train/000004.jpg\n"),
    ),
    "no batches to probe": Kind(
        ("--num-batches", "a whole number from 1, received '0'"), verb="probe", words=("--num-batches", "0"), usage=True
    ),
    "batches that are no number": Kind(
        ("--num-batches", "a whole number from 1, received 'two'"),
        verb="probe",
        words=("--num-batches", "two"),
        usage=True,
    ),
    # where results go
    "a run folder that is in use": Kind(
        ("output.dir: expected a new or empty folder", "project, which is in use"), words=("output.dir=project",)
    ),
    "a run folder that is a file": Kind(
        ("output.dir: expected a folder", "classes.txt"), words=("output.dir=project/classes.txt",)
    ),
    "a run folder below a file": Kind(
        ("output.dir: expected a folder", "classes.txt is no folder"), words=("output.dir=project/classes.txt/run",)
    ),
    "runs that is a file": Kind(("output.dir", "runs is no folder"), written("../runs", "")),
    "an output folder that is a file": Kind(
        ("--output-dir: expected a folder", "val.txt is no folder"),
        verb="evaluate",
        words=("--weights", "project/model.h5", "--output-dir", "project/val.txt"),
    ),
    "an anchors file that is a folder": Kind(
        ("--output: expected a file", "which is a folder"), verb="anchors", words=("--output", "project")
    ),
    "a name for weights that says no format": Kind(
        ("model.pt", "expected a name ending in .weights.h5, .keras or .h5"), words=("--save-weights", "model.pt")
    ),
    # keys that a verb needs
    "no labels to train on": Kind(("data.train: expected labels, received null",), config(" train.txt", " null")),
    "no labels to test on": Kind(
        ("data.test: expected labels, received null",), verb="evaluate", words=("--split", "test", *EVALUATE)
    ),
    "no labels to fit anchors to": Kind(
        ("data.train: expected labels, received null",), config(" train.txt", " null"), verb="anchors"
    ),
    "no labels to probe": Kind(
        ("data.train: expected labels, received null",), config(" train.txt", " null"), verb="probe"
    ),
    "no classes": Kind(("data.classes: expected a file, received null",), config(" classes.txt", " null")),
    "no anchors": Kind(("data.anchors: expected a file, received null",), config(" anchors.txt", " null")),
    # classes and anchors
    "a classes file that is empty": Kind(("classes.txt", "received an empty file"), written("classes.txt", "\n")),
    "a class name that comes twice": Kind(
        ("classes.txt, line 3", '"ring" of line 1 again'), written("classes.txt", "ring\nstar\nring\n")
    ),
    "anchors of another layout": Kind(("anchors.txt, line 2", '"12;30"'), written("anchors.txt", "# w;h\n12;30\n")),
    "an anchor count that is no multiple of 3": Kind(
        ("anchors.txt, line 1", "multiple of 3", "received 4"), written("anchors.txt", "5,6 7,9 20,30 41,52\n")
    ),
    "lines of anchors of different lengths": Kind(
        ("anchors.txt, line 3", "expected 3 pairs as in line 1", "received 2"),
        replaced("anchors.txt", "26,21, ", ""),
    ),
    "an anchor that is not positive": Kind(
        ("anchors.txt, line 2", "positive", '"22,0"'), replaced("anchors.txt", "22,14", "22,0")
    ),
    "fewer boxes than anchors": Kind(
        ("data.train", "one.txt", "at least 9 distinct box sizes", "received 2"),
        written("one.txt", "images/train/000001.jpg 10,20,40,60,0 11,20,41,60,1 20,30,60,50,0\n"),
        verb="anchors",
        words=("--deal", "area", "data.train=project/one.txt"),
    ),
    # labels
    "a label file without images": Kind(
        ("train.txt", "expected at least one image"), written("train.txt", "# nothing yet\n\n")
    ),
    "a label file of an unknown kind": Kind(
        ("train.csv", ".txt", ".json"), written("train.csv", "a,b\n"), words=("data.train=project/train.csv",)
    ),
    "a label file that is no text": Kind(("train.txt", "UTF-8"), written("train.txt", b"images/\xff.jpg\n")),
    "a box with NaN": Kind(("train.txt, line 3", "1 non-finite", "nan"), third_line("10,20,nan,60,1")),
    "a box inside out": Kind(("train.txt, line 3", "1 inverted", "50,20,40,60"), third_line("50,20,40,60,1")),
    "a class id out of range": Kind(
        ("train.txt, line 3", "class id 99", f"expected 0 to {len(CLASS_NAMES) - 1}"), third_line("10,20,40,60,99")
    ),
    "a box of four fields": Kind(("train.txt, line 3", 'received "10,20,40,60"'), third_line("10,20,40,60")),
    "a box of six fields": Kind(("train.txt, line 3", 'received "10,20,40,60,1,1"'), third_line("10,20,40,60,1,1")),
    "a field that is no number": Kind(("train.txt, line 3", 'received "10,2o,40,60,1"'), third_line("10,2o,40,60,1")),
    "a class id with a fraction": Kind(("train.txt, line 3", "40,60,1.5"), third_line("10,20,40,60,1.5")),
    "COCO JSON that is broken": Kind(("train.json, line 2", "expected JSON"), broken_coco),
    "COCO JSON with an annotation of no image": Kind(("annotations[2]", "image_id 77"), annotation_of_no_image),
    "COCO JSON with an image that is missing": Kind(
        ("train.json, images[3]", "000009.jpg", "no file of this name"), coco_image_that_is_missing
    ),
    "a data.yaml with classes in another order": Kind(
        ("data.yaml, key names", f"received ['{CLASS_NAMES[1]}', '{CLASS_NAMES[0]}'"), other_names_in_data_yaml
    ),
    "XML that is not well-formed": Kind(("000002.xml, line 3", "well-formed XML"), broken_xml),
    # images
    "an image that is missing": Kind(
        ("train.txt, line 2", "images/train/000002.jpg", "no file of this name"), gone("images/train/000002.jpg")
    ),
    "a validation image that is missing": Kind(
        ("val.txt, line 3", "images/val/000003.jpg", "no file of this name"), gone("images/val/000003.jpg")
    ),
    "a JPEG that is cut off": Kind(("images/train/000004.jpg", "truncated"), halved("images/train/000004.jpg")),
    "an image file that is empty": Kind(
        ("train.txt, line 5", "images/train/000005.jpg", "an empty file"), written("images/train/000005.jpg", "")
    ),
    "a text that is called .jpg": Kind(
        ("train.txt, line 1", "images/train/000001.jpg", "no known image format"),
        written("images/train/000001.jpg", "not found\n"),
    ),
    "a source that is missing": Kind(
        ("nowhere", "expected an image or a folder of images"), verb="predict", words=(*PREDICT, "nowhere")
    ),
    "a source without images": Kind(
        ("project/notes", "expected a folder of images"),
        written("notes/read.me", "later\n"),
        verb="predict",
        words=(*PREDICT, "project/notes"),
    ),
    "pictures in the place of their images": Kind(
        ("--output-dir: expected a folder other than that of the images", "project/images/train"),
        verb="predict",
        words=("--weights", "project/model.h5", "--output-dir", "project/images/train", "--source")
        + ("project/images/../images/train",),
    ),
    "a picture in the place of its image": Kind(
        ("--output-dir: expected a folder other than that of the images", "project/images/val"),
        verb="predict",
        words=("--weights", "project/model.h5", "--output-dir", "project/images/val", "--source")
        + ("project/images/val/000001.jpg",),
    ),
    "a source that is no image": Kind(
        ("project/train.txt", "no known image format"), verb="predict", words=(*PREDICT, "project/train.txt")
    ),
    # augmentation and loss
    "an unknown augmentation": Kind(
        ("augmentation step 1 (Blurr)", "'Blur'"), config("{name: Blur, p: 0.5}", "{name: Blurr, p: 0.5}")
    ),
    "an unknown argument of an augmentation": Kind(
        ("augmentation step 1 (Blur)", "unknown argument 'blur_limits'", "'blur_limit'"),
        config("{name: Blur, p: 0.5}", "{name: Blur, blur_limits: 3}"),
    ),
    "a bad argument of an augmentation": Kind(
        ("augmentation step 1 (Blur)", "received 2.5"), config("{name: Blur, p: 0.5}", "{name: Blur, p: 2.5}")
    ),
    "an augmentation without a name": Kind(
        ("config.yaml, line 14: augmentation.steps[0]",), config("{name: Blur, p: 0.5}", "{p: 0.5}")
    ),
    "class weights of the wrong length": Kind(
        ("loss.class_weights", f"expected {len(CLASS_NAMES)} numbers", "received 2"),
        words=("loss.class_weights=[1, 2]",),
    ),
    # weights
    "weights that are a text file": Kind(("project/model.h5", "expected an HDF5"), verb="evaluate", words=EVALUATE),
    "weights of another model": Kind(
        ("project/other.h5", "6 for other classes, first grid_32"), foreign("keras3"), verb="evaluate", words=FOREIGN
    ),
    "weights of another model, Keras 2": Kind(
        ("project/other.h5", "6 for other classes, first grid_32"), foreign("keras2"), verb="evaluate", words=FOREIGN
    ),
    "weights that are cut off": Kind(
        ("project/other.h5", "damaged"), foreign_half("keras3"), words=("weights=project/other.h5",)
    ),
}


def tree(folder: pathlib.Path) -> dict:
    """Every file with its content, every folder with None."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def run(verb: str, *words: str) -> int:
    """The exit code of a command; argparse leaves with an exception."""
    try:
        return main([verb, "--config", "project/config.yaml", *words])
    except SystemExit as left:
        return left.code


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_bad_input_is_one_line_that_names_the_place_and_nothing_is_written(kind, project, tmp_path, capfd, caplog):
    if kind.spoil is not None:
        kind.spoil(project)
    before = tree(tmp_path)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # only developers see these
        code = run(kind.verb, *kind.words)
    shown = capfd.readouterr().err.splitlines()
    assert code == 2
    if kind.usage:
        assert shown[0].startswith("usage: multigrid") and shown[-1].startswith(f"multigrid {kind.verb}: error: ")
    else:
        assert len(shown) == 1, shown
        assert shown[0].startswith("error: ")
    for words in kind.says:
        assert re.search(re.escape(words) + r"(?!\d)", shown[-1]), shown[-1]  # "line 3" is not found in "line 36"
    assert not [str(warning.message) for warning in warned] and not caplog.records
    assert tree(tmp_path) == before


def test_there_are_at_least_thirty_kinds():
    assert len(KINDS) >= 30


def test_the_drawn_images_are_not_square(drawn):
    samples, defects = read_samples(drawn / "train.txt", CLASS_NAMES)
    assert not defects and all(height != width for height, width in (sample.size for sample in samples))


def test_all_problems_of_a_config_are_reported_together_each_with_its_place(project, tmp_path, capfd):
    project.replace("config.yaml", "width: 0.0625", "widht: 0.0625")
    project.replace("config.yaml", "epochs: 1", "epochs: 0")
    project.path("anchors.txt").unlink()
    before = tree(tmp_path)
    assert run("train", "training.ema=1", "data.test=none.txt", "--weights", "none.h5") == 2
    shown = capfd.readouterr().err.splitlines()
    assert shown[0] == "error: 6 problems in the configuration:"
    places = [
        "project/config.yaml, line 5: data.anchors: ",
        "project/config.yaml, line 9: model.widht: unknown key; the nearest known key is model.width",
        "project/config.yaml, line 17: training.epochs: ",
        "command line: data.test: ",
        "command line: weights: ",
        "command line: training.ema: ",
    ]
    assert len(shown) == 1 + len(places)
    for line, place in zip(shown[1:], places, strict=True):
        assert line.startswith(place)
    assert tree(tmp_path) == before


# --- without the framework --------------------------------------------------------------------------------------------


def in_a_new_process(code: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    environment["PYTHONPATH"] = str(CHECKOUT)
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)


def test_help_and_bad_configs_need_no_framework(project):
    code = """
import sys
from multigrid.cli import main
def code_of(*words):
    try:
        return main(words)
    except SystemExit as left:
        return left.code
verbs = ("train", "evaluate", "predict", "probe", "anchors")
helps = [code_of("--help"), *(code_of(verb, "--help") for verb in verbs)]
bad = [code_of("train", "--config", *words) for words in (["none.yaml"], ["project/config.yaml", "training.epochs=0"])]
words = ("--config", "project/config.yaml", "--weights", "project/model.h5", "--source", "nowhere")
bad.append(code_of("predict", *words))
print(helps, bad, sorted({"tensorflow", "keras", "jax", "torch"} & set(sys.modules)))
"""
    done = in_a_new_process(code)
    assert done.stdout.splitlines()[-1] == "[0, 0, 0, 0, 0, 0] [2, 2, 2] []"
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_every_help_ends_with_an_example(verb, capfd):
    with pytest.raises(SystemExit) as left:
        main([*verb.split(), "--help"])
    assert left.value.code == 0
    shown = capfd.readouterr()
    assert shown.err == ""
    assert f"example: multigrid {verb or 'train'} --" in shown.out


def test_the_framework_adds_no_line_of_its_own_to_an_error(project):
    project.path("images/train/000002.jpg").unlink()
    code = "import sys; from multigrid.cli import main; sys.exit(main(['train', '--config', 'project/config.yaml']))"
    done = in_a_new_process(code)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("error: 1 of 5 images cannot be read: ") and "train.txt, line 2" in done.stderr


def test_the_accuracy_benchmark_has_one_way_to_name_the_seed(project):
    script = str(CHECKOUT / "benchmarks" / "accuracy" / "run.py")
    words = [sys.executable, script, "--data", "project", "loss.anchor=bce", "training.seed=2"]
    done = subprocess.run(
        words, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "training.seed: expected no override" in done.stderr and "--seed" in done.stderr
    assert [path.name for path in pathlib.Path().iterdir()] == ["project"]


# --- the project as it is ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_project_without_a_fault_trains(project, tmp_path, capfd, caplog):
    assert run("train", "output.dir=out") == 0
    assert not caplog.records
    assert "error" not in capfd.readouterr().err
    assert np.isfinite(np.genfromtxt(tmp_path / "out" / "results.csv", delimiter=",", names=True)["loss"])
    assert {path.name for path in (tmp_path / "out" / "weights").iterdir()} == {"best.weights.h5", "last.weights.h5"}
