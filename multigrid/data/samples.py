"""From label files in any of four layouts to one `Sample` an image, every box checked.

Boxes are float32 corners (x1, y1, x2, y2) in pixels of the upright image, sizes (height, width). Layouts, told by the
path: keras-yolo3 lines (`.txt`), Pascal VOC (a folder of `.xml`, or a `.txt` list in an `ImageSets` folder), COCO
(`.json`), YOLO (`data.yaml`).
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from multigrid.data.box_rules import check_boxes
from multigrid.data.coco_labels import read_coco
from multigrid.data.defects import Defect, describe_defects
from multigrid.data.images import for_each_image, image_size
from multigrid.data.raw_image import RawImage, read_text
from multigrid.data.voc_labels import read_voc, read_voc_list
from multigrid.data.writers import write_samples
from multigrid.data.yolo_labels import read_yolo, read_yolo3
from multigrid.errors import InputError

__all__ = ["Defect", "Sample", "describe_defects", "read_class_names", "read_samples", "write_samples"]


@dataclass(frozen=True)
class Sample:
    """An image and what is in it.

    Attributes:
        path: absolute path of the image.
        boxes: float32 [N, 4] corners (x1, y1, x2, y2) in pixels of the upright image, inside it; N may be 0.
        classes: int32 [N].
        image_id: COCO's own id, else the 1-based position in the label file.
        size: (height, width) of the upright image in pixels.
    """

    path: str
    boxes: np.ndarray
    classes: np.ndarray
    image_id: int
    size: tuple[int, int]


def read_samples(
    source: str | os.PathLike,
    class_names: Sequence[str],
    *,
    split: str = "train",
    strict: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Sample], list[Defect]]:
    """The samples of a label file, boxes clipped to their images, and every box that was dropped or is noteworthy.

    Args:
        source: the label file or folder; its layout follows from its name.
        class_names: in the order of the class ids.
        split: which images of a `data.yaml`: "train", "val" or "test".
        strict: make dropped boxes an error. COCO's crowd regions are legal: they are left out, and no error.
        progress: called with (image headers read, images in all).

    Returns:
        Samples in the order of the label file, and defects in the same order.

    Raises:
        InputError: something cannot be understood, no image is named, images are missing, or `strict` and a box wrong.
    """
    raw_images = read_raw_images(os.fspath(source), class_names, split)
    if not raw_images:
        raise InputError(f"{os.fspath(source)}: expected at least one image, received no images")
    sizes = _image_sizes(raw_images, progress)
    boxes, classes, defects = check_boxes(raw_images, sizes, class_names)
    samples = [
        Sample(image.path, *labels, image.image_id, size)
        for image, *labels, size in zip(raw_images, boxes, classes, sizes, strict=True)
    ]
    wrong = [defect for defect in defects if defect.dropped and defect.kind != "crowd"]
    if strict and wrong:
        raise InputError(f"{os.fspath(source)}: {describe_defects(wrong, samples)}")
    return samples, defects


def read_class_names(path: str | os.PathLike) -> tuple[str, ...]:
    """The class names of a text file, one a line; the line's position is the class id.

    Raises:
        InputError: the file is missing or empty, a line between names is blank, or a name comes twice.
    """
    lines = [line.strip() for line in read_text(path).rstrip().split("\n")]
    if lines == [""]:
        raise InputError(f"{os.fspath(path)}: expected class names, one a line, received an empty file")
    for number, name in enumerate(lines, 1):
        if not name:
            raise InputError(f"{os.fspath(path)}, line {number}: expected a class name, received a blank line")
        if name in lines[: number - 1]:
            first = lines.index(name) + 1
            raise InputError(
                f'{os.fspath(path)}, line {number}: expected different names, received "{name}" of line {first} again'
            )
    return tuple(lines)


def read_raw_images(source: str, class_names: Sequence[str], split: str) -> list[RawImage]:
    """The images of a label file with their boxes as they stand there; see `read_samples` for the arguments."""
    if os.path.isdir(source):
        files = sorted(name for name in os.listdir(source) if name.lower().endswith(".xml"))
        if not files:
            raise InputError(f"{source}: expected a folder of Pascal VOC .xml files, received a folder without")
        return read_voc([os.path.join(source, name) for name in files])
    suffix = os.path.splitext(source)[1].lower()
    if suffix == ".json":
        return read_coco(source)
    if suffix in (".yaml", ".yml"):
        return read_yolo(source, class_names, split)
    if suffix != ".txt":
        raise InputError(
            f"{source}: expected labels as .txt (keras-yolo3 lines), .json (COCO), .yaml (YOLO) or a folder of .xml "
            f"(Pascal VOC), received {'another name' if os.path.exists(source) else 'no file of this name'}"
        )
    folders = pathlib.Path(os.path.abspath(source)).parts[-3:-1]
    return read_voc_list(source) if "imagesets" in map(str.lower, folders) else read_yolo3(source)


def _image_sizes(raw_images: Sequence[RawImage], progress: Callable[[int, int], None] | None) -> list[tuple[int, int]]:
    """(height, width) of every image; all missing and broken ones in one error."""
    sizes = for_each_image(image_size, (image.path for image in raw_images), progress)
    failed = [image for image in raw_images if isinstance(sizes[image.path], InputError)]
    if failed:
        named = [
            f"{image.place}: {sizes[image.path]}" + (f" (looked {image.looked_in})" if image.looked_in else "")
            for image in failed[:3]
        ]
        more = "; ..." if len(failed) > 3 else ""
        raise InputError(f"{len(failed)} of {len(raw_images)} images cannot be read: {'; '.join(named)}{more}")
    return [sizes[image.path] for image in raw_images]
