"""Detections as values, tables, records and pictures."""

import json
import sys

import numpy as np
import pytest

from multigrid.detection.detections import COLUMNS, FRAME_COLUMNS, Detections
from multigrid.errors import InputError
from multigrid.evaluation.evaluator import to_coco_results
from multigrid.pictures import class_colour, save_image

NAMES = ("RBC", "WBC", "Platelets")
SIZE = (48, 80)


def found(**more):
    """Two RBC and one WBC; 0.1 has no exact float32, which a record must not show."""
    values = {
        "boxes": np.float32([[3.1, 4.2, 33.3, 24.4], [40, 8, 71, 45], [0, 0, 12.345, 9]]),
        "scores": np.float32([0.9, 0.75, 0.1]),
        "class_ids": np.int32([0, 1, 0]),
        "class_names": NAMES,
        "size": SIZE,
    }
    return Detections(**{**values, **more})


def nothing(**more):
    return found(boxes=np.zeros((0, 4), "float32"), scores=np.float32([]), class_ids=np.int32([]), **more)


def grey():
    return np.full((*SIZE, 3), 100, np.uint8)


@pytest.mark.parametrize(
    ("detections", "words"),
    [
        (found(path="a/b.jpg"), "Detections(2 RBC, 1 WBC; 48 x 80; a/b.jpg)"),
        (nothing(path="b.jpg"), "Detections(none; 48 x 80; b.jpg)"),
        (found(image=grey()), "Detections(2 RBC, 1 WBC; 48 x 80; an array)"),
        (nothing(path="c.mp4", frame=7, time=0.28), "Detections(none; 48 x 80; c.mp4, frame 7)"),
        (nothing(), "Detections(none; 48 x 80)"),
    ],
)
def test_they_say_in_short_what_they_are(detections, words):
    assert repr(detections) == words


def test_a_table_has_a_row_a_detection_and_the_rounded_numbers():
    table = found(path="x.jpg").to_pandas()
    assert list(table.columns) == ["image", "class_id", "class", "score", "x1", "y1", "x2", "y2"]
    assert table.iloc[0].tolist() == ["x.jpg", 0, "RBC", 0.9, 3.1, 4.2, 33.3, 24.4]
    assert table["class"].tolist() == ["RBC", "WBC", "RBC"] and table["x2"].tolist() == [33.3, 71.0, 12.35]
    assert str(table["class_id"].dtype).startswith("int") and str(table["score"].dtype) == "float64"


def test_a_table_of_nothing_has_its_columns():
    assert list(nothing(frame=3, time=0.12).to_pandas().columns)[-2:] == ["frame", "time"]
    (row, *_) = found(frame=3, time=0.12).rows()
    assert list(row) == [*COLUMNS, *FRAME_COLUMNS] == list(found(frame=3, time=0.12).to_pandas().columns)
    assert len(nothing().to_pandas()) == 0 and len(nothing().to_pandas().columns) == 8


def test_json_holds_the_record_of_an_image():
    record = json.loads(found(path="x.jpg").to_json())
    assert list(record) == ["image", "width", "height", "detections"]
    assert (record["image"], record["width"], record["height"]) == ("x.jpg", 80, 48)
    assert record["detections"][0] == {"class": "RBC", "score": 0.9, "box_xyxy": [3.1, 4.2, 33.3, 24.4]}
    assert json.loads(nothing().to_json())["detections"] == []


def test_a_frame_says_which_and_when():
    record = nothing(path="c.mp4", frame=7, time=0.28000000001).to_dict()
    assert list(record) == ["image", "frame", "time", "width", "height", "detections"]
    assert (record["frame"], record["time"]) == (7, 0.28)


def test_coco_results_are_those_of_the_evaluation():
    detections = found()
    expected = to_coco_results(12, detections.boxes, detections.scores, detections.class_ids)
    assert detections.to_coco(12) == expected
    # (3.1, 4.2) to (33.3, 24.4) is 30.2 wide and 20.2 high
    assert expected[0] == {"image_id": 12, "category_id": 1, "bbox": [3.1, 4.2, 30.2, 20.2], "score": 0.9}
    assert [result["category_id"] for result in detections.to_coco(12, category_offset=0)] == [0, 1, 0]
    assert nothing().to_coco(1) == []


@pytest.mark.parametrize("detections", [found(), nothing()], ids=["some", "none"])
def test_supervision_gets_boxes_scores_and_names(detections):
    supervision = pytest.importorskip("supervision")
    given = detections.to_supervision()
    assert isinstance(given, supervision.Detections) and len(given) == len(detections)
    np.testing.assert_array_equal(given.xyxy, detections.boxes)
    np.testing.assert_array_equal(given.confidence, detections.scores)
    assert given.class_id.tolist() == detections.class_ids.tolist()
    assert given.data["class_name"].tolist() == detections.names


def test_without_supervision_the_error_names_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(InputError, match="pip install supervision"):
        found().to_supervision()


def test_a_plot_has_boxes_in_the_colour_of_their_class_and_leaves_the_image():
    image = grey()
    drawn = found(image=image).plot()
    assert drawn.shape == (*SIZE, 3) and (image == 100).all()
    # The middle of the WBC's lower edge: its first row outside is 45.
    assert tuple(drawn[44, 55]) == class_colour(1) != class_colour(0)
    np.testing.assert_array_equal(found().plot(image), drawn)


def test_a_plot_tints_the_cells_that_answered():
    cells = (np.float32([[16, 28, 24, 36]]), np.float32([[48, 24, 56, 32], [56, 24, 64, 32]]), np.zeros((0, 4), "f4"))
    drawn = found(image=grey(), cells=cells).plot(cells=True)
    plain = found(image=grey()).plot()
    rows, columns = np.nonzero((drawn != plain).any(axis=-1))
    # A cell's last row and column stay as they are.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (24, 34, 16, 62)
    # 0.65 · 100 + 0.35 · 255 = 154 of the first class' red, which is 255
    assert drawn[30, 18, 0] == 154 and drawn[26, 50, 2] == 154
    with pytest.raises(ValueError, match="cells=True"):
        found(image=grey()).plot(cells=True)


def test_a_picture_is_read_from_its_path_drawn_and_saved(tmp_path):
    save_image(tmp_path / "x.png", grey())
    detections = found(path=str(tmp_path / "x.png"))
    detections.save(tmp_path / "below" / "y.png")
    saved = found(path=str(tmp_path / "below" / "y.png"))
    np.testing.assert_array_equal(saved.plot(), detections.plot(detections.plot()))


def test_an_image_of_another_size_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"image: expected \(height, width\) \(48, 80\), received \(80, 48\)"):
        found().plot(np.zeros((80, 48, 3), np.uint8))


def test_pixels_that_nobody_kept_are_missed():
    frame = found(path="c.mp4", image=grey(), frame=2, time=0.1)
    assert frame.plot().shape == (*SIZE, 3)
    for lost in (frame.without_frame(), found()):
        with pytest.raises(ValueError, match="image: expected the pixels"):
            lost.plot()
    kept = found(image=grey())
    assert kept.without_frame() is kept
