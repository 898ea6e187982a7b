"""A training step in half precision beside one in float32: python benchmarks/precision_cost.py --help"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time

# Before the first import that reads them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np

from multigrid import MultiGridDetector, MultiGridLoss
from multigrid.config import TrainingConfig
from multigrid.report import table
from multigrid.training.optimizers import configured_optimizer

ANCHORS = [  # YOLOv3's nine, coarse to fine
    [[116, 90], [156, 198], [373, 326]],
    [[30, 61], [62, 45], [59, 119]],
    [[10, 13], [16, 30], [33, 23]],
]
CLASSES = 80
WARM_UP = 2  # steps before the first that counts: the first is traced


def main() -> int:
    """Takes a step in each precision in turn, and prints the medians and their ratio to float32."""
    options = _options()
    images, truth = _batch(options.batch, options.side)
    detectors = {precision: _detector(options.width, precision) for precision in options.precision}
    seconds: dict[str, list[float]] = {precision: [] for precision in detectors}
    for step in range(WARM_UP + options.steps):
        for precision, detector in detectors.items():
            began = time.perf_counter()
            detector.train_on_batch(images, truth)
            if step >= WARM_UP:
                seconds[precision].append(time.perf_counter() - began)
    medians = {precision: statistics.median(times) for precision, times in seconds.items()}
    first = next(iter(medians.values()))
    rows = [(name, f"{one:.3f}", f"{one / options.batch:.3f}", f"{one / first:.2f}") for name, one in medians.items()]
    title = f"a training step of {options.batch} images, {options.side} px, {CLASSES} classes, width {options.width:g}"
    heads = ("precision", "seconds", "seconds an image", f"of {next(iter(medians))}")
    table(f"{title}: medians of {options.steps} steps", heads, rows)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=float, default=1.0, help="of the detector (%(default)s)")
    parser.add_argument("--side", type=int, default=416, help="of the images, in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=4, help="images in a step (%(default)s)")
    parser.add_argument("--steps", type=int, default=5, help="steps that count, in each precision (%(default)s)")
    parser.add_argument(
        "--precision", nargs="+", default=["float32", "mixed_bfloat16"], help="the first is the yardstick"
    )
    return parser.parse_args()


def _detector(width: float, precision: str) -> MultiGridDetector:
    keras.utils.set_random_seed(0)
    detector = MultiGridDetector(
        ANCHORS, CLASSES, width=width, criterion=MultiGridLoss(ANCHORS, CLASSES), dtype=precision
    )
    detector.compile(configured_optimizer(TrainingConfig(), steps_per_epoch=100), jit_compile=detector.prefers_xla)
    return detector


def _batch(batch: int, side: int):
    """Noise, and ten boxes an image."""
    rng = np.random.default_rng(0)
    sizes = rng.uniform(0.05, 0.5, (batch, 10, 2)) * side
    corners = rng.uniform(0.0, side - sizes)
    boxes = np.concatenate([corners, corners + sizes], axis=-1).astype("float32")
    truth = {"boxes": boxes, "classes": rng.integers(0, CLASSES, (batch, 10)).astype("int32")}
    return rng.integers(0, 256, (batch, side, side, 3), "uint8"), truth


if __name__ == "__main__":
    sys.exit(main())
