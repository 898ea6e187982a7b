"""Boxes and cells drawn on images, and many images on one sheet.

Convention of this module: images are uint8 RGB [height, width, 3] and are never changed in place; boxes and cells are
corners (x1, y1, x2, y2) in pixels of the image; a colour is (red, green, blue).
"""

from __future__ import annotations

import colorsys
import os
from collections.abc import Sequence

import cv2
import numpy as np

from multigrid.errors import InputError
from multigrid.report import replacing

Colour = tuple[int, int, int]

FONT = cv2.FONT_HERSHEY_SIMPLEX
TEXT_SCALE = 0.4
BACKGROUND = 32
MARGIN = 6
# A line is one pixel wide up to this side, two up to twice of it, and so on.
SIDE_PER_LINE = 480
# Bright colours far apart, in the order in which they are given to classes.
PALETTE: tuple[Colour, ...] = (
    (255, 64, 64), (64, 200, 255), (255, 210, 40), (90, 230, 90), (255, 110, 255), (255, 150, 60),
    (130, 130, 255), (0, 225, 185), (200, 255, 90), (255, 160, 190), (190, 120, 60), (160, 200, 220),
)  # fmt: skip


def class_colour(index: int) -> Colour:
    """The colour of a class index: a fixed palette first, then hues a golden angle apart."""
    if index < len(PALETTE):
        return PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1.0, 0.65, 1.0)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw_boxes(image, boxes, labels: Sequence[str] | None = None, colours=None) -> np.ndarray:
    """The image with thin boxes and, on a filled strip, their labels.

    All boxes are drawn before the first label, so that no line crosses a text. A label stands above its box, or where
    the image ends or another label stands: inside, at the lower end, or below.

    Args:
        image: uint8 [height, width, 3].
        boxes: [N, 4] float, corners in pixels; parts outside the image are not seen.
        labels: N texts; an empty one draws nothing. No labels if None.
        colours: one colour for all or N of them; `class_colour(0)` if None.

    Returns:
        uint8 [height, width, 3], another array.

    Raises:
        ValueError: the numbers of boxes, labels and colours differ.
    """
    canvas = np.array(image, dtype=np.uint8, order="C")
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    colours = _colours(colours, len(boxes))
    if labels is not None and len(labels) != len(boxes):
        raise ValueError(f"expected a label a box, received {len(labels)} labels for {len(boxes)} boxes")
    thickness = 1 + (max(canvas.shape[:2]) - 1) // SIDE_PER_LINE
    corners = _pixels(boxes, canvas.shape)
    for (left, top, right, bottom), colour in zip(corners, colours, strict=True):
        # The right and lower corner are the first pixel outside.
        cv2.rectangle(canvas, (left, top), (max(right - 1, left), max(bottom - 1, top)), colour, thickness)
    taken: list[tuple[int, int, int, int]] = []
    for box, colour, label in zip(corners, colours, labels or [""] * len(boxes), strict=True):
        if label:
            taken.append(_draw_label(canvas, label, box, colour, TEXT_SCALE * (1 + 0.4 * (thickness - 1)), taken))
    return canvas


def draw_cells(image, cells_xyxy, alpha: float = 0.35, colours=None) -> np.ndarray:
    """The image with cells tinted; the image stays visible through them.

    The last row and column of a cell stay untinted, which shows neighbouring cells as two.

    Args:
        image: uint8 [height, width, 3].
        cells_xyxy: [N, 4] float, corners in pixels.
        alpha: from 0, not seen, to 1, nothing of the image seen.
        colours: one colour for all or N of them; `class_colour(0)` if None.

    Returns:
        uint8 [height, width, 3], another array.

    Raises:
        ValueError: alpha outside 0 to 1, or the numbers of cells and colours differ.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"expected alpha from 0 to 1, received {alpha}")
    canvas = np.array(image, dtype=np.uint8, order="C")
    cells = np.asarray(cells_xyxy, dtype=np.float64).reshape(-1, 4)
    corners = np.maximum(_pixels(cells, canvas.shape), 0)
    for (left, top, right, bottom), colour in zip(corners, _colours(colours, len(cells)), strict=True):
        cell = canvas[top : max(bottom - 1, top), left : max(right - 1, left)]
        cell[:] = np.round(cell * (1 - alpha) + np.asarray(colour) * alpha)
    return canvas


def contact_sheet(images, columns: int, captions: Sequence[str] | None = None) -> np.ndarray:
    """Images on one sheet, row by row, each with its caption below.

    Args:
        images: uint8 [height, width, 3] each; sizes may differ, each stands at the top left of its place.
        columns: places in a row.
        captions: a text an image, cut where it is wider than its place. No captions if None.

    Returns:
        uint8 [height, width, 3].

    Raises:
        ValueError: no images, no columns, or another number of captions.
    """
    images = list(images)
    if not images or columns < 1:
        raise ValueError(f"expected images and at least one column, received {len(images)} and {columns}")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"expected a caption an image, received {len(captions)} for {len(images)} images")
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    height, width = max(image.shape[0] for image in images), max(image.shape[1] for image in images)
    strip = 0 if captions is None else _text_size("Ag", TEXT_SCALE)[1] + 6
    step_y, step_x = height + strip + MARGIN, width + MARGIN
    sheet = np.full((rows * step_y + MARGIN, columns * step_x + MARGIN, 3), BACKGROUND, dtype=np.uint8)
    for index, image in enumerate(images):
        top, left = MARGIN + index // columns * step_y, MARGIN + index % columns * step_x
        sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
        if captions is not None:
            place = np.full((strip, width, 3), BACKGROUND, dtype=np.uint8)
            _write(place, captions[index], 2, 3, (235, 235, 235), TEXT_SCALE)
            below = top + image.shape[0]
            sheet[below : below + strip, left : left + width] = place
    return sheet


def save_image(path: str | os.PathLike, image) -> None:
    """Writes the image in the format of the path's ending (`.png`, `.jpg`, ...).

    Args:
        path: the file; its folder is made.
        image: uint8 RGB [height, width, 3].

    Raises:
        InputError: no format has this ending.
    """
    if not cv2.haveImageWriter(os.fspath(path)):
        raise InputError(f"{path}: expected a picture's ending such as .png or .jpg, received another")
    ending = os.path.splitext(path)[1]
    written, data = cv2.imencode(ending, cv2.cvtColor(np.asarray(image), cv2.COLOR_RGB2BGR))
    if not written:
        raise OSError(f"{path}: the picture could not be encoded")
    with replacing(path) as temporary:
        temporary.write_bytes(data.tobytes())


def _colours(colours, count: int) -> list[Colour]:
    if colours is None:
        colours = class_colour(0)
    if np.ndim(colours) == 1 and len(colours) == 3:
        return [tuple(int(part) for part in colours)] * count
    if len(colours) != count:
        raise ValueError(f"expected one colour or {count}, received {len(colours)}")
    return [tuple(int(part) for part in colour) for colour in colours]


def _pixels(boxes: np.ndarray, shape) -> list[list[int]]:
    """Corners as whole pixels, at most one image away: OpenCV takes no larger numbers than 32 bits hold."""
    height, width = shape[:2]
    limits = np.asarray([width, height, width, height])
    return np.round(np.clip(boxes, -limits, 2 * limits)).astype(int).tolist()


def _text_size(text: str, scale: float) -> tuple[int, int]:
    (width, height), baseline = cv2.getTextSize(text, FONT, scale, _stroke(scale))
    return width, height + baseline


def _draw_label(canvas: np.ndarray, text: str, box, colour: Colour, scale: float, taken) -> tuple[int, int, int, int]:
    """Draws the label where no other one is and returns the corners of its strip."""
    width, height = _text_size(text, scale)
    x1, y1, x2, y2 = _free_place(canvas.shape, box, width + 3, height + 2, taken)
    cv2.rectangle(canvas, (x1, y1), (x2 - 1, y2 - 1), colour, cv2.FILLED)
    red, green, blue = colour
    bright = 0.299 * red + 0.587 * green + 0.114 * blue > 110  # luma
    _write(canvas, text, x1 + 2, y1 + 1, (0, 0, 0) if bright else (255, 255, 255), scale)
    return x1, y1, x2, y2


def _free_place(shape, box, width: int, height: int, taken) -> tuple[int, int, int, int]:
    """The first place at the box that lies in the image and covers no strip of `taken`; else the first in the image."""
    left, top, right, bottom = box
    x = max(min(left, shape[1] - width), 0)
    rows = [top - height, top, bottom - height, bottom]
    places = [(x, y, x + width, y + height) for y in rows if 0 <= y <= shape[0] - height]
    places += [(right - width, y1, right, y2) for _, y1, _, y2 in places if 0 <= right - width and right <= shape[1]]
    edge = max(min(top, shape[0] - height), 0)
    places.append((x, edge, x + width, edge + height))
    return next((place for place in places if not any(_overlap(place, other) for other in taken)), places[0])


def _overlap(first, second) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


def _write(canvas: np.ndarray, text: str, left: int, top: int, colour: Colour, scale: float) -> None:
    stroke = _stroke(scale)
    (_, height), _ = cv2.getTextSize(text, FONT, scale, stroke)
    cv2.putText(canvas, text, (left, top + height), FONT, scale, colour, stroke, cv2.LINE_AA)


def _stroke(scale: float) -> int:
    """How thick letters of this size are, in pixels."""
    return max(1, round(1.5 * scale))
