"""What scenes are drawn from: outlines of shapes, their pixels, and backgrounds.

Points are (x, y) in pixels from the image's upper left corner. All that is drawn at random comes from the generator
that is handed over; another order of draws is another picture.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

SUPERSAMPLING = 8
SUBPIXEL_BITS = 4


# --- outlines ---------------------------------------------------------------------------------------------------------


def _circle(radii, count: int) -> np.ndarray:
    """[count, 2] points around the origin, the radii taken in turn."""
    angles = np.arange(count) * (2 * np.pi / count)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.resize(radii, count)[:, None]


def _cross(arm: float) -> np.ndarray:
    """[12, 2] points of a plus sign of half-length 1 and half-thickness `arm`."""
    corner = np.array([[1, -arm], [1, arm], [arm, arm]])
    quarter_turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([corner @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)])


def _unit_contours(name: str, rng: np.random.Generator) -> tuple[list[np.ndarray], float, float]:
    """Contours around the origin, how much longer than wide to stretch them, and the angle to turn them by."""
    turn = rng.uniform(0, 2 * np.pi)
    if name == "disc":
        return [_circle(1.0, 48)], rng.uniform(1, 1.7), turn
    if name == "triangle":
        return [_circle(1.0, 3)], rng.uniform(1, 1.5), turn
    if name == "star":
        return [_circle([1.0, rng.uniform(0.42, 0.5)], 10)], rng.uniform(1, 1.25), turn
    if name == "ring":
        return [_circle(1.0, 48), _circle(rng.uniform(0.45, 0.65), 48)], rng.uniform(1, 1.6), turn
    if name == "cross":
        return [_cross(rng.uniform(0.26, 0.38))], rng.uniform(1, 1.4), turn
    # A bar lies or stands, nearly straight: tilted further, its box would not be elongated.
    upright = rng.integers(2) * np.pi / 2
    return [_circle(1.0, 4) @ _rotation(np.pi / 4)], rng.uniform(2.8, 5.2), upright + rng.uniform(-0.05, 0.05)


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def draw_outline(
    name: str, size: float, longest: tuple[float, float], rng: np.random.Generator, thinnest: float = 8.0
) -> list[np.ndarray]:
    """A shape of this class, stretched, turned and scaled at random.

    Args:
        name: one of the outlines above: disc, triangle, star, ring, cross, bar.
        size: the square root of the area of its box, in pixels.
        longest: the box's largest (width, height) in pixels; wins over `size` and `thinnest`.
        rng: what to draw from.
        thinnest: the least length of the box's shorter side in pixels; wins over `size`.

    Returns:
        Contours, float [P, 2] points (x, y) in pixels, of which a second one is a hole. The box's upper left corner
        lies between 1 and 2 in x and in y.
    """
    contours, stretch, turn = _unit_contours(name, rng)
    transform = np.diag([math.sqrt(stretch), 1 / math.sqrt(stretch)]) @ _rotation(turn)
    contours = [points @ transform for points in contours]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    extent = high - low
    scale = max(size / math.sqrt(extent.prod()), thinnest / extent.min())
    scale = min(scale, longest[0] / extent[0], longest[1] / extent[1])
    return [(points - low) * scale + 1 + rng.random(2) for points in contours]


def rasterize(contours: list[np.ndarray]) -> np.ndarray:
    """How much of each pixel the shape covers.

    Args:
        contours: float [P, 2] points (x, y) in pixels, the first one around the others, which are holes.

    Returns:
        uint8 [rows, columns] in 0..255, from the origin to at least one empty pixel beyond the shape.
    """
    columns, rows = np.ceil(contours[0].max(axis=0)).astype(int) + 1
    fine = np.zeros((rows * SUPERSAMPLING, columns * SUPERSAMPLING), np.uint8)
    # OpenCV's integer coordinates are the centres of pixels, hence the half.
    points = [
        np.round((c * SUPERSAMPLING - 0.5) * (1 << SUBPIXEL_BITS)).astype(np.int32).reshape(-1, 1, 2) for c in contours
    ]
    cv2.fillPoly(fine, points, 255, shift=SUBPIXEL_BITS)
    return cv2.resize(fine, (int(columns), int(rows)), interpolation=cv2.INTER_AREA)


# --- background -------------------------------------------------------------------------------------------------------


def draw_background(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [height, width, 3]: a gradient, value noise, mostly stripes, and clutter of low contrast."""
    # The slow parts are drawn at a quarter of the size: nobody sees the difference, and it costs a sixteenth.
    small = (math.ceil(width / 4), math.ceil(height / 4))
    base = rng.uniform(50, 205, 3)
    corners = (base + rng.uniform(-45, 45, (2, 2, 3))).astype(np.float32)
    slow = cv2.resize(corners, small, interpolation=cv2.INTER_LINEAR)
    for cell, strength in ((64, 22.0), (24, 14.0), (10, 9.0)):
        grid = (height // cell + 2, width // cell + 2, 1)
        noise = rng.standard_normal(grid) * rng.uniform(0.2, 1.3, 3) * strength * rng.random()
        slow += cv2.resize(noise.astype(np.float32), small, interpolation=cv2.INTER_CUBIC)
    image = cv2.resize(slow, (width, height), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.6:
        image += _draw_stripes(height, width, rng)[..., None] * rng.uniform(0.4, 1, 3).astype(np.float32)
    return image + _draw_clutter(height, width, rng)[..., None] * rng.uniform(0.4, 1, 3).astype(np.float32)


def _draw_stripes(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [height, width] waves in one direction, sometimes crossed by a second, of 4 to 16 grey levels."""
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    total = np.zeros((height, width), np.float32)
    for _ in range(int(rng.integers(1, 3))):
        angle, wavelength = rng.uniform(0, np.pi), rng.uniform(7, 40)
        kx, ky = 2 * np.pi / wavelength * np.array([np.cos(angle), np.sin(angle)])
        # sin(a + b) by its addition theorem: two outer products instead of a sine a pixel.
        along, across = x * np.float32(kx) + np.float32(rng.uniform(0, 6.3)), y * np.float32(ky)
        total += np.float32(rng.uniform(4, 11)) * (np.sin(along) * np.cos(across) + np.cos(along) * np.sin(across))
    return total


def _draw_clutter(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [height, width]: thin curves, slivers and patches, up to 24 grey levels from 0."""
    layer = np.full((height, width), 128, np.uint8)
    for _ in range(int(rng.integers(6, 30))):
        reach = math.exp(rng.uniform(math.log(12), math.log(300)))
        centre = rng.uniform(0, 1, 2) * (width, height)
        grey = int(128 + rng.uniform(-24, 24))
        kind = rng.random()
        if kind < 0.4:
            ends = np.round(centre + rng.uniform(-reach, reach, (2, 2))).astype(int).tolist()
            cv2.line(layer, ends[0], ends[1], grey, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind < 0.7:
            start, axes = rng.uniform(0, 360), np.round(rng.uniform(0.3, 1, 2) * reach / 2).astype(int).tolist()
            middle, arc = np.round(centre).astype(int).tolist(), rng.uniform(40, 170)
            cv2.ellipse(layer, middle, axes, start, 0, arc, grey, int(rng.integers(1, 4)), cv2.LINE_AA)
        else:
            patch = np.round(centre + rng.uniform(-reach / 2, reach / 2, (5, 2))).astype(np.int32).reshape(-1, 1, 2)
            cv2.fillPoly(layer, [patch], grey, cv2.LINE_AA)
    return layer.astype(np.float32) - 128
