"""Callbacks: what goes into the logs of an epoch, and the line that it leaves."""

import math
import types

import cv2
import keras
import numpy as np
import pytest

from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.samples import Sample
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector
from multigrid.training.callbacks import (
    EpochLines,
    OptimizerFigures,
    ValidationMetrics,
)
from multigrid.training.optimizers import build_optimizer
from multigrid.training.schedules import build_schedule

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
STEPS = 3  # of an epoch: batches of 2, 2 and 1


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("images"), []
    rng = np.random.default_rng(8)
    for number in range(5):
        path = str(folder / f"image {number}.png")
        cv2.imwrite(path, rng.integers(0, 256, (64, 96, 3), dtype=np.uint8))
        # 22 × 15 fits the anchor (20, 14) of stride 16 best
        box = np.array([[10 + 3 * number, 20, 32 + 3 * number, 35]], "float32")
        made.append(Sample(path, box, np.array([number % 3], "int32"), number + 1, (64, 96)))
    return MultiGridDataGenerator(made, input_size=(64, 96), batch_size=2, shuffle=True, seed=3)


@pytest.fixture(scope="module")
def prepared():
    keras.utils.set_random_seed(2)
    made = MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8, criterion=MultiGridLoss(ANCHORS, 3))
    optimizer = build_optimizer(
        "sgd",
        build_schedule("cosine", 0.02, steps=2 * STEPS, warmup_steps=0, final_fraction=0.1),
        momentum=0.0,
        weight_decay=0.0,
        max_grad_norm=None,
        ema=None,
    )
    made.compile(optimizer, jit_compile=False)
    return made, made.get_weights()


@pytest.fixture
def detector(prepared, generator):
    """The compiled detector, at its first step with the same weights in every test, and the data at its first epoch."""
    made, weights = prepared
    made.set_weights(weights)
    for variable in made.optimizer.variables:
        variable.assign(np.zeros(variable.shape))
    generator.epoch = 0
    return made


class Watch(keras.callbacks.Callback):
    """Keeps what the callbacks before it left in the logs."""

    def __init__(self):
        super().__init__()
        self.epochs = []

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(dict(logs))


# --- figures


def test_learning_rate_norm_and_seconds_of_every_epoch_are_logged(detector, generator):
    sums = []

    class Norm(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            sums.append(float(self.model.optimizer.gradient_norm_sum))

    watch = Watch()
    detector.fit(generator, epochs=2, shuffle=False, verbose=0, callbacks=[Norm(), OptimizerFigures(), watch])
    first, second = watch.epochs
    # the mean over the three steps of each epoch
    assert first["grad_norm"] == pytest.approx(sums[2] / 3, rel=1e-5)
    assert second["grad_norm"] == pytest.approx((sums[5] - sums[2]) / 3, rel=1e-5)
    assert min(first["grad_norm"], second["grad_norm"]) > 0
    # half way of six steps (1 + 0.1) / 2, at the end 0.1 of 0.02
    assert first["learning_rate"] == pytest.approx(0.02 * 0.55, rel=1e-5)
    assert second["learning_rate"] == pytest.approx(0.002, rel=1e-5)
    assert first["seconds"] > 0 and second["seconds"] > 0


def test_an_optimizer_that_keeps_no_norm_has_none():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.25), loss="mse")
    watch = Watch()
    model.fit(np.ones((4, 2)), np.ones((4, 1)), verbose=0, callbacks=[OptimizerFigures(), watch])
    assert math.isnan(watch.epochs[0]["grad_norm"]) and watch.epochs[0]["learning_rate"] == 0.25


@pytest.mark.parametrize(
    ("every", "epochs", "measured"),
    [(1, 3, [1, 2, 3]), (2, 5, [1, 3, 5]), (2, 4, [1, 3, 4]), (3, 8, [1, 4, 7, 8]), (9, 2, [1, 2])],
)
def test_the_first_every_nth_and_the_last_epoch_are_measured(every, epochs, measured):
    calls = []
    callback = ValidationMetrics(lambda: calls.append(1) or {"mAP": 0.25, "mAP50": 0.5, "mAP75": 0.1}, every)
    callback.set_params({"epochs": epochs})
    rows = []
    for epoch in range(epochs):
        logs = {"loss": 1.0}
        callback.on_epoch_end(epoch, logs)
        assert set(logs) == {"loss", "val_mAP", "val_mAP50"}
        rows.append((logs["val_mAP"], logs["val_mAP50"]))
    assert [epoch for epoch, row in enumerate(rows, start=1) if row == (0.25, 0.5)] == measured
    assert len(calls) == len(measured)
    assert all(np.isnan(row).all() for epoch, row in enumerate(rows, start=1) if epoch not in measured)


def test_every_epoch_leaves_one_line(detector, generator, capsys):
    history = detector.fit(generator, epochs=2, shuffle=False, verbose=0, callbacks=[EpochLines()]).history
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    expected = "  ".join(
        f"{name} {history[key][1]:.3f}"
        for name, key in [
            ("loss", "loss"),
            ("localization", "localization_loss"),
            ("objectness", "objectness_loss"),
            ("anchor", "anchor_loss"),
            ("classification", "classification_loss"),
        ]
    )
    assert lines[1] == f"epoch 2/2  {expected}"


def test_lines_can_be_stopped_at_any_time():
    callback = EpochLines()
    callback.stop()  # a training that never began
    callback.set_params({"epochs": 9, "steps": 1})
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    callback.stop()
    assert callback.display.bar is None


def test_a_line_shows_validation_where_there_is_one(capsys):
    callback = EpochLines()
    callback.set_params({"epochs": 9, "steps": 1})
    callback.on_train_begin()
    callback.on_epoch_begin(8)
    callback.on_epoch_end(8, {"loss": 2.0, "val_loss": 1.5, "val_mAP50": 0.5, "val_mAP": math.nan})
    callback.on_train_end()
    assert capsys.readouterr().out == "epoch 9/9  loss 2.000  val 1.500  val_mAP50 0.500\n"  # and no mAP: not measured


def test_a_line_says_how_long_the_epochs_to_come_will_take(capsys, monkeypatch):
    instants = iter([100.0, 700.0, 710.0, 720.0, 9000.0, 9090.0, 9100.0, 9130.0])  # each of four begins and ends
    clock = types.SimpleNamespace(perf_counter=lambda: next(instants))
    monkeypatch.setattr("multigrid.training.callbacks.time", clock)
    callback = EpochLines(epochs=11)
    for epochs, first in ((8, 6), (11, 8)):  # two stages of a training that was resumed
        callback.set_params({"epochs": epochs, "steps": 1})
        callback.on_train_begin()
        for epoch in (first, first + 1):
            callback.on_epoch_begin(epoch)
            callback.on_epoch_end(epoch, {"loss": 2.0})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 7/11  loss 2.000  0:40:00 to go",
        "epoch 8/11  loss 2.000  0:00:30 to go",  # the first one built the graphs: it no longer counts
        "epoch 9/11  loss 2.000  0:03:00 to go",
        "epoch 10/11  loss 2.000  0:00:30 to go",
    ]
