"""Videos and cameras as frames, and frames as a video; by OpenCV.

Convention of this module: frames are uint8 RGB [height, width, 3], upright as a player shows them (OpenCV applies the
orientation that a video carries); times are seconds from the first frame. One frame is in memory at a time.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np

from multigrid.detection.detections import Frame
from multigrid.errors import InputError
from multigrid.report import replacing

VIDEO_SUFFIXES = frozenset(".mp4 .m4v .mov .avi .mkv .webm .mpg .mpeg .wmv .flv .3gp .ts .mts .m2ts .ogv".split())
# MPEG-4 in .mp4 is what OpenCV's packages can write on Linux, macOS and Windows alike; they cannot write H.264.
CODEC = "mp4v"
USUAL_RATE = 25.0
FASTEST_RATE = 1000.0  # more is a header that holds no rate


class VideoInfo(NamedTuple):
    """What the header of a video says."""

    rate: float  # frames a second; `USUAL_RATE` where the header has none
    frames: int | None  # None where it does not say, and of a camera


def place_of(source: str | os.PathLike | int) -> str:
    """What a video or camera is called in detections and errors: its path as it was given, or "camera 0".

    Args:
        source: a file, or the index of a camera.
    """
    return f"camera {source}" if _is_camera(source) else os.fspath(source)


def read_info(source: str | os.PathLike | int) -> VideoInfo:
    """What the header of a video, or a camera, says.

    Args:
        source: a file, or the index of a camera.

    Raises:
        InputError: it cannot be opened.
    """
    with _capture(source) as capture:
        return _info(capture, source)


def read_frames(source: str | os.PathLike | int) -> Iterator[Frame]:
    """The frames of a video or camera, one after the other.

    Args:
        source: a file, or the index of a camera, whose frames never end by themselves.

    Yields:
        `Frame`s.

    Raises:
        InputError: it cannot be opened or has no frame; or, after the last frame, it is over more than a second before
            its header says, or is a camera.
    """
    where, read = place_of(source), 0
    with _capture(source) as capture:
        info = _info(capture, source)
        clock = _Clock(capture, source, info.rate)
        while True:
            there, pixels = capture.read()
            if not there:
                break
            yield Frame(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB), where, read, clock.moment())
            read += 1
    if not read:
        raise InputError(f"{where}: expected a video, received one without a frame that can be read")
    if _is_camera(source):
        raise InputError(f"{where}: expected frames until nobody wants more, received {read}")
    # Headers count roughly; a second that is missing is no rounding.
    if info.frames is not None and info.frames - read > max(info.rate, 1):
        raise InputError(f"{where}: expected {info.frames} frames as its header says, received {read}")


class VideoWriter:
    """A video that grows frame by frame; the file appears whole, or not at all where the block fails.

    Sides are even in the file, as nearly every codec wants them: an odd one is continued by its last line.

    Args:
        path: the file, ending in .mp4; its folder is made.
        rate: frames a second.

    Raises:
        InputError: OpenCV cannot write such a file.
    """

    def __init__(self, path: str | os.PathLike, rate: float):
        self.path, self.rate = pathlib.Path(path), rate
        self._open = contextlib.ExitStack()
        self._writer, self._size = None, None

    def __enter__(self) -> VideoWriter:
        self._temporary = self._open.enter_context(replacing(self.path))
        return self

    def __exit__(self, *error) -> None:
        if self._writer is not None:
            self._writer.release()
        self._open.__exit__(*error)

    def write(self, image: np.ndarray) -> None:
        """Adds a frame, uint8 RGB [height, width, 3]; all of a video have the size of the first.

        Raises:
            ValueError: a frame of another size.
        """
        height, width = image.shape[:2]
        if self._writer is None:
            self._size = height, width
            size = width + width % 2, height + height % 2
            code = cv2.VideoWriter_fourcc(*CODEC)
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.CAP_FFMPEG, code, self.rate, size)
            if not self._writer.isOpened():
                raise InputError(f"{self.path}: expected a place for a video in {CODEC}, OpenCV cannot write one there")
        if (height, width) != self._size:
            raise ValueError(f"{self.path}: expected frames of {self._size}, received one of {(height, width)}")
        even = cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
        self._writer.write(cv2.cvtColor(even, cv2.COLOR_RGB2BGR))


class _Clock:
    """The time of each frame that was just read."""

    def __init__(self, capture, source, rate: float):
        self.capture, self.live, self.rate = capture, _is_camera(source), rate
        self.first, self.last = None, 0.0

    def moment(self) -> float:
        now = time.monotonic() if self.live else self.capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        if self.first is None:
            self.first = now
            return self.last
        passed = now - self.first
        # Some files carry no times, others such that stand still.
        self.last = passed if passed > self.last else self.last + 1 / self.rate
        return self.last


@contextlib.contextmanager
def _capture(source) -> Iterator[cv2.VideoCapture]:
    if _is_camera(source):
        capture = cv2.VideoCapture(source)
    else:
        if not os.path.isfile(source):
            raise InputError(f"{place_of(source)}: expected a video, received no file of this name")
        capture = cv2.VideoCapture(os.fspath(source), cv2.CAP_FFMPEG)
    try:
        if not capture.isOpened():
            kind = "camera, received none that answers" if _is_camera(source) else "video, received " + _content(source)
            raise InputError(f"{place_of(source)}: expected a {kind}")
        yield capture
    finally:
        capture.release()


def _info(capture, source) -> VideoInfo:
    rate, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    if not 0 < rate <= FASTEST_RATE:  # NaN too
        rate = USUAL_RATE
    return VideoInfo(rate, int(frames) if frames >= 1 and not _is_camera(source) else None)


def _content(path) -> str:
    return "one that is damaged, or of no known format" if os.path.getsize(path) else "an empty file"


def _is_camera(source) -> bool:
    return isinstance(source, int)
