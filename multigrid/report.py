"""What a command shows and writes: tables, progress, JSON and CSV. Knows no component; prints, as only `cli` also does.

Files appear whole or not at all: each is written beside its place and then moved there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from rich import progress as rich_progress
from rich.console import Console
from rich.table import Table
from rich.text import Text

from multigrid.errors import InputError

# A log file has no width of its own; rich would assume 80 columns and cut the cells.
LOG_WIDTH = 200

_silent = False  # see `silence`
_UNFINISHED = re.compile(r"\.[0-9a-f]{12}(\.|$)")  # names of `replacing`


def new_console(file=None) -> Console:
    """A console on standard output (or `file`) that cuts no table where the output is not a terminal."""
    quiet = _silent and file is None
    console = Console(file=file, quiet=quiet)
    return console if console.is_terminal else Console(file=file, quiet=quiet, width=LOG_WIDTH)


def silence() -> None:
    """Keeps this process from printing: another one says the same."""
    global _silent
    _silent = True


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence], console: Console | None = None) -> None:
    """Prints a table.

    Args:
        title: the line above it.
        columns: the heads.
        rows: one sequence a row, as long as `columns`. Floats are shown with four digits, None as a dash.
        console: where to; standard output if None.

    Raises:
        ValueError: a row has another length than the heads.
    """
    rows = [list(row) for row in rows]
    console = console or new_console()
    shown = Table()
    for index, column in enumerate(columns):
        numeric = any(_is_number(row[index]) for row in rows if index < len(row))
        shown.add_column(Text(str(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        if len(row) != len(columns):
            raise ValueError(f"table {title!r}: expected rows of {len(columns)} cells, received {row}")
        # Text, because rich would read brackets in a plain string as its own markup.
        shown.add_row(*(Text(_cell(value)) for value in row))
    # A line of its own: rich would fill the title of a table with blanks up to its width.
    console.print(Text(title, style="bold"), soft_wrap=True)
    console.print(shown)


def _is_number(value) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def progress(
    iterable: Iterable, description: str, total: int | None = None, console: Console | None = None
) -> Iterator:
    """Passes the items on and shows how far they are: a bar on a terminal, elsewhere one line first and one last.

    Args:
        iterable: the items.
        description: what is being done, "reading images".
        total: the number of items; `len(iterable)` if None and it has a length.
        console: where to; standard output if None.

    Yields:
        The items, in their order.
    """
    console = console or new_console()
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if console.is_terminal:
        yield from rich_progress.track(iterable, description, total=total, console=console)
        return
    _line(console, f"{description}: {'?' if total is None else total} ...")
    start, done = time.perf_counter(), 0
    for item in iterable:
        yield item
        done += 1
    _line(console, f"{description}: {done} in {time.perf_counter() - start:.1f} s")


@contextlib.contextmanager
def counting(description: str, many: int = 0) -> Iterator[Callable[[int, int], None]]:
    """Shows long work as `progress` does, for a function that reports how far it is.

    Args:
        description: what is being done, "reading images".
        many: fewer items are shown on a terminal alone: short work leaves nothing in a log.

    Yields:
        A function to call with (items done, items in all).
    """
    shown, seen = None, 0

    def show(done: int, total: int) -> None:
        nonlocal shown, seen
        if shown is None:
            if total < many and not new_console().is_terminal:
                return
            shown = progress(range(total), description)
        for _ in range(done - seen):
            next(shown)
        seen = done
        if done == total:
            next(shown, None)  # the items are at their end

    try:
        yield show
    finally:
        if shown is not None:
            shown.close()


def _line(console: Console, text: str) -> None:
    console.print(Text(text), soft_wrap=True)


def check_folder(folder: str | os.PathLike, place: str) -> None:
    """Sees, before long work, that a folder can hold its results; it need not be there yet.

    Args:
        folder: where files will go.
        place: the option or key that names it, for the error.

    Raises:
        InputError: a file stands in its way, or it may not be written to.
    """
    folder = os.path.abspath(folder)
    nearest = folder
    while not os.path.lexists(nearest):
        nearest = os.path.dirname(nearest)
    if not os.path.isdir(nearest):
        raise InputError(f"{place}: expected a folder to write to, received {folder}, but {nearest} is no folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{place}: expected a folder to write to, received {folder}, but {nearest} is write-protected")


def check_file(path: str | os.PathLike, place: str) -> None:
    """Sees, before long work, that a file can be written; arguments and errors as in `check_folder`."""
    if os.path.isdir(path):
        raise InputError(f"{place}: expected a file to write, received {os.fspath(path)}, which is a folder")
    check_folder(os.path.dirname(os.path.abspath(path)), place)


def check_apart(folder: str | os.PathLike, files: Iterable[str | os.PathLike], place: str) -> None:
    """Sees, before anything is written, that results do not lie among what they are made of.

    Args:
        folder: where files will go.
        files: the images and labels that were read; of folders of labels, the folders.
        place: the option that names the folder, for the error.

    Raises:
        InputError: one of the files lies in it, by its own path or as what a link leads to.
    """
    real = os.path.realpath(folder)
    for path in map(os.fspath, files):
        held = [os.path.join(path, "")] if os.path.isdir(path) else [path, os.path.realpath(path)]
        for file in held:
            if real == os.path.realpath(os.path.dirname(file)):
                raise InputError(
                    f"{place}: expected a folder other than that of the images and labels, received "
                    f"{os.fspath(folder)}, where {file} is read"
                )


def check_unread(outputs: Iterable[str | os.PathLike], files: Iterable[str | os.PathLike], place: str) -> None:
    """Sees, before anything is written, that no file of the user's is replaced by what is made of it.

    Args:
        outputs: the files to come.
        files: those that were read.
        place: the option that names the outputs, for the error.

    Raises:
        InputError: an output is one of the files.
    """
    read = {os.path.realpath(path) for path in files}
    for path in outputs:
        if os.path.realpath(path) in read:
            raise InputError(
                f"{place}: expected a file of another name, received {os.fspath(path)}, which is read here"
            )


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A path beside `path`, with its ending, that takes its place when the block ends well and goes when it fails.

    Args:
        path: the file to come; its folder is made.

    Yields:
        The path to write to.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Several endings stay together: Keras insists on `.weights.h5`.
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}{''.join(path.suffixes)}")
    try:
        yield temporary
        _to_disk(temporary, os.O_RDWR)  # Windows lets nobody wait for a file that is open for reading alone
        os.replace(temporary, path)
        if hasattr(os, "O_DIRECTORY"):  # where folders can be opened; elsewhere the rename is as durable as it gets
            _to_disk(path.parent, os.O_RDONLY)
    finally:
        temporary.unlink(missing_ok=True)


def _to_disk(path: pathlib.Path, mode: int) -> None:
    """Waits until what was written is on the disk, so that a power cut cannot leave a new name on an empty file."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def clear_unfinished(folder: str | os.PathLike) -> None:
    """Deletes what `replacing` left in a folder, and in those below it, when its process was killed."""
    for path in list(pathlib.Path(folder).rglob(".*")):
        if _UNFINISHED.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)
        elif _UNFINISHED.match(path.name):
            path.unlink()


def write_json(path: str | os.PathLike, value) -> None:
    """Writes a value as JSON, see `json_text`.

    Args:
        path: the file; its folder is made.
        value: what JSON can hold.

    Raises:
        TypeError: a part has no counterpart in JSON.
    """
    text = json_text(value)
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def json_text(value) -> str:
    """A value as JSON.

    Dataclasses become objects, NumPy arrays and tuples lists, paths strings. NaN and infinity, for which JSON has no
    word, become null.

    Args:
        value: of the types above and JSON's own.

    Raises:
        TypeError: a part has no counterpart in JSON.
    """
    return json.dumps(_plain(value), indent=2, allow_nan=False)


def _plain(value):
    """The value in JSON's own types."""
    if isinstance(value, (np.ndarray, np.generic)):
        value = value.tolist()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"expected a value that JSON can hold, received {type(value).__name__}")


def write_csv(path: str | os.PathLike, rows: Sequence[Mapping]) -> None:
    """Writes rows as CSV; the columns stand in the order in which they first appear.

    Args:
        path: the file; its folder is made.
        rows: one mapping a row; a missing key, None and NaN leave the cell empty.
    """
    # Loaded here because it costs half a second and only this file needs it.
    import pandas

    columns = list(dict.fromkeys(key for row in rows for key in row))
    frame = pandas.DataFrame([dict(row) for row in rows], columns=columns, dtype=object)
    with replacing(path) as temporary:
        frame.to_csv(temporary, index=False)


def print_document(text: str, file) -> None:
    """Prints JSON to `file`: the whole output of a command, for a machine to read."""
    if not _silent:
        print(text, file=file, flush=True)


def say(text: str, console: Console | None = None) -> None:
    """Prints one line as it is."""
    _line(console or new_console(), text)


class StepProgress:
    """The steps of one epoch after the other: a bar on a terminal while an epoch runs, and a line when it ends.

    Args:
        steps: of an epoch; None if that is not known.
        console: where to; standard output if None.
    """

    def __init__(self, steps: int | None, console: Console | None = None):
        self.steps = steps
        self.console = console or new_console()
        self.bar = None

    def start(self, description: str) -> None:
        """Begins an epoch."""
        self.stop()
        if self.console.is_terminal:
            columns = (*rich_progress.Progress.get_default_columns(), rich_progress.TextColumn("{task.fields[figure]}"))
            self.bar = rich_progress.Progress(*columns, console=self.console, transient=True)
            self.bar.start()
            self.task = self.bar.add_task(description, total=self.steps, figure="")

    def advance(self, figure: str) -> None:
        """One step is done; `figure` is shown beside the bar."""
        if self.bar is not None:
            self.bar.update(self.task, advance=1, figure=figure)

    def finish(self, line: str) -> None:
        """Ends an epoch with a line that stays."""
        self.stop()
        _line(self.console, line)

    def stop(self) -> None:
        """Takes the bar away."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None
