"""What was found in one image: values, tables, records and pictures.

Convention of this module: boxes are corners (x1, y1, x2, y2) in pixels of the upright image, images are uint8 RGB
[height, width, 3], sizes are (height, width).
"""

from __future__ import annotations

import collections
import json
import os
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from multigrid.data.images import read_image
from multigrid.detection.records import SCORE_DECIMALS, as_results, to_records
from multigrid.errors import InputError
from multigrid.pictures import class_colour, draw_boxes, draw_cells, save_image

BOX_DECIMALS = 2  # of records and tables
COLUMNS = ("image", "class_id", "class", "score", "x1", "y1", "x2", "y2")  # of a row
FRAME_COLUMNS = ("frame", "time")  # and of one of a video


class Frame(NamedTuple):
    """Pixels, and where they are from."""

    image: np.ndarray  # uint8 RGB [height, width, 3]
    path: str  # of the video; "camera 0"
    index: int  # from 0
    time: float  # seconds from the first frame


@dataclass(frozen=True, eq=False, repr=False)
class Detections:
    """What was found in one image, highest score first."""

    boxes: np.ndarray  # [D, 4] float32 corners (x1, y1, x2, y2) in pixels of the upright image, clipped to it
    scores: np.ndarray  # [D] float32, objectness × class
    class_ids: np.ndarray  # [D] int32
    class_names: tuple  # all names, so that class_names[class_id] is what was found
    size: tuple  # (height, width) of the upright image
    path: str = ""  # of the image or video; "camera 0"; "" where it came as an array
    strides: np.ndarray | None = None  # [D] int32 input pixels a cell of the grid that found it
    cells: tuple | None = None  # D times [k, 4] float32, corners of the cells that say so, where they were asked for
    image: np.ndarray | None = None  # uint8 RGB [height, width, 3], where it came as pixels
    frame: int | None = None  # of a video or camera, from 0
    time: float | None = None  # of that frame, in seconds from the first

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        counts = collections.Counter(self.names)
        found = ", ".join(f"{count} {name}" for name, count in counts.items()) or "none"
        place = "an array" if not self.path and self.image is not None else self.path
        if self.frame is not None:
            place += f", frame {self.frame}"
        return f"Detections({found}; {self.size[0]} x {self.size[1]}{place and '; '}{place})"

    @property
    def names(self) -> list:
        """The class name of each detection."""
        return [self.class_names[index] for index in self.class_ids]

    def without_frame(self) -> Detections:
        """The detections without the pixels of a video's frame; others are returned as they are."""
        return self if self.frame is None else replace(self, image=None)

    def rows(self) -> list[dict]:
        """One {"image", "class_id", "class", "score", "x1", "y1", "x2", "y2"} a detection, in plain Python values.

        Boxes are rounded to 0.01 pixel, scores to 0.000001. Those of a video also have "frame" and "time".
        """
        moment = {} if self.frame is None else {"frame": self.frame, "time": _seconds(self.time)}
        return [
            dict(zip(COLUMNS, (self.path, int(index), name, score, *box), strict=True)) | moment
            for index, name, score, box in zip(self.class_ids, self.names, *self._rounded(), strict=True)
        ]

    def to_pandas(self):
        """`rows` as a pandas.DataFrame; the columns are there where nothing was found too."""
        # Loaded here because it costs half a second and only this table needs it.
        import pandas

        columns = COLUMNS if self.frame is None else (*COLUMNS, *FRAME_COLUMNS)
        return pandas.DataFrame(self.rows(), columns=list(columns))

    def to_dict(self) -> dict:
        """The detections as plain values.

        Returns:
            {"image", "width", "height", "detections": [{"class", "score", "box_xyxy": [x1, y1, x2, y2]}]}, rounded as
            in `rows`; where they are of a video, "frame" and "time" stand after "image".
        """
        moment = {} if self.frame is None else {"frame": self.frame, "time": _seconds(self.time)}
        found = [
            {"class": name, "score": score, "box_xyxy": box}
            for name, score, box in zip(self.names, *self._rounded(), strict=True)
        ]
        return {"image": self.path, **moment, "width": self.size[1], "height": self.size[0], "detections": found}

    def to_json(self) -> str:
        """`to_dict` as JSON, on one line."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_coco(self, image_id: int, category_offset: int = 1) -> list[dict]:
        """The detections in COCO's results format.

        Args:
            image_id: the image's in the ground truth.
            category_offset: what is added to a class index to get its category id.

        Returns:
            list of {"image_id", "category_id", "bbox": [x, y, width, height], "score"} in pixels; coordinates rounded
            to 0.001 pixel, scores to 0.000001.
        """
        records = to_records(image_id, self.boxes, self.scores, self.class_ids)
        records["category_id"] += category_offset - 1
        return list(as_results(records))

    def to_supervision(self):
        """The detections as `supervision.Detections`, with the names under `data["class_name"]`.

        Raises:
            InputError: the library is not installed.
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            if error.name != "supervision":
                raise
            raise InputError(
                "to_supervision: expected the library supervision, received none; install it with "
                "pip install supervision"
            ) from None
        return supervision.Detections(
            xyxy=self.boxes.copy(),
            confidence=self.scores.copy(),
            class_id=self.class_ids.astype(int),
            data={"class_name": np.array(self.names, dtype=str)},
        )

    def plot(self, image=None, cells: bool = False) -> np.ndarray:
        """The image with its boxes, their classes and scores.

        Args:
            image: uint8 [height, width, 3], the upright image; None takes the one of the detections, or reads it.
            cells: whether the cells that answered are tinted too, in the colour of what they say.

        Returns:
            uint8 [height, width, 3], a new array.

        Raises:
            InputError: the image can no longer be read, or is of another size than the one that was looked at.
            ValueError: no image is known, or no cells were asked for in prediction.
        """
        image = self._pixels(image)
        if image.shape[:2] != tuple(self.size):
            where = self.path or "image"
            raise InputError(f"{where}: expected (height, width) {tuple(self.size)}, received {image.shape[:2]}")
        colours = [class_colour(index) for index in self.class_ids]
        if cells:
            image = self._with_cells(image, colours)
        labels = [f"{name} {score:.2f}" for name, score in zip(self.names, self.scores, strict=True)]
        return draw_boxes(image, self.boxes, labels, colours)

    def save(self, path: str | os.PathLike, cells: bool = False) -> None:
        """Writes what `plot` draws, in the format of the path's ending; the folder is made.

        Raises:
            InputError: no format has this ending, or as `plot`.
            ValueError: as `plot`.
        """
        save_image(path, self.plot(cells=cells))

    def _rounded(self) -> tuple[list, list]:
        """Scores and boxes in plain numbers; in float64, or the rounded ones would carry float32's error."""
        scores = np.round(np.asarray(self.scores, "float64"), SCORE_DECIMALS).tolist()
        return scores, np.round(np.asarray(self.boxes, "float64"), BOX_DECIMALS).tolist()

    def _pixels(self, image) -> np.ndarray:
        if image is not None:
            return np.asarray(image)
        if self.image is not None:
            return self.image
        if self.frame is not None or not self.path:
            raise ValueError("image: expected the pixels, for these detections do not keep them, received None")
        return read_image(self.path)

    def _with_cells(self, image: np.ndarray, colours) -> np.ndarray:
        if self.cells is None:
            raise ValueError("cells: expected detections of a prediction with cells=True, received others")
        of_each = [colour for colour, cells in zip(colours, self.cells, strict=True) for _ in cells]
        return draw_cells(image, np.concatenate([np.zeros((0, 4)), *self.cells]), colours=of_each)


def _seconds(time: float | None) -> float | None:
    return None if time is None else round(time, 6)
