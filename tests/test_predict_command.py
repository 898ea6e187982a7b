"""`multigrid predict`: what can be read of a folder is done, the rest is named, and the exit code says so."""

import csv
import json
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from multigrid.cli import main
from multigrid.data.images import image_size, read_image
from multigrid.models.detector import MultiGridDetector
from multigrid.models.weights import save_weights
from multigrid.prediction.outputs import picture_targets, writing
from multigrid.prediction.sources import Item, list_source
from multigrid.prediction.video import VideoWriter, read_frames, read_info

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
CONFIG = """\
data: {classes: classes.txt, anchors: anchors.txt}
model: {width: 0.0625, depth: 0.125, input_size: [64, 96]}
detection: {predict_threshold: 0.5}
"""
ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
HUGE = (9000, 12000)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run whose detector sees a "green" in every cell of the coarsest grid, whatever it is shown."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "classes.txt").write_text("red\ngreen\nblue\n", encoding="utf-8")
    (folder / "anchors.txt").write_text("8,6  12,9\n20,14  14,30\n40,28  48,44\n", encoding="utf-8")
    detector = MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8)
    for stride in detector.strides:
        layer = detector.get_layer(f"grid_{stride}")
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        bias = np.zeros(layer.bias.shape)
        bias[4], bias[-2] = (5.0, 5.0) if stride == 32 else (-9.0, 0.0)
        layer.bias.assign(bias)
    save_weights(detector, folder / "weights" / "best.weights.h5")
    return folder


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def picture(height=60, width=90, value=90):
    return Image.fromarray(np.full((height, width, 3), value, np.uint8))


def film(path, frames=11, size=(135, 203)):
    with VideoWriter(path, 12.5) as video:
        for index in range(frames):
            video.write(np.full((*size, 3), 10 + 20 * index, np.uint8))


def hard_folder(folder):
    """What the field finds in folders."""
    folder.mkdir()
    picture().save(folder / "a good one.jpg")
    content = (folder / "a good one.jpg").read_bytes()
    (folder / "cut off.jpg").write_bytes(content[: len(content) // 2])
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("not found\n")
    picture(*HUGE).save(folder / "huge.jpg")
    grey = np.full((60, 90, 2), 90, np.uint8)
    grey[:, :45, 1] = 10
    Image.fromarray(grey, "LA").save(folder / "grey with alpha.png")
    frames = [picture(value=value) for value in (40, 200)]
    frames[0].save(folder / "moving.gif", save_all=True, append_images=frames[1:], duration=100)
    for name in ("notes.txt", "labels.json", ".hidden.jpg"):
        (folder / name).write_text("x")


def test_of_a_folder_what_can_be_read_is_done_and_the_rest_is_named(run_dir, work, recwarn, capfd):
    hard_folder(work / "images")
    recwarn.clear()
    assert main(["predict", "--run", str(run_dir), "--source", "images", "--json"]) == 1
    shown = capfd.readouterr()
    good = {"a good one.jpg": (60, 90), "grey with alpha.png": (60, 90), "huge.jpg": HUGE, "moving.gif": (60, 90)}
    document = json.loads(shown.out)
    assert (document["images"], document["left_out"], document["interrupted"]) == (4, 2, False)
    assert [message.split(":")[0] for message in document["broken"]] == [
        "images/cut off.jpg", "images/empty.jpg", "images/text.jpg",
    ]  # fmt: skip
    assert [line for line in shown.err.splitlines() if line.startswith("not done: ")] == [
        f"not done: {message}" for message in document["broken"]
    ]
    assert "images: 2 other files left out" in shown.err.splitlines()
    assert "Warning" not in shown.err
    assert not [warning for warning in recwarn if "DecompressionBomb" in str(warning.category)]
    records = json.loads((work / "predictions" / "detections.json").read_text())
    assert {record["image"]: (record["height"], record["width"]) for record in records} == {
        f"images/{name}": size for name, size in good.items()
    }
    # 2 rows of 3 cells say the same thing of the same class; suppression leaves some of their boxes.
    assert all(1 <= len(record["detections"]) <= 6 for record in records)
    assert document["detections"] == sum(len(record["detections"]) for record in records)
    drawn = {"a good one.jpg", "grey with alpha.png", "huge.jpg", "moving.gif.png"}
    assert {path.name for path in (work / "predictions").iterdir()} == drawn | {"detections.json", "detections.csv"}
    assert image_size(work / "predictions" / "huge.jpg") == HUGE
    first_frame = read_image(work / "predictions" / "moving.gif.png")
    assert 40 in first_frame and 200 not in first_frame[..., 2]


def test_the_table_holds_what_the_records_hold(run_dir, work):
    picture().save(work / "x.png")
    assert main(["predict", "--run", str(run_dir), "--source", "x.png", "--output-dir", "out", "--no-images"]) == 0
    assert sorted(path.name for path in (work / "out").iterdir()) == ["detections.csv", "detections.json"]
    ((record,), rows) = json.loads((work / "out" / "detections.json").read_text()), read_rows(work / "out")
    assert len(rows) == len(record["detections"]) >= 1
    for row, found in zip(rows, record["detections"], strict=True):
        assert (row["image"], row["class_id"], row["class"], found["class"]) == ("x.png", "1", "green", "green")
        assert float(row["score"]) == found["score"] == pytest.approx(0.986659, abs=1e-5)  # sigmoid(5)^2
        assert [float(row[side]) for side in ("x1", "y1", "x2", "y2")] == found["box_xyxy"]


def read_rows(folder):
    with open(folder / "detections.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_video_is_written_frame_for_frame(run_dir, work):
    film("film.mp4")
    film("old/film.avi.mp4", frames=3)
    (work / "old" / "film.avi.mp4").rename(work / "film.avi")
    words = ["--source", "film.mp4", "film.avi", "detection.max_detections=2", "--output-dir", "out"]
    assert main(["predict", "--run", str(run_dir), *words]) == 0
    written = list(read_frames(work / "out" / "film.mp4"))
    assert read_info(work / "out" / "film.mp4") == read_info("film.mp4") == (12.5, 11)
    assert len(written) == 11 and written[0].image.shape == next(read_frames("film.mp4")).image.shape
    # Each is the frame of its number: most of it is as grey as it was.
    assert [round((np.median(frame.image) - 10) / 20) for frame in written] == list(range(11))
    # and has its boxes: what is not grey
    assert all((frame.image.max(axis=-1) - frame.image.min(axis=-1)).max() > 60 for frame in written)
    assert read_info(work / "out" / "film.avi.mp4").frames == 3
    records = json.loads((work / "out" / "detections.json").read_text())
    assert [(record["image"], record["frame"]) for record in records] == [
        *(("film.mp4", index) for index in range(11)), *(("film.avi", index) for index in range(3)),
    ]  # fmt: skip
    assert [record["time"] for record in records[:11]] == pytest.approx([index / 12.5 for index in range(11)])
    assert {len(record["detections"]) for record in records} == {2}  # the setting behind --source was heard
    assert {row["frame"] for row in read_rows(work / "out")} == {str(index) for index in range(11)}


def test_pictures_of_one_name_stay_apart_and_cells_are_shown(run_dir, work, capfd):
    for name, value in (("a/x.jpg", 60), ("b/x.jpg", 120), ("b/y.bmp", 180), ("out/of/the/last/x.jpg", 9)):
        (work / name).parent.mkdir(exist_ok=True, parents=True)
        picture(value=value).save(work / name)
    words = ["--source", f"{work}/**/x.*", "b/y.bmp", "b/x.jpg", "--output-dir", "out", "--show-cells"]
    assert main(["predict", "--run", str(run_dir), *words]) == 0
    assert "1 file in --output-dir left out" in capfd.readouterr().out
    drawn = {path.relative_to(work / "out").as_posix() for path in (work / "out").rglob("*.*g")}
    assert drawn == {"a/x.jpg", "b/x.jpg", "b/y.bmp.png", "of/the/last/x.jpg"}
    # All cells answered, and are tinted: 60 x 90 pixels lie in the input's middle 64 x 96.
    drawn = read_image(work / "out" / "b" / "y.bmp.png")
    assert (drawn.max(axis=-1) > drawn.min(axis=-1)).mean() > 0.8


def test_a_camera_is_looked_at_as_far_as_the_limit(run_dir, work, monkeypatch):
    film("film.mp4")
    real, seen = cv2.VideoCapture, []

    def capture(source, *backend):
        seen.append(source)
        return real("film.mp4" if source == 3 else source)

    monkeypatch.setattr(cv2, "VideoCapture", capture)
    assert main(["predict", "--run", str(run_dir), "--source", "3", "--limit", "4", "--output-dir", "out"]) == 0
    assert seen[0] == 3 and read_info("out/camera 3.mp4").frames == 4
    records = json.loads(pathlib.Path("out/detections.json").read_text())
    assert [(record["image"], record["frame"]) for record in records] == [("camera 3", index) for index in range(4)]


def test_an_interrupted_film_is_written_as_far_as_it_came(run_dir, work, monkeypatch, capfd):
    from multigrid.prediction import outputs

    film("film.mp4")
    real = outputs.Outputs.add

    def add(self, found):
        if self.images == 4:
            raise KeyboardInterrupt
        real(self, found)

    monkeypatch.setattr(outputs.Outputs, "add", add)
    assert main(["predict", "--run", str(run_dir), "--source", "film.mp4"]) == 1
    assert read_info("predictions/film.mp4").frames == 4
    assert len(json.loads(pathlib.Path("predictions/detections.json").read_text())) == 4
    assert "interrupted: what was done is written" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--source", "bad"], "none of 2 images and videos can be read: bad/a.jpg: expected an image"),
        (["--source", "bad/a.jpg"], "error: bad/a.jpg: expected an image, received a file of no known image format"),
        (["--source", "bad/b.mp4"], "error: bad/b.mp4: expected a video, received an empty file"),
        (["--source", "nowhere"], "error: nowhere: expected an image or a folder of images"),
        (["--source", "good.png", "--output-dir", "."], "--output-dir: expected a folder other than that of the imag"),
        (["--source", "good.png", "bad/a.jpg", "--output-dir", "linked"], "--output-dir: expected a folder other than"),
        (["--source", "loss.x=1", "model_config=m.yaml"], "error: --source: expected images, "),
        (["--source", "date=2024/*.jpg"], "date=2024/*.jpg: expected a pattern of images or videos, received one"),
        (["--source", "data.d/x=1.jpg"], "error: data.d/x=1.jpg: expected an image or a folder of images"),
        (["--source", "good.png", "--limit", "0"], "expected a whole number from 1"),
        (["--source", "good.png", "--config", "x.yaml"], "error: expected --run or --config and not both"),
    ],
)
def test_what_cannot_be_used_is_said_before_a_network_is_built(run_dir, work, words, complaint, capfd, monkeypatch):
    (work / "bad").mkdir()
    (work / "bad" / "a.jpg").write_text("no image")
    (work / "bad" / "b.mp4").write_bytes(b"")
    (work / "linked").symlink_to("bad")
    picture().save("good.png")
    monkeypatch.setattr("multigrid.cli.predict.start_backend", lambda: pytest.fail("the network was built"))
    try:
        code = main(["predict", "--run", str(run_dir), *words])
    except SystemExit as left:
        code = left.code
    # FFmpeg is told to be quiet before its first use in a process; here other tests may have used it.
    shown = [line for line in capfd.readouterr().err.splitlines() if not line.startswith("[mov,mp4")]
    assert code == 2 and complaint in shown[-1], shown
    assert len(shown) == 1 or shown[0].startswith("usage: "), shown
    assert sorted(path.name for path in work.iterdir()) == ["bad", "good.png", "linked"]


def test_the_script_says_what_it_needs():
    words = ["tools/predict.py", "--source", "x", "--config", "configs/quickstart.yaml"]
    done = subprocess.run([sys.executable, *words], cwd=CHECKOUT, capture_output=True)
    assert done.returncode == 2
    assert b"with --config the following argument is required: --weights" in done.stderr


def test_targets_never_meet(tmp_path):
    names = ["a/x.jpg", "b/x.jpg", "b/x.bmp", "b/x.bmp.png", "b/c.mov", "b/c.mov.mp4"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    items = [list_source(tmp_path / name).items[0] for name in names]
    targets = {
        str(path).removeprefix(f"{tmp_path}/"): target.as_posix() for path, target in picture_targets(items).items()
    }
    assert targets == {
        "a/x.jpg": "a/x.jpg", "b/x.jpg": "b/x.jpg", "b/x.bmp.png": "b/x.bmp.png", "b/c.mov.mp4": "b/c.mov.mp4",
        "b/x.bmp": "b/x.bmp.png.png", "b/c.mov": "b/c.mov.mp4.mp4",
    }  # fmt: skip
    assert picture_targets(list_source(2).items) == {"camera 2": pathlib.PurePath("camera 2.mp4")}


def test_targets_are_not_compared_with_all_others(monkeypatch):
    compared, equal = [], pathlib.PurePath.__eq__
    monkeypatch.setattr(pathlib.PurePath, "__eq__", lambda one, other: compared.append(1) or equal(one, other))
    items = [Item("image", f"many/{index}.bmp") for index in range(400)]
    assert len(set(map(str, picture_targets(items).values()))) == 400
    # each with each were 79,800; in a set those whose hashes meet are compared
    assert len(compared) < 400


def test_what_fails_leaves_no_half_files(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path / "out", None) as outputs:
        raise KeyError(outputs.images)
    assert list((tmp_path / "out").iterdir()) == []
