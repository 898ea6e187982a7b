"""Reads COCO JSON, and puts samples in its words: bbox as [x, y, width, height] in pixels, classes by category name."""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from multigrid.data.raw_image import RawImage, first_file, read_text
from multigrid.errors import InputError

if TYPE_CHECKING:
    from multigrid.data.samples import Sample

_NAMES = {int: "a whole number", str: "a text", list: "a list", (int, float): "a number"}


def read_coco(path: str) -> list[RawImage]:
    """Images of a COCO JSON file; labels are category names."""
    try:
        data = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: expected JSON, received: {error.msg}") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(data, dict) or not isinstance(data.get(key), list):
            raise InputError(f'{path}: expected a COCO data set with a list "{key}", received none')
    images: dict[int, RawImage] = {}
    for index, entry in enumerate(data["images"]):
        image = _coco_image(entry, path, f"{path}, images[{index}]")
        if image.image_id in images:
            raise InputError(f"{image.place}: expected different image ids, received {image.image_id} again")
        images[image.image_id] = image
    names = {}
    for index, entry in enumerate(data["categories"]):
        number, name = _keys(entry, f"{path}, categories[{index}]", id=int, name=str)
        if number in names:
            raise InputError(f"{path}, categories[{index}]: expected different category ids, received {number} again")
        names[number] = name
    for index, entry in enumerate(data["annotations"]):
        _add_coco_annotation(entry, images, names, f"{path}, annotations[{index}]")
    return list(images.values())


def _coco_image(entry: Any, path: str, place: str) -> RawImage:
    number, name = _keys(entry, place, id=int, file_name=str)
    folder, stem = os.path.dirname(os.path.abspath(path)), os.path.splitext(os.path.basename(path))[0]
    # COCO's own layout: annotations/instances_val2017.json beside val2017/.
    places = [os.path.join(folder, where, name) for where in ("", "../images", "images", f"../{stem.split('_')[-1]}")]
    image = RawImage(path=first_file(places), place=place, image_id=number)
    image.looked_in = "beside the JSON file, in ../images and in images"
    if "height" in entry and "width" in entry:
        image.declared_size = tuple(_keys(entry, place, height=(int, float), width=(int, float)))
    return image


def _add_coco_annotation(entry: Any, images: dict[int, RawImage], names: dict[int, str], place: str) -> None:
    image_id, category, box = _keys(entry, place, image_id=int, category_id=int, bbox=list)
    if image_id not in images:
        raise InputError(f"{place}: expected the id of an image of this file, received image_id {image_id}")
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{place}: expected bbox as [x, y, width, height], received {box}") from None
    corners, image = (x, y, x + width, y + height), images[image_id]
    if entry.get("iscrowd"):
        image.crowds.append((place, corners))
        return
    image.boxes.append(corners)
    image.labels.append(names.get(category, f"category id {category}"))
    image.places.append(place)


def _keys(entry: Any, place: str, **types: type | tuple[type, ...]) -> list[Any]:
    """The values of these keys of a JSON object, checked for their types."""
    for key, kind in types.items():
        if not isinstance(entry, dict) or not isinstance(entry.get(key), kind):
            received = entry.get(key) if isinstance(entry, dict) else entry
            raise InputError(f'{place}: expected "{key}" as {_NAMES[kind]}, received {received!r}')
    return [entry[key] for key in types]


def coco_dictionary(samples: Sequence[Sample], class_names: Sequence[str], name_of: Callable[[str], str]) -> dict:
    """The labels of samples as a COCO dictionary; a class index c is the category id c + 1.

    Args:
        samples: boxes in pixels of the upright images.
        class_names: the names by class index.
        name_of: an image's path -> its `file_name`.

    Returns:
        dict with "info", "images", "annotations" and "categories"; annotation ids count from 1, `area` is width times
        height.

    Raises:
        InputError: two samples have the same image id, or a class has no name.
    """
    images, annotations = [], []
    seen = collections.Counter(int(sample.image_id) for sample in samples)
    for sample in samples:
        image_id, (height, width) = int(sample.image_id), sample.size
        if seen[image_id] > 1:
            raise InputError(f"{sample.path}: expected an image id of its own, received {image_id} a second time")
        name = name_of(sample.path)
        images.append({"id": image_id, "file_name": name, "width": int(width), "height": int(height)})
        for box, class_index in zip(corners_to_xywh(sample.boxes).tolist(), sample.classes, strict=True):
            if not 0 <= class_index < len(class_names):
                raise InputError(
                    f"{sample.path}: expected classes from 0 to {len(class_names) - 1}, received {class_index}"
                )
            annotation = {"id": len(annotations) + 1, "image_id": image_id, "category_id": int(class_index) + 1}
            annotations.append(annotation | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": index, "name": name} for index, name in enumerate(class_names, start=1)]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def corners_to_xywh(boxes_xyxy) -> np.ndarray:
    """Corners (x1, y1, x2, y2) [N, 4] as COCO's (x, y, width, height), float64 [N, 4] in the same pixels."""
    # In float64: the difference of two float32 corners would carry an error that the file then shows.
    boxes = np.asarray(boxes_xyxy, dtype=np.float64).reshape(-1, 4)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
