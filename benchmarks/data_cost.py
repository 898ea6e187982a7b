"""CPU time of making a batch beside that of the training step: python benchmarks/data_cost.py --help"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import tempfile
import time

# Before the first import that reads them: the share is promised for TensorFlow on the CPU.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import keras
from PIL import Image

from multigrid import MultiGridDataGenerator, MultiGridDetector, MultiGridLoss, Sample, read_samples
from multigrid.assembly import network_sizes
from multigrid.config import AugmentationConfig, ModelConfig, TrainingConfig
from multigrid.data.samples import read_class_names
from multigrid.data.shapes import CLASS_NAMES, draw_scene
from multigrid.geometry.anchor_fit import fit_anchors
from multigrid.report import say, table
from multigrid.training.optimizers import configured_optimizer

INPUT_SIZE, BATCH, WIDTH = (320, 320), 8, 0.25
SCENES, SCENE_SIZE = 200, (480, 640)
TARGET = 0.10  # highest CPU time of an image's data over that of its share of the step
WARM_UP = 3  # steps before the first that counts: tracing, for both paddings


def main() -> int:
    """Measures, prints the table, and returns 1 where the target is missed."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        samples, class_names, source = _samples(options.data, pathlib.Path(folder))
        say(f"data: {len(samples)} images, {source}")
        detector = _detector(samples, len(class_names))
        rows, missed = [], False
        for cache in (False, True):
            data, step = _measure(_generator(samples, cache), detector, options.steps, options.batches)
            missed |= data / step > TARGET
            numbers = (1e3 * data, 1e3 * step, 100 * data / step, 100 * TARGET)
            rows.append(("on" if cache else "off", *(f"{number:.2f}" for number in numbers)))
    heads = ("cache", "data CPU ms / image", "step CPU ms / image", "share %", "target %")
    title = f"reading, augmenting and batching for a step of {BATCH} images, {INPUT_SIZE} px, width {WIDTH:g}"
    table(title, heads, rows)
    return int(missed)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        help="keras-yolo3 labels with classes.txt beside them; else the real set bccd where it is found, "
        f"else {SCENES} drawn scenes",
    )
    parser.add_argument("--steps", type=int, default=12, help="training steps that count, for each row of the table")
    parser.add_argument("--batches", type=int, default=6, help="batches that are made for each of those steps")
    return parser.parse_args()


def _samples(labels: pathlib.Path | None, folder: pathlib.Path) -> tuple[list[Sample], tuple, str]:
    """Samples, class names, and where they are from."""
    if labels is None:
        beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
        found = pathlib.Path(os.environ.get("MULTIGRID_REAL_DATA", beside)) / "bccd" / "train.txt"
        if not found.is_file():
            return _draw(folder), CLASS_NAMES, f"drawn, {SCENE_SIZE} px"
        labels = found
    class_names = read_class_names(labels.parent / "classes.txt")
    return read_samples(labels, class_names)[0], class_names, str(labels)


def _draw(folder: pathlib.Path) -> list[Sample]:
    samples = []
    for number in range(SCENES):
        scene, path = draw_scene(number, image_size=SCENE_SIZE, objects=(4, 24)), str(folder / f"{number}.jpg")
        Image.fromarray(scene.image).save(path, quality=90)
        samples.append(Sample(path, scene.boxes, scene.classes, number + 1, SCENE_SIZE))
    return samples


def _detector(samples, num_classes: int) -> MultiGridDetector:
    keras.utils.set_random_seed(0)
    anchors = fit_anchors(network_sizes(samples, INPUT_SIZE)).to_list()
    activation = ModelConfig().offset_activation
    criterion = MultiGridLoss(anchors, num_classes, offset_activation=activation)
    detector = MultiGridDetector(anchors, num_classes, width=WIDTH, offset_activation=activation, criterion=criterion)
    detector.compile(configured_optimizer(TrainingConfig(), steps_per_epoch=100), jit_compile=False)
    return detector


def _generator(samples, cache: bool) -> MultiGridDataGenerator:
    augmentation = AugmentationConfig()
    generator = MultiGridDataGenerator(
        samples,
        input_size=INPUT_SIZE,
        batch_size=BATCH,
        augmentation=augmentation.steps,
        mosaic=augmentation.mosaic,
        mixup=augmentation.mixup,
        min_visibility=augmentation.min_visibility,
        shuffle=True,
        cache=cache,
    )
    for index in range(len(generator)):  # the cache is full after an epoch, and the files are in the system's own
        generator[index]
    generator.epoch = 1
    return generator


def _measure(generator, detector, steps: int, batches: int) -> tuple[float, float]:
    """CPU seconds an image of data, the mean over all batches, and of the step, the median; taken in turn."""
    data, images, step = 0.0, 0, []
    for turn in range(WARM_UP + steps):
        began = time.process_time()
        made = [_next_batch(generator, turn * batches + number) for number in range(batches)]
        data += time.process_time() - began
        images += sum(len(batch[0]) for batch in made)
        whole = made[-1] if len(made[-1][0]) == BATCH else _next_batch(generator, 0)
        began = time.process_time()
        detector.train_on_batch(*whole)
        step.append((time.process_time() - began) / BATCH)
    return data / images, statistics.median(step[WARM_UP:])


def _next_batch(generator, number: int):
    """Batch `number` of an endless training that begins with epoch 1."""
    epoch, index = divmod(number, len(generator))
    if generator.epoch != epoch + 1:
        generator.epoch = epoch + 1
    return generator[index]


if __name__ == "__main__":
    sys.exit(main())
