"""What was found in one image."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Detections:
    """What was found in one image, highest score first."""

    boxes: np.ndarray  # [D, 4] float32 corners (x1, y1, x2, y2) in pixels of the upright image, clipped to it
    scores: np.ndarray  # [D] float32, objectness × class
    class_ids: np.ndarray  # [D] int32
    class_names: tuple  # all names, so that class_names[class_id] is what was found
    size: tuple  # (height, width) of the upright image
    path: str = ""  # of the image; "" where it came as an array
    strides: np.ndarray | None = None  # [D] int32 input pixels a cell of the grid that found it
    cells: tuple | None = None  # D times [k, 4] float32, corners of the cells that say so, where they were asked for
    image: np.ndarray | None = None  # uint8 RGB [height, width, 3], where it came as an array

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list:
        """The class name of each detection."""
        return [self.class_names[index] for index in self.class_ids]
