"""Runs beside one another: their figures by epoch, their best and last, and what differs in their configs."""

from __future__ import annotations

import csv
import json
import logging
import os
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from multigrid.config.yaml_text import YamlLoader
from multigrid.errors import InputError

RESULTS, CONFIG = "results.csv", "config.yaml"
NO_NUMBER = ("", "NA", "nan")  # what stands in a cell where an epoch was not measured
MONITORED = {"val_mAP": np.nanargmax, "val_loss": np.nanargmin, "loss": np.nanargmin}  # the best epoch's, in this order
OUTPUT_DIR = "output.dir"
OWN_FILES = ("data.classes", "data.anchors")  # every run has copies of its own

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run folder says."""

    name: str  # tells it from the others
    folder: pathlib.Path
    epochs: np.ndarray  # [E] int, from 1, rising
    figures: dict  # name -> [E] float, NaN where an epoch was not measured
    settings: dict  # dotted key -> value of its config

    def has(self, figure: str) -> bool:
        """Whether any epoch measured it."""
        return figure in self.figures and bool(np.isfinite(self.figures[figure]).any())


def read_runs(folders: Sequence[str | os.PathLike]) -> list[Run]:
    """The runs in these folders, named by as much of their paths as tells them apart.

    Args:
        folders: run folders; each once.

    Returns:
        A `Run` a folder, in their order.

    Raises:
        InputError: a folder twice, one that is no run folder, or files in it that are damaged or empty.
    """
    paths = [pathlib.Path(os.path.abspath(folder)) for folder in folders]
    for path in paths:
        if paths.count(path) > 1:
            raise InputError(f"{path}: expected different runs, received it {paths.count(path)} times")
    return [_read_run(path, name) for path, name in zip(paths, _short_names(paths), strict=True)]


def monitored(runs: Sequence[Run]) -> str:
    """The figure that chooses the best epoch: the first of val_mAP, val_loss and loss that all runs have."""
    for figure in MONITORED:
        if all(run.has(figure) for run in runs):
            return figure
    raise InputError(f"expected runs that measured the loss, received {', '.join(run.name for run in runs)}")


def summarize(runs: Sequence[Run], figures: Sequence[str]) -> list[dict]:
    """The best and the last epoch of each run.

    Args:
        runs: of `read_runs`.
        figures: names of columns; what a run does not have is None.

    Returns:
        {"run", "folder", "epochs", "last_epoch", "minutes", "best_by", "best_epoch", "best": {figure: number}, "last":
        {…}} each. A last figure is that of the last epoch that measured it.
    """
    by = monitored(runs)
    return [_summary(run, by, figures) for run in runs]


def differences(runs: Sequence[Run]) -> dict[str, list]:
    """The settings in which runs differ: dotted key -> one value a run, None where it is null or not there.

    Where a run keeps its results does not count, nor do other paths within it; of its class names and anchors, which it
    has copies of, the contents count.
    """
    keys = sorted({key for run in runs for key in run.settings})
    rows = {key: [run.settings.get(key) for run in runs] for key in keys}
    return {key: values for key, values in rows.items() if any(_unlike(values[0], value) for value in values)}


def text_of(value) -> str:
    """A value of a config on one line, None as a dash."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _unlike(first, second) -> bool:
    # Python takes True for 1
    return first != second or isinstance(first, bool) != isinstance(second, bool)


def _short_names(paths: list[pathlib.Path]) -> list[str]:
    """The shortest end of each path that no other path has."""
    names = []
    for path in paths:
        ends = ["/".join(path.parts[-length:]) for length in range(1, len(path.parts) + 1)]
        others = [other.as_posix() for other in paths if other != path]
        names.append(next(end for end in ends if not any(f"/{other}".endswith(f"/{end}") for other in others)))
    return names


def _summary(run: Run, by: str, figures: Sequence[str]) -> dict:
    best = int(MONITORED[by](np.where(np.isfinite(run.figures[by]), run.figures[by], np.nan)))
    has = {figure: run.has(figure) for figure in figures}
    return {
        "run": run.name,
        "folder": str(run.folder),
        "epochs": len(run.epochs),
        "last_epoch": int(run.epochs[-1]),
        "minutes": float(np.nansum(run.figures["seconds"]) / 60.0) if run.has("seconds") else None,
        "best_by": by,
        "best_epoch": int(run.epochs[best]),
        "best": {figure: float(run.figures[figure][best]) if has[figure] else None for figure in figures},
        "last": {figure: _last(run.figures[figure]) if has[figure] else None for figure in figures},
    }


def _last(values: np.ndarray) -> float:
    return float(values[~np.isnan(values)][-1])


def _read_run(folder: pathlib.Path, name: str) -> Run:
    for file in (RESULTS, CONFIG):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: expected a run folder, received {_without(folder, file)}")
    epochs, figures = _read_results(folder / RESULTS)
    return Run(name, folder, epochs, figures, _read_settings(folder))


def _without(folder: pathlib.Path, file: str) -> str:
    return f"one without {file}" if folder.is_dir() else "a file" if folder.exists() else "none"


def _read_results(path: pathlib.Path) -> tuple:
    """The epochs [E] and the figures, each [E]; of an epoch that was run twice, the later row."""
    text = _read_text(path)
    lines = list(csv.reader(text.splitlines()))
    if len(lines) < 2:
        raise InputError(f"{path}: expected a line of names and one an epoch, received {len(lines)} in all")
    if not text.endswith("\n"):
        raise InputError(f"{path}, line {len(lines)}: expected a whole line, received one that was cut off")
    names, rows = lines[0], {}
    if names[0] != "epoch":
        raise InputError(f'{path}, line 1: expected the name "epoch" first, received {names[0]!r}')
    for number, cells in enumerate(lines[1:], start=2):
        if len(cells) != len(names):
            raise InputError(f"{path}, line {number}: expected {len(names)} cells, received {len(cells)}")
        row = [_number(cell, f"{path}, line {number}, {key}") for key, cell in zip(names, cells, strict=True)]
        rows[_epoch(row[0], f"{path}, line {number}")] = row[1:]
    if len(rows) < len(lines) - 1:
        logger.warning("%s: %d epochs stand there more than once; the later counts", path, len(lines) - 1 - len(rows))
    epochs = np.array(sorted(rows))
    table = np.array([rows[epoch] for epoch in epochs])
    return epochs + 1, {name: table[:, column] for column, name in enumerate(names[1:])}


def _epoch(value: float, place: str) -> int:
    if not (np.isfinite(value) and value >= 0 and value == int(value)):
        raise InputError(f"{place}: expected the number of an epoch, received {value:g}")
    return int(value)


def _number(cell: str, place: str) -> float:
    if cell in NO_NUMBER:
        return np.nan
    try:
        return float(cell)
    except ValueError:
        raise InputError(f"{place}: expected a number, received {cell!r}") from None


def _read_text(path: pathlib.Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{path}: expected UTF-8 text, received other bytes") from None


def _read_settings(folder: pathlib.Path) -> dict:
    """Dotted key -> value, the run's own paths left out."""
    path = folder / CONFIG
    try:
        values = yaml.load(_read_text(path), YamlLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, received {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected the sections of a config, received {type(values).__name__}")
    settings = _flat(values)
    home = _first_home(settings, folder)
    for key in OWN_FILES:
        own = folder / _file_of(key)
        if settings.get(key) == os.path.join(home, own.name) and own.is_file():
            settings[key] = ", ".join(_read_text(own).splitlines())
    homes = (str(folder), home)
    return {key: value for key, value in settings.items() if key != OUTPUT_DIR and not _within(value, homes)}


def _first_home(settings: dict, folder: pathlib.Path) -> str:
    """Where the run folder was when its config was written: it may have been moved since."""
    paths = [settings.get(key) or "" for key in OWN_FILES]
    homes = {os.path.dirname(path) for path in paths}
    own = [os.path.basename(path) for path in paths] == [_file_of(key) for key in OWN_FILES]
    return homes.pop() if own and len(homes) == 1 else str(folder)


def _file_of(key: str) -> str:
    return f"{key.split('.')[-1]}.txt"


def _within(value, homes) -> bool:
    return isinstance(value, str) and any(value == home or value.startswith(home + os.sep) for home in homes)


def _flat(values: dict, prefix: str = "") -> dict:
    """Sections within sections as dotted keys; of a list of named items, such as augmentations, the names and each."""
    flat = {}
    for key, value in values.items():
        key = f"{prefix}{key}"
        if isinstance(value, dict):
            flat |= _flat(value, f"{key}.")
        elif names := _names(value):
            flat |= {key: ", ".join(names)} | _flat(dict(zip(names, map(_unnamed, value), strict=True)), f"{key}.")
        else:
            flat[key] = value
    return flat


def _names(value) -> list:
    """The names of a list's items, if each has one of its own."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return []
    names = [item.get("name") for item in value]
    return names if all(isinstance(name, str) for name in names) and len(set(names)) == len(names) else []


def _unnamed(item: dict) -> dict:
    return {key: value for key, value in item.items() if key != "name"}
