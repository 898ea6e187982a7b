"""Reads Pascal VOC XML: folders of it, and lists of stems in an `ImageSets` folder.

Corners are taken as they are: files of the same tools count pixels from 0 or from 1, and do not say which.
"""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence

from multigrid.data.images import IMAGE_SUFFIXES
from multigrid.data.raw_image import RawImage, first_file, numbered_lines, read_text
from multigrid.errors import InputError


def read_voc(paths: Sequence[str]) -> list[RawImage]:
    """Images of Pascal VOC XML files."""
    return [_voc_image(path, position) for position, path in enumerate(paths, 1)]


def read_voc_list(path: str) -> list[RawImage]:
    """Images of a list of stems inside an `ImageSets` folder, its XML files in the annotation folder beside that."""
    lines = numbered_lines(path)
    root = os.path.dirname(os.path.abspath(path))
    while os.path.basename(root).lower() != "imagesets":
        root = os.path.dirname(root)
    folder = _annotation_folder(os.path.dirname(root), [stem for _, stem in lines], path)
    files = [os.path.join(folder, f"{stem}.xml") for _, stem in lines]
    missing = [
        f"line {number}: {file}" for (number, _), file in zip(lines, files, strict=True) if not os.path.isfile(file)
    ]
    if missing:
        more = "; ..." if len(missing) > 3 else ""
        raise InputError(
            f"{path}: expected one stem of an XML file a line, received {len(missing)} of {len(files)} without one: "
            f"{'; '.join(missing[:3])}{more}"
        )
    return read_voc(files)


def _annotation_folder(root: str, stems: Sequence[str], path: str) -> str:
    """`Annotations`, else the one folder of such a name that holds an XML file of the list."""
    names = sorted(name for name in os.listdir(root) if name.lower().startswith("annotation"))
    if "Annotations" in names:
        return os.path.join(root, "Annotations")
    folders = [os.path.join(root, name) for name in names]
    holding = [folder for folder in folders if any(os.path.isfile(f"{folder}/{stem}.xml") for stem in stems)]
    if len(holding) != 1:
        found = ", ".join(os.path.basename(folder) for folder in holding) or "none"
        raise InputError(f"{path}: expected one folder of XML files {root}/Annotations or alike, received {found}")
    return holding[0]


def _voc_image(path: str, position: int) -> RawImage:
    try:
        root = ElementTree.fromstring(read_text(path).lstrip())
    except ElementTree.ParseError as error:
        raise InputError(f"{path}, line {error.position[0]}: expected well-formed XML, received: {error}") from None
    if root.tag != "annotation":
        raise InputError(f"{path}: expected Pascal VOC <annotation>, received <{root.tag}>")
    image = RawImage(path=_voc_image_path(path, root), place=path, image_id=position)
    image.looked_in = "beside the XML file, in ../JPEGImages, in ../images and at <path>"
    if (size := root.find("size")) is not None:
        image.declared_size = (_voc_number(size, "height", path), _voc_number(size, "width", path))
    for count, thing in enumerate(root.findall("object"), 1):
        place = f"{path}, object {count}"
        if (corners := thing.find("bndbox")) is None:
            raise InputError(f"{place}: expected <bndbox>, received none")
        image.boxes.append(tuple(_voc_number(corners, key, place) for key in ("xmin", "ymin", "xmax", "ymax")))
        name = (thing.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{place}: expected a class in <name>, received none")
        image.labels.append(name)
        image.places.append(place)
    return image


def _voc_number(element: ElementTree.Element, key: str, place: str) -> float:
    text = element.findtext(key)
    try:
        return float(text)
    except (TypeError, ValueError):
        received = "none" if text is None else repr(text)
        raise InputError(f"{place}: expected a number in <{key}>, received {received}") from None


def _voc_image_path(path: str, root: ElementTree.Element) -> str:
    folder = os.path.dirname(os.path.abspath(path))
    stem = os.path.splitext(os.path.basename(path))[0]
    name = (root.findtext("filename") or "").strip() or stem
    names = [name]
    if os.path.splitext(name)[1].lower() not in IMAGE_SUFFIXES:  # some tools write the stem alone
        names = [f"{name}{suffix}" for suffix in sorted(IMAGE_SUFFIXES)]
    places = [os.path.join(folder, where, name) for where in ("", "../JPEGImages", "../images") for name in names]
    return first_file([*places, os.path.join(folder, (root.findtext("path") or "").strip())])
