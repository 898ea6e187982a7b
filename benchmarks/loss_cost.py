"""Share of a training step that targets and loss cost, forward and backward: python benchmarks/loss_cost.py --help"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

# Before the first import that reads them: the shares are promised for TensorFlow on the CPU.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from multigrid import MultiGridDetector, MultiGridLoss
from multigrid.config import ModelConfig, TrainingConfig
from multigrid.losses.targets import ASSIGNMENTS
from multigrid.report import table
from multigrid.training.optimizers import configured_optimizer

SIDE, BATCH, CLASSES = 416, 8, 80
ANCHORS = [  # YOLOv3's nine, coarse to fine
    [[116, 90], [156, 198], [373, 326]],
    [[30, 61], [62, 45], [59, 119]],
    [[10, 13], [16, 30], [33, 23]],
]
PADDED = {10: (24, 16), 50: (56, 64)}  # rows that MultiGridDataGenerator pads to in even and odd batches
TARGETS = {10: 0.05, 50: 0.10}  # highest share of the step's CPU time, by objects an image
WARM_UP = 2  # steps before the first that counts: the first is traced


def main() -> int:
    """Measures, prints the table, and returns 1 where a target is missed."""
    options = _options()
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), "uint8")
    rows, missed = [], False
    for assignment in options.assignment:
        detector = _detector(options.width, assignment, 1.0 if options.extras else 0.0)
        loss_alone = _loss_alone(detector)
        for objects, limit in TARGETS.items():
            batches = [_boxes(objects, padded, seed) for seed, padded in enumerate(PADDED[objects])]
            step, loss = _measure(detector, loss_alone, images, batches, options.steps)
            share = loss[0] / step[0]
            missed |= share > limit
            numbers = (1e3 * step[0], 1e3 * loss[0], 100 * share, 100 * limit)
            wall = (1e3 * step[1], 1e3 * loss[1], 100 * loss[1] / step[1])
            rows.append((assignment, objects, *(f"{number:.1f}" for number in numbers + wall)))
    heads = ("assignment", "objects", "step CPU ms", "loss CPU ms", "share %", "target %")
    heads += ("step wall ms", "loss wall ms", "wall share %")
    parts = "targets + loss with consensus and suppression" if options.extras else "targets + loss"
    title = f"{parts} in a step of {BATCH} images, {SIDE} px, {CLASSES} classes, width {options.width:g}"
    table(f"{title}: medians of {options.steps} steps", heads, rows)
    return int(missed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10, help="steps that count, for each row of the table")
    parser.add_argument("--width", type=float, default=0.25, help="of the detector")
    parser.add_argument("--assignment", nargs="+", choices=ASSIGNMENTS, default=["inside", "across"])
    parser.add_argument("--extras", action="store_true", help="with the parts that are off by default")
    return parser.parse_args()


def _detector(width: float, assignment: str, extra: float) -> MultiGridDetector:
    keras.utils.set_random_seed(0)
    activation = ModelConfig().offset_activation
    options = {"assignment": assignment, "consensus_scale": extra, "suppression_scale": extra}
    criterion = MultiGridLoss(ANCHORS, CLASSES, offset_activation=activation, **options)
    detector = MultiGridDetector(ANCHORS, CLASSES, width=width, offset_activation=activation, criterion=criterion)
    detector.compile(configured_optimizer(TrainingConfig(), steps_per_epoch=100), jit_compile=False)
    return detector


def _boxes(objects: int, padded: int, seed: int) -> dict:
    """Targets of a batch whose boxes are spread over the sizes of the anchors: mostly small, some large."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(8), np.log(320), (BATCH, objects, 1)))
    sizes = np.minimum(sizes * np.exp(rng.normal(0.0, 0.3, (BATCH, objects, 2))), SIDE)
    corners = rng.uniform(0.0, SIDE - sizes)
    boxes = np.zeros((BATCH, padded, 4), "float32")
    classes = np.full((BATCH, padded), -1, "int32")
    boxes[:, :objects] = np.concatenate([corners, corners + sizes], axis=-1)
    classes[:, :objects] = rng.integers(0, CLASSES, (BATCH, objects))
    return {"boxes": boxes, "classes": classes}


class Prepared(keras.utils.PyDataset):
    """The same images again and again, beside each of these targets in turn, for `count` batches."""

    def __init__(self, images, batches, count: int):
        super().__init__()
        self.images, self.batches, self.count = images, batches, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.images, self.batches[index % len(self.batches)]


class Stopwatch(keras.callbacks.Callback):
    """Times every step of `fit` and, after each, a call of `compare(step)`: rows of CPU, wall, CPU, wall seconds."""

    def __init__(self, compare):
        super().__init__()
        self.compare, self.taken = compare, []

    def on_train_batch_begin(self, batch, logs=None):
        self.began = _clock()

    def on_train_batch_end(self, batch, logs=None):
        ended = _clock()
        self.compare(batch)
        self.taken.append((*(ended - self.began), *(_clock() - ended)))


def _measure(detector, loss_alone, images, batches, steps: int) -> tuple:
    """Median (CPU, wall) seconds of the whole step and of targets + loss alone, taken in turn."""
    outputs = [tf.constant(grid) for grid in detector.predict_on_batch(images)]
    tensors = [{name: tf.constant(value) for name, value in y.items()} for y in batches]
    watch = Stopwatch(lambda index: [part.numpy() for part in loss_alone(tensors[index % len(tensors)], outputs)])
    detector.fit(Prepared(images, batches, WARM_UP + steps), shuffle=False, verbose=0, callbacks=[watch])
    medians = [statistics.median(column) for column in zip(*watch.taken[WARM_UP:], strict=True)]
    return medians[:2], medians[2:]


def _loss_alone(detector):
    """A compiled function from targets and output grids to the loss and its gradient at the grids."""
    criterion = detector.criterion
    grids = [
        tf.TensorSpec([None, SIDE // stride, SIDE // stride, grid.shape[-1]])
        for stride, grid in zip(detector.strides, detector.outputs, strict=True)
    ]
    # as in `fit`: what differs from batch to batch is left open
    y = {"boxes": tf.TensorSpec([None, None, 4]), "classes": tf.TensorSpec([None, None], "int32")}

    @tf.function(jit_compile=False, input_signature=(y, grids))
    def value_and_gradient(y, outputs):
        with tf.GradientTape() as tape:
            tape.watch(outputs)
            total = criterion.breakdown(criterion.encode(y, outputs), outputs).total
        return total, *tape.gradient(total, outputs)

    return value_and_gradient


def _clock() -> np.ndarray:
    """(CPU seconds of all threads, wall seconds)."""
    return np.array([time.process_time(), time.perf_counter()])


if __name__ == "__main__":
    sys.exit(main())
