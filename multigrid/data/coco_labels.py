"""Reads COCO JSON: bbox as [x, y, width, height] in pixels, classes by category name."""

from __future__ import annotations

import json
import os
from typing import Any

from multigrid.data.raw_image import RawImage, first_file, read_text
from multigrid.errors import InputError

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
