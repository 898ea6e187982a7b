"""Advice, applied by program."""

from __future__ import annotations

import numpy as np
from making import with_boxes

from multigrid.diagnosis.examinations import alignment
from multigrid.geometry.anchor_fit import fit_anchors
from multigrid.geometry.anchors import write_anchors

FITTED = ("anchors.txt",)  # of data.anchors: what `multigrid anchors` writes, fitted to the boxes at hand


def applicable(finding: dict) -> bool:
    """Whether a program can apply its advice."""
    remedy = finding["remedy"]
    return bool(remedy["settings"] or remedy["part"] or remedy["boxes"])


def mended(making, finding: dict):
    """The training after a finding's remedy; boxes that are to be moved are moved, and not read anew.

    Args:
        making: with the fault.
        finding: in JSON's own types.
    """
    remedy = finding["remedy"]
    settings = [_setting(making, word) for word in remedy["settings"]]
    other = making.mended(None if remedy["boxes"] else remedy["part"], settings)
    if remedy["boxes"] and finding["group"] == "labels":
        other.samples(
            lambda sample, rng: with_boxes(sample, alignment.apply(remedy["boxes"], sample.boxes, sample.size))
        )
    elif remedy["boxes"]:
        other.batches(_moved_by(remedy["boxes"]), ("train", "val"))
    return other


def _setting(making, word: str) -> str:
    """A setting with the file that it asks for."""
    key, _, value = word.partition("=")
    if key != "data.anchors" or value not in FITTED:
        return word
    data, size = making.data(), making.checked().model.input_size
    sides = [_sides(data[index][1], size) for index in range(len(data))]
    path = making.file("fitted.txt")
    write_anchors(fit_anchors(np.concatenate(sides)), path, "scales")
    return f"data.anchors={path}"


def _sides(truth, size) -> np.ndarray:
    """(width, height) of the boxes of a batch that have some."""
    boxes = truth["boxes"][truth["classes"] >= 0]
    sides = boxes[:, 2:] - boxes[:, :2]
    return sides[np.isfinite(sides).all(1) & (sides > 0).all(1) & (sides <= size[::-1]).all(1)]


def _moved_by(hypothesis: str):
    def move(images, boxes, classes, rng):
        boxes[...] = np.asarray(alignment.apply(hypothesis, boxes, images.shape[1:3]))

    return move
