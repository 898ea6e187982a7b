"""What a prediction leaves behind: pictures, videos, detections.json and detections.csv, written as detections come."""

from __future__ import annotations

import contextlib
import csv
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from multigrid.detection.detections import COLUMNS, FRAME_COLUMNS, Detections
from multigrid.prediction.sources import Item
from multigrid.prediction.video import USUAL_RATE, VideoWriter
from multigrid.report import replacing

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png")  # kept; any other ending gets .png
WAITING = 4  # pictures that may wait for being drawn: each may hold a frame


def picture_targets(items: Iterable[Item]) -> dict[str, pathlib.PurePath]:
    """Where, below the output folder, the picture or video of each file goes.

    Files keep their places below the folder that all of them share, so that a/x.jpg and b/x.jpg stay two.

    Args:
        items: paths and cameras, no pixels.

    Returns:
        By `Detections.path`, a relative path each, no two of them the same.
    """
    items = list(items)
    folders = [_parts(os.path.dirname(os.path.abspath(item.what))) for item in items if item.kind != "camera"]
    shared = len(os.path.commonprefix(folders))
    targets, taken = {}, set()
    # Who keeps its name has it, before another one's ending makes the same of its own.
    for item in sorted(items, key=lambda item: not _keeps_name(item)):
        if item.kind == "camera":
            targets[f"camera {item.what}"] = pathlib.PurePath(f"camera {item.what}.mp4")
            continue
        target = pathlib.PurePath(*_parts(os.path.abspath(item.what))[shared:])
        ending = ".mp4" if item.kind == "video" else ".png"
        if not _keeps_name(item):
            target = target.with_name(target.name + ending)  # beside the old ending: a.bmp and a.tif stay two
        while target in taken:
            target = target.with_name(target.name + ending)
        taken.add(target)
        targets[os.fspath(item.what)] = target
    return targets


class Outputs:
    """Where detections are handed in; see `writing`.

    Attributes:
        images: how many were handed in, frames counted too.
        detections: how many they had.
    """

    def __init__(self, record: Callable, rows: Callable, draw: Callable | None, pool: ThreadPoolExecutor):
        self.images, self.detections = 0, 0
        self._record, self._rows, self._draw, self._pool = record, rows, draw, pool
        self._waiting = []

    def add(self, found: Detections) -> None:
        """Writes the detections of one image or frame; its picture is drawn while the caller goes on."""
        self._record(found.to_json())
        self._rows(found.rows())
        self.images, self.detections = self.images + 1, self.detections + len(found)
        if self._draw is not None:
            self._waiting.append(self._pool.submit(self._draw, found))
            self.wait(WAITING)

    def wait(self, allowed: int = 0) -> None:
        """Waits until no more than so many pictures are to be drawn; what went wrong with one is raised here."""
        while len(self._waiting) > allowed:
            self._waiting.pop(0).result()


@contextlib.contextmanager
def writing(
    folder: str | os.PathLike,
    targets: Mapping[str, pathlib.PurePath] | None,
    rates: Mapping[str, float] | None = None,
    *,
    cells: bool = False,
) -> Iterator[Outputs]:
    """Pictures, videos, detections.json and detections.csv below a folder, each of them whole or not there.

    The tables, and the video that is not over, appear when the block ends well.

    Args:
        folder: where to; it is made.
        targets: what `picture_targets` returns; None draws nothing.
        rates: frames a second of every video and camera by `Detections.path`; where there are any, the table has the
            columns "frame" and "time".
        cells: whether the cells that answered are drawn too.

    Yields:
        `Outputs`, to which detections are added in their order.
    """
    folder, rates = pathlib.Path(folder), rates or {}
    columns = COLUMNS + FRAME_COLUMNS * bool(rates)
    with (
        _json_list(folder / "detections.json") as record,
        _csv_table(folder / "detections.csv", columns) as rows,
        _Drawing(folder, targets or {}, rates, cells) as drawing,
        ThreadPoolExecutor(max_workers=1) as pool,
    ):
        outputs = Outputs(record, rows, None if targets is None else drawing.draw, pool)
        yield outputs
        outputs.wait()


class _Drawing:
    """Draws on one thread; one video is open at a time, the last one until the block ends."""

    def __init__(self, folder: pathlib.Path, targets, rates, cells: bool):
        self.folder, self.targets, self.rates, self.cells = folder, targets, rates, cells
        self.video, self.path = None, None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> _Drawing:
        return self

    def __exit__(self, *error) -> None:
        self._open.__exit__(*error)

    def draw(self, found: Detections) -> None:
        target = self.folder / self.targets[found.path]
        if found.frame is None:
            found.save(target, cells=self.cells)
            return
        if found.path != self.path:
            self._open.close()
            self.path, rate = found.path, self.rates.get(found.path, USUAL_RATE)
            self.video = self._open.enter_context(VideoWriter(target, rate))
        self.video.write(found.plot(cells=self.cells))


@contextlib.contextmanager
def _json_list(path: pathlib.Path) -> Iterator[Callable[[str], None]]:
    """A function that takes one JSON text after the other and writes each on a line of the list."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write("[")
        separator = "\n"

        def write(text: str) -> None:
            nonlocal separator
            file.write(separator + text)
            separator = ",\n"

        yield write
        file.write("\n]\n")


@contextlib.contextmanager
def _csv_table(path: pathlib.Path, columns) -> Iterator[Callable[[list], None]]:
    """A function that takes rows."""
    # A name that is no UTF-8 keeps its bytes.
    options = {"encoding": "utf-8", "errors": "surrogateescape", "newline": ""}
    with replacing(path) as temporary, open(temporary, "w", **options) as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        yield table.writerows


def _keeps_name(item: Item) -> bool:
    if item.kind == "camera":
        return True
    suffix = pathlib.PurePath(item.what).suffix.lower()
    return suffix == ".mp4" if item.kind == "video" else suffix in PICTURE_SUFFIXES


def _parts(path: str) -> tuple:
    """The parts of an absolute path; a drive as a folder's name."""
    anchor, *rest = pathlib.PurePath(path).parts
    return (anchor.strip(":\\/"), *rest) if anchor.strip(":\\/") else tuple(rest)
