"""The predictor: what a real, tiny, overfitted detector sees comes back in each image's own pixels."""

import json
import os

import cv2
import keras
import numpy as np
import pytest
from PIL import Image

from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.images import Letterbox
from multigrid.data.samples import Sample
from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector
from multigrid.models.weights import save_weights
from multigrid.prediction.predictor import Predictor
from multigrid.prediction.run_folder import labels_there, run_config
from multigrid.prediction.video import VideoWriter

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
NAMES = ("red", "green", "blue")
SIZE = (64, 96)
# (height, width), then class and corners. 150 × 200 is scaled by 64 / 150 and has borders left and right; 60 × 280 by
# 96 / 280 and has borders above and below.
SCENES = (
    ((150, 200), ((0, (20, 31, 110, 93)), (2, (125, 80, 171, 142)))),
    ((60, 280), ((1, (30, 8, 76, 49)), (0, (150, 12, 266, 52)))),
)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("scenes"), []
    for number, (size, objects) in enumerate(SCENES, start=1):
        image = np.full((*size, 3), 90, np.uint8)
        for label, (x1, y1, x2, y2) in objects:
            image[y1:y2, x1:x2] = np.eye(3, dtype=np.uint8)[label] * 255
        path = str(folder / f"scene {number}.png")
        cv2.imwrite(path, image[..., ::-1])
        boxes = np.array([corners for _, corners in objects], "float32")
        made.append(Sample(path, boxes, np.array([label for label, _ in objects], "int32"), number, size))
    return made


@pytest.fixture(scope="module")
def detector(samples):
    """Overfitted to the two scenes."""
    keras.utils.set_random_seed(3)
    made = MultiGridDetector(
        ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8, criterion=MultiGridLoss(ANCHORS, len(NAMES))
    )
    made.compile(keras.optimizers.Adam(5e-3), jit_compile=False)
    images, truth = MultiGridDataGenerator(samples, input_size=SIZE, batch_size=2)[0]
    for _ in range(150):
        made.train_on_batch(images, truth)
    return made


@pytest.fixture(scope="module")
def predictor(detector):
    return Predictor(detector, NAMES, SIZE, score_threshold=0.1, batch_size=2)


@pytest.fixture(scope="module")
def everywhere():
    """A detector that finds the same in every cell, whatever it is shown: its kernels are 0, its biases speak."""
    made = MultiGridDetector(ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8)
    for stride in made.strides:
        layer = made.get_layer(f"grid_{stride}")
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        bias = np.zeros(layer.bias.shape)
        bias[4], bias[-2] = 5.0, 5.0
        layer.bias.assign(bias)
    return made


def iou(one, other):
    low, high = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    shared = np.prod(np.clip(high - low, 0, None))
    return shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def read(sample):
    return cv2.imread(sample.path)[..., ::-1]


def assert_same(one, other, atol=1e-3):
    assert one.size == other.size
    assert one.class_ids.tolist() == other.class_ids.tolist()
    np.testing.assert_allclose(one.boxes, other.boxes, atol=atol)
    np.testing.assert_allclose(one.scores, other.scores, atol=1e-5)


@pytest.mark.parametrize("number", [0, 1])
def test_objects_are_found_in_the_pixels_of_their_own_image(predictor, samples, number):
    sample = samples[number]
    found = predictor.predict(sample.path)
    assert (found.path, found.size) == (sample.path, sample.size)
    for box, label in zip(sample.boxes, sample.classes, strict=True):
        best = max(iou(box, other) for other in found.boxes[found.class_ids == label])
        assert best > 0.5
        # were borders or the scale forgotten, the box would lie elsewhere
        moved = Letterbox.fit(sample.size, SIZE).apply_boxes(box)
        assert iou(box, moved) < 0.5


def test_detections_are_sorted_clipped_and_of_plain_types(predictor, samples):
    found = predictor.predict(samples[0].path)
    assert len(found) == len(found.boxes) >= 2
    assert (found.boxes.dtype, found.scores.dtype, found.class_ids.dtype) == (np.float32, np.float32, np.int32)
    assert np.all(np.diff(found.scores) <= 0) and found.scores.min() >= 0.1
    assert found.boxes.min() >= 0 and np.all(found.boxes <= (200, 150, 200, 150))
    assert found.names == [NAMES[index] for index in found.class_ids]


def test_a_path_and_its_pixels_give_the_same_detections(predictor, samples):
    by_path, by_array = predictor.predict(samples[1].path), predictor.predict(read(samples[1]))
    assert len(by_path) > 0 and by_array.path == ""
    assert_same(by_path, by_array)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_stream_gives_what_each_image_gives_alone_and_in_order(detector, samples, batch_size):
    together = Predictor(detector, NAMES, SIZE, score_threshold=0.1, batch_size=batch_size)
    order = [0, 1, 1, 0, 1]  # a short last batch for 2 and 3
    found = list(together.stream(samples[index].path for index in order))
    assert [one.path for one in found] == [samples[index].path for index in order]
    alone = [Predictor(detector, NAMES, SIZE, score_threshold=0.1).predict(sample.path) for sample in samples]
    for one, index in zip(found, order, strict=True):
        assert_same(one, alone[index])


def test_the_network_sees_batches_of_one_size_and_one_image_alone(detector, samples, monkeypatch):
    watched = Predictor(detector, NAMES, SIZE, batch_size=2)
    seen, real = [], watched.model.predict_on_batch
    monkeypatch.setattr(watched.model, "predict_on_batch", lambda images: seen.append(len(images)) or real(images))
    assert len(list(watched.stream([samples[0].path] * 5))) == 5
    watched.predict(samples[0].path)
    assert seen == [2, 2, 2, 1]


def test_it_reads_ahead_and_not_to_the_end(predictor, samples):
    asked = []
    stream = predictor.stream(asked.append(1) or sample.path for sample in 20 * samples)
    assert [next(stream).size for _ in range(3)] == [(150, 200), (60, 280), (150, 200)]
    stream.close()
    assert 4 < len(asked) <= 8  # the two batches that were wanted, and two more


def test_no_images_give_no_detections(predictor):
    assert list(predictor.stream([])) == []


def test_a_broken_image_is_named_when_its_batch_is_due(predictor, samples, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff cut off")
    stream = predictor.stream([samples[0].path, samples[1].path, samples[0].path, str(broken)])
    assert [next(stream).size for _ in range(2)] == [(150, 200), (60, 280)]
    with pytest.raises(InputError, match=r"broken\.jpg: expected an image"):
        next(stream)
    with pytest.raises(InputError, match="none.png: expected an image, received no file"):
        predictor.predict(tmp_path / "none.png")


@pytest.mark.parametrize(("shape", "dtype"), [((40, 60, 3), "float32"), ((40, 60), "uint8"), ((40, 60, 4), "uint8")])
def test_pixels_that_are_no_rgb_bytes_are_refused(predictor, shape, dtype):
    with pytest.raises(TypeError, match=rf"image: expected uint8 \[height, width, 3\], received {dtype} \(40, 60"):
        predictor.predict(np.zeros(shape, dtype))


def test_what_lies_wholly_in_the_border_is_no_detection(everywhere):
    # 12 × 192 pixels become 6 × 96, rows 29 to 35 of 64: most cells lie above or below.
    found = Predictor(everywhere, NAMES, SIZE, score_threshold=0.5).predict(np.zeros((12, 192, 3), np.uint8))
    assert 0 < len(found) < 126
    assert np.all(found.boxes[:, 2:] > found.boxes[:, :2])
    assert set(found.names) == {"green"}
    # sigmoid(5)^2 = 0.986659
    np.testing.assert_allclose(found.scores, 0.986659, atol=1e-5)


def test_thresholds_and_the_cap_are_obeyed(everywhere):
    image = np.zeros((64, 96, 3), np.uint8)

    def count(**options):
        return len(Predictor(everywhere, NAMES, SIZE, **options).predict(image))

    # No IoU is more than 1: all of 8 · 12 + 4 · 6 + 2 · 3 = 126 cells. Red and blue have sigmoid(5) sigmoid(0), 0.4967:
    # three times as many. The finest grid's 8 × 6 boxes lie in the coarser ones' larger boxes.
    assert count(score_threshold=0.5, nms_threshold=1.0) == 126
    assert count(score_threshold=0.4, nms_threshold=1.0, max_detections=1000) == 378
    assert count(score_threshold=0.5, nms_threshold=0.0) < 126
    assert count(score_threshold=0.99) == 0
    assert count(score_threshold=0.5, max_detections=17) == 17


def test_what_does_not_suit_the_detector_is_refused(detector):
    with pytest.raises(ValueError, match=r"input_size: expected multiples of 32, received \(64, 100\)"):
        Predictor(detector, NAMES, (64, 100))
    with pytest.raises(ValueError, match="class_names: expected 3 names, received 2"):
        Predictor(detector, NAMES[:2], SIZE)


# --- whatever holds images --------------------------------------------------------------------------------------------


def test_a_pillow_image_gives_what_its_file_gives_whichever_way_up(predictor, samples, tmp_path):
    upright = Image.open(samples[0].path)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise to stand upright
    path = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(path, exif=exif)
    by_image, by_path = predictor.predict(Image.open(path)), predictor.predict(path)
    assert len(by_path) >= 2 and by_image.size == (150, 200) and by_image.path == ""
    assert_same(by_image, by_path)
    assert_same(by_image, predictor.predict(samples[0].path))
    np.testing.assert_array_equal(by_image.image, np.asarray(upright))


def test_a_pillow_image_with_alpha_loses_it(predictor, samples):
    image = Image.open(samples[0].path).convert("RGBA")
    image.putalpha(70)
    assert_same(predictor.predict(image), predictor.predict(samples[0].path))


def test_several_images_come_as_a_list(predictor, samples):
    folder = samples[0].path.rpartition("/")[0]
    alone = [predictor.predict(sample.path) for sample in samples]
    mixed = [samples[0].path, read(samples[1]), Image.open(samples[0].path)]
    for source, expected in (
        (folder, [0, 1]),
        (f"{folder}/*2.png", [1]),
        ((sample.path for sample in samples), [0, 1]),
        (mixed, [0, 1, 0]),
        (read(samples[0])[None], [0]),
        ([], []),
    ):
        found = predictor.predict(source)
        assert isinstance(found, list) and len(found) == len(expected)
        for one, index in zip(found, expected, strict=True):
            assert_same(one, alone[index])


def test_what_is_broken_is_reported_in_its_turn_and_the_rest_is_done(predictor, samples, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff cut off")
    source = [samples[0].path, str(broken), f"{tmp_path}/*.bmp", "none.mp4", samples[1].path]
    errors = []
    found = predictor.predict(source, on_broken=errors.append)
    assert [one.path for one in found] == [samples[0].path, samples[1].path]
    complaints = ["broken.jpg: expected an image", "*.bmp: expected a pattern", "none.mp4: expected a video"]
    assert len(errors) == 3
    assert all(words in str(error) for words, error in zip(complaints, errors, strict=True))
    with pytest.raises(InputError, match=r"broken\.jpg"):
        predictor.predict(source)
    with pytest.raises(InputError, match=r"broken\.jpg"):  # there is no rest
        predictor.predict(broken, on_broken=errors.append)


def test_a_video_is_detected_frame_for_frame(predictor, samples, tmp_path):
    image = read(samples[0])
    with VideoWriter(tmp_path / "film.mp4", 10) as video:
        for index in range(5):
            video.write(image if index % 2 else np.full_like(image, 90))
    seen = list(predictor.stream(tmp_path / "film.mp4"))
    assert [one.frame for one in seen] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([one.time for one in seen], [0, 0.1, 0.2, 0.3, 0.4], atol=1e-6)
    assert {one.path for one in seen} == {str(tmp_path / "film.mp4")}
    assert [one.image[60, 60, 0] > 200 for one in seen] == [False, True, False, True, False]
    for one in seen:
        assert_same(one, predictor.predict(one.image))
    assert seen[1].image.shape == image.shape and seen[1].plot().shape == image.shape
    kept = predictor.predict(tmp_path / "film.mp4")
    assert [one.frame for one in kept] == [0, 1, 2, 3, 4] and all(one.image is None for one in kept)
    assert len(list(predictor.stream(tmp_path / "film.mp4", limit=2))) == 2


def test_a_camera_that_is_not_there_is_an_error(predictor):
    with pytest.raises(InputError, match="camera 97: expected a camera, received none that answers"):
        next(predictor.stream(97))


# --- run folders and configs ------------------------------------------------------------------------------------------


CONFIG = """\
data: {train: /gone/train.txt, classes: /gone/run/classes.txt, anchors: /gone/run/anchors.txt}
model: {width: 0.0625, depth: 0.125, input_size: [64, 96]}
detection: {predict_threshold: 0.1}
output: {dir: /gone/run}
backbone_weights: /gone/backbone.weights
"""


@pytest.fixture
def run_dir(detector, tmp_path):
    """What training left, in another place than where it was trained; its name is no plain YAML."""
    folder = tmp_path / "moved: 1 # run"
    (folder / "weights").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "classes.txt").write_text("\n".join(NAMES), encoding="utf-8")
    (folder / "anchors.txt").write_text("8,6  12,9\n20,14  14,30\n40,28  48,44\n", encoding="utf-8")
    save_weights(detector, folder / "weights" / "best.weights.h5")
    return folder


def test_a_run_folder_may_have_been_moved(run_dir, predictor, samples, monkeypatch):
    monkeypatch.chdir(run_dir.parent)
    made = Predictor.from_run(run_dir.name)
    assert (made.class_names, made.input_size, made.score_threshold) == (NAMES, SIZE, 0.1)
    assert_same(made.predict(samples[0].path), predictor.predict(samples[0].path))


def test_scenes_of_another_machine_are_drawn_where_they_are_by_default(run_dir):
    written = CONFIG.replace("train: /gone/train.txt", "train: shapes, val: shapes, shapes: {folder: /gone/shapes}")
    (run_dir / "config.yaml").write_text(written, encoding="utf-8")
    assert labels_there(run_dir) == ["train", "val"]
    assert run_config(run_dir, labels=["val"]).data.shapes.folder == os.path.abspath("datasets/shapes")
    there = run_dir / "scenes"
    there.mkdir()
    (run_dir / "config.yaml").write_text(written.replace("/gone/shapes", json.dumps(str(there))), encoding="utf-8")
    assert run_config(run_dir, labels=["val"]).data.shapes.folder == str(there)


def test_labels_are_looked_for_beside_the_config_and_a_broken_one_has_none(run_dir, monkeypatch):
    (run_dir / "my labels.txt").write_text("", encoding="utf-8")
    monkeypatch.chdir(run_dir.parent)
    for text, there in (
        ("data: {train: my labels.txt, val: gone.txt, test: shapes}", ["train", "test"]),
        ("data: {train: [my labels.txt], val: ''}", []),
        ("data:", []),
        ("data: 5", []),
        ("- data", []),
        ("data: {train: {", []),
        ("", []),
    ):
        (run_dir / "config.yaml").write_text(text, encoding="utf-8")
        assert labels_there(run_dir) == there, text
    for text in ("data: {train: {", "data: {shapes: 5}"):
        (run_dir / "config.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(InputError, match=r"config\.yaml, line 1"):
            run_config(run_dir)
    assert labels_there(run_dir / "weights") == []


def test_overrides_win_over_the_run(run_dir, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\nthree\n", encoding="utf-8")
    (run_dir / "weights" / "best.weights.h5").rename(tmp_path / "other.h5")
    weights = f"weights={tmp_path / 'other.h5'}"
    made = Predictor.from_run(run_dir, [weights, f"data.classes={tmp_path / 'names.txt'}"], evaluating=True)
    assert made.class_names == ("one", "two", "three") and made.score_threshold == 0.001


def test_a_run_without_its_best_weights_is_named(run_dir):
    best = run_dir / "weights" / "best.weights.h5"
    best.rename(run_dir / "weights" / "last.weights.h5")
    with pytest.raises(
        InputError, match=r"run: expected a run with weights/best.weights.h5, received one without; wei"
    ):
        Predictor.from_run(run_dir)
    (run_dir / "weights" / "last.weights.h5").unlink()
    with pytest.raises(InputError, match="received one without yet: no epoch of it was finished"):
        Predictor.from_run(run_dir)
    with pytest.raises(InputError, match="weights: expected a run folder with a config.yaml, received none"):
        Predictor.from_run(run_dir / "weights")


def test_a_config_without_weights_makes_no_predictor(run_dir):
    settings = [f"data.{name}='{run_dir / name}.txt'" for name in ("classes", "anchors")]
    settings += ["data.train=null", "backbone_weights=null"]
    with pytest.raises(InputError, match="weights: expected a file of trained weights, received null"):
        Predictor.from_config(run_dir / "config.yaml", settings)
