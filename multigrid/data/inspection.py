"""What is in label files and what is wrong there: nothing is dropped in silence, and no broken image ends the look.

Boxes are corners (x1, y1, x2, y2) in pixels of the upright image, sizes (height, width). A split is the images of one
label file, or of one key of a YOLO `data.yaml`; its name is the word that the findings use.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from multigrid.data.box_rules import check_boxes
from multigrid.data.coco_labels import corners_to_xywh
from multigrid.data.defects import Defect
from multigrid.data.images import Letterbox, for_each_image, image_size, read_image
from multigrid.data.near_duplicates import SIDE, near_duplicates, thumbnail
from multigrid.data.raw_image import RawImage
from multigrid.data.samples import Sample, read_raw_images
from multigrid.errors import InputError

SAME_BOX = 0.8  # IoU of two boxes of a class on an image that are taken for one object, boxed twice
MEDIUM, LARGE = 32**2, 96**2  # square pixels from which COCO calls an object so


@dataclass(frozen=True)
class ImageLook:
    """What is kept of an image.

    Attributes:
        size: (height, width) of the upright image in pixels.
        digest: of the file's bytes.
        thumbnail: see `near_duplicates`, 26 kB; None where nothing is to be compared.
    """

    size: tuple[int, int]
    digest: str
    thumbnail: np.ndarray | None


@dataclass(frozen=True)
class Split:
    """The labels and images of one split.

    Attributes:
        name: such as "train".
        source: the label file.
        samples: those whose image can be read, boxes checked and clipped.
        places: where the label file names each of them.
        looks: of the image of each.
        defects: of the boxes, in the file's order.
        defect_paths: the image of each defect.
        unreadable: (place, what is wrong) of the images that cannot be read.
        without_label_file: (image, label file that is not there) of images that are background by that.
    """

    name: str
    source: str
    samples: list[Sample]
    places: list[str]
    looks: list[ImageLook]
    defects: list[Defect]
    defect_paths: list[str]
    unreadable: list[tuple[str, str]]
    without_label_file: list[tuple[str, str]]

    @property
    def dropped(self) -> list[Defect]:
        """Boxes that training leaves out though they should be objects: COCO's crowds are legal."""
        return [defect for defect in self.defects if defect.dropped and defect.kind != "crowd"]


def look_at_image(path: str, with_thumbnail: bool = True) -> ImageLook:
    """Decodes an image, a JPEG at a fraction of its size where that is enough.

    Args:
        path: the image file.
        with_thumbnail: whether it will be compared with others.

    Raises:
        InputError: the file is missing, truncated or no image.
    """
    size = image_size(path)
    image = read_image(path, at_least=(SIDE, SIDE))
    digest = hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=16).hexdigest()
    return ImageLook(size, digest, thumbnail(image) if with_thumbnail else None)


def read_split(
    source: str | os.PathLike,
    class_names: Sequence[str],
    *,
    name: str,
    key: str = "train",
    with_thumbnails: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Split:
    """One split, with the images that cannot be read and the boxes that cannot be used.

    Args:
        source: the label file or folder, in any layout of `read_samples`.
        class_names: in the order of the class ids.
        name: of the split.
        key: of a `data.yaml`: "train", "val" or "test".
        with_thumbnails: whether its images will be compared with those of other splits.
        progress: called with (images done, images in all).

    Raises:
        InputError: the label file cannot be understood, or names no image.
    """
    source = os.fspath(source)
    raw_images = read_raw_images(source, class_names, key)
    if not raw_images:
        raise InputError(f"{source}: expected at least one image, received no images")
    look = functools.partial(look_at_image, with_thumbnail=with_thumbnails)
    looks = for_each_image(look, (image.path for image in raw_images), progress)
    readable = [image for image in raw_images if not isinstance(looks[image.path], InputError)]
    broken = [image for image in raw_images if isinstance(looks[image.path], InputError)]
    sizes = [looks[image.path].size for image in readable]
    boxes, classes, defects = check_boxes(readable, sizes, class_names)
    samples = [
        Sample(image.path, *labels, image.image_id, size)
        for image, *labels, size in zip(readable, boxes, classes, sizes, strict=True)
    ]
    paths = _paths_by_place(readable)
    return Split(
        name,
        source,
        samples,
        [image.place for image in readable],
        [looks[image.path] for image in readable],
        defects,
        [paths[defect.place] for defect in defects],
        [(image.place, str(looks[image.path])) for image in broken],
        [(image.path, image.missing_label) for image in raw_images if image.missing_label],
    )


def _paths_by_place(images: Sequence[RawImage]) -> dict[str, str]:
    """The image that each place of a label file speaks of."""
    paths = {}
    for image in images:
        for place in (image.place, *image.places, *(place for place, _ in image.crowds)):
            paths[place] = image.path
    return paths


def box_areas(splits: Iterable[Split], input_size: tuple[int, int] | None = None) -> np.ndarray:
    """The area of every box, [N] float64.

    Args:
        splits: whose boxes.
        input_size: (height, width) of a network's input, to measure there; None is the images' own pixels.

    Returns:
        Square pixels, in the order of the boxes.
    """
    areas = [np.zeros(0)]
    for sample in (sample for split in splits for sample in split.samples):
        boxes = sample.boxes
        if input_size is not None:
            boxes = Letterbox.fit(sample.size, input_size).apply_boxes(boxes)
        areas.append(corners_to_xywh(boxes)[:, 2:].prod(axis=1))
    return np.concatenate(areas)


def size_counts(areas: np.ndarray) -> dict[str, int]:
    """How many boxes are small, medium and large in COCO's sense."""
    small, large = int(np.sum(areas < MEDIUM)), int(np.sum(areas > LARGE))
    return {"small": small, "medium": len(areas) - small - large, "large": large}


def summarize(split: Split, class_names: Sequence[str], input_size: tuple[int, int] | None = None) -> dict:
    """The figures of a split.

    Args:
        split: what is counted.
        class_names: in the order of the class ids.
        input_size: (height, width) of a network's input, to measure boxes there too.

    Returns:
        dict with "source", "images" (readable ones), "unreadable", "boxes", "images_without_boxes", "median_boxes",
        "max_boxes", "dropped_boxes", "image_sizes" ({"width x height": count}, the commonest first), "box_sizes" and
        "box_sizes_at_input" (see `size_counts`; the second None without an input size), "median_box" (side of a square
        of that area, pixels) and "classes" ({name: {"boxes", "share", "median_box"}}).
    """
    counts = [len(sample.boxes) for sample in split.samples]
    areas = box_areas([split])
    classes = np.concatenate([np.zeros(0, np.int32), *(sample.classes for sample in split.samples)])
    sizes = collections.Counter(f"{sample.size[1]} x {sample.size[0]}" for sample in split.samples)
    by_class = {}
    for index, name in enumerate(class_names):
        own = areas[classes == index]
        by_class[name] = {"boxes": len(own), "share": len(own) / max(len(areas), 1), "median_box": _middle_side(own)}
    return {
        "source": split.source,
        "images": len(split.samples),
        "unreadable": len(split.unreadable),
        "boxes": len(areas),
        "images_without_boxes": counts.count(0),
        "median_boxes": float(np.median(counts)) if counts else None,
        "max_boxes": max(counts, default=None),
        "dropped_boxes": len(split.dropped),
        "image_sizes": dict(sizes.most_common()),
        "box_sizes": size_counts(areas),
        "box_sizes_at_input": input_size and size_counts(box_areas([split], input_size)),
        "median_box": _middle_side(areas),
        "classes": by_class,
    }


def _middle_side(areas: np.ndarray) -> float | None:
    return float(np.sqrt(np.median(areas))) if len(areas) else None


def repeated_boxes(split: Split, class_names: Sequence[str]) -> list[dict]:
    """Boxes of one class on one image with an IoU of at least `SAME_BOX`: most often one object, boxed twice.

    Returns:
        A dict a pair: "split", "place" of the image, "path", "class", "boxes" (two of four numbers) and "iou".
    """
    # Loaded here because it costs a third of a second.
    from faster_coco_eval import mask

    found = []
    for sample, place in zip(split.samples, split.places, strict=True):
        for index in np.unique(sample.classes):
            boxes = sample.boxes[sample.classes == index]
            corners = corners_to_xywh(boxes)
            overlaps = np.triu(np.reshape(mask.iou(corners, corners, np.zeros(len(boxes), bool)), [len(boxes)] * 2), 1)
            for first, second in np.argwhere(overlaps >= SAME_BOX):
                where = {"split": split.name, "place": place, "path": sample.path, "class": class_names[index]}
                found.append({**where, "boxes": boxes[[first, second]], "iou": float(overlaps[first, second])})
    return found


def images_named_twice(splits: Sequence[Split]) -> list[dict]:
    """Images that label files name more than once: a dict an image, "path", "splits" and "places"."""
    named = collections.defaultdict(list)
    for split in splits:
        for sample, place in zip(split.samples, split.places, strict=True):
            named[os.path.realpath(sample.path)].append((split.name, place))
    return [
        {"path": path, "splits": [name for name, _ in names], "places": [place for _, place in names]}
        for path, names in named.items()
        if len(names) > 1
    ]


def same_files(splits: Sequence[Split]) -> list[dict]:
    """Files of different names and the same bytes: a dict a content, "splits" and "paths"."""
    contents = collections.defaultdict(dict)
    for split in splits:
        for sample, look in zip(split.samples, split.looks, strict=True):
            contents[look.digest].setdefault(os.path.realpath(sample.path), split.name)
    return [{"splits": list(files.values()), "paths": list(files)} for files in contents.values() if len(files) > 1]


def pairs_between(splits: Sequence[Split]) -> int:
    """How many pairs there are of images of different splits."""
    return sum(len(one.samples) * len(other.samples) for one, other in itertools.combinations(splits, 2))


def near_duplicates_between(
    splits: Sequence[Split], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[dict]:
    """Images of different splits that show the same, though their files differ.

    Args:
        splits: whose images; read with thumbnails.
        progress: called with (pairs compared, pairs in all).

    Returns:
        A dict a pair, those that agree most first: "splits", "paths", "agreement", "overlap", "shift", see
        `NearDuplicate`.
    """
    found = {}  # by paths: an image may be named twice
    done, total = 0, pairs_between(splits)
    for one, other in itertools.combinations(splits, 2):
        one, other = sorted((one, other), key=lambda split: len(split.samples))
        thumbnails = [[look.thumbnail for look in split.looks] for split in (one, other)]
        if any(picture is None for pictures in thumbnails for picture in pictures):
            raise ValueError(f"expected the splits {one.name} and {other.name} read with thumbnails")
        for match in near_duplicates(*thumbnails, lambda pairs, before=done: progress(before + pairs, total)):
            if one.looks[match.first].digest == other.looks[match.second].digest:
                continue  # these are the same file
            paths = (one.samples[match.first].path, other.samples[match.second].path)
            found.setdefault(
                paths,
                {
                    "splits": [one.name, other.name],
                    "paths": list(paths),
                    "agreement": match.agreement,
                    "overlap": match.overlap,
                    "shift": match.shift,
                },
            )
        done += len(one.samples) * len(other.samples)
    return sorted(found.values(), key=lambda pair: -pair["agreement"])


def missing_classes(splits: Sequence[Split], class_names: Sequence[str]) -> dict[str, list[str]]:
    """For every split the classes that no box of it has."""
    seen = {split.name: {int(index) for sample in split.samples for index in sample.classes} for split in splits}
    return {
        name: [class_name for index, class_name in enumerate(class_names) if index not in indices]
        for name, indices in seen.items()
    }
