"""What label files tell of themselves: class names and, a YOLO `data.yaml`, its splits and the files behind it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence

from multigrid.data.samples import read_raw_images
from multigrid.data.yolo_labels import label_path, read_yolo_yaml
from multigrid.errors import InputError


def names_in(sources: Sequence[str]) -> tuple[str, ...]:
    """The class names of label files, those of the first file first.

    A `data.yaml` and a COCO file list them, by id; of Pascal VOC files the names that boxes have are taken, sorted.

    Args:
        sources: label files or folders.

    Raises:
        InputError: a file cannot be understood, has no names, or tells classes by number alone.
    """
    names = {}
    for source in sources:
        names |= dict.fromkeys(_names_of(source))
    if not names:
        raise InputError(f"{sources[0]}: expected class names, received none; name them with --classes")
    return tuple(names)


def splits_in(path: str) -> list[str]:
    """Which of "train", "val" and "test" a `data.yaml` has.

    Raises:
        InputError: no YAML that can be understood, or none of them.
    """
    config = read_yolo_yaml(path)
    found = [key for key in ("train", "val", "test") if config.get(key)]
    if not found:
        raise InputError(f'{path}: expected a key "train", "val" or "test" naming images, received none')
    return found


def files_behind(source: str, images: Iterable[str]) -> list[str]:
    """The label files of a split: the one that is named and, behind a `data.yaml`, a text for each image.

    Args:
        source: the label file or folder.
        images: the paths of its images.
    """
    is_yolo = os.path.splitext(source)[1].lower() in (".yaml", ".yml")
    return [source, *map(label_path, images)] if is_yolo else [source]


def _names_of(source: str) -> list[str]:
    suffix = os.path.splitext(source)[1].lower()
    if suffix in (".yaml", ".yml"):
        names = read_yolo_yaml(source).get("names")
        if isinstance(names, dict) and all(isinstance(index, int) for index in names):
            names = [names[index] for index in sorted(names)]
        if not isinstance(names, list):
            raise InputError(
                f"{source}, key names: expected class names, in a list or each behind a whole number, received {names}"
            )
        names = [str(name) for name in names]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f'{source}, key names: expected different names, received "{twice}" more than once')
        return names
    raw_images = read_raw_images(source, (), "train")
    if suffix == ".json":  # understood, or there would have been an error
        with open(source, encoding="utf-8-sig") as file:
            categories = json.load(file)["categories"]
        return [category["name"] for category in sorted(categories, key=lambda category: category["id"])]
    labels = {label for image in raw_images for label in image.labels}
    if any(isinstance(label, int) for label in labels):
        raise InputError(
            f"{source}: expected --classes or --config with lines that tell classes by number, received neither"
        )
    return sorted(labels)
