"""Images: their upright size, their pixels as uint8 RGB, and the letterbox that fits them to the network's input.

Sizes are (height, width); boxes are corners (x1, y1, x2, y2) in pixels; arrays are uint8 RGB [height, width, 3].
"Upright" is what a viewer shows: the EXIF orientation is applied to sizes and pixels alike.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from multigrid.errors import InputError

IMAGE_SUFFIXES = frozenset(".jpg .jpeg .png .bmp .gif .tif .tiff .webp .ppm .pgm .jp2 .avif".split())
BORDER = 114
"""Grey level of the letterbox's border."""
FILE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
"""What an open file may hold: it can be a stranger's, and one of Pillow's rarer readers starts another program."""

_ORIENTATION_TAG = 0x0112
# What Pillow's readers raise on files that are damaged, foreign or too large.
_UNREADABLE = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, RuntimeError, struct.error, zlib.error,
    Image.DecompressionBombError,
)  # fmt: skip
# Filters of warnings belong to the whole process.
_FILTERING = threading.Lock()


def image_size(source: str | os.PathLike | BinaryIO) -> tuple[int, int]:
    """The (height, width) of the upright image, from the file's header alone.

    Args:
        source: the image file, by its path or open; an open one is one of `FILE_FORMATS`.

    Raises:
        InputError: the file is missing or no image.
    """
    with _opened(source) as image:
        width, height = image.size
        # Pillow decodes a PNG to look for EXIF behind the pixels: only where something is there.
        turned = not _is_plain_png(image, source) and _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def read_image(source: str | os.PathLike | BinaryIO, at_least: tuple[int, int] | None = None) -> np.ndarray:
    """The upright image as uint8 RGB. Alpha is dropped, 16 bits a channel become the upper 8, the first frame is read.

    Args:
        source: the image file, by its path or open; an open one is one of `FILE_FORMATS`.
        at_least: (height, width) in pixels. A JPEG may then be decoded at 1/2, 1/4 or 1/8 of its size, as long as
            neither side falls below this. JPEG rounds a reduced side up; a reduction whose rounding would displace
            the far edge by more than half a pixel of `at_least` is not taken.

    Returns:
        uint8 [height, width, 3], contiguous and writable.

    Raises:
        InputError: the file is missing, truncated, no image, or larger than Pillow's limit against decompression bombs.
    """
    with _opened(source) as image:
        orientation = _orientation(image)
        if at_least is not None and image.format in ("JPEG", "MPO"):
            _reduce(image, at_least[::-1] if orientation >= 5 else at_least)
        pixels = _rgb(image)
    return _upright(pixels, orientation)


def image_pixels(image: Image.Image) -> np.ndarray:
    """The pixels of a Pillow image as `read_image` gives those of a file.

    Args:
        image: of any mode that can be read from a file; an EXIF orientation that it still carries is applied.

    Returns:
        uint8 RGB [height, width, 3], contiguous and writable.

    Raises:
        InputError: its file turns out to be damaged, or its mode has no counterpart in RGB.
    """
    try:
        orientation = _orientation(image)
        return _upright(_rgb(image), orientation)
    except _UNREADABLE as error:
        where = getattr(image, "filename", "") or "image"
        raise InputError(f"{where}: expected an image, received {_reason(where, error)}") from error


def check_images(paths: Iterable[str], progress: Callable[[int, int], None] | None = None) -> None:
    """Decodes every image, JPEGs at 1/8 of their size, and says which cannot be read.

    Args:
        paths: image files; repeated ones are decoded once.
        progress: called with (images done, images in all).

    Raises:
        InputError: naming the count and the first three missing or broken files.
    """
    results = for_each_image(lambda path: read_image(path, at_least=(1, 1)).shape, paths, progress)
    failures = [result for result in results.values() if isinstance(result, InputError)]
    if failures:
        more = "; ..." if len(failures) > 3 else ""
        raise InputError(
            f"{len(failures)} of {len(results)} images cannot be read: {'; '.join(map(str, failures[:3]))}{more}"
        )


def for_each_image(
    look: Callable[[str], Any], paths: Iterable[str], progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """What `look(path)` returned, or the InputError it raised, for every different path; by several threads."""

    def look_at(some: list[str]) -> list[Any]:
        found = []
        for path in some:
            try:
                found.append(look(path))
            except InputError as error:
                found.append(error)
        return found

    paths = list(dict.fromkeys(paths))
    # A task an image would cost more than reading a header does.
    parts = [paths[start : start + 64] for start in range(0, len(paths), 64)]
    results: dict[str, Any] = {}
    with ThreadPoolExecutor(max_workers=min(16, 2 * (os.cpu_count() or 1))) as pool:
        for part, found in zip(parts, pool.map(look_at, parts), strict=True):
            results.update(zip(part, found, strict=True))
            if progress is not None:
                progress(len(results), len(paths))
    return results


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input: scaled with its aspect kept, centred on a grey border.

    Attributes:
        source_size: (height, width) of the upright image in pixels.
        target_size: (height, width) of the input in pixels.
    """

    source_size: tuple[int, int]
    target_size: tuple[int, int]

    def __post_init__(self):
        for name in ("source_size", "target_size"):
            size = getattr(self, name)
            if len(size) != 2 or min(size) < 1:
                raise ValueError(f"expected {name} as a positive (height, width), received {size}")

    @classmethod
    def fit(cls, source_size: tuple[int, int], target_size: tuple[int, int]) -> Letterbox:
        """The letterbox of an image of `source_size` (height, width) in an input of `target_size` (height, width)."""
        (source_height, source_width), (height, width) = source_size, target_size
        return cls((int(source_height), int(source_width)), (int(height), int(width)))

    @property
    def resized_size(self) -> tuple[int, int]:
        """(height, width) of the scaled image in whole pixels, without the border; what `read_image` needs."""
        (source_height, source_width), (height, width) = self.source_size, self.target_size
        ratio = min(height / source_height, width / source_width)
        return max(1, round(source_height * ratio)), max(1, round(source_width * ratio))

    @property
    def scale(self) -> tuple[float, float]:
        """(x, y): resized side over source side, exact; whole pixels make the two differ a little."""
        height, width = self.resized_size
        return width / self.source_size[1], height / self.source_size[0]

    @property
    def pad(self) -> tuple[int, int]:
        """(left, top) border in input pixels; right and bottom have the rest."""
        height, width = self.resized_size
        return (self.target_size[1] - width) // 2, (self.target_size[0] - height) // 2

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """The image in the input.

        Args:
            image: uint8 RGB [h, w, 3], the source image or a reduced decode of it.

        Returns:
            uint8 RGB [target height, target width, 3], a new array.
        """
        (height, width), (left, top) = self.resized_size, self.pad
        canvas = np.empty((*self.target_size, 3), np.uint8)
        canvas[:top], canvas[top + height :] = BORDER, BORDER
        inside = canvas[top : top + height]
        inside[:, :left], inside[:, left + width :] = BORDER, BORDER
        inside = inside[:, left : left + width]
        if image.shape == inside.shape:
            inside[...] = image
            return canvas
        shrinks = height < image.shape[0] or width < image.shape[1]
        cv2.resize(image, (width, height), dst=inside, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        return canvas

    def apply_boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Boxes of the source image in the input.

        Args:
            boxes: [..., 4] corners (x1, y1, x2, y2) in source pixels.

        Returns:
            float32 [..., 4] corners in input pixels.
        """
        return (np.asarray(boxes, np.float64) * (self.scale * 2) + self.pad * 2).astype(np.float32)

    def undo_boxes(self, boxes: np.ndarray, clip: bool = True) -> np.ndarray:
        """Boxes of the input in the source image: the inverse of `apply_boxes`.

        Args:
            boxes: [..., 4] corners (x1, y1, x2, y2) in input pixels.
            clip: cut what leaves the source image.

        Returns:
            float32 [..., 4] corners in source pixels.
        """
        boxes = (np.asarray(boxes, np.float64) - self.pad * 2) / (self.scale * 2)
        if clip:
            boxes = np.clip(boxes, 0, self.source_size[::-1] * 2)
        return boxes.astype(np.float32)


@contextlib.contextmanager
def _opened(source: str | os.PathLike | BinaryIO) -> Iterator[Image.Image]:
    name = "image" if _is_open(source) else os.fspath(source)
    try:
        with _open_quietly(source) as image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{name}: expected an image, received no file of this name") from None
    except _UNREADABLE as error:
        raise InputError(f"{name}: expected an image, received {_reason(source, error)}") from error


def _open_quietly(source: str | os.PathLike | BinaryIO) -> Image.Image:
    """Pillow's image, without its warning at half of the size that it refuses: who asks for an image gets it."""
    with _FILTERING, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        if not _is_open(source):
            return Image.open(source)
        Image.init()  # registers the formats; which there are depends on how Pillow was built
        return Image.open(source, formats=[name for name in FILE_FORMATS if name in Image.OPEN])


def _is_open(source: str | os.PathLike | BinaryIO) -> bool:
    return hasattr(source, "read")


@contextlib.contextmanager
def _from_start(source: str | os.PathLike | BinaryIO) -> Iterator[BinaryIO]:
    """The file at its first byte; one that was open stands afterwards where it stood."""
    if not _is_open(source):
        with open(source, "rb") as file:
            yield file
        return
    place = source.tell()
    source.seek(0)
    try:
        yield source
    finally:
        source.seek(place)


def _reason(source: str | os.PathLike | BinaryIO, error: BaseException) -> str:
    if isinstance(error, UnidentifiedImageError):
        with _from_start(source) as file:
            return "a file of no known image format" if file.read(1) else "an empty file"
    if isinstance(error, OSError) and error.strerror:
        return f"an error: {error.strerror}"
    return f"a damaged or unsupported one: {' '.join(str(error).split())}"


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8, that is still to be applied."""
    if image.format == "TIFF":  # Pillow turns these itself
        return 1
    try:
        found = image.getexif().get(_ORIENTATION_TAG, 1)
    except (SyntaxError, struct.error):  # a damaged EXIF block holds no orientation; viewers ignore it likewise
        return 1
    return found if found in range(1, 9) else 1


def _is_plain_png(image: Image.Image, source: str | os.PathLike | BinaryIO) -> bool:
    """Whether this is a PNG with no EXIF or XMP, neither in its header nor behind its pixels."""
    if image.format != "PNG" or "exif" in image.info or "xmp" in image.info:
        return False
    with _from_start(source) as file:
        file.seek(8)
        pixels_seen = False
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if pixels_seen and kind in (b"eXIf", b"zTXt", b"tEXt", b"iTXt"):
                return False
            pixels_seen |= kind == b"IDAT"
            file.seek(length + 4, os.SEEK_CUR)
    return "Raw profile type exif" not in image.info


def _reduce(image: Image.Image, at_least: tuple[int, int]) -> None:
    """Asks Pillow to decode a JPEG at 1/8, 1/4 or 1/2 of its size."""
    sides = (image.height, image.width)
    for factor in (8, 4, 2):
        reduced = [-(-side // factor) for side in sides]
        enough = all(side >= least for side, least in zip(reduced, at_least, strict=True))
        # The last pixel covers up to factor - 1 pixels that the image does not have: everything shrinks by as much.
        displaced = max(
            (small * factor - side) / side * least for side, small, least in zip(sides, reduced, at_least, strict=True)
        )
        if enough and displaced <= 0.5:
            image.draft(None, (max(1, image.width // factor), max(1, image.height // factor)))
            return


def _rgb(image: Image.Image) -> np.ndarray:
    """The decoded pixels as uint8 RGB, not yet turned."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise ValueError(f"expected 8 or 16 bits a channel, received 32 (mode {image.mode})")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The image as a viewer shows it. Source: EXIF 2.3, tag Orientation."""
    if orientation == 1:
        return pixels
    if orientation >= 5:
        pixels = pixels.transpose(1, 0, 2)
    flip_rows = orientation in (3, 4, 7, 8)
    flip_columns = orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1])
