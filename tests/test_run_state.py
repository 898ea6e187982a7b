"""States of a run in files: whole or recognised as torn, and back to the bit."""

import random

import keras
import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.training.run_state import KEPT, Position, capture, newest_state, save_state


@pytest.fixture
def model():
    return compiled(5)


def compiled(units: int) -> keras.Model:
    """A small model with BatchNorm, dropout and Adam with averages, after three steps."""
    keras.utils.set_random_seed(units)
    inputs = keras.Input((3,), name="in")
    x = keras.layers.Dense(units, name="first")(inputs)
    x = keras.layers.BatchNormalization(name="bn")(x)
    outputs = keras.layers.Dense(2, name="second")(keras.layers.Dropout(0.3, seed=4, name="drop")(x))
    model = keras.Model(inputs, outputs)
    model.compile(keras.optimizers.Adam(0.1, use_ema=True), "mse")
    rng = np.random.default_rng(units)
    model.fit(rng.normal(size=(6, 3)), rng.normal(size=(6, 2)), batch_size=2, verbose=0)
    return model


def values(variables) -> list:
    return [keras.ops.convert_to_numpy(variable).copy() for variable in variables]


def scramble(model) -> None:
    for variable in [*model.variables, *model.optimizer.variables]:
        variable.assign(np.ones(variable.shape, variable.dtype))


def state_at(model, epoch: int, step: int = 0):
    memory, rows = {"WeightFiles": {"best": 0.25}}, [{"epoch": 0, "loss": 3.5}]
    return capture(model, Position(epoch=epoch, step=step), memory, rows)


@pytest.mark.backend
def test_weights_slots_averages_and_counters_come_back_to_the_bit(model, tmp_path):
    before = values(model.variables), values(model.optimizer.variables)
    save_state(tmp_path, state_at(model, 2))
    scramble(model)
    state = newest_state(tmp_path)
    state.restore_weights(model)
    state.restore_optimizer(model)
    for old, new in zip(before, (values(model.variables), values(model.optimizer.variables)), strict=True):
        assert len(old) == len(new) > 5
        assert all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in zip(old, new, strict=True))
    assert state.position == Position(epoch=2) and state.rows == [{"epoch": 0, "loss": 3.5}]
    assert state.callbacks["WeightFiles"] == {"best": 0.25}


def test_a_state_within_an_epoch_has_what_the_metrics_have_seen(model, tmp_path):
    before = values(model.metrics_variables)
    save_state(tmp_path, state_at(model, 2, step=1))
    model.reset_metrics()
    newest_state(tmp_path).restore_metrics(model)
    assert before[0] > 0 and [a.tobytes() for a in values(model.metrics_variables)] == [a.tobytes() for a in before]


def test_the_random_generators_of_python_and_numpy_go_on_where_they_were(model, tmp_path):
    random.seed(3), np.random.seed(4)
    np.random.normal()  # leaves a second number waiting
    save_state(tmp_path, state_at(model, 1))
    expected = random.random(), np.random.normal(), np.random.random()
    random.seed(9), np.random.seed(9)
    newest_state(tmp_path).restore_random()
    assert (random.random(), np.random.normal(), np.random.random()) == expected


def test_only_the_newest_states_stay(model, tmp_path):
    for epoch, step in [(1, 0), (1, 7), (1, 12), (2, 0)]:
        save_state(tmp_path, state_at(model, epoch, step))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "epoch-00001-step-0000012.npz",
        "epoch-00002-step-0000000.npz",
    ]
    assert KEPT == 2 and newest_state(tmp_path).position == Position(epoch=2)


@pytest.mark.parametrize("damage", ["cut in the middle", "cut at the end", "empty", "one bit", "text"])
def test_a_torn_state_is_recognised_and_the_one_before_it_used(model, tmp_path, caplog, damage):
    save_state(tmp_path, state_at(model, 1))
    path = save_state(tmp_path, state_at(model, 2))
    data = bytearray(path.read_bytes())
    if damage == "one bit":
        data[data.find(b"model/0.npy") + 200] ^= 4  # within the numbers of a member, past its header
    cut = {"cut in the middle": len(data) // 2, "cut at the end": len(data) - 9, "empty": 0}.get(damage, len(data))
    path.write_bytes(b"no zip at all" if damage == "text" else bytes(data[:cut]))
    assert newest_state(tmp_path).position == Position(epoch=1)
    assert f"{path}: expected a whole checkpoint" in caplog.text
    # it takes no place of the two that are kept, however late its name is
    save_state(tmp_path, state_at(model, 1, step=3))
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "epoch-00001-step-0000000.npz",
        "epoch-00001-step-0000003.npz",
        "epoch-00002-step-0000000.npz.damaged",
    ]


def test_no_state_but_damaged_ones_is_an_error_and_no_beginning(model, tmp_path):
    save_state(tmp_path, state_at(model, 1)).write_bytes(b"torn")
    for _ in range(2):
        with pytest.raises(InputError, match="expected a whole checkpoint, received 1 damaged ones and no other"):
            newest_state(tmp_path)


def test_no_state_is_none(tmp_path):
    assert newest_state(tmp_path) is None and newest_state(tmp_path / "none") is None


def test_a_state_of_another_model_or_optimizer_is_refused(model, tmp_path):
    save_state(tmp_path, state_at(model, 1))
    state = newest_state(tmp_path)
    other = compiled(4)
    with pytest.raises(InputError, match=r"expected 9 model variables of this training's shapes, received 9"):
        state.restore_weights(other)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    with pytest.raises(InputError, match=r"optimizer variables of this training's shapes"):
        state.restore_optimizer(model)
