"""The embedded data set: scenes of drawn shapes, from a seed alone.

Continuous coordinates (x, y) count from the image's upper left corner, so the pixel in row r and column c covers
[c, c + 1] x [r, r + 1], and a box is (first column, first row, last column + 1, last row + 1) of the pixels that belong
to the shape. The colour of a shape says nothing about its class: only the outline does.
"""

from __future__ import annotations

import json
import math
import os
import pathlib
import shutil
import uuid
import zlib
from collections.abc import Callable, Mapping
from typing import NamedTuple

import cv2
import numpy as np

from multigrid.data.drawing import draw_background, draw_outline, rasterize
from multigrid.data.samples import Sample, write_samples
from multigrid.errors import InputError

CLASS_NAMES = ("disc", "triangle", "star", "ring", "cross", "bar")
DRAWING_VERSION = 2  # raise it with every change that moves a pixel or a box: folders drawn before are then redrawn
MANIFEST = "shapes.json"

LEAST_VISIBLE = 0.65  # of a shape's whole area, whatever hides it: another shape or the image's border
CLIPPED_SHARE = 0.13  # of the shapes of SMALLEST_CLIPPED or more lie across the image's border: a tenth of all
SMALLEST_CLIPPED = 24  # pixels on the shorter side of the box; the rest of a smaller shape could be anything
EMPTY_SHARE = 0.04  # of the scenes are background only
OWN_PIXEL = 64  # of 255: a pixel is the shape's own that it covers by a quarter: by half would cut sharp tips off


class Scene(NamedTuple):
    """A picture and what is in it.

    Attributes:
        image: uint8 [height, width, 3] RGB.
        boxes: float32 [N, 4] corners (x1, y1, x2, y2) in pixels around the whole outline, hidden parts included,
            clipped to the image.
        classes: int32 [N], indices into CLASS_NAMES.
        mask: int32 [height, width], 1 + the index of the shape seen there, 0 for background.
    """

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    mask: np.ndarray


def draw_scene(
    seed: int | np.random.Generator,
    *,
    image_size: tuple[int, int] | None = None,
    objects: tuple[int, int] = (1, 6),
    sizes: tuple[float, float] = (24.0, 150.0),
) -> Scene:
    """A scene, the same for the same seed.

    Args:
        seed: an integer, or the generator to draw from.
        image_size: (height, width) in pixels; drawn too if not given: 160..224 x 208..288, sometimes on its side.
        objects: the least and the largest number of shapes; where no room is left for one, it is left out.
        sizes: the least and the largest size, log-uniform between: the square root of a box's area, in pixels. No shape
            is longer than 0.8 of the image, and none thinner than 8 px unless that would make it so.

    Returns:
        The Scene.
    """
    rng = np.random.default_rng(seed)
    height, width = image_size or _draw_image_size(rng)
    canvas = _Canvas(draw_background(height, width, rng))
    count = 0 if objects[0] > 0 and rng.random() < EMPTY_SHARE else int(rng.integers(objects[0], objects[1] + 1))
    for _ in range(count):
        label = int(rng.integers(len(CLASS_NAMES)))
        size = math.exp(rng.uniform(math.log(sizes[0]), math.log(sizes[1])))
        contours = draw_outline(CLASS_NAMES[label], size, (0.8 * width, 0.8 * height), rng)
        canvas.add(label, rasterize(contours), rng)
    return canvas.finish(rng)


def _draw_image_size(rng: np.random.Generator) -> tuple[int, int]:
    height, width = int(rng.integers(160, 225)), int(rng.integers(208, 289))
    return (width, height) if rng.random() < 0.1 else (height, width)


def scene_generator(seed: int, split: str, index: int) -> np.random.Generator:
    """The generator of scene `index` of a split: depends on nothing but these three."""
    return np.random.default_rng(np.random.SeedSequence([seed, zlib.crc32(split.encode()), index]))


# --- the canvas -------------------------------------------------------------------------------------------------------


class _Canvas:
    """A scene while it is drawn: every shape on top of those before it."""

    def __init__(self, background: np.ndarray):
        self.image = background
        self.mask = np.zeros(background.shape[:2], np.int32)
        self.boxes: list[tuple[int, int, int, int]] = []
        self.classes: list[int] = []
        self.areas: list[int] = []  # of whole shapes, hidden and clipped parts included
        self.visible: list[int] = []

    def add(self, label: int, coverage: np.ndarray, rng: np.random.Generator, tries: int = 12) -> bool:
        """Put a shape where everything stays visible enough; whether such a place was found."""
        solid = coverage >= OWN_PIXEL
        area = int(np.count_nonzero(solid))
        for _ in range(tries):
            window, part = self._draw_place(coverage.shape, rng)
            own = solid[part]
            seen = int(np.count_nonzero(own))
            hidden = np.bincount(self.mask[window][own], minlength=len(self.boxes) + 1)[1:]
            left = np.array(self.visible, int) - hidden
            if seen >= LEAST_VISIBLE * area and np.all(left >= LEAST_VISIBLE * np.array(self.areas, int)):
                break
        else:
            return False
        self.visible = [*left.tolist(), seen]
        self.areas.append(area)
        self.classes.append(label)
        self.boxes.append(_extent(own, window))
        self.mask[window][own] = len(self.boxes)
        self._paint(window, coverage[part], rng)
        return True

    def _draw_place(self, shape: tuple[int, int], rng: np.random.Generator):
        """The slices of the image that a shape falls on, and those of the shape that fall on the image."""
        room = np.array(self.mask.shape) - shape
        start = np.array([rng.integers(0, max(int(r), 0) + 1) for r in room])
        if rng.random() < CLIPPED_SHARE and min(shape) >= SMALLEST_CLIPPED:
            axis, outside = int(rng.integers(2)), rng.uniform(0.05, 0.35)
            beyond = math.ceil(shape[axis] * outside) + 1  # one more for the empty pixel around a shape
            start[axis] = -beyond if rng.random() < 0.5 else room[axis] + beyond
        stop = np.minimum(start + shape, self.mask.shape)
        first = np.maximum(start, 0)
        window = tuple(slice(int(a), int(b)) for a, b in zip(first, stop, strict=True))
        part = tuple(slice(int(a), int(b)) for a, b in zip(first - start, stop - start, strict=True))
        return window, part

    def _paint(self, window, coverage: np.ndarray, rng: np.random.Generator) -> None:
        """Blend the shape in, in a colour that stands out here, shaded from one side to the other."""
        below = self.image[window]
        colour = _draw_colour(np.array(cv2.mean(below, coverage)[:3]), rng)
        rows, columns = coverage.shape
        slope = rng.uniform(-25, 25, 2)
        shade = np.linspace(-slope[0], slope[0], rows)[:, None] + np.linspace(-slope[1], slope[1], columns)
        alpha = (coverage * np.float32(1 / 255))[..., None]
        below += alpha * (colour.astype(np.float32) + shade.astype(np.float32)[..., None] - below)

    def finish(self, rng: np.random.Generator) -> Scene:
        """The scene, with the camera's noise: uniform, up to 4 to 16 grey levels."""
        noise = np.frombuffer(rng.bytes(self.image.size), np.uint8).reshape(self.image.shape)
        strength = rng.uniform(4, 16) / 128
        image = cv2.addWeighted(self.image, 1.0, noise.astype(np.float32), strength, -127.5 * strength)
        return Scene(
            cv2.convertScaleAbs(np.maximum(image, 0, out=image)),
            np.array(self.boxes, np.float32).reshape(-1, 4),
            np.array(self.classes, np.int32),
            self.mask,
        )


def _extent(solid: np.ndarray, window: tuple[slice, slice]) -> tuple[int, int, int, int]:
    """Corners (x1, y1, x2, y2) in image pixels around the true pixels of a window."""
    x, y, width, height = cv2.boundingRect(solid.view(np.uint8))
    left, top = window[1].start + x, window[0].start + y
    return left, top, left + width, top + height


def _draw_colour(below: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """float [3] RGB, at random among those that stand out against the mean colour below."""
    colours = rng.uniform(15, 240, (12, 3))
    distance = np.linalg.norm(colours - below, axis=1)
    enough = np.flatnonzero(distance >= 90)
    return colours[enough[0] if len(enough) else int(distance.argmax())]


# --- the data set on disk ---------------------------------------------------------------------------------------------

# Where the labels of a split lie in the data set's folder, by format.
LABELS = {
    "yolo3": "{split}.txt",
    "voc": "Annotations/{split}",
    "coco": "{split}.json",
    "yolo": "data.yaml",
}


def draw_data_set(
    folder: str | os.PathLike,
    *,
    counts: Mapping[str, int],
    seed: int,
    format: str = "yolo3",
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, pathlib.Path]:
    """The label file of every split, drawn now or by an earlier call with the same parameters.

    Images go to <folder>/images/<split>/000001.jpg and so on. The folder appears whole or not at all; labels name
    images relative to themselves, so it can be moved.

    Args:
        folder: where to; a folder that this function drew with other parameters is replaced.
        counts: the number of scenes of each split.
        seed: any integer from 0. Scene k of a split is the same whatever the other counts are.
        format: of the labels, one of LABELS.
        progress: called with the number of scenes drawn so far and of all.

    Returns:
        The path of the labels by split (for the format "yolo" one file for all).

    Raises:
        InputError: a parameter is not usable, or the folder holds something that was not drawn here.
    """
    folder = pathlib.Path(folder).absolute()
    _check_parameters(counts, seed, format)
    manifest = {
        "drawn_by": __name__,
        "drawing_version": DRAWING_VERSION,
        "classes": list(CLASS_NAMES),
        "counts": dict(counts),
        "seed": seed,
        "format": format,
    }
    labels = {split: folder / LABELS[format].format(split=split) for split in counts}
    if _read_manifest(folder) == manifest and all(path.exists() for path in labels.values()):
        return labels
    fresh = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        _draw_into(fresh, counts, seed, format, progress)
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _replace(folder, fresh)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return labels


def _check_parameters(counts: Mapping[str, int], seed: int, format: str) -> None:
    if format not in LABELS:
        raise InputError(f"format: expected one of {', '.join(LABELS)}, received {format!r}")
    if not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: expected an integer from 0, received {seed!r}")
    if not counts:
        raise InputError("counts: expected at least one split, received none")
    for split, count in counts.items():
        if not split.isidentifier():
            raise InputError(f"counts: expected a split's name of letters, digits and '_', received {split!r}")
        if not isinstance(count, int) or count < 1:
            raise InputError(f"counts.{split}: expected an integer from 1, received {count!r}")


def _read_manifest(folder: pathlib.Path) -> dict | None:
    """What the folder was drawn with, None where it is missing or empty; refuses a folder that is somebody else's."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        manifest = None
    if not isinstance(manifest, dict) or manifest.get("drawn_by") != __name__:
        raise InputError(f"{folder}: expected nothing, or a folder drawn here (it has a {MANIFEST}), received another")
    return manifest


def _draw_into(folder: pathlib.Path, counts: Mapping[str, int], seed: int, format: str, progress) -> None:
    """Draw images and labels of all splits."""
    done, total = 0, sum(counts.values())
    for split, count in counts.items():
        images = folder / "images" / split
        images.mkdir(parents=True)
        samples = []
        for index in range(count):
            path = images / f"{index + 1:06d}.jpg"
            scene = draw_scene(scene_generator(seed, split, index))
            _write_jpeg(path, scene.image)
            samples.append(Sample(str(path), scene.boxes, scene.classes, index + 1, scene.mask.shape))
            done += 1
            if progress is not None:
                progress(done, total)
        write_samples(samples, CLASS_NAMES, folder / LABELS[format].format(split=split), format, split=split)


def _write_jpeg(path: pathlib.Path, image: np.ndarray) -> None:
    _, encoded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    path.write_bytes(encoded.tobytes())  # and not cv2.imwrite, which says nothing when the disk is full


def _replace(folder: pathlib.Path, fresh: pathlib.Path) -> None:
    """Put the fresh folder where the other one is; the other one is deleted only once it is out of the way."""
    old = fresh.with_name(fresh.name + ".old")
    if folder.exists():
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
