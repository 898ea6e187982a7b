"""Runs loss and detector on two logical CPU devices, and without replicas, and prints what comes out as JSON.

Devices are split before anything runs on them, so this is a program of its own; `test_replicas.py` runs it. Of every
case there is "whole", without replicas, and "replicas", what two say together.
"""

import contextlib
import json

import keras
import numpy as np
import tensorflow as tf

from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import LossParts, MultiGridDetector
from multigrid.replicas import replica_count, sum_over_replicas

ANCHORS = [[[60.0, 45.0], [33.0, 80.0]], [[28.0, 19.0], [15.0, 34.0]], [[7.0, 12.0], [13.0, 5.0]]]
CLASSES, CHANNELS = 3, 5 + 2 + 3
STRIDES, SHAPES = (32, 16, 8), ((2, 3), (4, 6), (8, 12))  # of a 64 × 96 input
OPTIONS = {"assignment": "paper", "ignore_threshold": 0.1, "consensus_scale": 0.7, "suppression_scale": 1.7}
NORMALIZATIONS = ("batch", "positives", "grid")
SHARES = {"even": (2, 2), "uneven": (2, 1)}  # images of the two replicas
FITTED = 7  # images, in batches of 4: one of 2 + 2 and one of 2 + 1


def main() -> None:
    """Prints {case: {"whole": {name: numbers}, "replicas": {name: numbers}}}."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
    found = {"sum": {"whole": counted(None), "replicas": counted(strategy)}}
    for name, shares in SHARES.items():
        batch = make_batch(sum(shares))
        whole = step_of(LossParts(STRIDES))(*batch)
        found[name] = {"whole": numbers(whole), "replicas": on_two(strategy, batch, shares)}
    found["fit"] = {"whole": fitted(None), "replicas": fitted(strategy)}
    found["dropped"] = {"whole": dropped(None), "replicas": dropped(strategy)}
    print(json.dumps(found))


def scope_of(strategy):
    """The strategy's scope, or none."""
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def make_batch(images: int):
    """Boxes, classes and grids; the first image has most objects and the last has fewest."""
    rng = np.random.default_rng(3)
    boxes, classes = np.zeros((images, 4, 4), "float32"), np.full((images, 4), -1, "int32")
    for image in range(images):
        for row in range(4 - 4 * image // images):
            width, height = rng.uniform(8, 60), rng.uniform(6, 40)
            left, top = rng.uniform(0, 96 - width), rng.uniform(0, 64 - height)
            boxes[image, row], classes[image, row] = (left, top, left + width, top + height), rng.integers(CLASSES)
    return boxes, classes, *(rng.normal(size=(images, *shape, CHANNELS)).astype("float32") for shape in SHAPES)


def shared_out(strategy, array, shares):
    """The rows of an array, so many to each of the replicas."""
    rows = [slice(0, shares[0]), slice(shares[0], None)]
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(array[rows[context.replica_id_in_sync_group]])
    )


def numbers(tensors: dict) -> dict:
    """Tensors as flat lists."""
    return {name: np.asarray(value, "float64").ravel().tolist() for name, value in tensors.items()}


def counted(strategy) -> dict:
    """How many replicas there are, and the sum of the 3 that each gives."""
    if strategy is None:
        return {"count": [replica_count()], "sum": [float(value) for value in sum_over_replicas([tf.constant(3.0)])]}
    seen = []

    def run():
        seen.append(replica_count())
        return sum_over_replicas([tf.constant(3.0)])

    (total,) = strategy.run(tf.function(run))
    return {"count": seen[:1], "sum": [float(value) for value in strategy.experimental_local_results(total)][:1]}


def step_of(tracker):
    """A function of a batch to breakdown and gradients for every normalization, that updates the running means."""

    def step(boxes, classes, *grids):
        found = {}
        for words in NORMALIZATIONS:
            loss = MultiGridLoss(ANCHORS, CLASSES, loss_normalization=words, **OPTIONS)
            with tf.GradientTape() as tape:
                grids = [tf.convert_to_tensor(grid) for grid in grids]
                tape.watch(grids)
                breakdown = loss.breakdown(loss.encode({"boxes": boxes, "classes": classes}, grids), grids)
            gradients = tape.gradient(breakdown.total, grids)
            named = {
                f"{kind} {n}": v for kind in ("parts", "sums", "counts") for n, v in getattr(breakdown, kind).items()
            }
            named |= {"total": breakdown.total, "counts as normalizers": breakdown.normalizers}
            named |= {f"gradients {stride}": value for stride, value in zip(STRIDES, gradients, strict=True)}
            found |= {f"{name}, {words}": value for name, value in named.items()}
        tracker.update_state(breakdown)
        return found

    return step


def on_two(strategy, batch, shares) -> dict:
    """What two replicas say together: counts of both, which must agree, and sums of the rest."""
    with strategy.scope():
        step = step_of(LossParts(STRIDES))
    run = tf.function(lambda *arrays: strategy.run(step, args=arrays))
    per_replica = run(*(shared_out(strategy, array, shares) for array in batch))
    together = {}
    for name, values in per_replica.items():
        one, other = strategy.experimental_local_results(values)
        if name.startswith("counts"):
            np.testing.assert_array_equal(one, other)
        together[name] = one if name.startswith("counts") else one + other
        if name.startswith("gradients"):
            together[name] = tf.concat([one, other], axis=0)
    return numbers(together)


def fitted(strategy) -> dict:
    """What `evaluate` and an epoch of `fit` with frozen BatchNorm log, and some weights after it."""
    with scope_of(strategy):
        keras.utils.set_random_seed(5)
        criterion = MultiGridLoss(ANCHORS, CLASSES, loss_normalization="positives", **OPTIONS)
        backbone = regularized_backbone()
        detector = MultiGridDetector(ANCHORS, CLASSES, backbone=backbone, width=1 / 16, criterion=criterion)
        for layer in detector.layers:
            layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        detector.compile(keras.optimizers.SGD(1e-3), jit_compile=False)
    boxes, classes, *_ = make_batch(FITTED)
    images = np.random.default_rng(4).integers(0, 256, (FITTED, 64, 96, 3), dtype=np.uint8)
    truth = {"boxes": boxes, "classes": classes}
    tested = detector.evaluate(images, truth, batch_size=4, verbose=0, return_dict=True)
    history = detector.fit(images, truth, batch_size=4, shuffle=False, verbose=0).history
    logs = {f"evaluate {name}": value for name, value in tested.items()}
    logs |= {f"fit {name}": value for name, value in history.items()}
    return numbers(logs | {f"weights {v.path}": v.numpy() for v in detector.trainable_variables[:3]})


def regularized_backbone():
    """Convolutions without BatchNorm, whose kernels have a loss of their own."""
    images = keras.Input((None, None, 3))
    maps, x = {}, images
    for stride in (2, 4, 8, 16, 32):
        layer = keras.layers.Conv2D(4, 3, strides=2, padding="same", kernel_regularizer="l2", name=f"conv_{stride}")
        x = maps[f"stride_{stride}"] = layer(x)
    return keras.Model(images, {name: maps[name] for name in ("stride_8", "stride_16", "stride_32")}, name="own")


def dropped(strategy) -> dict:
    """Running means of two batches, of which the second is not finite in its last image alone."""
    boxes, classes, *grids = make_batch(4)
    spoilt = [grid.copy() for grid in grids]
    spoilt[1][3, 2, 1, 4] = np.nan
    loss = MultiGridLoss(ANCHORS, CLASSES, **OPTIONS)
    with scope_of(strategy):
        tracker = LossParts(STRIDES)

    def update(boxes, classes, *grids):
        tracker.update_state(loss.breakdown(loss.encode({"boxes": boxes, "classes": classes}, grids), grids), True)

    for batch in ((boxes, classes, *grids), (boxes, classes, *spoilt)):
        if strategy is None:
            update(*batch)
        else:
            strategy.run(tf.function(update), args=[shared_out(strategy, array, (2, 2)) for array in batch])
    return numbers(tracker.result())


if __name__ == "__main__":
    main()
