"""An optimizer on two logical CPU devices beside one that is given the sum of their gradients.

Devices are split before anything runs on them, so this is a program of its own; `test_optimizers.py` runs it.
"""

import keras
import numpy as np
import tensorflow as tf

from multigrid.training.optimizers import build_optimizer

SHAPES = ((2, 3), (3,))
BLOCK_OF = {"kernel": "stage1", "bias": "head_32"}
OPTIONS = {
    "momentum": 0.6,
    "weight_decay": 0.1,
    "ema": 0.7,
    "block_of": BLOCK_OF,
    "block_multipliers": {"head_32": 4.0},
}


def gradients():
    """Of seven steps on two replicas: [7][2, …]; one number of the fourth step is NaN, on the second replica."""
    random = np.random.default_rng(4)
    made = [[random.normal(size=(2, *shape)).astype("float32") for shape in SHAPES] for _ in range(7)]
    made[3][0][1, 0, 1] = np.nan
    return made


def train(name: str, strategy, accumulation: int):
    """The optimizer and the weights after the seven steps; one replica gets the sums."""
    with strategy.scope():
        kernel = keras.Variable([[1.0, -2.0, 0.5], [3.0, 0.25, -1.0]], name="kernel")
        weights = [kernel, keras.Variable([0.5, -0.25, 2.0], name="bias")]
        # the sums have norms about sqrt(2 · 9) = 4.2, so that 1.5 clips
        optimizer = build_optimizer(name, 0.05, max_grad_norm=1.5, gradient_accumulation=accumulation, **OPTIONS)
        optimizer.build(weights)
    alone = strategy.num_replicas_in_sync == 1

    @tf.function
    def step(pairs):
        def replica():
            number = tf.distribute.get_replica_context().replica_id_in_sync_group
            optimizer.apply([tf.reduce_sum(pair, 0) if alone else tf.gather(pair, number) for pair in pairs], weights)

        strategy.run(replica)

    for pairs in gradients():
        step([tf.constant(pair) for pair in pairs])
    return optimizer, weights


def compare(name: str, accumulation: int) -> None:
    optimizer, weights = train(name, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]), accumulation)
    expected, theirs = train(name, tf.distribute.get_strategy(), accumulation)
    for one, other in zip([*weights, *optimizer.variables], [*theirs, *expected.variables], strict=True):
        np.testing.assert_allclose(one.numpy(), other.numpy(), rtol=1e-6, atol=1e-6, err_msg=one.path)
        np.testing.assert_array_equal(*(copy.numpy() for copy in one.value.values), err_msg=one.path)
    assert int(optimizer.non_finite_steps.numpy()) == 1
    assert int(optimizer.measured_updates.numpy()) == (6 if accumulation == 1 else 2)
    assert all(np.all(np.isfinite(variable.numpy())) for variable in [*weights, *optimizer.variables])
    assert float(optimizer.gradient_norm_sum.numpy()) / int(optimizer.measured_updates.numpy()) > 1.5


if __name__ == "__main__":
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    for chosen in ("sgd", "adamw"):
        for batches in (1, 3):
            compare(chosen, batches)
            print(chosen, batches)
