"""Two replicas with half a batch each compute what one computes with the whole batch."""

import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

SCRIPT = pathlib.Path(__file__).with_name("loss_on_two_replicas.py")
pytestmark = pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="replicas are TensorFlow's")


@pytest.fixture(scope="module")
def found():
    """What the program prints: case -> "whole" and "replicas" -> name -> numbers."""
    folders = [str(SCRIPT.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "PYTHONPATH": os.pathsep.join(folders)}
    done = subprocess.run([sys.executable, SCRIPT], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(case, names, rtol=1e-5):
    """Both say the same under these names."""
    assert names
    for name in names:
        np.testing.assert_allclose(case["replicas"][name], case["whole"][name], rtol=rtol, atol=1e-6, err_msg=name)


def test_a_sum_is_over_both_replicas_and_else_the_value_itself(found):
    assert found["sum"] == {"whole": {"count": [1], "sum": [3.0]}, "replicas": {"count": [2], "sum": [6.0]}}


@pytest.mark.parametrize("shares", ["even", "uneven"])
@pytest.mark.parametrize("normalization", ["batch", "positives", "grid"])
def test_the_parts_of_both_add_up_to_those_of_the_whole_batch(found, shares, normalization):
    case = found[shares]
    names = [name for name in case["whole"] if name.endswith(f", {normalization}")]
    kinds = {name.split()[0].strip(",") for name in names}
    assert kinds == {"parts", "sums", "counts", "total", "gradients"}
    assert {f"parts {name}, {normalization}" for name in ("consensus", "suppression")} <= set(names)
    check(case, names)


def test_evaluate_and_fit_log_what_one_replica_logs_and_move_the_weights_as_far(found):
    case = found["fit"]
    assert case["whole"].keys() == case["replicas"].keys()
    kept = {"evaluate loss", "evaluate regularization_loss", "evaluate consensus_loss_8", "evaluate positives"}
    assert kept <= case["whole"].keys()
    assert case["whole"]["evaluate loss"] != case["whole"]["fit loss"]
    check(case, list(case["whole"]), rtol=1e-4)


def test_a_batch_that_is_not_finite_on_one_replica_is_dropped_on_both(found):
    case = found["dropped"]
    assert case["whole"]["dropped_batches"] == case["replicas"]["dropped_batches"] == [1.0]
    assert case["whole"].keys() == case["replicas"].keys() and np.isfinite(case["replicas"]["loss"]).all()
    check(case, list(case["whole"]))
