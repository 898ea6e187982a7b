"""The config of a run folder for whoever uses its detector, wherever that folder has come to lie."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Sequence

import yaml

from multigrid.config import SHAPES, Config, ConfigLoader, ShapesConfig
from multigrid.errors import InputError

BEST = "weights/best.weights.h5"
LAST = "weights/last.weights.h5"
LABELS = ("train", "val", "test")
_DRAWN = pathlib.Path(ShapesConfig().folder)


def run_config(run_dir: str | os.PathLike, overrides: Sequence[str] = (), labels: Sequence[str] = ()) -> Config:
    """The config of a run's detector: its best weights, its own classes and anchors, and no labels but those asked for.

    Where a training began and what it learned from, no detector needs, and it may not be on this machine.

    Args:
        run_dir: a run folder, perhaps moved or copied from where it was trained: the `classes.txt` and `anchors.txt`
            in it are taken, whatever its config calls them.
        overrides: settings over all of this, such as "weights=runs/mine/weights/last.weights.h5".
        labels: words of `LABELS`, the splits that are to be read.

    Raises:
        InputError: no run folder, one without weights, or overrides that are wrong.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"{run_dir}: expected a run folder with a config.yaml, received none")
    settings = ["backbone_weights=null", *(f"data.{split}=null" for split in LABELS if split not in labels)]
    settings += [
        _setting(f"data.{name}", run_dir / f"{name}.txt")
        for name in ("classes", "anchors")
        if (run_dir / f"{name}.txt").is_file()
    ]
    settings += _drawn_elsewhere(run_dir)
    if not any(word.startswith("weights=") for word in overrides):
        settings.append(_setting("weights", _best_weights(run_dir)))
    return ConfigLoader.load(run_dir / "config.yaml", [*settings, *overrides])


def labels_there(run_dir: str | os.PathLike) -> list[str]:
    """The words of `LABELS` whose labels are where the run's config says, or are drawn."""
    data = _data_section(pathlib.Path(run_dir))
    return [split for split in LABELS if data.get(split) == SHAPES or os.path.exists(data.get(split) or "")]


def _data_section(run_dir: pathlib.Path) -> dict:
    """What a run's config says of data, before it is checked; its paths are absolute."""
    path = run_dir / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    return (config.get("data") if isinstance(config, dict) else None) or {}


def _drawn_elsewhere(run_dir: pathlib.Path) -> list[str]:
    """Scenes that were drawn on another machine are drawn again where they are by default: not at a foreign path."""
    folder = (_data_section(run_dir).get("shapes") or {}).get("folder")
    return [] if folder is None or os.path.isdir(folder) else [_setting("data.shapes.folder", _DRAWN)]


def _best_weights(run_dir: pathlib.Path) -> pathlib.Path:
    if (run_dir / BEST).is_file():
        return run_dir / BEST
    last = run_dir / LAST
    hint = f"; weights={last} takes its last ones" if last.is_file() else " yet: no epoch of it was finished"
    raise InputError(f"{run_dir}: expected a run with {BEST}, received one without{hint}")


def _setting(key: str, path: pathlib.Path) -> str:
    # Absolute, for the command line names paths relative to the working directory; quoted, for the value is YAML.
    return f"{key}={json.dumps(str(path.absolute()))}"
