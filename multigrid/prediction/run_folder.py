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
    data = _section(_raw_config(run_dir), "data")
    return [split for split in LABELS if data.get(split) == SHAPES or _is_there(run_dir, data.get(split))]


def _raw_config(run_dir: str | os.PathLike):
    """A run's config before it is checked; None where nothing can be read, which the loader says."""
    try:
        return yaml.safe_load((pathlib.Path(run_dir) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None


def _section(values, name: str) -> dict:
    """A section of a config that nobody has checked; empty where there is no such mapping."""
    found = values.get(name) if isinstance(values, dict) else None
    return found if isinstance(found, dict) else {}


def _is_there(run_dir: str | os.PathLike, path) -> bool:
    """Whether a path of a run's config leads somewhere; as for the loader, it is relative to the file."""
    return isinstance(path, str) and path != "" and os.path.exists(os.path.join(run_dir, os.path.expanduser(path)))


def _drawn_elsewhere(run_dir: pathlib.Path) -> list[str]:
    """Scenes that were drawn on another machine are drawn again where they are by default: not at a foreign path."""
    folder = _section(_section(_raw_config(run_dir), "data"), "shapes").get("folder")
    return [] if folder is None or _is_there(run_dir, folder) else [_setting("data.shapes.folder", _DRAWN)]


def _best_weights(run_dir: pathlib.Path) -> pathlib.Path:
    if (run_dir / BEST).is_file():
        return run_dir / BEST
    last = run_dir / LAST
    hint = f"; weights={last} takes its last ones" if last.is_file() else " yet: no epoch of it was finished"
    raise InputError(f"{run_dir}: expected a run with {BEST}, received one without{hint}")


def _setting(key: str, path: pathlib.Path) -> str:
    # Absolute, for the command line names paths relative to the working directory; quoted, for the value is YAML.
    return f"{key}={json.dumps(str(path.absolute()))}"
