"""What a user can hand over to be looked at, as single images, videos and cameras.

A source is a path, a pattern such as "images/**/*.jpg", a folder, a video, the index of a camera, uint8 RGB pixels
[height, width, 3] or [N, height, width, 3], a Pillow image, or any iterable of those.
"""

from __future__ import annotations

import functools
import glob
import itertools
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from multigrid.data.images import IMAGE_SUFFIXES, read_image
from multigrid.errors import InputError
from multigrid.prediction.video import VIDEO_SUFFIXES, read_frames

logger = logging.getLogger(__name__)

AHEAD = 8  # frames of a video that are decoded while the network works
CONTENT = (bytes, bytearray, memoryview)
_END = object()


class Item(NamedTuple):
    """One image, video or camera."""

    kind: Literal["image", "video", "camera"]
    what: Any  # a path; the index of a camera; pixels or a Pillow image


class Listing(NamedTuple):
    """What a source comes to."""

    items: list  # of `Item`
    left_out: int  # files of a folder or pattern that are, by their names, neither image nor video


def list_source(source) -> Listing:
    """The images, videos or camera that one source means; no file is opened.

    Args:
        source: anything but an iterable of sources. A folder means its own files in the order of their names, without
            those of folders in it and without hidden ones; digits that name no file mean a camera.

    Raises:
        InputError: a folder or pattern that comes to nothing.
        TypeError: no source.
    """
    if isinstance(source, (np.ndarray, Image.Image)):
        return Listing([Item("image", source)], 0)
    if is_camera(source):
        return Listing([Item("camera", int(source))], 0)
    if not isinstance(source, (str, os.PathLike)):
        hint = "; PIL.Image.open(io.BytesIO(content)) reads a file's content" if isinstance(source, CONTENT) else ""
        received = type(source).__name__
        raise TypeError(f"source: expected a path, pixels, an image or a camera, received {received}{hint}")
    path = os.fspath(source)
    if os.path.isdir(path):
        with os.scandir(path) as entries:
            files = [entry.path for entry in entries if _is_named(entry.path) and not entry.name.startswith(".")]
        return _of_files(files, path, "a folder")
    if glob.has_magic(path) and not os.path.exists(path):
        files = [found for found in glob.iglob(path, recursive=True) if _is_named(found)]
        return _of_files(files, path, "a pattern")
    return Listing([_file_item(path)], 0)


def is_camera(source) -> bool:
    """Whether a source is the index of a camera: a whole number, or digits that name no file."""
    if isinstance(source, str):
        return source.isdecimal() and not os.path.exists(source)
    return isinstance(source, int) and not isinstance(source, bool)


def single_image(source) -> bool:
    """Whether a source is one image, and not several or a video.

    Raises:
        InputError: as `list_source`.
    """
    if isinstance(source, np.ndarray):
        return source.ndim != 4
    if isinstance(source, (str, os.PathLike)):
        return not os.path.isdir(source) and list_source(source).items == [Item("image", os.fspath(source))]
    return isinstance(source, Image.Image)


def expand(source) -> Iterator[Item | InputError]:
    """The items of a source one by one; iterables are asked as the items are. What is left out is logged.

    Yields:
        `Item`s, and an InputError in the place of a source that comes to nothing.
    """
    # Bytes can be iterated over: each would be the number of a camera.
    one = (np.ndarray, Image.Image, str, os.PathLike, *CONTENT)
    if isinstance(source, one) or not isinstance(source, Iterable):
        sources = source if isinstance(source, np.ndarray) and source.ndim == 4 else [source]
    else:
        sources = source
    for one in sources:
        try:
            listing = list_source(one)
        except InputError as error:
            yield error
            continue
        if listing.left_out:
            logger.warning("%s: %s", one, left_out_words(listing.left_out))
        yield from listing.items


def left_out_words(count: int) -> str:
    """A line about files that are neither image nor video."""
    return f"{count} other file{'' if count == 1 else 's'} left out"


def open_items(items: Iterable[Item | InputError], limit: int | None = None) -> Iterator:
    """What a `DetectionPipeline` streams: images as they are, videos and cameras frame by frame.

    Args:
        items: of `expand`.
        limit: the most frames of a video or camera.

    Yields:
        Paths, pixels, Pillow images and `Frame`s, and an InputError for what is broken, in its place.
    """
    for item in items:
        if isinstance(item, InputError):
            yield item
        elif item.kind == "image":
            yield item.what
        else:
            yield from _frames(item, limit)


def check_any_usable(items: Iterable[Item]) -> None:
    """Opens items until one can be read: before a network is built for nothing.

    Raises:
        InputError: not one of them can be read.
    """
    errors = []
    for item in items:
        try:
            if item.kind == "image":
                read_image(item.what, at_least=(1, 1))
            else:
                next(read_frames(item.what))
            return
        except InputError as error:
            errors.append(str(error))
    if len(errors) == 1:
        raise InputError(errors[0])
    more = "; ..." if len(errors) > 3 else ""
    raise InputError(f"none of {len(errors)} images and videos can be read: {'; '.join(errors[:3])}{more}")


def _of_files(files: list[str], source: str, kind: str) -> Listing:
    items = [_file_item(path) for path in sorted(files) if _suffix(path) in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
    left_out = len(files) - len(items)
    if not items:
        others = f"; {left_out_words(left_out)}" if left_out else ""
        hint = "; a pattern such as 'FOLDER/**/*.jpg' looks into folders" if kind == "a folder" else ""
        raise InputError(f"{source}: expected {kind} of images or videos, received one without{others}{hint}")
    return Listing(items, left_out)


def _is_named(path: str) -> bool:
    """Whether a path is a file, or a link to nothing: that is said when it is due, and not passed over."""
    return os.path.isfile(path) or (os.path.islink(path) and not os.path.exists(path))


def _file_item(path: str) -> Item:
    return Item("video" if _suffix(path) in VIDEO_SUFFIXES else "image", path)


def _suffix(path: str) -> str:
    return pathlib.PurePath(path).suffix.lower()


def _frames(item: Item, limit: int | None) -> Iterator:
    frames = read_frames(item.what)
    if limit is not None:
        frames = itertools.islice(frames, limit)
    if item.kind == "video":  # a camera's frames are wanted as they come
        frames = _read_ahead(frames)
    try:
        yield from frames
    except InputError as error:
        yield error


def _read_ahead(items: Iterator, count: int = AHEAD) -> Iterator:
    """The items, up to `count` of them fetched by a thread of its own before they are asked for."""
    fetch = functools.partial(next, items, _END)
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(fetch) for _ in range(count)]
        while (item := waiting.pop(0).result()) is not _END:
            waiting.append(pool.submit(fetch))
            yield item
