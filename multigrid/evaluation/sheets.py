"""Contact sheets of errors: of each kind the worst, cut out of their images.

What was detected is drawn as a solid line, the object that it errs about as a dashed one.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from multigrid.data.images import read_image
from multigrid.evaluation.errors import FALSE_POSITIVES, Errors, find_errors
from multigrid.evaluation.matching import Matches
from multigrid.pictures import contact_sheet, draw_boxes, save_image

TILE = 220  # pixels of the longer side of a cut-out
CONTEXT = 0.6  # of the longer side of what is shown, on every side of it
LEAST_CONTEXT = 16  # pixels
DETECTED, LABELLED = (230, 159, 0), (86, 180, 233)  # Okabe and Ito's orange and sky blue
DASH, LINE = 6, 2  # pixels
COLUMNS = 4


@dataclass(frozen=True)
class Example:
    """One error, as a person sees it."""

    caption: str
    path: str  # of the whole image
    box: tuple  # corners (x1, y1, x2, y2) in its pixels: of the detection, or of the object that was missed
    class_name: str | None  # of the detection; None where an object has none, at whatever score
    score: float | None  # likewise
    truth_class: str | None  # of the object that it errs about or that was missed; None where nothing is
    iou: float | None  # of the two; None where one of them is not
    picture: np.ndarray  # uint8 RGB [height, width, 3], sides of at most TILE pixels

    @property
    def place(self) -> str:
        """The image's name and the box, for who wants to look it up."""
        return f"{os.path.basename(self.path)}: {', '.join(f'{side:.0f}' for side in self.box)}"

    def values(self) -> dict:
        """The same for a file."""
        return {
            "image": self.path,
            "box_xyxy": list(self.box),
            "class": self.class_name,
            "score": self.score,
            "truth_class": self.truth_class,
            "iou": self.iou,
        }


def worst_examples(
    errors: Errors, threshold: float, samples: Sequence, class_names: Sequence[str], most: int = 12
) -> dict:
    """The worst errors of each kind: false positives by score, missed objects by size. One image is read at a time.

    Args:
        errors: of all detections on these samples.
        threshold: the confidence at which people look at them. A false positive of lower score is an example only where
            its kind has none that reaches it; a missed object is one that is missed at it.
        samples: the images.
        class_names: one a class.
        most: examples of a kind.

    Returns:
        {kind: list of `Example`, worst first}, without kinds that do not occur.
    """
    paths = {sample.image_id: sample.path for sample in samples}
    found, shown = {}, errors.matches.score >= threshold
    for kind in FALSE_POSITIVES:
        own = errors.kind == kind
        chosen = np.flatnonzero(own & shown if np.any(own & shown) else own)[:most]
        found[kind] = [_false_positive(errors, int(index), paths, class_names) for index in chosen]
    missed = np.flatnonzero(find_errors(errors.matches.above(threshold)).missed)
    sides = np.diff(errors.matches.truth_boxes[missed].reshape(-1, 2, 2), axis=1)
    largest = missed[np.argsort(-sides.prod(axis=(1, 2)), kind="stable")][:most]
    found["missed"] = [_missed(errors.matches, int(index), paths, class_names) for index in largest]
    return {kind: examples for kind, examples in found.items() if examples}


def write_sheets(folder: str | os.PathLike, examples: dict) -> list[str]:
    """Writes a contact sheet of each kind into a folder, which is made.

    Args:
        folder: where to.
        examples: of `worst_examples`.

    Returns:
        The names of the files, `errors_<kind>.jpg`.
    """
    names = []
    for kind, shown in examples.items():
        sheet = contact_sheet([one.picture for one in shown], COLUMNS, [one.caption for one in shown])
        names.append(f"errors_{kind}.jpg")
        save_image(pathlib.Path(folder) / names[-1], sheet)
    return names


def _false_positive(errors: Errors, index: int, paths: dict, class_names) -> Example:
    matches, truth = errors.matches, errors.truth[index]
    name, score = class_names[matches.class_index[index]], float(matches.score[index])
    caption, truth_name, iou, labelled = f"{name} {_figure(score)}", None, None, np.zeros((0, 4))
    if truth >= 0:
        truth_name, iou = class_names[matches.truth_class[truth]], float(errors.iou[index])
        caption += f", IoU {_figure(iou)} with {truth_name}"
        labelled = matches.truth_boxes[[truth]]
    path, box = paths[int(matches.image_id[index])], matches.boxes[index]
    picture = _cut_out(path, matches.boxes[[index]], labelled)
    return Example(caption, path, _corners(box), name, score, truth_name, iou, picture)


def _missed(matches: Matches, index: int, paths: dict, class_names) -> Example:
    x1, y1, x2, y2 = matches.truth_boxes[index]
    truth_name, lower = class_names[matches.truth_class[index]], matches.detection[index]
    found, detected = "never found", (None, None, None)
    if lower >= 0:  # by a detection of its class, of a score that nobody sees
        score, iou = float(matches.score[lower]), float(matches.iou[lower])
        found, detected = f"found at {_figure(score)}", (truth_name, score, iou)
    caption = f"{truth_name}, {x2 - x1:.0f} x {y2 - y1:.0f} px, {found}"
    path, (name, score, iou) = paths[int(matches.truth_image_id[index])], detected
    picture = _cut_out(path, np.zeros((0, 4)), matches.truth_boxes[[index]])
    return Example(caption, path, _corners(matches.truth_boxes[index]), name, score, truth_name, iou, picture)


def _corners(box) -> tuple:
    return tuple(np.round(box, 1).tolist())


def _figure(value: float) -> str:
    """A figure from 0 to 1 in two digits: ".92", "1.00"."""
    return f"{value:.2f}".removeprefix("0")


def _cut_out(path: str, detected: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """What surrounds boxes [N, 4] in an image, enlarged or reduced, with the boxes on it."""
    image = read_image(path)
    boxes = np.concatenate([detected, labelled])
    low, high = boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)
    margin = max(CONTEXT * (high - low).max(), LEAST_CONTEXT)
    left, top = np.floor(np.maximum(low - margin, 0)).astype(int)
    right, bottom = np.ceil(np.minimum(high + margin, image.shape[1::-1])).astype(int)
    scale = TILE / max(right - left, bottom - top)
    size = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    picture = cv2.resize(image[top:bottom, left:right], size, interpolation=way)
    corner = np.array([left, top, left, top])
    for inwards in range(LINE):
        inset = np.array([inwards, inwards, -inwards, -inwards])
        picture = draw_boxes(picture, (detected - corner) * scale + inset, colours=DETECTED)
        for box in (labelled - corner) * scale + inset:
            _draw_dashed(picture, box)
    return picture


def _draw_dashed(picture: np.ndarray, box: np.ndarray) -> None:
    """Draws a dashed outline, dashes of colour on a dark line, so that it is seen on any ground."""
    height, width = picture.shape[:2]
    x1, y1 = np.clip(np.round(box[:2]), 0, (width - 1, height - 1)).astype(int).tolist()
    x2, y2 = np.clip(np.round(box[2:]) - 1, 0, (width - 1, height - 1)).astype(int).tolist()
    dark_or_bright = np.uint8([LABELLED, (0, 0, 0)])
    for row in (y1, y2):
        picture[row, x1 : x2 + 1] = dark_or_bright[np.arange(x2 + 1 - x1) // DASH % 2]
    for column in (x1, x2):
        picture[y1 : y2 + 1, column] = dark_or_bright[np.arange(y2 + 1 - y1) // DASH % 2]
