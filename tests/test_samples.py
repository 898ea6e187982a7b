"""Label files of four layouts to samples: what is read, what is dropped and said, what is refused, and back."""

import dataclasses
import json
import math
import pathlib

import numpy as np
import pytest
from PIL import Image

from multigrid.data.defects import Defect
from multigrid.data.samples import Sample, describe_defects, read_class_names, read_samples, write_samples
from multigrid.errors import InputError

CLASSES = ("cat", "small dog", "bird")
WIDTH, HEIGHT = 96, 64


@pytest.fixture
def make_image():
    def image(path, width=WIDTH, height=HEIGHT, orientation=1):
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.new("RGB", (width, height))
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(path, exif=exif)
        return path

    return image


@pytest.fixture
def lines(tmp_path, make_image):
    """Writes a keras-yolo3 file beside an image a.jpg of 96 x 64."""
    make_image(tmp_path / "a.jpg")

    def write(*text):
        path = tmp_path / "train.txt"
        path.write_text("".join(f"{line}\n" for line in text))
        return path

    return write


def refused(source, *parts, class_names=CLASSES, **options):
    """Asserts that reading is refused in one line that holds these parts."""
    with pytest.raises(InputError) as error:
        read_samples(source, class_names, **options)
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


# --- there and back


@pytest.fixture
def samples(tmp_path, make_image):
    """Four samples: fractional boxes, none, one of a turned image, and a path with spaces."""
    rng = np.random.default_rng(3)
    images = [
        make_image(tmp_path / "set" / "images" / "a.jpg", 96, 64),
        make_image(tmp_path / "set" / "images" / "b.png", 33, 71),
        make_image(tmp_path / "set" / "images" / "c.jpg", 96, 64, orientation=6),  # upright 96 high, 64 wide
        make_image(tmp_path / "set" / "images" / "d e  f.jpg", 50, 20),
    ]
    sizes = [(64, 96), (71, 33), (96, 64), (20, 50)]
    counts = [3, 0, 2, 1]
    made = []
    for number, (image, size, count) in enumerate(zip(images, sizes, counts, strict=True), 1):
        corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1) * (size[1], size[0])
        classes = rng.integers(0, 3, count).astype(np.int32)
        made.append(Sample(str(image), corners.reshape(-1, 4).astype(np.float32), classes, number, size))
    # Whole numbers and the image's own corners come back as they are as well.
    made[0].boxes[0] = (0, 7, 96, 64)
    return made


DESTINATIONS = {"yolo3": "train.txt", "voc": "Annotations", "coco": "annotations/train.json", "yolo": "data.yaml"}


@pytest.mark.parametrize("format", DESTINATIONS)
@pytest.mark.parametrize("near", [True, False])
def test_every_layout_gives_back_what_was_written(tmp_path, samples, format, near):
    folder = tmp_path / "set" if near else tmp_path / "far" / "off" / "and" / "away"
    path = write_samples(samples, CLASSES, folder / DESTINATIONS[format], format)
    back, defects = read_samples(path, CLASSES, strict=True)
    assert defects == []
    assert [dataclasses.astuple(sample)[3:] for sample in back] == [(s.image_id, s.size) for s in samples]
    for sample, expected in zip(back, samples, strict=True):
        assert sample.path == expected.path
        assert sample.boxes.dtype == np.float32 and sample.boxes.shape == expected.boxes.shape
        assert sample.classes.dtype == np.int32
        np.testing.assert_array_equal(sample.classes, expected.classes)
        # Normalized coordinates are written with 12 digits; a float32 has 7.
        tolerance = 1e-6 if format == "yolo" else 0
        np.testing.assert_allclose(sample.boxes, expected.boxes, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("format", DESTINATIONS)
def test_labels_near_their_images_can_be_moved_with_them(tmp_path, samples, format):
    write_samples(samples, CLASSES, tmp_path / "set" / DESTINATIONS[format], format)
    (tmp_path / "set").rename(tmp_path / "new place")
    back, _ = read_samples(tmp_path / "new place" / DESTINATIONS[format], CLASSES)
    assert [pathlib.Path(s.path).parent for s in back] == [tmp_path / "new place" / "images"] * 4
    assert [len(s.boxes) for s in back] == [3, 0, 2, 1]


def test_the_splits_of_a_data_yaml_are_written_one_after_the_other(tmp_path, samples):
    path = tmp_path / "set" / "data.yaml"
    write_samples(samples[:3], CLASSES, path, "yolo")
    write_samples(samples[3:], CLASSES, path, "yolo", split="val")
    assert [s.path for s in read_samples(path, CLASSES)[0]] == [s.path for s in samples[:3]]
    assert [s.path for s in read_samples(path, CLASSES, split="val")[0]] == [samples[3].path]
    with pytest.raises(InputError, match="these names"):
        write_samples(samples, CLASSES[::-1], path, "yolo", split="test")


def test_writing_spares_labels_of_others(tmp_path, samples):
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "other.xml").write_text("<annotation/>")
    with pytest.raises(InputError, match="other.xml"):
        write_samples(samples, CLASSES, tmp_path / "xml", "voc")
    label = tmp_path / "set" / "labels" / "c.txt"
    label.parent.mkdir()
    label.write_text("0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match="c.txt"):
        write_samples(samples, CLASSES, tmp_path / "set" / "data.yaml", "yolo")
    assert [path.name for path in label.parent.iterdir()] == ["c.txt"]


def test_two_images_cannot_share_one_label_file(tmp_path, samples):
    twin = dataclasses.replace(samples[0], path=samples[0].path.replace("a.jpg", "a.png"), image_id=9)
    for format in ("voc", "yolo"):
        with pytest.raises(InputError, match="labels of one image"):
            write_samples([samples[0], twin], CLASSES, tmp_path / DESTINATIONS[format], format)
    with pytest.raises(InputError, match="a.jpg: expected an image id of its own"):
        write_samples([samples[0], samples[0]], CLASSES, tmp_path / "t.json", "coco")
    with pytest.raises(InputError, match="expected one of yolo3, voc, coco, yolo, received 'csv'"):
        write_samples(samples, CLASSES, tmp_path / "t.csv", "csv")


# --- what is wrong with a box


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ("20,30,20,50,0", "empty"),
        ("20,30,40,30,0", "empty"),
        ("40,30,20,50,0", "inverted"),
        ("20,50,40,30,0", "inverted"),
        ("nan,30,40,50,0", "non-finite"),
        ("20,30,inf,50,0", "non-finite"),
        ("20,-Infinity,40,50,0", "non-finite"),
        ("20,30,40,50,3", "unknown-class"),
        ("20,30,40,50,-1", "unknown-class"),
        ("96,30,110,50,0", "outside"),
        ("70,64,90,80,0", "outside"),
        ("-20,30,-3,50,0", "outside"),
        ("20,-9,40,0,0", "outside"),
        ("95.9999999,30,99,50,0", "empty"),  # 96 - 1e-7 is 96 as float32
    ],
)
def test_a_box_that_cannot_be_used_is_dropped_and_reported(lines, box, kind):
    path = lines("# comment", f"a.jpg 1,2,3,4,2 {box} 50,10,95,12.5,1")
    (sample,), (defect,) = read_samples(path, CLASSES)
    np.testing.assert_array_equal(sample.boxes, [[1, 2, 3, 4], [50, 10, 95, 12.5]])
    np.testing.assert_array_equal(sample.classes, [2, 1])
    assert (defect.kind, defect.place, defect.dropped) == (kind, f"{path}, line 2", True)
    np.testing.assert_array_equal(defect.box, [float(number) for number in box.split(",")[:4]])
    refused(path, f"1 of 3 boxes dropped: 1 {kind} ({path}, line 2: ", strict=True)


def test_boxes_are_clipped_to_the_image_and_only_far_ones_are_reported(lines):
    path = lines("a.jpg -1,3,97,65,0 5,-1.5,200,9,1")
    (sample,), (defect,) = read_samples(path, CLASSES, strict=True)
    np.testing.assert_array_equal(sample.boxes, [[0, 3, 96, 64], [5, 0, 96, 9]])
    assert defect == Defect("clipped", f"{path}, line 1", (5, -1.5, 200, 9), "clipped to 5,0,96,9", dropped=False)


def test_boxes_stay_with_their_images_when_some_are_dropped(tmp_path, lines, make_image):
    make_image(tmp_path / "b.jpg", 40, 200)
    path = lines(
        "a.jpg 9,9,9,9,0", "b.jpg 1,150,2,190,1 1,1,2,2,8", "a.jpg", "b.jpg 3,3,4,4,0 90,1,95,2,0", "a.jpg 90,1,95,2,2"
    )
    samples, defects = read_samples(path, CLASSES)
    assert [sample.boxes.tolist() for sample in samples] == [
        [],
        [[1, 150, 2, 190]],
        [],
        [[3, 3, 4, 4]],
        [[90, 1, 95, 2]],
    ]
    assert [sample.classes.tolist() for sample in samples] == [[], [1], [], [0], [2]]
    assert [sample.image_id for sample in samples] == [1, 2, 3, 4, 5]
    assert [(d.kind, d.place[-6:]) for d in defects] == [
        ("empty", "line 1"),
        ("unknown-class", "line 2"),
        ("outside", "line 4"),
    ]
    assert samples[0].boxes.shape == (0, 4) and samples[0].size == (64, 96) and samples[1].size == (200, 40)


def test_defects_are_described_in_one_line(lines):
    path = lines("a.jpg 1,1,1,1,0 2,2,2,2,0 3,3,4,4,0", "a.jpg 5,5,5,9,1 6,6,6,9,1 7,7,9,9,7 7,7,999,9,0")
    samples, defects = read_samples(path, CLASSES)
    assert describe_defects(defects, samples) == (
        f"5 of 7 boxes dropped: "
        f"4 empty ({path}, line 1: 1,1,1,1; {path}, line 1: 2,2,2,2; {path}, line 2: 5,5,5,9; ...), "
        f"1 unknown-class ({path}, line 2: 7,7,9,9, class id 7, expected 0 to 2); "
        f"noted, nothing dropped: 1 clipped ({path}, line 2: 7,7,999,9, clipped to 7,7,96,9)"
    )
    assert describe_defects(defects[:1]) == f"1 box dropped: 1 empty ({path}, line 1: 1,1,1,1)"
    assert describe_defects([], samples) == ""


# --- keras-yolo3 lines


@pytest.mark.parametrize(
    "name",
    [
        "plain.jpg",
        "two words.jpg",
        "a  b\tc.PNG",
        "x.jpg folder/1,2,3,4,5.png",
        "sub/no suffix.dat",
        "über 3.jpeg",
        "1 2 3.bmp",
    ],
)
def test_paths_may_hold_spaces_and_commas(tmp_path, make_image, name):
    image = make_image(tmp_path / "plain.png")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(image.read_bytes())
    path = tmp_path / "train.txt"
    path.write_text(f"{name}\n{name} 1,2,3.5,4,0 -.5,nan,3,4,1\n{tmp_path / name}   5,6,7,8,2  \n", encoding="utf-8")
    samples, defects = read_samples(path, CLASSES)
    assert [sample.path for sample in samples] == [str(tmp_path / name)] * 3
    assert [sample.boxes.tolist() for sample in samples] == [[], [[1, 2, 3.5, 4]], [[5, 6, 7, 8]]]
    assert [defect.kind for defect in defects] == ["non-finite"]


MALFORMED = ["1,2,3,4", "1,2,3,4,0,9", "1,2,x,4,0", "1,2,3,4,cat", "1,2,,4,0", "1,2,3,4,0.5", "1,2,3,4,nan"]


@pytest.mark.parametrize(
    ("name", "token"),
    # Without an image suffix only what looks like numbers with commas is told from the path.
    [("a.jpg", token) for token in [*MALFORMED, "12", "extra"]] + [("a.dat", token) for token in MALFORMED],
)
def test_a_malformed_box_names_file_and_line(tmp_path, lines, name, token):
    path = lines("# the first image", "", "a.jpg 1,2,3,4,0", f"{name} 5,6,7,8,0 {token} 5,6,7,8,1")
    refused(path, f"{path}, line 4: expected", f'received "{token}"')


def test_missing_images_are_named_together_with_their_lines(tmp_path, lines):
    (tmp_path / "text.jpg").write_text("no image")
    path = lines("a.jpg", "b.jpg 1,2,3,4,0", "a.jpg", "c.jpg", "text.jpg 1,2,3,4,0", "d.jpg", "e.jpg")
    with pytest.raises(InputError) as error:
        read_samples(path, CLASSES)
    message = str(error.value)
    assert message.startswith(f"5 of 7 images cannot be read: {path}, line 2: {tmp_path / 'b.jpg'}: ")
    assert (
        f"{path}, line 4: {tmp_path / 'c.jpg'}: " in message and f"{path}, line 5: {tmp_path / 'text.jpg'}: " in message
    )
    assert "d.jpg" not in message and message.endswith("; ...") and "\n" not in message


def test_a_list_without_images_is_refused(tmp_path, lines):
    refused(lines(), "no images", "train.txt")
    refused(lines("# nothing", "  "), "no images")
    refused(tmp_path / "absent.txt", "absent.txt", "No such file")
    refused(tmp_path / "absent.csv", "absent.csv", "no file of this name")
    (tmp_path / "binary.txt").write_bytes(b"a.jpg\n\xff\xfe")
    refused(tmp_path / "binary.txt", "binary.txt", "UTF-8")


def test_windows_line_ends_and_a_byte_order_mark_are_taken(tmp_path, lines):
    lines()
    path = tmp_path / "dos.txt"
    path.write_bytes(b"\xef\xbb\xbfa.jpg 1,2,3,4,0\r\n\r\na.jpg 9,9,9,9,1\r\n")
    samples, defects = read_samples(path, CLASSES)
    assert len(samples) == 2 and defects[0].place == f"{path}, line 3"


def test_boxes_are_those_of_the_upright_image(tmp_path, make_image):
    make_image(tmp_path / "a.jpg", 96, 64, orientation=8)
    (tmp_path / "train.txt").write_text("a.jpg 1,70,60,90,0 70,1,90,60,0\n")
    (sample,), (defect,) = read_samples(tmp_path / "train.txt", CLASSES)
    assert sample.size == (96, 64) and sample.boxes.tolist() == [[1, 70, 60, 90]] and defect.kind == "outside"


def test_progress_counts_the_image_headers(lines):
    seen = []
    read_samples(lines("a.jpg", "a.jpg"), CLASSES, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 1)]


# --- Pascal VOC

OBJECT = (
    "<object><name>{}</name><part><bndbox/></part>"
    "<bndbox><ymin>{}</ymin><xmin>{}</xmin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
)


def voc(*objects, filename="<filename>a.jpg</filename>", more=""):
    return f"<annotation>\n{filename}{more}\n{''.join(objects)}\n</annotation>"


@pytest.fixture
def xml(tmp_path, make_image):
    make_image(tmp_path / "JPEGImages" / "a.jpg")

    def write(text, name="a.xml", folder="Annotations"):
        path = tmp_path / folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def test_voc_corners_are_read_by_name_and_not_shifted(xml):
    path = xml(voc(OBJECT.format("bird", 2, 1, 96, 64), OBJECT.format(" small dog ", 20.5, 10.25, 30, 40)))
    (sample,), defects = read_samples(path.parent, CLASSES)
    assert sample.boxes.tolist() == [[1, 2, 96, 64], [10.25, 20.5, 30, 40]]
    assert sample.classes.tolist() == [2, 1] and defects == []


def test_voc_defects_name_the_object(xml):
    size = "<size><width>64</width><height>96</height></size>"
    path = xml(voc(OBJECT.format("bird", 2, 1, 3, 4), OBJECT.format("Cat", 2, 1, 3, 4), more=size))
    (sample,), (mismatch, unknown) = read_samples(path.parent, CLASSES)
    assert len(sample.boxes) == 1 and sample.size == (64, 96)
    assert (mismatch.kind, mismatch.place, mismatch.dropped, mismatch.box) == ("size-mismatch", str(path), False, ())
    assert "64 x 96" in mismatch.detail and "96 x 64" in mismatch.detail
    assert (unknown.kind, unknown.place, unknown.dropped) == ("unknown-class", f"{path}, object 2", True)
    assert '"Cat"' in unknown.detail


@pytest.mark.parametrize("where", ["Annotations/a.jpg", "JPEGImages/a.jpg", "images/a.jpg", "else/where/a.jpg"])
@pytest.mark.parametrize("filename", ["<filename>a.jpg</filename>", "<filename>a</filename>", ""])
def test_voc_images_are_looked_for_in_the_usual_places(tmp_path, xml, make_image, where, filename):
    (tmp_path / "JPEGImages" / "a.jpg").unlink()
    make_image(tmp_path / where)
    path = xml(voc(filename=filename, more=f"<path>{tmp_path}/else/where/a.jpg</path>"))
    (sample,), _ = read_samples(path.parent, CLASSES)
    assert sample.path == str(tmp_path / where)


def test_a_missing_voc_image_tells_where_it_was_looked_for(tmp_path, xml):
    path = xml(voc(filename="<filename>b.jpg</filename>"))
    refused(path.parent, "1 of 1 images", path, "b.jpg", "../JPEGImages")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (
            "<annotation>\n<filename>a.jpg</filename>\n<object>\n</annotation>",
            ["a.xml, line 4: expected well-formed XML"],
        ),
        ("", ["a.xml, line 1: expected well-formed XML"]),
        ("<html/>", ["a.xml: expected Pascal VOC <annotation>, received <html>"]),
        (voc("<object><name>cat</name></object>"), ["a.xml, object 1: expected <bndbox>"]),
        (voc(OBJECT.format(" ", 3, 2, 9, 8)), ["a.xml, object 1: expected a class in <name>, received none"]),
        (voc(OBJECT.format("cat", 1, 2, 3, "four")), ["a.xml, object 1: expected a number in <ymax>, received 'four'"]),
        (voc("<object><bndbox><xmin>1</xmin></bndbox></object>"), ["expected a number in <ymin>, received none"]),
    ],
)
def test_voc_that_cannot_be_understood_names_the_place(xml, text, parts):
    refused(xml(text).parent, *parts)


@pytest.mark.parametrize("where", ["ImageSets/Main", "imagesets"])
@pytest.mark.parametrize("folder", ["Annotations", "annotations_voc"])
def test_an_image_set_lists_xml_files_of_the_folder_beside_it(tmp_path, xml, where, folder):
    for name in ("a", "b", "c"):
        xml(voc(), f"{name}.xml", folder)
    (tmp_path / "annotations_yolo").mkdir()
    (tmp_path / where).mkdir(parents=True)
    path = tmp_path / where / "val.txt"
    path.write_text("c\n\na\n")
    samples, _ = read_samples(path, CLASSES)
    assert [sample.image_id for sample in samples] == [1, 2]
    path.write_text("c\nabsent\na\n")
    refused(path, path, "1 of 3 without", f"line 2: {tmp_path / folder / 'absent.xml'}")


def test_a_folder_without_xml_is_refused(tmp_path):
    refused(tmp_path, tmp_path, "without")


# --- COCO


@pytest.fixture
def coco(tmp_path, make_image):
    make_image(tmp_path / "images" / "a.jpg")
    make_image(tmp_path / "images" / "b.jpg", 40, 200)

    def write(folder="", **changes):
        data = {
            "images": [
                {"id": 40, "file_name": "b.jpg", "width": 40, "height": 200},
                {"id": 7, "file_name": "a.jpg"},
            ],
            "categories": [{"id": 18, "name": "bird"}, {"id": 3, "name": "cat"}, {"id": 5, "name": "fish"}],
            "annotations": [{"id": 90, "image_id": 7, "category_id": 18, "bbox": [10, 20, 30.5, 40]}],
        } | changes
        path = tmp_path / folder / "instances.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(data))
        return path

    return write


@pytest.mark.parametrize("folder", ["", "annotations", "images"])
def test_coco_boxes_classes_by_name_and_ids_are_read(coco, folder):
    (first, second), defects = read_samples(coco(folder), CLASSES)
    assert (first.image_id, second.image_id, defects) == (40, 7, [])
    assert first.boxes.shape == (0, 4) and first.size == (200, 40)
    # x + width = 10 + 30.5, y + height = 20 + 40.
    assert second.boxes.tolist() == [[10, 20, 40.5, 60]] and second.classes.tolist() == [2]


def test_coco_crowds_and_unknown_categories_are_left_out_and_reported(coco):
    annotation = {"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4]}
    wrong = [
        {**annotation, "iscrowd": 1},
        {**annotation, "category_id": 5},
        annotation,
        {**annotation, "category_id": 99},
    ]
    path = coco(annotations=wrong, images=[{"id": 7, "file_name": "a.jpg", "width": 96, "height": 65}])
    (sample,), defects = read_samples(path, CLASSES)
    assert sample.boxes.tolist() == [[1, 2, 4, 6]] and sample.classes.tolist() == [0]
    assert [(d.kind, d.place.rsplit(", ")[-1], d.dropped) for d in defects] == [
        ("size-mismatch", "images[0]", False),
        ("crowd", "annotations[0]", True),
        ("unknown-class", "annotations[1]", True),
        ("unknown-class", "annotations[3]", True),
    ]
    assert '"fish"' in defects[2].detail and "99" in defects[3].detail
    assert describe_defects(defects, [sample]).startswith("3 of 4 boxes dropped: 1 crowd (")
    refused(path, "2 of 3 boxes dropped: 2 unknown-class", strict=True)


def test_a_crowd_is_legal_when_strict(coco):
    path = coco(annotations=[{"image_id": 7, "category_id": 3, "bbox": [1, 2, 3, 4], "iscrowd": 1}])
    samples, (crowd,) = read_samples(path, CLASSES, strict=True)
    assert crowd.kind == "crowd" and all(len(sample.boxes) == 0 for sample in samples)


IMAGE = {"id": 7, "file_name": "a.jpg"}
ANNOTATION = {"image_id": 7, "category_id": 18, "bbox": [10, 20, 30, 40]}


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"images": [IMAGE, IMAGE]}, "images[1]: expected different image ids, received 7 again"),
        ({"images": [{"id": "7", "file_name": "a.jpg"}]}, "images[0]: expected \"id\" as a whole number, received '7'"),
        ({"images": [{"id": 7}]}, 'images[0]: expected "file_name" as a text, received None'),
        ({"images": []}, "annotations[0]: expected the id of an image of this file, received image_id 7"),
        ({"images": [], "annotations": []}, "no images"),
        ({"images": None}, 'expected a COCO data set with a list "images"'),
        ({"annotations": [ANNOTATION, {**ANNOTATION, "image_id": 8}]}, "annotations[1]: expected the id of an image"),
        (
            {"annotations": [{**ANNOTATION, "bbox": [1, 2, 3]}]},
            "annotations[0]: expected bbox as [x, y, width, height]",
        ),
        ({"annotations": [{**ANNOTATION, "bbox": [1, 2, 3, None]}]}, "expected bbox as [x, y, width, height]"),
        ({"annotations": [{**ANNOTATION, "bbox": None}]}, 'expected "bbox" as a list'),
        ({"annotations": ["x"]}, "annotations[0]: expected"),
        (
            {"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]},
            "categories[1]: expected different category",
        ),
    ],
)
def test_coco_that_cannot_be_understood_names_the_place(coco, changes, part):
    path = coco(**changes)
    refused(path, path, part)


def test_broken_json_and_result_lists_are_refused(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{"images": [],\n"annotations": [}\n')
    refused(path, f"{path}, line 2: expected JSON")
    path.write_text("[]")
    refused(path, path, "expected a COCO data set")


def test_a_missing_coco_image_is_named_by_its_entry(coco):
    path = coco(images=[IMAGE, {"id": 8, "file_name": "absent.jpg"}])
    refused(path, f"1 of 2 images cannot be read: {path}, images[1]: ", "absent.jpg")


# --- YOLO


@pytest.fixture
def yolo(tmp_path, make_image):
    """Writes label texts for images/train/a.jpg (96 x 64) and images/train/sub/b.png (40 x 200), and data.yaml."""
    make_image(tmp_path / "images" / "train" / "a.jpg")
    make_image(tmp_path / "images" / "train" / "sub" / "b.png", 40, 200)

    def write(a=None, b=None, config="train: images/train\nnames: [cat, small dog, bird]\n"):
        for name, text in (("a", a), ("sub/b", b)):
            if text is not None:
                path = tmp_path / "labels" / "train" / f"{name}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        path = tmp_path / "data.yaml"
        path.write_text(config)
        return path

    return write


def test_yolo_boxes_are_scaled_by_the_upright_image(tmp_path, yolo, make_image):
    make_image(tmp_path / "images" / "train" / "a.jpg", 64, 96, orientation=6)  # upright 96 wide, 64 high
    (a, b), defects = read_samples(yolo("1 0.5 0.25 0.125 0.5\n", "2 .1 .9 .2 .1\n\n"), CLASSES)
    # a: centre (48, 16), size (12, 32): y from 0 to 32. b: centre (4, 180), size (8, 20).
    np.testing.assert_allclose(a.boxes, [[42, 0, 54, 32]], atol=1e-5)
    np.testing.assert_allclose(b.boxes, [[0, 170, 8, 190]], atol=1e-5)
    assert (a.classes.tolist(), b.classes.tolist(), defects) == ([1], [2], [])
    assert (a.size, b.size) == ((64, 96), (200, 40))
    assert a.path == str(tmp_path / "images" / "train" / "a.jpg")


def test_a_missing_label_file_makes_its_image_background_and_backups_are_not_read(tmp_path, yolo):
    path = yolo(b="0 .5 .5 .1 .1\n")
    (tmp_path / "labels" / "train" / "a.txt~").write_text("0 .5 .5 .1 .1\n")
    (a, b), _ = read_samples(path, CLASSES)
    assert (len(a.boxes), len(b.boxes)) == (0, 1)


def test_the_last_images_folder_of_a_path_has_its_labels_beside_it(tmp_path, make_image):
    make_image(tmp_path / "images" / "dogs" / "images" / "a.jpg")
    (tmp_path / "images" / "dogs" / "labels").mkdir()
    (tmp_path / "images" / "dogs" / "labels" / "a.txt").write_text("2 .5 .5 .1 .1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, small dog, bird]\n")
    ((sample,), _) = read_samples(tmp_path / "data.yaml", CLASSES)
    assert sample.classes.tolist() == [2]


def test_a_split_without_any_label_file_is_refused(tmp_path, yolo):
    refused(yolo(), "key train: expected label files", tmp_path / "labels" / "train" / "a.txt")


@pytest.mark.parametrize(
    "config",
    [
        "train: images/train\nnames: {0: cat, 1: small dog, 2: bird}\n",
        "path: images\ntrain: train\nnames: [cat, small dog, bird]\n",
        "train: [images/train/sub, list.txt]\nnames: [cat, small dog, bird]\n",
        "path: {root}\ntrain: list.txt\nnames: [cat, small dog, bird]\n",
        "train: images/absent\nval: {root}/images/train\nnames: [cat, small dog, bird]\n",
    ],
)
def test_data_yaml_names_a_folder_a_list_or_several(tmp_path, yolo, config):
    (tmp_path / "list.txt").write_text(f"./images/train/a.jpg\n{tmp_path}/images/train/sub/b.png\n")
    path = yolo("0 .5 .5 .1 .1\n", "1 .5 .5 .1 .1\n", config.replace("{root}", str(tmp_path)))
    samples, _ = read_samples(path, CLASSES, split="val" if "val" in config else "train")
    assert {pathlib.Path(sample.path).name: sample.classes.tolist() for sample in samples} == {
        "a.jpg": [0],
        "b.png": [1],
    }


@pytest.mark.parametrize(
    "names",
    [
        "[small dog, cat, bird]",
        "[cat, small dog]",
        "{1: cat, 2: small dog, 3: bird}",
        "5",
        "[cat, small dog, bird, fox]",
    ],
)
def test_other_class_names_are_refused_and_both_are_shown(yolo, names):
    refused(
        yolo("", "", f"train: images/train\nnames: {names}\n"), "key names", "['cat', 'small dog', 'bird']", "received"
    )


def test_class_names_of_digits_are_texts(yolo):
    path = yolo("1 .5 .5 .1 .1\n", "", "train: images/train\nnames: [1, 2]\n")
    assert read_samples(path, ("1", "2"))[0][0].classes.tolist() == [1]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("0 .1 .2 .3 .4 .5 .6", "received 7 (polygons and keypoints are not read)"),
        ("0 .1 .2 .3", 'received "0 .1 .2 .3"'),
        ("0 .1 .2 .3 x", "expected"),
        ("cat .1 .2 .3 .4", "expected"),
        ("0.5 .1 .2 .3 .4", "expected"),
    ],
)
def test_a_malformed_yolo_line_names_file_and_line(tmp_path, yolo, line, part):
    refused(yolo(f"0 .5 .5 .1 .1\n{line}\n"), f"{tmp_path / 'labels' / 'train' / 'a.txt'}, line 2: ", part)


def test_yolo_defects_are_reported_in_pixels(tmp_path, yolo):
    path = yolo("0 .5 .5 0 .5\n0 nan .5 .1 .5\n6 .5 .5 .25 .5\n", "0 .5 .5 -.5 .5\n0 .95 .5 .5 .1\n")
    samples, defects = read_samples(path, CLASSES)
    assert [(d.kind, d.place.rsplit(", ")[-1]) for d in defects] == [
        ("empty", "line 1"),
        ("non-finite", "line 2"),
        ("unknown-class", "line 3"),
        ("inverted", "line 1"),
        ("clipped", "line 2"),
    ]
    # 96 x 64: centre (48, 32), width 24, height 32.
    assert defects[2].box == (36, 16, 60, 48)
    assert [len(sample.boxes) for sample in samples] == [0, 1]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ("train: [unclosed\n", ["data.yaml, line 2: expected YAML"]),
        ("- 1\n", ["data.yaml: expected the keys"]),
        ("val: images\nnames: [cat, small dog, bird]\n", ['expected a key "train"', "received only val"]),
        ("train: absent\nnames: [cat, small dog, bird]\n", ["key train", "absent"]),
        (
            "train: labels\nnames: [cat, small dog, bird]\n",
            ["key train: expected images, received none in /", "labels"],
        ),
        (
            "train: images/train\nnames: [cat, yes, bird]\n",
            ["key names", "such as yes and no in quotes, received True"],
        ),
        ("train: images/train\nnames: {0: cat, 1: no}\n", ["key names", "received False"]),
    ],
)
def test_a_data_yaml_that_cannot_be_used_names_the_key(yolo, config, parts):
    refused(yolo("", "", config), *parts)


# --- class names


def test_class_names_are_one_a_line(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_bytes("cat\r\n small dog \nVögel\n\n\n".encode())
    assert read_class_names(path) == ("cat", "small dog", "Vögel")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "an empty file"),
        ("\n \n", "an empty file"),
        ("a\n\nb\n", "line 2: "),
        ("a\nb\na\n", 'line 3: expected different names, received "a" of line 1'),
    ],
)
def test_unusable_class_names_are_refused(tmp_path, text, part):
    path = tmp_path / "classes.txt"
    path.write_text(text)
    with pytest.raises(InputError, match="classes.txt") as error:
        read_class_names(path)
    assert part in str(error.value)


# --- real data


def test_the_empty_boxes_of_the_blood_cells_are_the_only_defects(real_data):
    folder = real_data("bccd")
    names = read_class_names(folder / "classes.txt")
    known = [d for d in json.loads((folder / "known_defects.json").read_text()) if d["kind"] == "zero_area_box"]
    assert len(known) == 2
    found = []
    for source, boxes, images in [
        ("train_raw.txt", 2804, 205),
        ("val_raw.txt", 1137, 87),
        ("annotations_voc", 4886, 364),
    ]:
        samples, defects = read_samples(folder / source, names)
        assert len(samples) == images and sum(len(sample.boxes) for sample in samples) == boxes
        found.append([(d.kind, d.box, d.dropped) for d in defects])
    val, train = [("empty", tuple(map(float, defect["box"])), True) for defect in known]
    assert found == [[train], [val], [val, train]]
    # That file counts objects from 0.
    places = [f"{folder}/annotations_voc/{pathlib.Path(d['image']).stem}.xml, object {d['object'] + 1}" for d in known]
    assert [defect.place for defect in defects] == places


def test_three_layouts_of_the_blood_cells_agree(real_data):
    folder = real_data("bccd")
    names = read_class_names(folder / "classes.txt")
    read = [read_samples(folder / source, names)[0] for source in ("val.txt", "imagesets/val.txt", "coco_val.json")]
    assert [len(samples) for samples in read] == [87, 87, 87]
    for lines, voc, coco in zip(*read, strict=True):
        assert lines.path == voc.path == coco.path and lines.size == (480, 640)
        for other in (voc, coco):
            np.testing.assert_array_equal(lines.boxes, other.boxes)
            np.testing.assert_array_equal(lines.classes, other.classes)


def test_yolo_labels_of_the_dice_agree_with_their_lines(real_data, tmp_path):
    folder = real_data("dice")
    names = read_class_names(folder / "classes.txt")
    (tmp_path / "images").symlink_to(folder / "images")
    (tmp_path / "labels").symlink_to(folder / "annotations_yolo")
    assert len(list((tmp_path / "labels").glob("*.txt~"))) == 3
    (tmp_path / "data.yaml").write_text(f"train: images\nnames: [{', '.join(names)}]\n")
    samples, defects = read_samples(tmp_path / "data.yaml", names, strict=True)
    assert len(samples) == 250 and sum(len(sample.boxes) for sample in samples) == 1795 and defects == []
    by_name = {pathlib.Path(sample.path).name: sample for sample in samples}
    lines = [s for split in ("train", "val", "test") for s in read_samples(folder / f"{split}.txt", names)[0]]
    assert len(lines) == 250
    for line in lines:
        sample = by_name[pathlib.Path(line.path).name]
        np.testing.assert_array_equal(line.classes, sample.classes)
        # The lines are rounded half up to whole pixels.
        assert np.abs(line.boxes - sample.boxes).max() <= 0.5 + math.ulp(640)
