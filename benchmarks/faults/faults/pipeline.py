"""Faults of how batches come: order, variety, speed."""

from __future__ import annotations

import time

import numpy as np

from faults.kinds import fault


def _in_order(kind):
    """The class of a data set that gives its samples as they stand, every epoch alike."""

    def epoch_of(self):
        return kind.epoch.fget(self)

    def set_epoch(self, epoch):
        self.shuffle = False
        kind.epoch.fset(self, epoch)

    names = {"epoch": property(epoch_of, set_epoch), "__module__": kind.__module__}
    return type(kind.__name__, (kind,), names)


def _commonest_class(sample) -> int:
    return int(np.bincount(sample.classes).argmax()) if len(sample.classes) else -1


def _mean_area(sample) -> float:
    return float(np.prod(sample.boxes[:, 2:] - sample.boxes[:, :2], axis=1).mean()) if len(sample.boxes) else 0.0


@fault("S01", "pipeline", "E", ("class", "size", "none"), ("MG906",))
def no_shuffling(making, order):
    """Samples sorted by class, by the objects' size or not at all."""
    keys = {"class": _commonest_class, "size": _mean_area}
    if order in keys:
        making.change("samples", lambda samples, rng: sorted(samples, key=keys[order]))
    making.change("generator", _in_order)


@fault("S03", "pipeline", "E", (1.0, 0.3), ("MG907",), further=True)
def batches_come_slowly(making, seconds):
    making.batches(lambda images, boxes, classes, rng: time.sleep(seconds))


@fault("S04", "pipeline", "E", ("all",), ("MG908",), further=True)
def same_draws_every_epoch(making, _):
    """Every epoch has the images, the order and the augmentation of the first."""

    def repeat(kind):
        def generator_of(self, epoch, purpose, index=0):
            return kind._rng(self, 0, purpose, index)

        return type(kind.__name__, (kind,), {"_rng": generator_of, "__module__": kind.__module__})

    making.change("generator", repeat)


@fault("S08", "pipeline", "B", (0.9, 0.5, 0.25), ("MG905",), further=True)
def images_blank(making, share):
    """Instead of images that could not be read; their labels stay."""

    def blank(images, boxes, classes, rng):
        images[rng.random(len(images)) < share] = 0

    making.batches(blank)
