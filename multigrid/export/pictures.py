"""Images for artefacts: letterboxed as they expect them, chosen from files or drawn."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from multigrid.data.images import BORDER, IMAGE_SUFFIXES, Letterbox, image_size, read_image
from multigrid.data.shapes import draw_scene
from multigrid.errors import InputError

# What has to be done to an image before an artefact sees it, for who does it in another language.
LETTERBOX = {
    "channels": "RGB, 0 to 255",
    "ratio": "min(height / image height, width / image width)",
    "resized": "max(1, round(image side * ratio)), bilinear; by area where a side shrinks",
    "left": "(width - resized width) // 2",
    "top": "(height - resized height) // 2",
    "border": BORDER,
    "undone": "(x - left) * image width / resized width, (y - top) * image height / resized height",
}


def letterboxed(path: str | os.PathLike, input_size: tuple[int, int]) -> tuple[np.ndarray, Letterbox]:
    """An image file as artefacts expect it.

    Args:
        path: the image file.
        input_size: (height, width) in pixels.

    Returns:
        uint8 RGB [height, width, 3], and the letterbox that maps boxes back.

    Raises:
        InputError: the file is no image.
    """
    letterbox = Letterbox.fit(image_size(path), input_size)
    return letterbox.apply_image(read_image(path, at_least=letterbox.resized_size)), letterbox


def letterboxed_batch(paths: Sequence, input_size: tuple[int, int]) -> np.ndarray:
    """Image files as uint8 [N, height, width, 3]; see `letterboxed`."""
    return np.stack([letterboxed(path, input_size)[0] for path in paths])


def readable_batch(paths: Sequence, input_size: tuple[int, int]) -> tuple[np.ndarray, list[InputError]]:
    """Those image files that can be read, and what is wrong with the others.

    Args:
        paths: image files.
        input_size: (height, width) in pixels.

    Returns:
        uint8 [N, height, width, 3] in the order of the paths, see `letterboxed`, and an error for each other path.

    Raises:
        InputError: none of them can be read.
    """
    images, errors = [], []
    for path in paths:
        try:
            images.append(letterboxed(path, input_size)[0])
        except InputError as error:
            errors.append(error)
    if not images:
        raise InputError(f"expected images, received {len(errors)} files that cannot be read, first {errors[0]}")
    return np.stack(images), errors


def drawn_batch(count: int, input_size: tuple[int, int]) -> np.ndarray:
    """Drawn scenes as uint8 [count, height, width, 3], for where there are no images."""
    return np.stack([draw_scene(seed, image_size=input_size).image for seed in range(count)])


def images_in(folder: str | os.PathLike, place: str) -> list:
    """The paths of the images of a folder, sorted.

    Args:
        folder: the folder.
        place: the option that names it, for the error.

    Raises:
        InputError: no folder, or none with images.
    """
    folder = pathlib.Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise InputError(f"{place}: expected a folder of images, received {folder}")
    return [str(path) for path in paths]


def spread(items: Sequence, count: int) -> list:
    """At most `count` items, from all over the sequence."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]
