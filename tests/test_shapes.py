"""The drawn scenes: what is said of a shape is what is seen, and a folder of them is whole, repeatable and movable."""

import json
import pathlib

import cv2
import numpy as np
import pytest

from multigrid.data import shapes
from multigrid.data.drawing import draw_outline, rasterize
from multigrid.data.samples import read_class_names, read_samples
from multigrid.data.shapes import CLASS_NAMES, LABELS, LEAST_VISIBLE, draw_data_set, draw_scene, scene_generator
from multigrid.errors import InputError

CLASS_LIST = pathlib.Path(__file__).resolve().parents[1] / "configs" / "classes" / "shapes.txt"
COUNTS = {"train": 6, "val": 3}


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(scene_generator(11, "train", index)) for index in range(250)]


def extent(pixels):
    """Corners around the true pixels, by another way than the module's own."""
    rows, columns = np.nonzero(pixels)
    return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], np.float32)


# --- scenes


def test_a_seed_gives_the_same_scene_in_any_order():
    first = [draw_scene(scene_generator(3, "val", index)) for index in (0, 1, 2)]
    second = [draw_scene(scene_generator(3, "val", index)) for index in (2, 0, 1)]
    for here, there in zip(first, [second[1], second[2], second[0]], strict=True):
        for one, other in zip(here, there, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed, split, index", [(4, "val", 0), (3, "train", 0), (3, "val", 1)])
def test_another_seed_split_or_index_gives_another_scene(seed, split, index):
    size = (61, 94)
    scene = draw_scene(scene_generator(3, "val", 0), image_size=size)
    assert np.mean(scene.image != draw_scene(scene_generator(seed, split, index), image_size=size).image) > 0.9


def test_a_scene_has_the_types_and_shapes_it_promises(scenes):
    for image, boxes, classes, mask in scenes:
        assert image.dtype == np.uint8 and image.shape == (*mask.shape, 3)
        assert boxes.dtype == np.float32 and boxes.shape == (len(classes), 4)
        assert classes.dtype == np.int32 and mask.dtype == np.int32
        assert mask.max(initial=0) == len(classes)


def test_the_image_size_asked_for_is_height_then_width():
    assert draw_scene(8, image_size=(70, 131)).mask.shape == (70, 131)


def test_every_box_encloses_its_visible_pixels_and_lies_in_the_image(scenes):
    for scene in scenes:
        height, width = scene.mask.shape
        for index, box in enumerate(scene.boxes):
            seen = extent(scene.mask == index + 1)
            assert np.all(seen[:2] >= box[:2]) and np.all(seen[2:] <= box[2:])
            assert np.all(box >= 0) and np.all(box <= (width, height, width, height))


def test_the_box_of_a_shape_with_nothing_on_top_is_tight(scenes):
    tight = 0
    for scene in scenes:
        for index, box in enumerate(scene.boxes):
            left, top, right, bottom = box.astype(int)
            if scene.mask[top:bottom, left:right].max() == index + 1:  # later shapes have larger numbers
                np.testing.assert_array_equal(extent(scene.mask == index + 1), box)
                tight += 1
    assert tight > 500


def test_a_hidden_shape_keeps_the_box_of_its_whole_outline(scenes):
    wider = sum(
        bool(np.any(extent(scene.mask == index + 1) != box))
        for scene in scenes
        for index, box in enumerate(scene.boxes)
    )
    assert wider > 50


def test_enough_of_every_shape_stays_visible():
    for seed in range(40):
        canvas = shapes._Canvas(np.zeros((97, 142, 3), np.float32))
        rng = np.random.default_rng(seed)
        for _ in range(12):
            contours = draw_outline(CLASS_NAMES[seed % 6], 40.0, (90, 70), rng)
            canvas.add(seed % 6, rasterize(contours), rng)
        seen = np.bincount(canvas.mask.ravel(), minlength=len(canvas.areas) + 1)[1:]
        assert len(canvas.areas) >= 2
        np.testing.assert_array_equal(seen, canvas.visible)
        assert np.all(seen >= LEAST_VISIBLE * np.array(canvas.areas))


def test_a_shape_stands_out_from_what_is_around_it(scenes):
    distances = []
    for scene in scenes:
        for index in range(len(scene.boxes)):
            own = (scene.mask == index + 1).astype(np.uint8)
            around = cv2.dilate(own, np.ones((9, 9), np.uint8)) - cv2.dilate(own, np.ones((3, 3), np.uint8))
            means = [np.array(cv2.mean(scene.image, m)[:3]) for m in (own, around)]
            distances.append(np.linalg.norm(means[0] - means[1]))
    # Drawn at 90 or more from what it covers; neighbours drawn later and gradients take some of it.
    assert np.percentile(distances, 2) > 40


def test_the_colour_of_a_shape_says_nothing_about_its_class(scenes):
    colours, labels = [], []
    for scene in scenes:
        for index, label in enumerate(scene.classes):
            colours.append(scene.image[scene.mask == index + 1].mean(axis=0))
            labels.append(label)
    colours, labels = np.array(colours), np.array(labels)
    centred = colours - colours.mean(axis=0)
    between = sum(np.sum(centred[labels == k].mean(axis=0) ** 2) * np.sum(labels == k) for k in range(len(CLASS_NAMES)))
    # Without any tie the share is (classes - 1) / (N - 1), here 5 / 1000; a tie of one channel would give 1/3.
    assert between / np.sum(centred**2) < 0.02


def test_classes_are_balanced(scenes):
    counts = np.bincount(np.concatenate([scene.classes for scene in scenes]), minlength=len(CLASS_NAMES))
    assert counts.min() > 0.75 * counts.mean()


def test_sizes_ratios_and_counts_are_widely_spread(scenes):
    sides = np.concatenate([scene.boxes[:, 2:] - scene.boxes[:, :2] for scene in scenes])
    low, high = np.percentile(np.sqrt(sides.prod(axis=1)), [10, 90])
    # Log-uniform over 24..150 has (150 / 24) ** 0.8 = 4.3; the largest are held to 0.8 of the image.
    assert high / low > 3.5
    ratios = sides[:, 0] / sides[:, 1]
    assert np.mean(ratios > 2.5) > 0.04 and np.mean(ratios < 1 / 2.5) > 0.04
    counts = np.bincount([len(scene.boxes) for scene in scenes], minlength=7)
    assert len(counts) == 7 and np.all(counts[1:] > 0)
    assert 0.01 < counts[0] / len(scenes) < 0.08


def test_images_vary_in_size_and_some_stand_upright(scenes):
    sizes = np.array([scene.mask.shape for scene in scenes])
    assert len(np.unique(sizes, axis=0)) > 200
    assert 0.1 < np.mean(sizes[:, 0] > sizes[:, 1]) < 0.4
    assert np.mean(sizes[:, 0] == sizes[:, 1]) < 0.02


def test_about_a_tenth_of_the_shapes_touch_the_border(scenes):
    touching = np.concatenate(
        [np.any((s.boxes == 0) | (s.boxes == (*s.mask.shape[::-1], *s.mask.shape[::-1])), axis=1) for s in scenes]
    )
    assert 0.04 < touching.mean() < 0.16


# --- the data set on disk


@pytest.mark.parametrize("format", LABELS)
def test_every_format_reads_back_what_was_drawn_after_the_folder_moved(tmp_path, format):
    drawn = tmp_path / "drawn"
    labels = draw_data_set(drawn, counts=COUNTS, seed=2, format=format)
    moved = tmp_path / "a new place"
    drawn.rename(moved)
    for split, count in COUNTS.items():
        samples, defects = read_samples(moved / labels[split].relative_to(drawn), CLASS_NAMES, split=split)
        assert not defects
        samples = sorted(samples, key=lambda sample: sample.path)
        assert [pathlib.Path(s.path) for s in samples] == sorted((moved / "images" / split).iterdir())
        assert len(samples) == count
        for index, sample in enumerate(samples):
            scene = draw_scene(scene_generator(2, split, index))
            assert sample.size == scene.mask.shape
            np.testing.assert_allclose(sample.boxes, scene.boxes, atol=1e-3)
            np.testing.assert_array_equal(sample.classes, scene.classes)


def test_the_files_hold_the_scenes(tmp_path):
    draw_data_set(tmp_path / "s", counts={"test": 2}, seed=9)
    image = cv2.imread(str(tmp_path / "s" / "images" / "test" / "000002.jpg"))[..., ::-1]
    scene = draw_scene(scene_generator(9, "test", 1))
    # JPEG keeps every second pixel's hue: a few grey levels on average, far from what swapped channels would give.
    assert np.abs(image.astype(int) - scene.image).mean() < 8


def test_an_equal_data_set_is_reused(tmp_path):
    seen = []
    first = draw_data_set(tmp_path / "s", counts=COUNTS, seed=2, progress=lambda *step: seen.append(step))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    second = draw_data_set(tmp_path / "s", counts=COUNTS, seed=2, progress=lambda *step: seen.append(step))
    assert first == second and seen == [(k, 9) for k in range(1, 10)]
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}


@pytest.mark.parametrize("change", [{"seed": 3}, {"counts": {"train": 2}}, {"format": "coco"}])
def test_other_parameters_replace_the_data_set(tmp_path, change):
    draw_data_set(tmp_path / "s", counts=COUNTS, seed=2)
    old = (tmp_path / "s" / "images" / "train" / "000001.jpg").read_bytes()
    parameters = {"counts": COUNTS, "seed": 2} | change
    labels = draw_data_set(tmp_path / "s", **parameters)
    assert all(path.exists() for path in labels.values())
    assert len(list((tmp_path / "s").rglob("*.jpg"))) == sum(parameters["counts"].values())
    assert ((tmp_path / "s" / "images" / "train" / "000001.jpg").read_bytes() != old) == ("seed" in change)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_a_new_way_of_drawing_or_a_lost_label_file_draws_again(tmp_path, monkeypatch):
    labels = draw_data_set(tmp_path / "s", counts=COUNTS, seed=2)
    labels["val"].unlink()
    assert draw_data_set(tmp_path / "s", counts=COUNTS, seed=2)["val"].exists()
    monkeypatch.setattr(shapes, "DRAWING_VERSION", shapes.DRAWING_VERSION + 1)
    steps = []
    draw_data_set(tmp_path / "s", counts=COUNTS, seed=2, progress=lambda *step: steps.append(step))
    assert len(steps) == 9


@pytest.mark.parametrize("manifest", [None, "{broken", "[1]", '{"circles": 3}'])
def test_a_folder_that_was_not_drawn_here_is_refused_and_left_alone(tmp_path, manifest):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    if manifest is not None:
        (folder / "shapes.json").write_text(manifest)
    with pytest.raises(InputError, match="mine: expected nothing, or a folder drawn here"):
        draw_data_set(folder, counts=COUNTS, seed=2)
    assert (folder / "thesis.txt").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(InputError, match="mine: expected nothing"):
        draw_data_set(tmp_path / "mine", counts=COUNTS, seed=2)
    assert (tmp_path / "mine").read_text() == "years of work"


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "s").mkdir()
    assert draw_data_set(tmp_path / "s", counts=COUNTS, seed=2)["val"].exists()


@pytest.mark.parametrize("before", [False, True])
def test_a_drawing_that_breaks_off_leaves_nothing_new_behind(tmp_path, before):
    if before:
        draw_data_set(tmp_path / "s", counts={"train": 1}, seed=2)

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_data_set(tmp_path / "s", counts=COUNTS, seed=2, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["s"] * before
    assert len(list(tmp_path.rglob("*.jpg"))) == int(before)


def test_the_manifest_says_how_the_folder_was_drawn(tmp_path):
    draw_data_set(tmp_path / "s", counts=COUNTS, seed=2, format="voc")
    manifest = json.loads((tmp_path / "s" / "shapes.json").read_text())
    assert manifest["counts"] == COUNTS and manifest["seed"] == 2 and manifest["format"] == "voc"
    assert manifest["classes"] == list(CLASS_NAMES) and manifest["drawing_version"] == shapes.DRAWING_VERSION


@pytest.mark.parametrize(
    "change, message",
    [
        ({"format": "tfrecord"}, "format: expected one of yolo3, voc, coco, yolo, received 'tfrecord'"),
        ({"seed": -1}, "seed: expected an integer from 0, received -1"),
        ({"counts": {}}, "counts: expected at least one split, received none"),
        ({"counts": {"../up": 3}}, "counts: expected a split's name of letters, digits and '_', received '../up'"),
        ({"counts": {"val": 0}}, "counts.val: expected an integer from 1, received 0"),
    ],
)
def test_parameters_that_cannot_be_used_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(InputError) as refusal:
        draw_data_set(tmp_path / "s", **({"counts": COUNTS, "seed": 2} | change))
    assert str(refusal.value) == message
    assert not list(tmp_path.iterdir())


def test_the_class_list_that_ships_names_the_drawn_classes():
    assert read_class_names(CLASS_LIST) == CLASS_NAMES
