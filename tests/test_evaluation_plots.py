"""The pictures of an evaluation: what is in them, and that they stay readable with many classes and with nothing."""

import warnings

import cv2
import numpy as np
import pytest

from multigrid.detection.records import RECORD
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.figures import figure_file, write_plain_powers
from multigrid.evaluation.plots import (
    COLOURS,
    DPI,
    FAINT_COLOUR,
    _styled,
    draw_average_precisions,
    draw_confusion,
    draw_plots,
)
from multigrid.evaluation.run import Evaluation

PLOTS = [
    "pr_curves.png", "f1_confidence.png", "confusion_matrix.png", "ap_per_class.png", "iou_of_matches.png",
    "calibration.png",
]  # fmt: skip


def evaluation_of(classes: int, images: int, seed=2, found=True, objects=True) -> Evaluation:
    """One object and two detections an image and class, one of them near it."""
    random = np.random.default_rng(seed)
    images = [{"id": 5 + number, "width": 96, "height": 64} for number in range(images)]
    categories = [{"id": 1 + index, "name": f"class {index} & <co>"} for index in range(classes)]
    annotations, records = [], []
    for image in images if objects else ():
        for category in categories:
            box = np.round([*random.uniform(0, 40, 2), *random.uniform(9, 50, 2)], 3)
            keys = {"image_id": image["id"], "category_id": category["id"], "iscrowd": 0, "area": box[2] * box[3]}
            annotations.append({"id": len(annotations) + 1, "bbox": box.tolist(), **keys})
            for shift, score in ((random.normal(0, 2), random.random()), (30, random.random() / 2)):
                records.append((image["id"], category["id"], tuple(box + [shift, 0, 0, 0]), score, 8))
    truth = {"images": images, "annotations": annotations, "categories": categories}
    records = np.array(records if found else [], RECORD)
    seconds = {"network": 1.0, "all": 2.0}
    return Evaluation(coco_metrics(truth, records), records, truth, 0.25, None, seconds)


def read(path):
    image = cv2.imread(str(path))
    assert image is not None and image.std() > 10, f"{path.name} is empty"
    return image


@pytest.mark.parametrize(
    "options",
    [
        {"classes": 1, "images": 3},
        {"classes": 3, "images": 2, "found": False},
        {"classes": 2, "images": 2, "objects": False},
        {"classes": 2, "images": 0},
    ],
    ids=["one class", "no detections", "no objects", "no images"],
)
def test_every_picture_is_drawn_whatever_is_missing(tmp_path, options):
    evaluation = evaluation_of(**options)
    assert evaluation.save(tmp_path)[-6:] == PLOTS
    for name in PLOTS:
        assert read(tmp_path / name).shape[1] == 6 * DPI


def test_eighty_classes_get_more_paper_and_no_colour_of_their_own(tmp_path):
    evaluation_of(80, 2).save(tmp_path)
    assert read(tmp_path / "ap_per_class.png").shape[0] > 80 * 0.2 * DPI, "a line of text a class"
    matrix = read(tmp_path / "confusion_matrix.png").shape
    assert min(matrix[:2]) > 81 * 0.16 * DPI, "a line of text a row and a column"
    assert read(tmp_path / "pr_curves.png").shape[:2] == (4.5 * DPI, 6 * DPI)
    few, many = (list(_styled(range(count), range(count))) for count in (8, 9))
    assert [style["color"] for _, _, style in few] == list(COLOURS)
    assert {style["color"] for _, _, style in many} == {FAINT_COLOUR}


def test_hundreds_of_classes_and_odd_names_make_no_larger_picture(tmp_path):
    names = ["a$^$", "x" * 150, *(f"class {index}" for index in range(300))]
    draw_confusion(tmp_path / "c.png", {"counts": np.eye(302, dtype=int).tolist(), "labels": names, "threshold": 0.25})
    assert max(read(tmp_path / "c.png").shape) <= 24 * DPI
    each = {name: {"AP": 0.4, "AP50": 0.7} for name in names}
    draw_average_precisions(tmp_path / "ap.png", {"mAP": 0.4, "per_class": each})
    assert max(read(tmp_path / "ap.png").shape) <= 24 * DPI, "302 lines of text would be 74 inches"
    few = {"counts": [[1, 0], [0, 1]], "labels": names[:2], "threshold": 0.25}
    draw_confusion(tmp_path / "few.png", few)
    assert read(tmp_path / "few.png").shape[1] == 6 * DPI


def test_class_names_of_any_letters_and_length_are_drawn_in_every_picture_without_a_warning(tmp_path):
    evaluation = evaluation_of(3, 2)
    names = ["5$ $6", "猫", "a name that never ends " * 8]
    metrics, (pooled, each) = evaluation.full_metrics, evaluation.curves
    per_class = dict(zip(names, metrics["per_class"].values(), strict=True))
    confusion = {**metrics["confusion"], "labels": [*names, "background"]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = draw_plots(
            tmp_path, {**metrics, "per_class": per_class, "confusion": confusion}, (pooled, each), evaluation.matches
        )
    assert found == PLOTS and all(read(tmp_path / name).shape[1] == 6 * DPI for name in found)


def test_the_shade_of_a_confusion_is_its_share_of_the_row(tmp_path):
    # Rows: all of 7 right; 1 of 4 right and 3 missed; no false detection. Dark is much.
    counts = [[7, 0, 0], [0, 1, 3], [0, 0, 0]]
    draw_confusion(tmp_path / "c.png", {"counts": counts, "labels": ["a", "b", "background"], "threshold": 0.25})
    grey = cv2.cvtColor(read(tmp_path / "c.png"), cv2.COLOR_BGR2GRAY)
    # The frame is the only thing that is black over a third of the width.
    rows, columns = (np.flatnonzero((grey < 90).mean(axis=axis) > 0.35) for axis in (1, 0))
    top, left = rows.min(), columns.min()
    height, width = (rows.max() - top) / 3, (columns.max() - left) / 3
    # A fifth from the upper left corner of each cell, away from the numbers.
    shades = [[grey[int(top + (r + 0.2) * height), int(left + (c + 0.2) * width)] for c in range(3)] for r in range(3)]
    assert shades[0][0] < shades[1][2] < shades[1][1] < shades[0][1]
    assert shades[0][1] == shades[0][2] == shades[1][0] == shades[2][0] == shades[2][2]


def test_powers_are_numbers_and_no_formulas(tmp_path):
    with figure_file(tmp_path / "powers.png", 3.0, 2.0, 72) as figure:
        axes = figure.subplots()
        axes.plot([1, 2], [0.01, 100.0])
        axes.set_yscale("log")
        write_plain_powers(axes.yaxis)
        figure.draw_without_rendering()
        assert {"0.01", "1", "100"} <= {label.get_text() for label in axes.get_yticklabels()}
