"""What an image says of boxes: how much stands out where a box says that there is an object.

Around an object colours change and edges run along the sides of its box. Five measures of that are taken of each box,
and compared with boxes of the same size at random places of the same image: 0 is no evidence, and 1 one standard
deviation of random boxes more. The sums over rectangles come from integral images, so a thousand boxes cost little.
"""

from __future__ import annotations

import cv2
import numpy as np

PLACES = 3  # random ones for each box
DEPTH = 0.15  # of a side, of the strips that are compared along it
DEPTHS = (1.5, 8.0)  # pixels; the least and the greatest
CORNERS = 0.2  # of a side, left out at each end: round objects do not reach them
LIMITS = (-3.0, 4.0)  # of a single measure, so that one box does not speak for all
NOTHING = -1.0  # of a box that lies outside, or has no area
SMALLEST = 1.0  # pixels; a box that is thinner cannot be measured


class Picture:
    """An image that boxes are measured in.

    Args:
        image: [height, width, 3], uint8 or float.
    """

    def __init__(self, image: np.ndarray):
        image = np.nan_to_num(np.asarray(image, np.float32))
        grey = image.mean(-1)
        edges = [np.abs(cv2.Sobel(grey, cv2.CV_32F, dx, 1 - dx, ksize=3)) for dx in (1, 0)]
        spread = image.std() or 1.0
        layers = [image / spread, *(edge[..., None] / (edge.mean() or 1.0) for edge in edges)]
        summed = np.concatenate(layers, axis=-1).cumsum(0, dtype=np.float64).cumsum(1)
        self.size = image.shape[:2]
        self._sums = np.pad(summed, ((1, 0), (1, 0), (0, 0)))

    def means(self, rectangles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean colour and edges (x, y) of rectangles, [N, 5], NaN where they are empty; and their pixels, [N]."""
        height, width = self.size
        x1, y1, x2, y2 = np.clip(np.rint(rectangles), 0, [width, height, width, height]).astype(int).T
        x2, y2 = np.maximum(x1, x2), np.maximum(y1, y2)
        pixels = ((x2 - x1) * (y2 - y1)).astype(float)
        sums = self._sums[y2, x2] - self._sums[y1, x2] - self._sums[y2, x1] + self._sums[y1, x1]
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / pixels[:, None], pixels


def measures(picture: Picture, boxes: np.ndarray) -> np.ndarray:
    """Five measures of each box, [N, 5], NaN where there is nothing to measure.

    Mean and least difference of colour across its four sides, edges along them, difference of colour between its
    middle and what surrounds it, and edges within less those around.

    Args:
        picture: that they are in.
        boxes: [N, 4] corners in pixels.
    """
    contrast, edges = zip(*(_side(picture, boxes, axis, end) for axis in (0, 1) for end in (0, 1)), strict=True)
    contrast, edges = np.stack(contrast), np.stack(edges)
    size = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    middle, _ = picture.means(boxes + size * [0.25, 0.25, -0.25, -0.25])
    within, inner = picture.means(boxes)
    wide, outer = picture.means(boxes + size * [-0.2, -0.2, 0.2, 0.2])
    with np.errstate(invalid="ignore", divide="ignore"):
        around = (wide * outer[:, None] - within * inner[:, None]) / (outer - inner)[:, None]
    stands_out = np.linalg.norm(middle[:, :3] - around[:, :3], axis=1)
    busier = within[:, 3:].sum(1) - around[:, 3:].sum(1)
    return np.stack([known_mean(contrast), _least(contrast), known_mean(edges), stands_out, busier], axis=1)


def _side(picture: Picture, boxes, axis: int, end: int) -> tuple[np.ndarray, np.ndarray]:
    """Difference of colour across the low (end 0) or high side of boxes, and the edges along it: [N] each."""
    side, along = boxes[:, axis + 2 * end], 1 - axis
    length = boxes[:, 2:] - boxes[:, :2]
    depth = np.clip(DEPTH * length[:, axis], *DEPTHS)
    strips = np.empty((3, len(boxes), 4))
    strips[..., along] = boxes[:, along] + CORNERS * length[:, along]
    strips[..., along + 2] = boxes[:, along + 2] - CORNERS * length[:, along]
    for strip, start in zip(strips, (side - depth, side, side - depth / 2), strict=True):
        strip[:, axis], strip[:, axis + 2] = start, start + depth
    (before, _), (after, _), (on, _) = (picture.means(strip) for strip in strips)
    return np.linalg.norm(before[:, :3] - after[:, :3], axis=1), on[:, 3 + axis]


def random_places(picture: Picture, boxes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Measures of boxes of the same sizes at random places: [PLACES, N, 5]."""
    size, room = boxes[:, 2:] - boxes[:, :2], np.array(picture.size[::-1])
    corner = rng.random((PLACES, len(boxes), 2)) * np.maximum(room - size, 0)
    placed = np.concatenate([corner, corner + size], axis=-1)
    return measures(picture, placed.reshape(-1, 4)).reshape(PLACES, len(boxes), -1)


def measurable(boxes: np.ndarray, size) -> np.ndarray:
    """Which boxes can be measured in an image of (height, width): [N] bool."""
    sides, room = boxes[:, 2:] - boxes[:, :2], np.array(size[::-1])
    centre = (boxes[:, 2:] + boxes[:, :2]) / 2
    fits = (sides >= SMALLEST) & (sides <= 1.05 * room) & (centre > 0) & (centre < room)
    return fits.all(1) & np.isfinite(boxes).all(1)


def compared(found: np.ndarray, by_chance: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Evidence of each box, [N]: how far its measures lie above those of random places.

    Args:
        found: [N, 5] measures.
        by_chance: [N, 5] mean measures at random places.
        deviation: [5], of measures at random places.
    """
    scores = np.clip((found - by_chance) / deviation, *LIMITS)
    known = np.isfinite(scores)
    total = np.where(known, scores, 0.0).sum(1)
    return np.where(known.any(1), total / np.maximum(known.sum(1), 1), NOTHING)


def deviations(chance: np.ndarray) -> np.ndarray:
    """Standard deviation of each of five measures, [5], of those [..., 5] that are known; 1 where none is."""
    rows = chance.reshape(-1, chance.shape[-1])
    return np.array(
        [max(float(one[np.isfinite(one)].std()), 1e-6) if np.isfinite(one).any() else 1.0 for one in rows.T]
    )


def known_mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is known; NaN where nothing is."""
    known = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(known, values, 0.0).sum(0) / known.sum(0)


def _least(values: np.ndarray) -> np.ndarray:
    least = np.where(np.isfinite(values), values, np.inf).min(0)
    return np.where(np.isfinite(least), least, np.nan)
