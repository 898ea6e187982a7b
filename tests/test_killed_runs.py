"""Real processes that are killed and stopped, and go on as if nothing had happened."""

import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from small_runs import assert_no_torn_files, assert_same_curves, curves, make_config

from multigrid.training.run_state import newest_state

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def files(draw_scenes):
    return draw_scenes(train=14, val=5)


def start(arguments) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "multigrid.cli", "train", *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_run_killed_ten_times_at_random_moments_is_the_run_without_a_kill(files, tmp_path):
    config, epochs = tmp_path / "config.yaml", 70
    training = {"epochs": epochs, "validate_every": 10, "save_every": 1, "keep_last": 2}
    make_config(files, tmp_path / "whole", training).save(config)
    whole = start(["--config", config])
    ends = [time.monotonic() for line in whole.stdout if line.startswith("epoch ")]
    assert whole.wait() == 0 and len(ends) == epochs
    an_epoch = (ends[-1] - ends[0]) / (epochs - 1)

    folder = tmp_path / "run"
    process = start(["--config", config, f"output.dir={folder}"])
    while not (folder / "config.yaml").exists():  # nothing can go on before there is a run
        time.sleep(0.01)
    for _ in range(10):
        wait_for_a_random_moment(process, folder, an_epoch)
        assert process.poll() is None  # about 2 epochs each time, seldom more than 4: less than 70 in all
        process.kill()
        process.communicate()
        process = start(["--resume", folder])
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert_same_curves(folder, curves(tmp_path / "whole"))
    assert_no_torn_files(folder)
    names = sorted(path.name for path in (folder / "weights").iterdir())
    numbered = [f"epoch-{epochs - 1:04d}.weights.h5", f"epoch-{epochs:04d}.weights.h5"]
    assert names == ["best.weights.h5", *numbered, "last.weights.h5"]


def wait_for_a_random_moment(process, folder, an_epoch) -> None:
    """Some time before the first step, or up to two epochs after the first or second checkpoint from now."""
    if random.random() < 0.2:
        time.sleep(random.uniform(0.0, 3.0))
        return
    seen, wanted = set((folder / "checkpoints").glob("epoch-*")), random.randint(1, 2)
    while wanted and process.poll() is None:
        new = set((folder / "checkpoints").glob("epoch-*")) - seen
        seen, wanted = seen | new, wanted - bool(new)
        time.sleep(0.002)
    time.sleep(random.uniform(0.0, 2.0 * an_epoch))


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
