"""Several devices and several processes train as one does. They are set up before anything runs: see the program."""

import csv
import importlib.util
import json
import os
import pathlib
import socket
import subprocess
import sys

import keras
import pytest

from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector
from multigrid.training import devices, processes

PROGRAM = pathlib.Path(__file__).with_name("train_on_devices.py")
FIGURES = ("loss", "val_loss", "positives", "localization_loss", "classification_loss")
LIMIT = 900  # seconds
needs_jax = pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="needs JAX")
on_tensorflow = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="said of TensorFlow")
TENSORFLOW = {"KERAS_BACKEND": "tensorflow", "TF_ENABLE_ONEDNN_OPTS": "0"}
JAX = {"KERAS_BACKEND": "jax", "XLA_FLAGS": "--xla_backend_optimization_level=0"}  # compiling is most of the time


@pytest.fixture(scope="module")
def files(draw_scenes):
    return draw_scenes(train=11, val=5)


def config_of(files, folder, **training) -> dict:
    """Two epochs of batches of 4, 4 and 3 scenes at 64 × 96 pixels: the last does not divide by two devices.

    The gradient's norm is about 6, so that `max_grad_norm` always acts.
    """
    plain = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3, "max_grad_norm": 1.0, "optimizer": "sgd"}
    return {
        "data": {**files, "workers": 1},
        "model": {"width": 0.0625, "depth": 0.125, "input_size": (64, 96)},
        "loss": {"loss_normalization": "positives", "assignment": "paper"},
        "training": {**plain, "pictures_every": None, "ema": 0.9, **training},
        "output": {"dir": str(folder)},
    }


def start(options, environment) -> subprocess.Popen:
    folders = [str(PROGRAM.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    whole = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(folders)}
    words = [sys.executable, str(PROGRAM), json.dumps(options)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(words, env={**whole, **environment}, **pipes)


def finish(running, killed=False) -> list[str]:
    """What the programs print; ends all of them, whatever happens."""
    try:
        said = [one.communicate(timeout=LIMIT) for one in running]
    finally:
        for one in running:
            one.kill()
    for one, (_, errors) in zip(running, said, strict=True):
        assert one.returncode == (-9 if killed else 0), errors
    return [out for out, _ in said]


def losses(folder) -> list[dict]:
    """The losses of results.csv, one mapping an epoch."""
    with open(pathlib.Path(folder) / "results.csv", newline="") as file:
        return [{name: float(row[name]) for name in FIGURES if name in row} for row in csv.DictReader(file)]


def assert_same_curve(folder, expected) -> None:
    found = losses(folder)
    assert len(found) == len(expected) == 2
    for row, other in zip(found, expected, strict=True):
        assert row == pytest.approx(other, rel=1e-4)


@pytest.fixture(scope="module")
def alone(files, tmp_path_factory):
    """The curve of one device on TensorFlow."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish([start({"config": config_of(files, folder)}, TENSORFLOW)])
    return losses(folder)


@pytest.fixture(scope="module")
def alone_on_jax(files, tmp_path_factory):
    """The curve of one device on JAX."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish([start({"config": config_of(files, folder)}, JAX)])
    found = losses(folder)
    assert "val_loss" in found[0]
    return found


@pytest.mark.slow
@on_tensorflow
def test_two_replicas_train_as_one_device_and_what_they_save_needs_no_strategy(files, alone, tmp_path):
    folder, saved = tmp_path / "run", tmp_path / "detector.keras"
    config = config_of(files, folder, strategy="mirrored")
    (out,) = finish([start({"config": config, "logical_cpus": 2, "saved": str(saved)}, TENSORFLOW)])
    assert "each batch is shared among 2 devices" in out
    assert_same_curve(folder, alone)
    detector = keras.models.load_model(saved, compile=False)
    assert isinstance(detector, MultiGridDetector) and isinstance(detector.criterion, MultiGridLoss)
    layers = detector._flatten_layers(include_self=False)
    normalizations = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(normalizations) >= 20 and not any(layer.synchronized for layer in normalizations)


@pytest.mark.slow
@on_tensorflow
def test_replicas_that_are_killed_go_on_as_if_nothing_had_happened(files, alone, tmp_path):
    folder = tmp_path / "run"
    config = config_of(files, folder, strategy="mirrored")
    finish([start({"config": config, "logical_cpus": 2, "kill_at": (1, 1)}, TENSORFLOW)], killed=True)
    assert len(losses(folder)) == 1
    finish([start({"run": str(folder), "logical_cpus": 2}, TENSORFLOW)])
    assert_same_curve(folder, alone)


@pytest.mark.slow
@needs_jax
def test_two_jax_devices_of_one_process_train_as_one(files, alone_on_jax, tmp_path):
    folder = tmp_path / "run"
    flags = {"XLA_FLAGS": f"{JAX['XLA_FLAGS']} --xla_force_host_platform_device_count=2"}
    (out,) = finish([start({"config": config_of(files, folder)}, JAX | flags)])
    assert "each batch is shared among 2 devices: cpu:0, cpu:1" in out
    assert_same_curve(folder, alone_on_jax)


@pytest.mark.slow
@needs_jax
def test_two_jax_processes_train_as_one_and_the_first_alone_writes_and_prints(files, alone_on_jax, tmp_path):
    folder = tmp_path / "run"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    values = [(address, "2", "0"), (address, "2", "1")]
    environments = [JAX | dict(zip(processes.VARIABLES, value, strict=True)) for value in values]
    first, second = finish([start({"config": config_of(files, folder)}, one) for one in environments])
    assert_same_curve(folder, alone_on_jax)
    assert "epoch 2/2" in first and "epoch" not in second
    # both end with the weights of the best epoch, and measure the same with them
    assert json.loads(first.splitlines()[-1]) == json.loads(second.splitlines()[-1])
    assert json.loads(second.splitlines()[-1])["run_dir"] == str(folder)
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "results.csv", "weights", "checkpoints", "train_batch.jpg"} <= names


SPREAD = """
import jax, jax.numpy as jnp, keras
from multigrid.replicas import SharedBatches, shared_out
keras.distribution.set_distribution(SharedBatches())
for rows in (4, 3):
    found = jax.jit(lambda x: shared_out([x + 1.0])[0])(jnp.zeros((rows, 2)))
    print(rows, [shard.data.shape[0] for shard in found.addressable_shards])
"""


@needs_jax
def test_a_batch_is_spread_over_the_devices_where_it_divides(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **JAX, **flags, "PYTHONPATH": str(PROGRAM.parents[1])}
    done = subprocess.run([sys.executable, "-c", SPREAD], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spread, whole = done.stdout.splitlines()
    assert spread == "4 [2, 2]"
    assert whole in ("3 [3]", "3 [3, 3]")  # on one device or on both, but whole


@on_tensorflow
def test_mirrored_with_one_device_is_as_none_and_says_so(capsys):
    with devices.building("mirrored"):
        import tensorflow as tf

        assert not tf.distribute.has_strategy()
    assert "is the only device; as with none" in capsys.readouterr().out


@pytest.mark.backend
@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="said of the other backends")
def test_mirrored_is_refused_on_another_backend():
    with pytest.raises(InputError, match="training.strategy: expected none on the backend"):
        devices.building("mirrored")


@pytest.mark.backend
def test_processes_that_are_half_described_are_refused(monkeypatch):
    for name in processes.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert processes.join_processes() is False
    monkeypatch.setenv(processes.VARIABLES[0], "127.0.0.1:1")
    with pytest.raises(InputError, match="KERAS_DISTRIBUTION_NUM_PROCESSES, KERAS_DISTRIBUTION_PROCESS_ID beside"):
        processes.join_processes()


@pytest.mark.backend
def test_a_process_that_is_alone_agrees_with_itself():
    assert processes.is_first() and processes.process_count() == 1
    assert processes.agreed({"loss": 1.5}) == {"loss": 1.5}
    assert processes.gathered(3) == [3]
    assert processes.by_first(lambda: "runs/train-1") == "runs/train-1"
