"""Faults of what training images go through."""

from __future__ import annotations

import numpy as np

from faults.kinds import fault
from multigrid.data.augment import Example
from multigrid.data.images import Letterbox


@fault("A01", "augmentation", "B", (0.5, 0.3, 0.15), ("MG201",))
def flip_leaves_boxes(making, share):
    def flip(images, boxes, classes, rng):
        hit = rng.random(len(images)) < share
        images[hit] = images[hit, :, ::-1]

    making.batches(flip)


@fault("A03", "augmentation", "B", ("scale and border", "border", "half the border"), ("MG203",))
def letterbox_leaves_boxes(making, forgotten):
    """Where boxes stay when the image is letterboxed; in both streams."""

    def made(kind):
        class MultiGridDataGenerator(kind):
            def _load(self, index, size):
                example, sample = super()._load(index, size), self.samples[index]
                letterbox = Letterbox.fit(sample.size, size)
                border = np.array(letterbox.pad * 2, np.float32)
                if forgotten == "scale and border":
                    return Example(example.image, sample.boxes, example.classes)
                return Example(
                    example.image, example.boxes - border * (0.5 if "half" in forgotten else 1.0), example.classes
                )

        MultiGridDataGenerator.__module__ = kind.__module__
        MultiGridDataGenerator.__qualname__ = kind.__qualname__
        return MultiGridDataGenerator

    making.change("generator", made)


@fault("A05", "augmentation", "B", (2, 4, 5), ("MG205",), settings=("augmentation.mosaic=1.0",))
def mosaic_cut_to_few_boxes(making, most):
    def cut(images, boxes, classes, rng):
        classes[:, most:] = -1

    making.batches(cut)


@fault("A02", "augmentation", "B", (0.5, 0.3, 0.15), ("MG202",), further=True)
def flip_inverts_boxes(making, share):
    """The image is mirrored, and the corners are, without changing places."""

    def flip(images, boxes, classes, rng):
        hit = rng.random(len(images)) < share
        images[hit] = images[hit, :, ::-1]
        boxes[hit, :, 0::2] = images.shape[2] - boxes[hit, :, 0::2]

    making.batches(flip)


@fault("A04", "augmentation", "B", (0.95, 0.7, 0.5), ("MG204",), further=True)
def augmentation_drops_boxes(making, share):
    def drop(images, boxes, classes, rng):
        classes[rng.random(classes.shape) < share] = -1

    making.batches(drop)


@fault("A06", "augmentation", "B", ("three", "one"), ("MG206",), further=True, settings=("augmentation.mosaic=1.0",))
def mosaic_leaves_boxes(making, quarters):
    """Boxes of the right and lower quarters are put into the upper left one, or those of the lower right alone."""

    def move(images, boxes, classes, rng):
        height, width = images.shape[1:3]
        centre = (boxes[..., :2] + boxes[..., 2:]) / 2
        right, low = centre[..., 0] > width / 2, centre[..., 1] > height / 2
        hit = (right | low) if quarters == "three" else (right & low)
        shift = np.stack([right * width / 2, low * height / 2] * 2, axis=-1) * hit[..., None]
        boxes[...] = boxes - shift.astype("float32")

    making.batches(move)


@fault("A08", "augmentation", "B", (0.8, 0.5), ("MG209",), further=True)
def augmentation_too_strong(making, share):
    """A large part of every training image is noise."""

    def destroy(images, boxes, classes, rng):
        noise = rng.integers(0, 256, images.shape, dtype=np.uint8)
        hit = rng.random(images.shape[:3]) < share
        images[hit] = noise[hit]

    making.batches(destroy)
