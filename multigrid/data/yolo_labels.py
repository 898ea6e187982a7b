"""Reads text labels: keras-yolo3 lines (corners in pixels) and YOLO's `data.yaml` (normalized centres and sizes)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

import yaml

from multigrid.data.images import IMAGE_SUFFIXES
from multigrid.data.raw_image import RawImage, numbered_lines, read_text
from multigrid.errors import InputError

_SUFFIX = "|".join(suffix[1:] for suffix in sorted(IMAGE_SUFFIXES))
_UP_TO_SUFFIX = re.compile(rf".*\.(?:{_SUFFIX})(?=\s|$)", re.IGNORECASE)
_UP_TO_BOXES = re.compile(r"(.*?\S)(?:\s+(?:[-+.\d]|nan|inf)[^\s,]*,\S*)*", re.IGNORECASE)


def read_yolo3(path: str) -> list[RawImage]:
    """Images of a keras-yolo3 file: lines `path x1,y1,x2,y2,class x1,...`, paths relative to the file's folder."""
    folder = os.path.dirname(os.path.abspath(path))
    images = []
    for number, line in numbered_lines(path):
        place = f"{path}, line {number}"
        name, tokens = _split_line(line)
        rows = [_yolo3_box(token, place) for token in tokens]
        images.append(
            RawImage(
                path=os.path.normpath(os.path.join(folder, name)),
                place=place,
                image_id=len(images) + 1,
                boxes=[row[:4] for row in rows],
                labels=[row[4] for row in rows],
                places=[place] * len(rows),
            )
        )
    return images


def _split_line(line: str) -> tuple[str, list[str]]:
    """The path, which may hold spaces, and the tokens behind it."""
    # The path ends with an image suffix; one with another ending reaches up to the trailing run of boxes.
    found = _UP_TO_SUFFIX.match(line)
    name = found.group() if found else _UP_TO_BOXES.fullmatch(line).group(1)
    return name, line[len(name) :].split()


def _yolo3_box(token: str, place: str) -> tuple[float, float, float, float, int]:
    try:
        x1, y1, x2, y2, label = map(float, token.split(","))
        return x1, y1, x2, y2, _whole(label)
    except ValueError:
        raise InputError(
            f'{place}: expected boxes as "x1,y1,x2,y2,class", four numbers and a whole one, received "{token}"'
        ) from None


def _whole(number: float) -> int:
    """The number as an int; a ValueError where it has a fraction or is not finite."""
    if not number.is_integer():
        raise ValueError(f"expected a whole number, received {number}")
    return int(number)


def read_yolo(path: str, class_names: Sequence[str], split: str) -> list[RawImage]:
    """Images of one split of a `data.yaml` as Ultralytics has it; a missing label file makes its image background."""
    config = read_yolo_yaml(path)
    _check_names(config.get("names"), class_names, path)
    entries = config.get(split)
    if not entries:
        known = ", ".join(key for key in ("train", "val", "test") if config.get(key)) or "none"
        raise InputError(f'{path}: expected a key "{split}" naming its images, received only {known}')
    root = os.path.join(os.path.dirname(os.path.abspath(path)), str(config.get("path") or ""))
    named = []
    entries = entries if isinstance(entries, list) else [entries]
    for entry in entries:
        named += _yolo_images(os.path.join(root, str(entry)), f"{path}, key {split}")
    if not named:
        searched = ", ".join(os.path.normpath(os.path.join(root, str(entry))) for entry in entries)
        raise InputError(f"{path}, key {split}: expected images, received none in {searched}")
    if not any(os.path.isfile(label_path(image)) for image, _ in named):
        raise InputError(
            f"{path}, key {split}: expected label files, received none for any of {len(named)} images "
            f"(the first would be {label_path(named[0][0])})"
        )
    return [_yolo_image(image, place, position) for position, (image, place) in enumerate(named, 1)]


def label_path(image: str) -> str:
    """YOLO's label file of an image: the last `/images/` of its path becomes `/labels/`, its suffix `.txt`."""
    stem = os.path.splitext(image)[0]
    before, found, after = stem.rpartition(f"{os.sep}images{os.sep}")
    return f"{before}{os.sep}labels{os.sep}{after}.txt" if found else f"{stem}.txt"


def read_yolo_yaml(path: str) -> dict[str, Any]:
    """The mapping of a `data.yaml`; an InputError with the line where it holds none."""
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line}: expected YAML, received: {' '.join(str(error).split())}") from None
    if not isinstance(config, dict):
        raise InputError(f"{path}: expected the keys names, train, val, received {type(config).__name__}")
    return config


def _check_names(names: Any, class_names: Sequence[str], path: str) -> None:
    """Another order of the same names would train another detector."""
    listed = list(names.values()) if isinstance(names, dict) else names
    flag = next((name for name in listed if isinstance(name, bool)), None) if isinstance(listed, list) else None
    if flag is not None:
        raise InputError(f"{path}, key names: expected names, with words such as yes and no in quotes, received {flag}")
    if isinstance(names, dict):
        names = [names.get(index, f"(no {index})") for index in range(max(len(names), len(class_names)))]
    if not isinstance(names, list) or [str(name) for name in names] != list(class_names):
        raise InputError(f"{path}, key names: expected the class names {list(class_names)}, received {names}")


def _yolo_images(entry: str, key: str) -> list[tuple[str, str]]:
    """(image, place that names it) of a folder, searched through, or of a text file with a list."""
    entry = os.path.normpath(entry)
    if os.path.isdir(entry):
        files = (os.path.join(folder, name) for folder, _, names in os.walk(entry) for name in names)
        return [(file, key) for file in sorted(files) if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES]
    if not entry.endswith(".txt") or not os.path.isfile(entry):
        raise InputError(f"{key}: expected a folder or a .txt list of images, received {entry}")
    folder = os.path.dirname(entry)
    lines = numbered_lines(entry)
    return [(os.path.normpath(os.path.join(folder, line)), f"{entry}, line {number}") for number, line in lines]


def _yolo_image(path: str, place: str, position: int) -> RawImage:
    image = RawImage(path=path, place=place, image_id=position, relative=True)
    labels = label_path(path)
    if os.path.isfile(labels):
        for number, line in numbered_lines(labels):
            place = f"{labels}, line {number}"
            label, *box = _yolo_fields(line, place)
            image.labels.append(label)
            image.boxes.append(tuple(box))
            image.places.append(place)
    else:
        image.missing_label = labels
    return image


def _yolo_fields(line: str, place: str) -> tuple[int, float, float, float, float]:
    """Class, x1, y1, x2, y2 relative to the image's size."""
    fields = line.split()
    if len(fields) > 5:
        raise InputError(
            f"{place}: expected 5 numbers, class and centre and size, received {len(fields)} "
            "(polygons and keypoints are not read)"
        )
    try:
        label, x, y, width, height = map(float, fields)
        return _whole(label), x - width / 2, y - height / 2, x + width / 2, y + height / 2
    except ValueError:
        raise InputError(
            f'{place}: expected "class x y width height", a whole number and four more, received "{line}"'
        ) from None
