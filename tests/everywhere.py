"""A detector that finds the same in every cell, whatever it is shown: what it says is known by heart.

Objectness is sigmoid(5) = 0.993307; a green box scores sigmoid(5)² = 0.986659, a red or a blue one 0.496654. A box has
its cell's centre and the first anchor of its scale: 40 × 28 in 2 · 3 cells of stride 32, 20 × 14 in 4 · 6 of stride 16,
8 × 6 in 8 · 12 of stride 8: 126 cells and 378 pairs of a cell and a class in 64 × 96 pixels.
"""

import cv2
import numpy as np

from multigrid.data.samples import Sample
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
NAMES = ("red", "green", "blue")
SIZE = (64, 96)


def everywhere(**objectness_of_stride):
    """The detector; `stride_8=…` gives the objectness logit of that scale, which is 5."""
    made = MultiGridDetector(ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8)
    for stride in made.strides:
        layer = made.get_layer(f"grid_{stride}")
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        bias = np.zeros(layer.bias.shape)
        bias[4], bias[-2] = objectness_of_stride.get(f"stride_{stride}", 5.0), 5.0
        layer.bias.assign(bias)
    return made


def scenes(folder, *objects_of_scenes, size=SIZE):
    """Grey images in a folder, as `Sample`s, each labelled with its (class index, corners) pairs."""
    samples = []
    for number, objects in enumerate(objects_of_scenes, start=4):
        path = folder / f"scene {number}.png"
        cv2.imwrite(str(path), np.full((*size, 3), 20 * number, np.uint8))
        boxes = np.array([corners for _, corners in objects], "float32").reshape(-1, 4)
        samples.append(Sample(str(path), boxes, np.array([label for label, _ in objects], "int32"), number, size))
    return samples
