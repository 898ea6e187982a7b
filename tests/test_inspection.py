"""Inspection of label files: counts, sizes, defects, repeated boxes and images; and the verb `data`."""

import json
import shutil
import warnings

import cv2
import numpy as np
import pytest

from multigrid.cli import data, data_pictures, main
from multigrid.data import inspection
from multigrid.data.inspection import read_split
from multigrid.data.label_contents import names_in, splits_in
from multigrid.data.samples import read_class_names, read_samples, write_samples
from multigrid.data.shapes import CLASS_NAMES
from multigrid.errors import InputError

NAMES = ("cat", "dog", "fish")
TRAIN = """\
images/a.png 10,10,30,25,0 10,10,30,24,0 10,10,30,25,1
images/b.png 5,5,45,95,0 20,20,10,40,1 -9,3,12,20,1
images/c.png
images/a.png 1,1,9,7,2
images/gone.png 1,1,5,5,0
images/torn.png 1,1,5,5,0
"""
VAL = """\
images/d.png 0,0,9,9,7 2,3,14,12,1
images/b.png 5,5,45,95,0
images/copy.png 1,1,9,9,0
"""


def picture(seed: int, height: int, width: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(128, 60, (max(height // 8, 2), max(width // 8, 2), 3)).astype("float32")
    return np.clip(cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Two splits with a defect of most kinds; a, c and d are 64 × 96 pixels high and wide, b is 120 × 72."""
    images = tmp_path / "images"
    images.mkdir()
    for seed, name in enumerate("acd"):
        cv2.imwrite(str(images / f"{name}.png"), picture(seed, 64, 96))
    cv2.imwrite(str(images / "b.png"), picture(9, 120, 72))
    shutil.copy(images / "a.png", images / "copy.png")
    (images / "torn.png").write_bytes((images / "b.png").read_bytes()[:200])
    (tmp_path / "train.txt").write_text(TRAIN)
    (tmp_path / "val.txt").write_text(VAL)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def splits(folder):
    return [read_split(f"{name}.txt", NAMES, name=name) for name in ("train", "val")]


def run(*words):
    return main(["data", *words])


# --- what is counted


def test_broken_images_are_listed_and_the_others_are_read(splits):
    train, val = splits
    assert [place for place, _ in train.unreadable] == ["train.txt, line 5", "train.txt, line 6"]
    assert "no file of this name" in train.unreadable[0][1] and "damaged" in train.unreadable[1][1]
    assert [len(sample.boxes) for sample in train.samples] == [3, 2, 0, 1] and val.unreadable == []
    assert train.places == [f"train.txt, line {line}" for line in (1, 2, 3, 4)]
    assert [sample.size for sample in train.samples] == [(64, 96), (120, 72), (64, 96), (64, 96)]


def test_a_split_whose_images_are_all_missing_is_read_and_counted(folder, capsys):
    (folder / "train.txt").write_text("images\\\\a.png 10,10,30,25,0\nimages/gone.png 1,1,5,5,0\n")
    split = read_split(folder / "train.txt", NAMES, name="train")
    assert not split.samples and [place[-6:] for place, _ in split.unreadable] == ["line 1", "line 2"]
    assert main(["data", "train.txt", "--classes", "classes.txt"]) == 1
    said = capsys.readouterr().out
    assert "train.txt, line 1: " in said and said.endswith("written to data-report: data.json\n")


def test_defects_are_those_of_reading_each_with_its_image(splits):
    train, val = splits
    assert [(defect.kind, defect.dropped) for defect in train.defects] == [("inverted", True), ("clipped", False)]
    assert [[defect.kind for defect in split.dropped] for split in splits] == [["inverted"], ["unknown-class"]]
    assert [path.rsplit("/", 1)[-1] for path in train.defect_paths + val.defect_paths] == ["b.png", "b.png", "d.png"]


def test_a_split_is_counted_by_image_class_and_size(splits):
    found = inspection.summarize(splits[0], NAMES, (128, 64))
    assert (found["images"], found["unreadable"], found["boxes"], found["images_without_boxes"]) == (4, 2, 6, 1)
    assert (found["median_boxes"], found["max_boxes"], found["dropped_boxes"]) == (1.5, 3, 1)  # of 3, 2, 0, 1
    assert found["image_sizes"] == {"96 x 64": 3, "72 x 120": 1}
    # 300, 280, 300 and 48 square pixels; 40 · 90 = 3600; 12 · 17 = 204 after clipping at x = 0.
    assert found["box_sizes"] == {"small": 5, "medium": 1, "large": 0}
    # 72 × 120 pixels in an input 64 wide and 128 high: × 64 / 72, so 3600 becomes 2844 or so; all others stay small.
    assert found["box_sizes_at_input"] == {"small": 5, "medium": 1, "large": 0}
    assert found["median_box"] == pytest.approx(np.sqrt(290))
    assert found["classes"]["cat"] == {"boxes": 3, "share": 0.5, "median_box": pytest.approx(np.sqrt(300))}
    assert found["classes"]["dog"]["boxes"] == 2 and found["classes"]["fish"]["boxes"] == 1


def test_sizes_at_the_input_are_those_that_the_network_sees(splits):
    # b.png is 72 wide and 120 high. In 480 × 720 (height × width) it is enlarged by 480 / 120 = 4: the areas by 16.
    # The largest box becomes 57600 square pixels, above 96² = 9216; 204 becomes 3264, above 32² = 1024.
    # a.png is 96 × 64 and enlarged by 7.5: 300 becomes 16875, 280 becomes 15750, 48 becomes 2700.
    found = inspection.summarize(splits[0], NAMES, (480, 720))
    assert found["box_sizes_at_input"] == {"small": 0, "medium": 2, "large": 4}
    areas = inspection.box_areas(splits[:1], (480, 720))
    np.testing.assert_allclose(areas, [16875, 15750, 16875, 57600, 3264, 2700], rtol=1e-5)


def test_a_split_without_boxes_has_no_medians(folder):
    (folder / "none.txt").write_text("images/c.png\n")
    found = inspection.summarize(read_split("none.txt", NAMES, name="none"), NAMES)
    assert (found["boxes"], found["median_boxes"], found["median_box"]) == (0, 0.0, None)
    assert found["box_sizes_at_input"] is None and found["classes"]["dog"]["share"] == 0


# --- what is there more than once


def test_boxes_of_one_class_that_nearly_coincide_are_found(splits):
    (found,) = inspection.repeated_boxes(splits[0], NAMES)  # and not the one of another class
    assert (found["split"], found["place"], found["class"]) == ("train", "train.txt, line 1", "cat")
    assert found["iou"] == pytest.approx(20 * 14 / (20 * 15)) and len(found["boxes"]) == 2


def test_images_named_twice_and_equal_files_are_found(splits, folder):
    named = {one["path"].rsplit("/", 1)[-1]: one for one in inspection.images_named_twice(splits)}
    assert sorted(named) == ["a.png", "b.png"]
    assert named["a.png"]["splits"] == ["train", "train"] and named["b.png"]["splits"] == ["train", "val"]
    assert named["b.png"]["places"] == ["train.txt, line 2", "val.txt, line 2"]
    (same,) = inspection.same_files(splits)
    assert same["splits"] == ["train", "val"]
    assert same["paths"] == [str(folder / "images" / name) for name in ("a.png", "copy.png")]


def test_near_duplicates_leave_out_equal_files(splits, folder):
    assert inspection.near_duplicates_between(splits) == []
    again = cv2.imread("images/a.png")
    cv2.imwrite("images/copy.png", np.clip(again * 0.8 + 20, 0, 255).astype(np.uint8))
    (found,) = inspection.near_duplicates_between([splits[0], read_split("val.txt", NAMES, name="val")])
    assert {path.rsplit("/", 1)[-1] for path in found["paths"]} == {"a.png", "copy.png"} and found["agreement"] > 0.95


def test_pairs_of_all_splits_are_counted_and_told_as_they_are_compared(splits):
    told = []
    three = [*splits, read_split("val.txt", NAMES, name="again")]
    # 4 images of train that can be read, 3 of val, twice: 4 · 3 + 4 · 3 + 3 · 3.
    assert inspection.pairs_between(three) == 33 and inspection.pairs_between(splits[:1]) == 0
    inspection.near_duplicates_between(three, lambda done, total: told.append((done, total)))
    assert told == [(done, 33) for done in (4, 8, 12, 16, 20, 24, 27, 30, 33)]


def test_no_thumbnail_is_kept_of_what_is_not_compared(splits):
    plain = read_split("train.txt", NAMES, name="train", with_thumbnails=False)
    assert [look.thumbnail for look in plain.looks] == [None] * 4
    assert [place for place, _ in plain.unreadable] == [place for place, _ in splits[0].unreadable]
    assert inspection.same_files([plain, splits[1]]) == inspection.same_files(splits)
    with pytest.raises(ValueError, match="expected the splits .* read with thumbnails"):
        inspection.near_duplicates_between([plain, splits[1]])


def test_classes_without_boxes_are_told_by_split(splits):
    assert inspection.missing_classes(splits, NAMES) == {"train": [], "val": ["fish"]}


# --- what label files tell themselves


@pytest.mark.parametrize("layout, source", [("coco", "labels.json"), ("yolo", "data.yaml"), ("voc", "voc")])
def test_layouts_that_name_their_classes_need_no_other_file(folder, layout, source):
    (folder / "few.txt").write_text("images/a.png 1,1,9,7,2\nimages/d.png 2,3,14,12,0\n")
    samples, _ = read_samples("few.txt", NAMES)
    target = folder / "made" / source
    write_samples(samples, NAMES, target, layout)
    # Pascal VOC has no list of names: those of the boxes, sorted.
    assert names_in([str(target)]) == (("cat", "fish") if layout == "voc" else NAMES)
    assert run(str(target), "--output-dir", "seen") == 0
    (split,) = json.loads((folder / "seen" / "data.json").read_text())["splits"].values()
    assert (split["images"], split["boxes"]) == (2, 2)


def test_lines_tell_classes_by_number_and_need_names(folder, capsys):
    assert run("train.txt") == 2
    assert "train.txt: expected --classes or --config with lines that tell" in capsys.readouterr().err


def test_images_of_yolo_without_a_label_file_are_noted(folder, capsys):
    for name in ("images", "labels"):
        (folder / "yolo" / name).mkdir(parents=True)
    for name in "abc":
        shutil.copy(f"images/{name}.png", f"yolo/images/{name}.png")
    (folder / "yolo" / "labels" / "a.txt").write_text("1 .5 .5 .25 .5\n")
    (folder / "yolo" / "labels" / "c.txt").write_text("")  # background that is meant
    (folder / "yolo" / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    assert run("yolo/data.yaml", "--output-dir", "seen") == 0
    assert "no label file: yolo/images/b.png (train): expected yolo/labels/b.txt\n" in capsys.readouterr().out
    (one,) = json.loads((folder / "seen" / "data.json").read_text())["without_label_file"]
    assert one["split"] == "train" and one["path"].endswith("b.png") and one["label_file"].endswith("labels/b.txt")


def test_a_data_yaml_tells_its_splits(folder):
    (folder / "data.yaml").write_text("train: images\ntest: images\nnames: {0: cat, 1: dog}\n")
    assert splits_in("data.yaml") == ["train", "test"] and names_in(["data.yaml"]) == ("cat", "dog")
    (folder / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(InputError, match='data.yaml: expected a key "train", "val" or "test"'):
        splits_in("data.yaml")


# --- the command


def test_the_command_says_and_writes_all_of_it_and_fails_where_something_cannot_be_used(folder, capsys):
    assert run("train.txt", "val.txt", "--classes", "classes.txt", "--output-dir", "seen") == 1
    shown = capsys.readouterr().out
    for words in (
        "train.txt, line 5: ",
        "inverted: train.txt, line 2: 20,20,10,40, expected x1 < x2",
        "unknown-class: val.txt, line 1: 0,0,9,9, class id 7",
        "box twice: train.txt, line 1: cat 10,10,30,25 and 10,10,30,24, IoU 0.933",
        "images/copy.png (val)",
        "class without boxes: val: fish",
    ):
        assert words in shown, words
    written = sorted(path.name for path in (folder / "seen").iterdir())
    assert written == ["boxes.png", "data.json", "defects.jpg", "samples.jpg"]
    sheet = cv2.imread("seen/samples.jpg")
    # 7 readable images in 6 columns of 360 pixels: two rows; b is higher than wide.
    assert sheet.shape[1] == 6 * (360 + 6) + 6 and 2 * 360 < sheet.shape[0] < 2 * 400


def test_json_holds_every_finding_and_is_all_that_is_printed(folder, capsys):
    assert run("val.txt", "train.txt", "--classes", "classes.txt", "--output-dir", "seen", "--json") == 1
    printed = json.loads(capsys.readouterr().out)
    pictures = printed.pop("pictures")
    assert printed.pop("output_dir") == "seen" and len(pictures) == 3
    assert printed == json.loads((folder / "seen" / "data.json").read_text())
    assert list(printed["splits"]) == ["val", "train"] and [one["kind"] for one in printed["defects"]] == [
        "unknown-class", "inverted", "clipped",
    ]  # fmt: skip
    assert [one["place"] for one in printed["unreadable"]] == ["train.txt, line 5", "train.txt, line 6"]


@pytest.mark.parametrize("line", ["images/a.png 20,20,10,40,1", "images/torn.png 1,1,5,5,0"], ids=["box", "image"])
def test_one_box_or_one_image_that_cannot_be_used_is_a_failure(folder, line):
    (folder / "one.txt").write_text(f"images/d.png 2,3,14,12,0\n{line}\n")
    assert run("one.txt", "--classes", "classes.txt") == 1


def test_a_crowd_of_coco_is_noted(folder):
    image = {"id": 4, "file_name": "images/a.png", "height": 64, "width": 96}
    things = [{"id": number, "image_id": 4, "category_id": 1, "bbox": [3, 4, 20, 9]} for number in (1, 2)]
    things[1] |= {"bbox": [30, 4, 50, 41], "iscrowd": 1}
    labels = {"images": [image], "annotations": things, "categories": [{"id": 1, "name": "cat"}]}
    (folder / "crowd.json").write_text(json.dumps(labels))
    assert run("crowd.json") == 0
    (defect,) = json.loads((folder / "data-report" / "data.json").read_text())["defects"]
    assert (defect["kind"], defect["dropped"]) == ("crowd", True)


@pytest.mark.parametrize("words, kept", [((), True), (("--no-near-duplicates",), False)])
def test_near_duplicates_that_nobody_asks_for_cost_no_memory(folder, monkeypatch, words, kept):
    looked_at = []
    monkeypatch.setattr(
        inspection,
        "look_at_image",
        lambda *arguments, own=inspection.look_at_image, **options: (
            looked_at.append(own(*arguments, **options)) or looked_at[-1]
        ),
    )
    run("train.txt", "val.txt", "--classes", "classes.txt", *words)
    assert looked_at and all((look.thumbnail is not None) == kept for look in looked_at)
    looked_at.clear()
    run("val.txt", "--classes", "classes.txt", *words)
    assert looked_at and all(look.thumbnail is None for look in looked_at), "one split has no other to compare with"


@pytest.mark.parametrize("many, said", [(12, True), (13, False)])
def test_many_pairs_are_announced_with_the_way_to_leave_them_out(folder, capsys, monkeypatch, many, said):
    # 4 images of train and 3 of val are 12 pairs.
    monkeypatch.setattr(data, "MANY_PAIRS", many)
    run("train.txt", "val.txt", "--classes", "classes.txt")
    shown = capsys.readouterr().out
    assert ("comparing pairs of images (--no-near-duplicates leaves it out): 12 ..." in shown) == said
    assert ("comparing" in shown) == said


def test_what_is_only_noted_is_no_failure(folder, capsys):
    (folder / "noted.txt").write_text("images/a.png 10,10,30,25,0 10,10,30,24,0\nimages/b.png -9,3,12,20,1\n")
    assert run("noted.txt", "--classes", "classes.txt", "--no-near-duplicates") == 0
    shown = capsys.readouterr().out
    assert "clipped: noted.txt, line 2" in shown and "box twice" in shown
    assert json.loads((folder / "data-report" / "data.json").read_text())["near_duplicates"] is None


def test_a_clean_file_is_said_to_be(folder, capsys):
    (folder / "clean.txt").write_text("images/a.png 1,1,9,7,2 30,2,60,40,1\nimages/d.png 2,3,14,12,0\n")
    assert run("clean.txt", "--classes", "classes.txt") == 0
    assert "nothing is wrong" in capsys.readouterr().out
    assert not (folder / "data-report" / "defects.jpg").exists()


def test_a_config_names_splits_classes_and_the_input_and_settings_go_over_it(folder, capsys):
    (folder / "c.yaml").write_text("data: {train: train.txt, val: none.txt, classes: classes.txt}\n")
    words = ["data.val=val.txt", "model.input_size=[480, 736]", "--config", "c.yaml", "--json"]
    assert run(*words) == 1
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["splits"]) == ["train", "val"] and printed["input_size"] == [480, 736]
    assert printed["splits"]["train"]["box_sizes_at_input"]["large"] == 4


def test_the_shapes_of_a_config_are_drawn(folder, capsys):
    (folder / "shape_names.txt").write_text("\n".join(CLASS_NAMES))
    data = "{train: shapes, val: shapes, classes: shape_names.txt, shapes: {folder: drawn, train: 5, val: 3, test: 2}}"
    (folder / "c.yaml").write_text(f"data: {data}\n")
    assert run("--config", "c.yaml", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [one["images"] for one in printed["splits"].values()] == [5, 3] and printed["classes"] == list(CLASS_NAMES)


@pytest.mark.parametrize(
    "words, said",
    [
        (["nothing.txt", "--classes", "classes.txt"], "nothing.txt: expected a text file"),
        (["train.txt", "model.width=1"], "--config: expected a YAML file for model.width=1, received none"),
        (["train.txt", "--classes", "gone.txt"], "gone.txt: expected a text file"),
        (["train.txt", "--classes", "classes.txt", "--output-dir", "val.txt"], "--output-dir: expected a folder"),
        (["train.txt", "val.txt", "./train.txt"], "train.txt: expected different label files, received this one twice"),
        (["data.yaml"], "key names: expected class names, in a list or each behind a whole number, received {0: 'a', "),
    ],
)
def test_what_is_refused_is_one_line_and_nothing_is_written(folder, capsys, words, said):
    (folder / "data.yaml").write_text("{train: images, names: {0: a, '1': b}}")
    before = sorted(folder.rglob("*"))
    assert run(*words) == 2
    assert said in capsys.readouterr().err and sorted(folder.rglob("*")) == before


def test_classes_may_have_names_of_any_letters_and_length(folder):
    (folder / "classes.txt").write_text("\n".join(["a$^$", "猫", "a name that never ends " * 8]), "utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run("train.txt", "--classes", "classes.txt") == 1
    assert cv2.imread("data-report/boxes.png").shape == (500, 1300, 3)


def test_figures_are_written_before_pictures(folder, monkeypatch):
    def torn(*arguments):
        raise OSError("no room for pictures")

    monkeypatch.setattr(data_pictures, "draw_pictures", torn)
    run("train.txt", "--classes", "classes.txt")
    assert json.loads((folder / "data-report" / "data.json").read_text())["classes"] == list(NAMES)


def test_splits_of_one_name_are_told_apart(folder, capsys):
    (folder / "other").mkdir()
    (folder / "other" / "train.txt").write_text("../images/c.png 1,1,9,7,2\n")
    assert run("train.txt", "other/train.txt", "--classes", "classes.txt", "--json") == 1
    assert list(json.loads(capsys.readouterr().out)["splits"]) == ["train.txt", "other/train.txt"]


# --- real labels


def test_the_known_defects_of_a_real_set_are_found(real_data):
    folder = real_data("bccd")
    names = read_class_names(folder / "classes.txt")
    sources = {"train": "train_raw.txt", "val": "val_raw.txt", "test": "test.txt"}
    splits = [read_split(folder / file, names, name=name) for name, file in sources.items()]
    known = json.loads((folder / "known_defects.json").read_text())
    empty = [one["image"] for one in known if one["kind"] == "zero_area_box"]
    twice = [one["image"] for one in known if one["kind"] == "near_duplicate_box"]
    assert (len(empty), len(twice)) == (2, 8)
    paths = [path for split in splits for path in split.defect_paths]
    assert sorted(path.rsplit("/", 1)[-1] for path in paths) == sorted(empty)
    found = [one for split in splits for one in inspection.repeated_boxes(split, names)]
    assert sorted(one["path"].rsplit("/", 1)[-1] for one in found) == sorted(twice)
    assert inspection.same_files(splits) == [] and inspection.images_named_twice(splits) == []
