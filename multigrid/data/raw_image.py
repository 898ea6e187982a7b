"""What every reader of label files makes: a `RawImage` an image, its boxes as they stand, neither clipped nor judged.

A reader refuses what cannot be understood with an InputError that names file and line; what can be understood but is
wrong (an empty box, a class of another list) is left to `multigrid.data.samples`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from multigrid.errors import InputError


@dataclass
class RawImage:
    """An image and its boxes as a label file gives them.

    Attributes:
        path: of the image, absolute.
        place: where the label file names it.
        image_id: COCO's own, else the 1-based position.
        boxes: rows of (x1, y1, x2, y2) in pixels of the upright image.
        labels: for every box its class, id or name.
        places: for every box where it stands.
        crowds: (place, box) of the regions that hold a crowd of objects.
        declared_size: (height, width) that the label file tells.
        relative: the boxes are in shares of the image's width and height instead.
        looked_in: where else the image was looked for.
        missing_label: the label file that the image should have and has not; it is then background.
    """

    path: str
    place: str
    image_id: int
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    labels: list[int | str] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    crowds: list[tuple[str, tuple[float, float, float, float]]] = field(default_factory=list)
    declared_size: tuple[int, int] | None = None
    relative: bool = False
    looked_in: str = ""
    missing_label: str = ""


def read_text(path: str | os.PathLike) -> str:
    """The text of a UTF-8 file; an InputError where it is missing or something else."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except OSError as error:
        raise InputError(f"{os.fspath(path)}: expected a text file, received an error: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{os.fspath(path)}: expected UTF-8 text, received byte {error.start} that is not") from None


def numbered_lines(path: str) -> list[tuple[int, str]]:
    """(line number from 1, line) of a text file, stripped, without blank lines and those that begin with "#"."""
    lines = ((number, line.strip()) for number, line in enumerate(read_text(path).split("\n"), 1))
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def first_file(paths: Sequence[str]) -> str:
    """The first of the paths that is a file, else the first, for an error to name."""
    return os.path.normpath(next((path for path in paths if os.path.isfile(path)), paths[0]))
