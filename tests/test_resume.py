"""Runs that are stopped, or killed, at any moment and go on as if nothing had happened."""

import csv
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest

from multigrid.config import Config, ConfigLoader
from multigrid.data.shapes import CLASS_NAMES, draw_data_set
from multigrid.errors import InputError
from multigrid.training import checkpoints
from multigrid.training.callbacks import DataEpoch
from multigrid.training.checkpoints import RestOfEpoch
from multigrid.training.run_state import newest_state
from multigrid.training.trainer import MultiGridTrainer

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
ANCHORS = "8,6  12,9\n20,14  14,30\n40,28  48,44\n"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    labels = draw_data_set(folder / "shapes", counts={"train": 14, "val": 5}, seed=4)
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    (folder / "anchors.txt").write_text(ANCHORS)
    made = {name: str(path) for name, path in labels.items()}
    return {**made, "classes": str(folder / "classes.txt"), "anchors": str(folder / "anchors.txt")}


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


class Killed(Exception):  # noqa: N818
    """Stands for the end of the process."""


class StopAt(keras.callbacks.Callback):
    """Does something after a batch of an epoch; `epoch` and `batch` from 0, the batch within this call of `fit`."""

    def __init__(self, epoch, batch, action):
        super().__init__()
        self.at, self.action = (epoch, batch), action

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            self.action()


def kill():
    raise Killed


def terminate():
    os.kill(os.getpid(), signal.SIGTERM)


COURSES = {
    "averages, accumulation and a plateau": {
        "training": {"gradient_accumulation": 3, "schedule": "plateau", "plateau_patience": 1, "monitor": "loss"}
    },
    "stages, freed block by block": {
        "training": {
            "stages": [
                {"epochs": 1, "freeze": "all-but-head"},
                {"epochs": 3, "freeze": ["stage4", "stage5"], "gradual": True, "learning_rate": 2e-3},
            ]
        }
    },
    "another size for every batch, and no averages": {
        "training": {"ema": None, "optimizer": "sgd"},
        "augmentation": {"multi_scale": (0.5, 1.5)},
    },
}


@pytest.mark.parametrize("course", COURSES)
def test_a_run_that_is_killed_and_stopped_and_goes_on_is_the_run_without_a_stop(files, tmp_path, course):
    sections = COURSES[course]
    MultiGridTrainer(make_config(files, tmp_path / "whole", **sections)).train()
    expected, folder = curves(tmp_path / "whole"), tmp_path / "run"

    first = MultiGridTrainer(make_config(files, folder, **sections), callbacks=[StopAt(1, 2, kill)])
    with pytest.raises(Killed):
        first.train()
    assert len(curves(folder)) == 1

    second = MultiGridTrainer.from_run(folder, callbacks=[StopAt(2, 1, terminate)])
    second.train()
    assert second.stopped_by == "SIGTERM in epoch 3, after step 2" and len(curves(folder)) == 2
    assert newest_state(folder / "checkpoints").position.step == 2

    history = MultiGridTrainer.from_run(folder).train()
    assert_same_curves(folder, expected)
    assert history.epoch == [row["epoch"] for row in expected]
    assert history.history["loss"] == pytest.approx([row["loss"] for row in expected], rel=1e-6)
    assert_no_torn_files(folder)


def test_a_signal_in_the_last_batch_of_an_epoch_ends_it_whole(files, tmp_path):
    folder = tmp_path / "run"
    trainer = MultiGridTrainer(make_config(files, folder), callbacks=[StopAt(0, 3, terminate)])
    trainer.train()
    assert trainer.stopped_by == "SIGTERM after epoch 1"
    state = newest_state(folder / "checkpoints")
    assert (state.position.epoch, state.position.step, len(curves(folder))) == (1, 0, 1)


def test_the_time_budget_ends_a_run_that_can_go_on(files, tmp_path):
    folder = tmp_path / "run"
    MultiGridTrainer(make_config(files, folder, {"time_budget": 1e-3})).train()
    assert len(curves(folder)) == 1
    MultiGridTrainer.from_run(folder, ["training.time_budget=60"]).train()
    assert len(curves(folder)) == 3


def test_a_run_that_is_done_stays_as_it_is_or_can_be_made_longer_but_not_wider(files, tmp_path):
    folder = tmp_path / "run"
    MultiGridTrainer(make_config(files, folder, {"epochs": 1})).train()
    before = curves(folder)
    MultiGridTrainer.from_run(folder).train()
    assert curves(folder) == before
    with pytest.raises(InputError, match=r"checkpoint: expected .* model variables of this training's shapes"):
        MultiGridTrainer.from_run(folder, ["model.width=0.125", "training.epochs=2"]).train()
    MultiGridTrainer.from_run(folder, ["training.epochs=2"]).train()
    assert ConfigLoader.load(folder / "config.yaml").training.epochs == 2
    assert [row["epoch"] for row in curves(folder)] == [0, 1] and curves(folder)[0] == before[0]


class Plain(keras.utils.PyDataset):
    """Data of somebody's own, that knows no epochs."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return np.full((2, 3), index), np.zeros(2)


def test_the_rest_of_an_epoch_is_its_batches_from_the_first_on_whatever_data_they_are_of():
    rest = RestOfEpoch(Plain(), 2)
    assert len(rest) == 3 and int(rest[1][0][0, 0]) == 1  # the epoch has not begun: Keras looks at the shapes of all
    DataEpoch(rest).on_epoch_begin(4)
    assert [int(rest[index][0][0, 0]) for index in range(3)] == [2, 3, 4]
    assert int(RestOfEpoch(Plain(), 4)[0][0][0, 0]) == 4


def test_callbacks_of_one_class_keep_what_each_of_them_knows():
    first, second = keras.callbacks.EarlyStopping("loss"), keras.callbacks.EarlyStopping("val_loss")
    for callback, wait, best in ((first, 3, 0.25), (second, 1, 7.5)):
        callback.on_train_begin()
        callback.wait, callback.best = wait, best
    memory = json.loads(json.dumps(checkpoints._memory([first, FromElsewhere(), second])))
    again = [keras.callbacks.EarlyStopping("loss"), keras.callbacks.EarlyStopping("val_loss")]
    checkpoints.remember(again, memory)
    assert [(callback.wait, callback.best) for callback in again] == [(3, 0.25), (1, 7.5)]


class FromElsewhere(keras.callbacks.Callback):
    """Has no memory."""


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"expected a run folder with a config\.yaml, received none"):
        MultiGridTrainer.from_run(tmp_path)


# --- real processes


def start(arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "multigrid.cli", "train", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_killed_ten_times_at_random_moments_is_the_run_without_a_kill(files, tmp_path):
    config, epochs = tmp_path / "config.yaml", 30
    training = {"epochs": epochs, "validate_every": 10, "save_every": 1, "keep_last": 2}
    make_config(files, tmp_path / "whole", training).save(config)
    began = time.monotonic()
    whole = start(["--config", config])
    for line in whole.stdout:
        if line.startswith("epoch 1/"):
            break
    beginning = time.monotonic() - began  # imports, data, the first steps
    output, _ = whole.communicate()
    assert whole.returncode == 0, output

    kills = runs = 0
    while kills < 10:  # nearly always one run; a fast machine may be done with it before the tenth kill
        runs += 1
        folder = tmp_path / f"run-{runs}"
        kills += train_and_kill(config, folder, 10 - kills, 1.6 * beginning)
        assert_same_curves(folder, curves(tmp_path / "whole"))
        assert_no_torn_files(folder)
        names = sorted(path.name for path in (folder / "weights").iterdir())
        numbered = [f"epoch-{epochs - 1:04d}.weights.h5", f"epoch-{epochs:04d}.weights.h5"]
        assert names == ["best.weights.h5", *numbered, "last.weights.h5"]


def train_and_kill(config, folder, kills: int, longest: float) -> int:
    """Trains to the end, killed up to so many times after up to `longest` seconds; returns how many times it was."""
    process, done = start(["--config", config, f"output.dir={folder}"]), 0
    while not (folder / "config.yaml").exists():  # nothing can go on before there is a run
        time.sleep(0.01)
    while done < kills:
        try:
            process.wait(random.uniform(0.0, longest))
            break
        except subprocess.TimeoutExpired:
            process.kill()
        process.communicate()
        process, done = start(["--resume", folder]), done + 1
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return done


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_exits_with_0_and_says_how_to_go_on(files, tmp_path, number):
    folder = tmp_path / "run"
    config = tmp_path / "config.yaml"
    make_config(files, folder, {"epochs": 500}).save(config)
    process = start(["--config", config])
    for line in process.stdout:
        if line.startswith("epoch 1/500"):
            break
    process.send_signal(number)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert f"multigrid train --resume {folder}" in output
    assert newest_state(folder / "checkpoints").position.epoch >= 1
    assert np.isfinite(curves(folder)[0]["loss"])
