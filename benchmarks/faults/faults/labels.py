"""Faults of labels and of how they are read: in the samples of every split, where not said otherwise."""

from __future__ import annotations

import numpy as np
import stage as stages
from making import with_boxes

from faults.kinds import fault
from multigrid.data.samples import read_class_names, read_samples, write_samples


def _sides(sample) -> np.ndarray:
    """(width, height, width, height) of a sample's image."""
    height, width = sample.size
    return np.array([width, height, width, height], "float32")


def _as(written: str, read: str, boxes: np.ndarray) -> np.ndarray:
    """Corners that a reader makes of boxes that are written in one format and read in another."""
    first, last = boxes[:, :2], boxes[:, 2:]
    numbers = {
        "xyxy": np.hstack([first, last]),
        "xywh": np.hstack([first, last - first]),
        "cxcywh": np.hstack([(first + last) / 2, last - first]),
    }[written]
    a, b = numbers[:, :2], numbers[:, 2:]
    return {"xyxy": np.hstack([a, b]), "xywh": np.hstack([a, a + b]), "cxcywh": np.hstack([a - b / 2, a + b / 2])}[read]


@fault("D01", "labels", "S", (("xywh", "xyxy"), ("xyxy", "xywh"), ("xywh", "cxcywh")), ("MG102",))
def box_format_misread(making, formats):
    making.samples(lambda sample, rng: with_boxes(sample, _as(*formats, sample.boxes)))


@fault("D02", "labels", "S", (1.0, 100.0, 0.5), ("MG103",))
def boxes_in_wrong_unit(making, unit):
    """Shares of the side, or percent; 0.5: shares, in half of the images."""
    scale, share = (1.0, unit) if unit < 1.0 else (unit, 1.0)
    making.samples(lambda sample, rng: with_boxes(sample, sample.boxes / _sides(sample) * scale), share)


@fault("D04", "labels", "B", (1.0, 0.6, 0.3), ("MG104",))
def boxes_xy_swapped(making, share):
    making.samples(lambda sample, rng: with_boxes(sample, sample.boxes[:, [1, 0, 3, 2]]), share)


@fault("D06", "labels", "B", (0.8, 0.4, 0.15), ("MG108", "MG107"))
def boxes_without_area(making, share):
    def flatten(images, boxes, classes, rng):
        hit = rng.random(classes.shape) < share
        boxes[..., 2] = np.where(hit, boxes[..., 0], boxes[..., 2])

    making.batches(flatten, ("train", "val"))


@fault("D09", "labels", "S", (1.0, 0.6, 0.3), ("MG105",))
def class_ids_from_one(making, share):
    making.samples(lambda sample, rng: with_boxes(sample, sample.boxes, sample.classes + 1), share)


@fault("D12", "labels", "S", (1.0, 0.7, 0.4), ("MG101",))
def labels_missing(making, share):
    making.samples(lambda sample, rng: with_boxes(sample, sample.boxes[:0], sample.classes[:0]), share)


@fault("D17", "labels", "B", (255.0, 25.0, 4.0), ("MG901", "MG408"), settings=("training.freeze=backbone",))
def images_not_scaled(making, factor):
    """How many times too large the network's input is."""

    def rescale(trainer):
        layer = trainer.detector.get_layer("scale_to_unit")
        layer.scale = layer.scale * factor

    making.change("detector", rescale)


@fault("D21", "labels", "B", (1.0, 0.6, 0.3), ("MG106",))
def labels_of_other_images(making, share):
    def shift(samples, rng):
        chosen = np.flatnonzero(rng.random(len(samples)) < share)
        shifted = list(samples)
        for one, other in zip(chosen, np.roll(chosen, 1), strict=True):
            shifted[one] = with_boxes(samples[one], samples[other].boxes, samples[other].classes)
        return shifted

    making.change("samples", shift)


@fault("D05", "labels", "S", (0.1, 0.03, 0.01), ("MG107", "MG108", "MG655"), further=True)
def boxes_not_a_number(making, share):
    def spoil(images, boxes, classes, rng):
        boxes[..., 2] = np.where(rng.random(classes.shape) < share, np.nan, boxes[..., 2])

    making.batches(spoil, ("train", "val"))


@fault("D07", "labels", "S", (0.8, 0.4, 0.15), ("MG109",), further=True)
def boxes_outside_image(making, share):
    def move(sample, rng):
        hit = rng.random(len(sample.boxes)) < share
        shift = np.float32([0.6, 0.0, 0.6, 0.0]) * _sides(sample)
        return with_boxes(sample, sample.boxes + hit[:, None] * shift)

    making.samples(move)


@fault("D03", "labels", "S", (1.0, 0.6, 0.3), ("MG112", "MG103"), further=True)
def boxes_of_other_size(making, share):
    """Width and height of the image exchanged."""
    making.samples(lambda sample, rng: with_boxes(sample, sample.boxes * _sides(sample)[::-1] / _sides(sample)), share)


@fault("D11", "labels", "E", (1.0, 0.6, 0.4), ("MG658",), further=True)
def classes_at_random(making, share):
    def draw(sample, rng):
        other = rng.integers(0, making.class_count, len(sample.classes))
        return with_boxes(sample, sample.boxes, np.where(rng.random(len(other)) < share, other, sample.classes))

    making.samples(draw)


@fault("D15", "labels", "S", (8, 4, 2), ("MG114",), further=True)
def background_prevails(making, times):
    """How many images of drawn background take the place of labelled ones, for each that stays; in training alone."""
    folder = stages.draw(making.stage.folder.parent / "empty", {"train": 192}, seed=25, background=1.0)
    data = making.stage.config().data
    names = read_class_names(data.classes)
    empty = read_samples(folder / "train.txt", stages.CLASS_NAMES)[0]
    labelled = read_samples(data.train, names)[0]
    rng = np.random.default_rng(making.seed)
    keep = rng.random(len(labelled)) < 1 / (times + 1)
    mixed = [
        one if kept else empty[row % len(empty)] for row, (one, kept) in enumerate(zip(labelled, keep, strict=True))
    ]
    path = making.file("train.txt")
    write_samples(list({one.path: one for one in mixed}.values()), names, path, "yolo3")
    making.config(f"data.train={path}")


@fault("D16", "labels", "B", ("all",), ("MG903",), further=True, settings=("training.freeze=backbone",))
def channels_reversed(making, _):
    """In training and in the validation's batches; who predicts reads images in the right order."""

    def reverse(images, boxes, classes, rng):
        images[...] = images[..., ::-1].copy()

    making.batches(reverse, ("train", "val"))


@fault(
    "D18", "labels", "B", (255.0, 60.0, 15.0), ("MG902", "MG408"), further=True, settings=("training.freeze=backbone",)
)
def images_scaled_twice(making, factor):
    def rescale(trainer):
        layer = trainer.detector.get_layer("scale_to_unit")
        layer.scale = layer.scale / factor

    making.change("detector", rescale)


@fault("D19", "labels", "B", ("all",), ("MG904",), further=True)
def channels_lost(making, _):
    def drop(images, boxes, classes, rng):
        images[..., 1:] = 0

    making.batches(drop, ("train", "val"))
