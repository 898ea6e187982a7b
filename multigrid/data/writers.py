"""Writes samples in any of the four layouts that `multigrid.data.samples` reads.

Coordinates are written so that the same float32 comes back. An image is named relative to the label file where it lies
near it (at most two folders up), so that the whole can be moved; else by its absolute path.
"""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import yaml

from multigrid.data.coco_labels import coco_dictionary
from multigrid.data.raw_image import read_text
from multigrid.data.yolo_labels import label_path
from multigrid.errors import InputError
from multigrid.report import replacing

if TYPE_CHECKING:
    from multigrid.data.samples import Sample


def write_samples(
    samples: Sequence[Sample],
    class_names: Sequence[str],
    destination: str | os.PathLike,
    format: str,
    *,
    split: str | None = None,
) -> str:
    """Writes labels for existing images, and returns the path to read them from.

    Args:
        samples: boxes in pixels of the upright images.
        class_names: in the order of the class ids.
        destination: "yolo3": the .txt file. "coco": the .json file. "voc": a folder for the .xml files, without any
            of other images. "yolo": the data.yaml; images are listed beside it, label files are written where YOLO
            looks for them (`images` in the image's path becomes `labels`).
        format: "yolo3", "voc", "coco" or "yolo".
        split: the key that "yolo" writes into data.yaml, beside keys that are there already; by default the name of
            the folder with the images where that lies in `images`, else "train".

    Raises:
        InputError: the format is unknown, two images need one label file (or have one id, in COCO), or another's labels
            would be overwritten.
    """
    if format not in _WRITERS:
        raise InputError(f"format: expected one of {', '.join(_WRITERS)}, received {format!r}")
    destination = os.path.abspath(destination)
    if format == "yolo":
        _write_yolo(samples, class_names, destination, split or _split_of(samples))
    else:
        _WRITERS[format](samples, class_names, destination)
    return destination


def _write_yolo3(samples: Sequence[Sample], class_names: Sequence[str], destination: str) -> None:
    folder = os.path.dirname(destination)
    lines = []
    for sample in samples:
        boxes = (
            ",".join([*map(_number, box), str(label)]) for box, label in zip(sample.boxes, sample.classes, strict=True)
        )
        lines.append(" ".join([_reference(sample.path, folder), *boxes]))
    _write(destination, "".join(f"{line}\n" for line in lines))


def _write_voc(samples: Sequence[Sample], class_names: Sequence[str], destination: str) -> None:
    files = _distinct(samples, lambda path: os.path.join(destination, f"{_stem(path)}.xml"))
    others = set(os.listdir(destination)) - set(map(os.path.basename, files)) if os.path.isdir(destination) else ()
    if strangers := sorted(name for name in others if name.lower().endswith(".xml")):
        raise InputError(f"{destination}: expected a folder without other .xml files, received {strangers[0]}")
    for file, sample in zip(files, samples, strict=True):
        root = ElementTree.Element("annotation")
        _add(root, "filename", os.path.basename(sample.path))
        _add(root, "path", _reference(sample.path, destination))
        size = _add(root, "size")
        for key, value in zip(("height", "width", "depth"), (*sample.size, 3), strict=True):
            _add(size, key, str(value))
        for box, label in zip(sample.boxes, sample.classes, strict=True):
            thing = _add(root, "object")
            _add(thing, "name", class_names[label])
            corners = _add(thing, "bndbox")
            for key, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                _add(corners, key, _number(value))
        ElementTree.indent(root)
        _write(file, ElementTree.tostring(root, encoding="unicode") + "\n")


def _add(parent: ElementTree.Element, tag: str, text: str | None = None) -> ElementTree.Element:
    element = ElementTree.SubElement(parent, tag)
    element.text = text
    return element


def _write_coco(samples: Sequence[Sample], class_names: Sequence[str], destination: str) -> None:
    folder = os.path.dirname(destination)
    labels = coco_dictionary(samples, class_names, lambda path: _reference(path, folder))
    _write(destination, json.dumps(labels) + "\n")


def _write_yolo(samples: Sequence[Sample], class_names: Sequence[str], destination: str, split: str) -> None:
    folder, stem = os.path.dirname(destination), _stem(destination)
    config = yaml.safe_load(read_text(destination)) if os.path.exists(destination) else {"names": list(class_names)}
    if not isinstance(config, dict) or config.get("names") != list(class_names) or "path" in config:
        raise InputError(f"{destination}: expected no file, or one with these names and no path, received another")
    files = _distinct(samples, label_path)
    texts = [_yolo_lines(sample) for sample in samples]
    for file, text in zip(files, texts, strict=True):
        if os.path.exists(file) and read_text(file) != text:
            raise InputError(f"{file}: expected no label file or the same one, received other labels")
    for file, text in zip(files, texts, strict=True):
        _write(file, text)
    references = (_reference(sample.path, folder) for sample in samples)
    # Other tools resolve a bare relative path against the working directory, one with "./" against the list.
    lines = (path if os.path.isabs(path) else f"./{path}" for path in references)
    listed = f"{stem}_{split}.txt"
    _write(os.path.join(folder, listed), "".join(f"{line}\n" for line in lines))
    config = {**config, split: listed, "names": list(class_names)}
    _write(destination, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _yolo_lines(sample: Sample) -> str:
    height, width = sample.size
    lines = []
    for (x1, y1, x2, y2), label in zip(sample.boxes.astype(float), sample.classes, strict=True):
        numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{label} {' '.join(f'{number:.12g}' for number in numbers)}\n")
    return "".join(lines)


def _split_of(samples: Iterable[Sample]) -> str:
    folders = {os.path.dirname(sample.path) for sample in samples}
    above, name = os.path.split(folders.pop()) if len(folders) == 1 else ("", "")
    return name if os.path.basename(above) == "images" else "train"


def _reference(path: str, folder: str) -> str:
    relative = os.path.relpath(path, folder)
    return path if relative.startswith(os.path.join("..", "..", "..", "")) else relative


def _distinct(samples: Iterable[Sample], file_of: Callable[[str], str]) -> list[str]:
    """The label file of every sample, refused where two samples would share one."""
    owners: dict[str, str] = {}
    for sample in samples:
        file = file_of(sample.path)
        if file in owners:
            raise InputError(f"{file}: expected the labels of one image, received {owners[file]} and {sample.path}")
        owners[file] = sample.path
    return list(owners)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _number(value: float) -> str:
    """The shortest text that reads back as the same float32."""
    return str(int(value)) if value == int(value) else str(value)


def _write(path: str, text: str) -> None:
    """Writes the file whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


_WRITERS = {"yolo3": _write_yolo3, "voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}
