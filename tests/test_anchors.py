"""The anchors value and its files in both layouts."""

import pickle

import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.geometry.anchors import Anchors, read_anchors, write_anchors

# YOLOv3's own nine, coarse to fine.
YOLO = [[[116, 90], [156, 198], [373, 326]], [[30, 61], [62, 45], [59, 119]], [[10, 13], [16, 30], [33, 23]]]


def written(tmp_path, text):
    path = tmp_path / "anchors.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326\n",
        "10,13 16,30 33,23 30,61 62,45 59,119 116,90 156,198 373,326",
        "10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326",
        "10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326,\n\n",
        "10,13 16,30 33,23\n30,61 62,45 59,119\n116,90 156,198 373,326\n",
        "\ufeff10,13 16,30 33,23 30,61 62,45 59,119 116,90 156,198 373,326\n",
        "# coarse first\n116,90, 156,198, 373,326\n\n30,61, 62,45, 59,119 # middle\n10,13, 16,30, 33,23\n",
    ],
)
def test_both_layouts_read_as_the_same_anchors(tmp_path, text):
    assert read_anchors(written(tmp_path, text)) == Anchors(YOLO)


def test_one_line_is_dealt_to_the_scales_by_area(tmp_path):
    # Areas 400, 6, 150 for three scales: the coarsest gets 400, then 150, then 6.
    assert read_anchors(written(tmp_path, "10,40 2,3 15,10")).to_list() == [[[10, 40]], [[15, 10]], [[2, 3]]]


def test_the_order_within_a_line_of_one_scale_stays(tmp_path):
    read = read_anchors(written(tmp_path, "9,8 2,3\n50,40 20,30\n200,100 90,300"))
    assert read.to_list() == [[[200, 100], [90, 300]], [[50, 40], [20, 30]], [[9, 8], [2, 3]]]


def test_two_scales_are_read_where_the_network_has_two(tmp_path):
    read = read_anchors(written(tmp_path, "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"), scales=2)
    assert read.to_list() == [[[81, 82], [135, 169], [344, 319]], [[10, 14], [23, 27], [37, 58]]]
    assert read.strides == (16, 8)


@pytest.mark.parametrize(
    "text, place, received",
    [
        ("10,13 16,30\n12;30 5,6\n7,8 9,10", "line 2", '"12;30"'),
        ("10,13 16,30\n12,30,4 5,6\n7,8 9,10", "line 2", '"12,30,4"'),
        ("\n10,13,16,30,33\n", "line 2", '"5 numbers"'),
        ("10,13 16,30\n3,4 5,0\n7,8 9,10", "line 2", '"5,0"'),
        ("10,13 16,30 nan,4", "line 1", '"nan,4"'),
        ("10,13 16,inf 3,4", "line 1", '"16,inf"'),
        ("10,13 -16,30 3,4", "line 1", '"-16,30"'),
        ("10,13 16,30\n1,2 3,4\n7,8 9,10 11,12", "line 3", "3"),
        ("10,13 16,30 3,4 5,6", "line 1", "4"),
        ("10,13 16,30\n1,2 3,4", "3, one a scale", "2 lines"),
        (" , ,", "line 1", '", ,"'),
        ("10,13 16,,30 3,4", "line 1", '"16,,30"'),
        ("width,height\n", "line 1", '"width,height"'),
        (" \n# nothing\n", "anchors.txt", "an empty file"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_place(tmp_path, text, place, received):
    with pytest.raises(InputError) as error:
        read_anchors(written(tmp_path, text))
    message = str(error.value)
    assert message.startswith(str(tmp_path / "anchors.txt"))
    assert place in message and "expected" in message and f"received {received}" in message
    assert "\n" not in message


def test_a_missing_folder_or_binary_file_is_named(tmp_path):
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "nowhere.txt", tmp_path, binary):
        with pytest.raises(InputError, match=r"expected a text file of anchors, received"):
            read_anchors(path)


@pytest.mark.parametrize("layout, lines", [("line", 1), ("scales", 3)])
def test_what_is_written_is_read_back_exactly(tmp_path, layout, lines):
    # Thirds have no short decimal; the second scale's anchors are not in the order of their areas (scale 2 of YOLO).
    fitted = Anchors(np.asarray(YOLO) / 3)
    write_anchors(fitted, tmp_path / "new" / "anchors.txt", layout)
    text = (tmp_path / "new" / "anchors.txt").read_text()
    assert len(text.splitlines()) == lines
    # 10 / 3 in float32: the finest anchor comes first in both layouts.
    assert text.startswith("3.3333333,")
    assert read_anchors(tmp_path / "new" / "anchors.txt") == fitted


def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_beside_it(tmp_path, monkeypatch):
    path = tmp_path / "anchors.txt"
    write_anchors(Anchors(YOLO), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("multigrid.geometry.anchors.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_anchors(Anchors(np.asarray(YOLO) / 2), path)
    assert path.read_bytes() == before and [file.name for file in tmp_path.iterdir()] == ["anchors.txt"]


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match='expected layout "line" or "scales", received \'rows\''):
        write_anchors(Anchors(YOLO), tmp_path / "a.txt", "rows")


def test_anchors_are_a_value():
    first, second = Anchors(YOLO), Anchors(np.asarray(YOLO, dtype="float64"))
    other = Anchors(np.asarray(YOLO) + [1, 0])
    assert first == second and hash(first) == hash(second) and len({first, second, other}) == 2
    assert first != other and first != "anchors"
    # The same 12 numbers in another shape are other anchors.
    assert Anchors(np.ones((3, 2, 2))) != Anchors(np.ones((2, 3, 2)))
    assert Anchors(first.to_list()) == first and pickle.loads(pickle.dumps(first)) == first
    assert (first.num_scales, first.per_scale, first.strides) == (3, 3, (32, 16, 8))


def test_anchors_cannot_be_changed_through_the_array_they_came_from():
    source = np.asarray(YOLO, dtype="float32")
    value = Anchors(source)
    source[0, 0, 0] = 7
    assert value.sizes[0, 0, 0] == 116
    with pytest.raises(ValueError, match="read-only"):
        value.sizes[0, 0, 0] = 7


def test_the_flat_index_is_scale_times_anchors_plus_anchor():
    anchors = Anchors([[[50, 40], [20, 90]], [[9, 8], [2, 3]]])
    assert anchors.flat().tolist() == [[50, 40], [20, 90], [9, 8], [2, 3]]


@pytest.mark.parametrize(
    "sizes", [[[1, 2]], [[[1, 2, 3]]], [[[1, 0]]], [[[1, float("nan")]]], [], [[[1, 2]], [[3]]], "nine"]
)
def test_sizes_that_are_no_anchors_are_refused(sizes):
    with pytest.raises(InputError, match="anchors: expected"):
        Anchors(sizes)
