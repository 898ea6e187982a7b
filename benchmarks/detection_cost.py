"""Milliseconds an image from raw grids to detections, by rule of suppression and number of candidate cells.

    python benchmarks/detection_cost.py [--classes 80] [--size 416] [--repeats 20]

Grids are random: as many cells as asked for have objectness, each with one class and a box near one of 40 objects. What
is measured is what prediction does after the network: decoding a batch, and for each image the choice of candidates,
the suppression, and the way back into the image's pixels. The rules take turns, so that a busy machine hits all alike;
the table has medians.
"""

import argparse
import statistics
import time

import keras
import numpy as np

from multigrid import MultiGridDetector, Predictor, report
from multigrid.detection.decode import DecodeGrids
from multigrid.detection.pipeline import Loaded
from multigrid.detection.suppression import RULES
from multigrid.geometry.cells import STRIDES, cell_corners, offset_logits

ANCHORS = [[[s * 3.0, s * 2.0], [s * 1.5, s * 4.0], [s * 5.0, s * 5.0]] for s in STRIDES]
BATCH, OBJECTS, THRESHOLD = 8, 40, 0.001
CELLS = (100, 500, 3000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--size", type=int, default=416, help="side of the square input in pixels")
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    decoder = _decoder(options)
    rows = []
    for cells in CELLS:
        grids = _grids(cells, options)
        decoder.predict_on_batch(grids)
        decoding = statistics.median(_seconds(decoder.predict_on_batch, grids)[1] for _ in range(options.repeats))
        decoded = decoder.predict_on_batch(grids)
        seconds, left = {rule: [] for rule in RULES}, {}
        pipelines = {rule: _pipeline(rule, options) for rule in RULES}
        for _ in range(options.repeats):
            for rule, pipeline in pipelines.items():
                found, took = _seconds(_after_decoding, pipeline, decoded, options)
                seconds[rule].append(took)
                left[rule] = np.mean([len(one) for one in found])
        for rule in RULES:
            suppressing = statistics.median(seconds[rule])
            figures = (1000 * part / BATCH for part in (decoding, suppressing, decoding + suppressing))
            rows.append((cells, rule, *figures, left[rule]))
    columns = ("candidate cells", "suppression", "decode ms", "suppress ms", "together ms", "detections")
    report.table(f"{options.size} px, {options.classes} classes, batch {BATCH}: milliseconds an image", columns, rows)


def _decoder(options) -> keras.Model:
    """The decoding layer alone, as a model from raw grids."""
    channels = 5 + len(ANCHORS[0]) + options.classes
    inputs = [keras.Input((options.size // stride, options.size // stride, channels)) for stride in STRIDES]
    decode = DecodeGrids(ANCHORS, STRIDES, offset_activation="sigmoid", class_activation="sigmoid")
    return keras.Model(inputs, decode(inputs))


def _pipeline(rule: str, options) -> Predictor:
    detector = MultiGridDetector(ANCHORS, options.classes, width=1 / 16, depth=1 / 8)
    names = [str(index) for index in range(options.classes)]
    size = (options.size, options.size)
    return Predictor(detector, names, size, score_threshold=THRESHOLD, suppression=rule, batch_size=BATCH)


def _grids(cells: int, options) -> list:
    """Raw grids in which so many cells of each image speak of objects near them."""
    rng = np.random.default_rng(1)
    corners, scale = cell_corners((options.size, options.size))
    first_class = 5 + len(ANCHORS[0])
    flat = rng.normal(0, 0.3, (BATCH, len(corners), first_class + options.classes)).astype("float32")
    flat[..., 4], flat[..., first_class:] = -12.0, -7.0  # nobody passes who is not made to
    for image in flat:
        objects, labels = rng.uniform(0, options.size, (OBJECTS, 2)), rng.integers(0, options.classes, OBJECTS)
        speaking = rng.choice(len(corners), min(cells, len(corners)), replace=False)
        near = np.argmin(((corners[speaking, None, :2] - objects) ** 2).sum(axis=-1), axis=1)
        side = np.array(STRIDES)[scale[speaking]]
        offsets = np.clip((objects[near] - corners[speaking, :2]) / side[:, None], -0.9, 1.9).astype("float32")
        image[speaking, :2] = keras.ops.convert_to_numpy(offset_logits(keras.ops.convert_to_tensor(offsets), "sigmoid"))
        image[speaking, 4] = rng.normal(-2.0, 2.0, len(speaking))
        image[speaking, first_class + labels[near]] = 3.0
    ends = np.cumsum([(options.size // stride) ** 2 for stride in STRIDES])[:-1]
    parts = zip(np.split(flat, ends, axis=1), STRIDES, strict=True)
    return [part.reshape(BATCH, options.size // stride, options.size // stride, -1) for part, stride in parts]


def _after_decoding(pipeline: Predictor, decoded: dict, options) -> list:
    image = Loaded("", (3 * options.size // 2, 2 * options.size), None, [])
    rows = [[{name: part[row] for name, part in decoded.items()}] for row in range(BATCH)]
    return [pipeline._detections(row, image, cells=False, trace=None) for row in rows]


def _seconds(action, *arguments):
    began = time.perf_counter()
    result = action(*arguments)
    return result, time.perf_counter() - began


if __name__ == "__main__":
    main()
