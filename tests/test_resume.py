"""Runs that stop at any moment and go on as if nothing had happened; test_killed_runs.py does it to real processes."""

import json
import os
import signal

import keras
import numpy as np
import pytest
from small_runs import assert_no_torn_files, assert_same_curves, curves, make_config

from multigrid.config import ConfigLoader
from multigrid.errors import InputError
from multigrid.training import checkpoints
from multigrid.training.callbacks import DataEpoch
from multigrid.training.checkpoints import RestOfEpoch
from multigrid.training.run_state import newest_state
from multigrid.training.trainer import MultiGridTrainer


@pytest.fixture(scope="module")
def files(draw_scenes):
    return draw_scenes(train=14, val=5)


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
    # 7 batches an epoch: gathered gradients cross its end, where averages and weights already differ
    "averages, accumulation and a plateau": {
        "training": {
            "batch_size": 2,
            "gradient_accumulation": 3,
            "schedule": "plateau",
            "plateau_patience": 1,
            "monitor": "loss",
        }
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
    wrong = r"checkpoint: expected .* shapes.*; stem_conv/kernel has \(.*2\) instead of \(.*4\); was a setting"
    with pytest.raises(InputError, match=wrong):
        MultiGridTrainer.from_run(folder, ["model.width=0.125", "training.epochs=2"]).train()
    MultiGridTrainer.from_run(folder, ["training.epochs=2"]).train()
    assert ConfigLoader.load(folder / "config.yaml").training.epochs == 2
    assert [row["epoch"] for row in curves(folder)] == [0, 1] and curves(folder)[0] == before[0]
    (folder / "config.yaml").write_text("data: [\n")
    with pytest.raises(InputError, match="config.yaml, line 2: expected YAML"):
        MultiGridTrainer.from_run(folder)


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
