"""Boxes, cells and sheets, looked at pixel by pixel."""

import cv2
import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.pictures import (
    _free_place,
    class_colour,
    contact_sheet,
    draw_boxes,
    draw_cells,
    save_image,
)

RED, BLUE = (255, 0, 0), (0, 0, 255)


def grey(height=64, width=96, value=100):
    return np.full((height, width, 3), value, dtype="uint8")


def changed(before, after):
    """(x1, y1, x2, y2) of the pixels that differ; the right and lower corner are the first pixel outside."""
    rows, columns = np.nonzero((before != after).any(axis=-1))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def test_a_box_is_drawn_on_its_own_outermost_pixels_and_its_inside_stays():
    image = grey()
    drawn = draw_boxes(image, [[10, 5, 40, 21]], colours=RED)
    assert changed(image, drawn) == (10, 5, 40, 21)
    assert (drawn[6:20, 11:39] == 100).all() and tuple(drawn[5, 25]) == RED
    assert (image == 100).all()


def test_boxes_outside_or_far_away_are_cut_and_never_fail():
    image = grey()
    drawn = draw_boxes(image, [[-30, 20, 15, 1e12], [200, 300, 210, 320], [-np.inf, 2, np.inf, 9]], ["a", "b", "c"])
    assert drawn.shape == image.shape and changed(image, drawn)[0] == 0


def test_no_boxes_leave_the_image():
    assert (draw_boxes(grey(), np.zeros((0, 4)), []) == 100).all()
    assert (draw_cells(grey(), np.zeros((0, 4))) == 100).all()


@pytest.mark.parametrize(
    "box, above",
    [((20, 30, 60, 50), True), ((20, 2, 60, 50), False), ((80, 30, 95, 50), True), ((-20, -10, 30, 62), False)],
)
def test_a_label_stands_whole_in_the_image_on_a_strip_of_its_colour(box, above):
    image = grey()
    plain, drawn = draw_boxes(image, [box], colours=BLUE), draw_boxes(image, [box], ["cell"], BLUE)
    x1, y1, x2, y2 = changed(plain, drawn)
    assert 0 <= x1 and x2 <= 96 and (y2 <= box[1] if above else y1 >= box[1])
    # White letters on blue: the strip holds both.
    strip = drawn[y1:y2, x1:x2].reshape(-1, 3).astype(int)
    assert (strip == BLUE).all(axis=1).mean() > 0.3 and (strip.min(axis=1) > 200).sum() > 10


def test_labels_of_two_equal_boxes_do_not_cover_each_other():
    first = _free_place((64, 96), (20, 30, 60, 50), 25, 12, [])
    second = _free_place((64, 96), (20, 30, 60, 50), 25, 12, [first])
    assert first == (20, 18, 45, 30) and second == (20, 30, 45, 42)


def test_one_colour_a_box_or_one_for_all():
    image = grey()
    drawn = draw_boxes(image, [[2, 3, 20, 30], [50, 8, 70, 60]], colours=[RED, BLUE])
    assert tuple(drawn[3, 10]) == RED and tuple(drawn[8, 60]) == BLUE
    with pytest.raises(ValueError, match="expected one colour or 1, received 2"):
        draw_boxes(image, [[2, 3, 20, 30]], colours=[RED, BLUE])
    with pytest.raises(ValueError, match="received 2 labels for 1 boxes"):
        draw_boxes(image, [[2, 3, 20, 30]], ["a", "b"])


def test_twenty_classes_have_colours_that_can_be_told_apart():
    colours = np.asarray([class_colour(index) for index in range(20)], dtype=float)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(20)
    assert distances.min() > 30


def test_a_cell_is_tinted_and_its_last_row_and_column_are_not():
    image = grey()
    drawn = draw_cells(image, [[16, 8, 32, 24]], alpha=0.25, colours=RED)
    assert changed(image, drawn) == (16, 8, 31, 23)
    # 100 * .75 + (255, 0, 0) * .25 = (138.75, 75, 75)
    assert tuple(drawn[10, 20]) == (139, 75, 75) and (image == 100).all()


@pytest.mark.parametrize("cell", [(-16, 8, 0, 24), (96, 8, 112, 24), (32, -16, 48, 0), (32, 64, 48, 80)])
def test_a_cell_beside_the_image_tints_nothing(cell):
    assert (draw_cells(grey(), [cell]) == 100).all()


def test_a_cell_over_the_border_is_cut():
    image = grey()
    assert changed(image, draw_cells(image, [[-8, 56, 8, 72]])) == (0, 56, 7, 64)


def test_tinting_needs_a_share():
    with pytest.raises(ValueError, match="alpha from 0 to 1, received 1.5"):
        draw_cells(grey(), [[1, 2, 3, 9]], alpha=1.5)


def test_a_sheet_holds_every_image_whole_in_reading_order_with_its_caption():
    images = [grey(40, 90, 60), grey(30, 70, 120), grey(20, 50, 180)]
    sheet = contact_sheet(images, 2, ["first", "second", "third"])
    places = [changed(sheet * 0, np.where(sheet == value, sheet, 0)) for value in (60, 120, 180)]
    sizes = [((sheet == value).all(axis=-1)).sum() for value in (60, 120, 180)]
    # Letters are smoothed, so a few of their pixels have any grey; the images' own are 3600, 2100 and 1000.
    assert all(abs(size - own) < 40 for size, own in zip(sizes, (3600, 2100, 1000), strict=True))
    assert tuple(sheet[6, 6]) == (60,) * 3 and tuple(sheet[6, 6 + 90 + 6]) == (120,) * 3
    assert places[2][1] > 46 and sheet.dtype == np.uint8
    # Two columns of 90 pixels and three margins of 6.
    assert sheet.shape[1] == 2 * 90 + 3 * 6
    assert (sheet[46:58, 6:96] > 200).any(), "the caption below the first image"


def test_a_sheet_without_captions_and_with_fewer_images_than_columns_is_no_wider_than_they_are():
    assert contact_sheet([grey(40, 90)], 4).shape == (52, 102, 3)


def test_a_sheet_refuses_what_it_cannot_lay_out():
    with pytest.raises(ValueError, match="received 0 and 3"):
        contact_sheet([], 3)
    with pytest.raises(ValueError, match="received 1 for 2 images"):
        contact_sheet([grey(), grey()], 2, ["one"])


def test_a_saved_image_has_its_red_where_red_was(tmp_path):
    image = grey()
    image[:, :30] = RED
    save_image(tmp_path / "new" / "bild ä.png", image)
    data = np.fromfile(tmp_path / "new" / "bild ä.png", dtype="uint8")
    assert (cv2.imdecode(data, cv2.IMREAD_COLOR)[..., ::-1] == image).all()


@pytest.mark.parametrize("name", ["picture.xyz", "picture"])
def test_an_ending_that_is_no_picture_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: expected a picture's ending"):
        save_image(tmp_path / name, grey())
    assert list(tmp_path.iterdir()) == []
