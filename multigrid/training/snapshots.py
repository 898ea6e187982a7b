"""Pictures of a run: what the network was shown, and what it says beside the truth."""

from __future__ import annotations

import cv2
import numpy as np
from keras import ops

from multigrid.data.images import read_image
from multigrid.geometry.cells import cell_corners
from multigrid.pictures import class_colour, contact_sheet, draw_boxes, draw_cells, save_image

COLUMNS = 4
MOST = 8  # images on a sheet


def save_training_batch(path, data, detector, class_names) -> None:
    """Draws the first batch, see `batch_sheet`.

    Args:
        path: of the picture.
        data: a dataset of batches.
        detector: whose criterion assigns the cells.
        class_names: one a class.
    """
    save_image(path, batch_sheet(*data[0][:2], detector, class_names))


def batch_sheet(images, truth, detector, class_names) -> np.ndarray:
    """Images of a batch with their boxes and, tinted, the cells that answer for them.

    Args:
        images: uint8 [B, H, W, 3]; the first are drawn.
        truth: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.
        detector: whose criterion assigns the cells.
        class_names: one a class; a class without one is drawn with its number.

    Returns:
        uint8 RGB [height, width, 3].
    """
    images, truth = images[:MOST], {name: values[:MOST] for name, values in truth.items()}
    drawn = []
    for row, cells in enumerate(_answering_cells(images, truth, detector)):
        objects = np.flatnonzero(truth["classes"][row] >= 0)
        known = dict(enumerate(class_names))
        labels = [known.get(int(index), str(index)) for index in truth["classes"][row][objects]]
        colours = [class_colour(index) for index in truth["classes"][row][objects]]
        tinted = images[row]
        for number, colour in zip(objects, colours, strict=True):
            tinted = draw_cells(tinted, cells[number], colours=colour)
        drawn.append(draw_boxes(tinted, truth["boxes"][row][objects], labels, colours))
    return contact_sheet(drawn, COLUMNS)


def save_predictions(path, predictor, samples) -> None:
    """Draws truth (left) beside predictions (right) for samples spread over a set.

    Args:
        path: of the picture.
        predictor: a `Predictor`.
        samples: labelled images.
    """
    save_image(path, prediction_sheet(predictor, spread(samples)))


def spread(samples) -> list:
    """As many samples as a sheet has places for, spread evenly from the first to the last."""
    return [samples[index] for index in np.unique(np.linspace(0, len(samples) - 1, MOST).astype(int))]


def prediction_sheet(predictor, samples, longest_side: int | None = None) -> np.ndarray:
    """Truth (left) beside predictions (right) for each sample.

    Args:
        predictor: a `Predictor`.
        samples: labelled images.
        longest_side: larger images are shrunk to this many pixels; None leaves them.

    Returns:
        uint8 RGB [height, width, 3].
    """
    drawn, captions = [], []
    for sample, found in zip(samples, predictor.stream(sample.path for sample in samples), strict=True):
        image, scale = _shrunk(read_image(sample.path), longest_side)
        names = [predictor.class_names[index] for index in sample.classes]
        colours = [class_colour(index) for index in sample.classes]
        drawn.append(draw_boxes(image, sample.boxes * scale, names, colours))
        labels = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores, strict=True)]
        drawn.append(draw_boxes(image, found.boxes * scale, labels, [class_colour(index) for index in found.class_ids]))
        captions += ["truth", "predicted"]
    return contact_sheet(drawn, COLUMNS, captions)


def _shrunk(image: np.ndarray, longest_side: int | None) -> tuple:
    """The image, and the (x, y, x, y) factors that take its boxes along."""
    height, width = image.shape[:2]
    if longest_side is None or max(height, width) <= longest_side:
        return image, np.ones(4, "float32")
    factor = longest_side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    shrunk = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    return shrunk, np.array([size[0] / width, size[1] / height] * 2, "float32")


def _answering_cells(images, truth, detector) -> list:
    """For each image and object [M] the corners of the cells that answer for it, in input pixels."""
    outputs = detector(images, training=False)
    targets = detector.criterion.encode(truth, outputs)
    cell, positive = (ops.convert_to_numpy(values) for values in (targets.cell, targets.positive))
    corners, _ = cell_corners(images.shape[1:3], detector.strides)
    return [
        [corners[cell[row, number][positive[row, number]]] for number in range(cell.shape[1])]
        for row in range(len(images))
    ]
