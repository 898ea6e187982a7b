"""What passes from one part of a gradual stage to the next: the optimizer's state, and averages that begin anew."""

import keras
import numpy as np
import pytest
from keras import ops

from multigrid.config import TrainingConfig
from multigrid.training.callbacks import SwapEMAWeights
from multigrid.training.course import begin_stage
from multigrid.training.stages import plan_stages

TRAINING = TrainingConfig(
    stages=[{"epochs": 2, "freeze": ("stem",), "gradual": True}], ema=0.9, learning_rate=0.1, warmup_epochs=0.0
)


class Tiny(keras.Model):
    """Two dense layers whose names are those of blocks."""

    prefers_xla = False

    def __init__(self):
        super().__init__()
        self.stem = keras.layers.Dense(4, name="stem_conv")
        self.head = keras.layers.Dense(2, name="head_8_conv")

    def call(self, inputs):
        return self.head(self.stem(inputs))

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        return ops.mean((y_pred - y) ** 2)


@pytest.fixture
def model():
    keras.utils.set_random_seed(3)
    model = Tiny()
    model(np.zeros((1, 3), "float32"))
    return model


def fit(model, epochs):
    rng = np.random.default_rng(4)
    x, y = rng.normal(size=(6, 3)).astype("float32"), rng.normal(size=(6, 2)).astype("float32")
    model.fit(x, y, batch_size=2, epochs=epochs, verbose=0, callbacks=[SwapEMAWeights(swap_on_epoch=True)])


@pytest.mark.backend
def test_a_part_of_a_gradual_stage_goes_on_with_the_optimizer_of_the_one_before(model):
    first, second = plan_stages(TRAINING, ["stem", "head_8"])
    begin_stage(model, TRAINING, first, 3)
    fit(model, 1)
    before = {variable.name: np.array(ops.convert_to_numpy(variable)) for variable in model.optimizer.variables}
    begin_stage(model, TRAINING, second, 3)
    after = {variable.name: np.array(ops.convert_to_numpy(variable)) for variable in model.optimizer.variables}
    assert after["iteration"] == 3 and len(after) > len(before)
    slots = [name for name in before if "head_8" in name]
    assert len(slots) == 6  # momentum, velocity and average of kernel and bias
    for name in slots:
        np.testing.assert_array_equal(after[name], before[name])
        assert np.abs(after[name]).max() > 0
    (average,) = [name for name in after if "stem" in name and "kernel" in name and name.endswith("average")]
    np.testing.assert_array_equal(after[average], ops.convert_to_numpy(model.stem.kernel))
    fit(model, 2)  # on JAX a variable that shares its array with another could not be trained
    assert all(np.isfinite(ops.convert_to_numpy(variable)).all() for variable in model.variables)


def test_another_stage_begins_with_an_optimizer_of_its_own(model):
    training = TRAINING.model_copy(update={"stages": ()})
    (stage,) = plan_stages(training, ["stem", "head_8"])
    for _ in range(2):
        begin_stage(model, training, stage, 3)
        assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 0
        fit(model, 1)


def test_what_its_maker_froze_stays_so_where_the_config_freezes_nothing(model):
    training = TRAINING.model_copy(update={"stages": ()})
    model.stem.trainable = False
    (stage,) = plan_stages(training, ["stem", "head_8"])
    begin_stage(model, training, stage, 3)
    before = ops.convert_to_numpy(model.stem.kernel).tobytes()
    fit(model, 1)
    assert ops.convert_to_numpy(model.stem.kernel).tobytes() == before
