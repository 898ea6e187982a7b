"""Small runs, and what makes two of them the same."""

import csv
import pathlib

import pytest

from multigrid.config import Config
from multigrid.training.run_state import newest_state


def make_config(files, folder, training=None, **sections):
    """Three epochs of batches of 4, 4, 4 and 2 scenes at 64 × 96 pixels."""
    plain = {"epochs": 3, "batch_size": 4, "learning_rate": 5e-3, "pictures_every": None, "ema": 0.9}
    return Config(
        data={**files, "workers": 1},
        model={"width": 0.0625, "depth": 0.125, "input_size": (64, 96)},
        training={**plain, **(training or {})},
        output={"dir": str(folder)},
        **sections,
    )


def curves(folder) -> list:
    """The rows of results.csv without the times."""
    with open(pathlib.Path(folder) / "results.csv", newline="") as file:
        rows = [{name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def assert_same_curves(folder, expected) -> None:
    found = curves(folder)
    assert [row["epoch"] for row in found] == [row["epoch"] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-6, abs=1e-9, nan_ok=True)


def assert_no_torn_files(folder) -> None:
    """Every file of the run is whole, and none of a write that was cut off is left."""
    paths = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    assert not [path for path in paths if path.name.startswith(".")]
    weights = [path for path in paths if path.suffix == ".h5"]
    assert len(weights) >= 2 and newest_state(pathlib.Path(folder) / "checkpoints") is not None
