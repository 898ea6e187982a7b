"""Detections in one array, and the results made from it."""

import json

import numpy as np

from multigrid.detection.records import (
    BLOCK,
    RECORD,
    as_results,
    corners_of,
    records_of,
    to_records,
    truths_of,
    write_results,
)


def drawn(count, seed=6):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, [90, 60], (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(1, 40, (count, 2))], axis=1).astype("float32")
    return to_records(31, boxes, random.random(count), random.integers(0, 5, count), random.choice([8, 16, 32], count))


def test_a_detection_takes_56_bytes_and_keeps_its_stride():
    records = to_records(31, [[10.12345, 20.5, 40.98765, 31.25]], [0.12345678], [2], [16])
    assert RECORD.itemsize == records.nbytes == 56
    # 40.98765 - 10.12345 = 30.8642
    assert [records[name].tolist() for name in RECORD.names] == [
        [31], [3], [[10.123, 20.5, 30.864, 10.75]], [0.123457], [16],
    ]  # fmt: skip
    assert to_records(31, [[1, 2, 4, 8]], [1], [0])["stride"].tolist() == [0]


def test_corners_are_the_boxes_again():
    records = to_records(4, [[10, 20.5, 40.25, 31.25], [0, 1, 3, 64]], [0.5, 0.25], [0, 1])
    assert corners_of(records).tolist() == [[10, 20.5, 40.25, 31.25], [0, 1, 3, 64]]
    assert records["bbox"].tolist()[0] == [10, 20.5, 30.25, 10.75], "the records stay as they are"


def test_records_become_results_and_results_records():
    records = drawn(2 * BLOCK + 7)
    results = list(as_results(records))
    assert len(results) == 2 * BLOCK + 7 and list(results[0]) == ["image_id", "category_id", "bbox", "score"]
    again = records_of(results)
    records["stride"] = 0  # COCO's format has no place for it
    assert (again == records).all() and records_of(records) is records


def test_objects_are_annotations_without_crowds():
    entry = {"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 2, 3, 9], "area": 27, "iscrowd": 0}
    found = truths_of({"annotations": [entry | {"iscrowd": 1}, entry | {"category_id": 5}]})
    assert [found[name].tolist() for name in RECORD.names] == [[3], [5], [[1, 2, 3, 9]], [0], [0]]


def test_the_written_file_is_the_results(tmp_path):
    for count in (0, 1, BLOCK + 1):
        records = drawn(count)
        write_results(tmp_path / "new" / "detections.json", records)
        assert json.loads((tmp_path / "new" / "detections.json").read_text()) == list(as_results(records))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["detections.json"]
