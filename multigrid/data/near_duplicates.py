"""Pictures of one scene: the same image saved again, or taken again with the camera moved a little.

Two pictures are laid over each other where their details match best, and then compared part by part in what they
share. Every part but one must match: pictures of one tray with other things on it are no duplicates. Brightness and
contrast do not count, nor does the size in pixels; turned, mirrored and differently cropped copies are not found.

Convention of this module: a thumbnail is uint8 grey [SIDE, SIDE], the whole image whatever its aspect; a shift is
(x, y) in shares of the image's width and height.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

SIDE = 160
COARSE_SIDE = 64  # at which all pairs are compared
BLUR = 1 / 20  # of the side: what is smoother than this is lighting, not detail
LIKELY = 0.3  # peak of the cross-correlation of a pair that is looked at closely
NEARLY_ALIGNED = 0.5  # correlation of what two pictures share, before they are aligned to the pixel
CORRELATION = 0.8  # and after it
PARTS = 4  # across and down
PART_AGREEMENT = 0.5  # of each part but one: a mark or a speck of dust may be in one picture alone
NOISE = 1.0  # grey levels: parts with no more than this in both pictures agree
FAINTEST = 0.1  # standard deviation of details in grey levels; a picture with less is plain, and matches nothing
SMALLEST_OVERLAP = 0.4  # share of the picture
BLOCK = 512  # pictures compared with one at a time; their transforms take 9 MB
KEPT_DETAILS = 1024  # of 100 kB: a block's, and those that it is compared with


@dataclass(frozen=True)
class NearDuplicate:
    """Two pictures that show the same.

    Attributes:
        first: position of one, among the first pictures.
        second: position of the other, among the second.
        agreement: correlation of the details in what they share, from `CORRELATION` to 1.
        overlap: share of the picture that they share.
        shift: (x, y) of what is in the second, in the first; in shares of width and height.
    """

    first: int
    second: int
    agreement: float
    overlap: float
    shift: tuple[float, float]


def thumbnail(image: np.ndarray) -> np.ndarray:
    """The thumbnail of an image, uint8 [SIDE, SIDE].

    Args:
        image: uint8 RGB [height, width, 3].
    """
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def near_duplicates(
    first: Sequence[np.ndarray],
    second: Sequence[np.ndarray],
    progress: Callable[[int], None] = lambda pairs: None,
) -> list[NearDuplicate]:
    """Every pair of a first and a second picture that show the same.

    The time grows with the number of pairs: some thirty thousand take a second. The transforms of the first pictures
    are in memory together, 17 kB each, so the fewer should come first.

    Args:
        first: thumbnails.
        second: thumbnails.
        progress: called with how many pairs are compared so far.

    Returns:
        The pairs, by position.
    """
    spectra = [_spectrum(one) for one in first]
    detail = functools.lru_cache(KEPT_DETAILS)(lambda of_first, index: _detail((second, first)[of_first][index]))
    found = []
    for start in range(0, len(second), BLOCK):
        block = second[start : start + BLOCK]
        others = np.stack([_spectrum(one) for one in block])
        for index, spectrum in enumerate(spectra):
            peaks, places = _peaks(spectrum, others)
            for near in np.flatnonzero(peaks > LIKELY):
                other = start + int(near)
                match = _compared(detail(True, index), detail(False, other), places[near])
                if match is not None:
                    found.append(NearDuplicate(index, other, *match))
            progress(start * len(first) + (index + 1) * len(block))
    return sorted(found, key=lambda match: (match.first, match.second))


def _detail(grey: np.ndarray) -> np.ndarray:
    """A picture without its smooth part, float32 in grey levels."""
    grey = grey.astype(np.float32)
    return grey - cv2.GaussianBlur(grey, (0, 0), BLUR * grey.shape[0])


def _spectrum(grey: np.ndarray) -> np.ndarray:
    """Fourier transform of a picture's details at the coarse size, faded out at the border, of norm 1."""
    coarse = _detail(cv2.resize(grey, (COARSE_SIDE, COARSE_SIDE), interpolation=cv2.INTER_AREA))
    coarse *= cv2.createHanningWindow(coarse.shape, cv2.CV_32F)
    coarse -= coarse.mean()
    return np.fft.rfft2(coarse / (np.linalg.norm(coarse) + 1e-6)).astype(np.complex64)


def _peaks(one: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How well a picture matches each of others where it matches best, [N], and that shift, int [N, 2] (y, x)."""
    matches = np.fft.irfft2(one * others.conj(), s=(COARSE_SIDE, COARSE_SIDE)).reshape(len(others), -1)
    best = matches.argmax(axis=1)
    places = np.stack(np.unravel_index(best, (COARSE_SIDE, COARSE_SIDE)), axis=1)
    # The transform is periodic: a shift beyond half the side is one the other way.
    return matches[np.arange(len(others)), best], np.where(places > COARSE_SIDE // 2, places - COARSE_SIDE, places)


def _compared(one: np.ndarray, other: np.ndarray, coarse_shift) -> tuple[float, float, tuple[float, float]] | None:
    """(agreement, overlap, shift) of two pictures that show the same; None for others."""
    if min(one.std(), other.std()) < FAINTEST:
        return None
    y, x = (int(side) for side in np.round(coarse_shift * SIDE / COARSE_SIDE))
    if _correlation(*_shared(one, other, y, x)) < NEARLY_ALIGNED:
        return None
    # The coarse shift is right to a pixel of the coarse size.
    around = range(-(SIDE // COARSE_SIDE), SIDE // COARSE_SIDE + 1)
    places = [(y + down, x + right) for down in around for right in around]
    y, x = max(places, key=lambda place: _correlation(*_shared(one, other, *place)))
    shared = _shared(one, other, y, x)
    agreement, overlap = _correlation(*shared), shared[0].size / one.size
    if agreement < CORRELATION or overlap < SMALLEST_OVERLAP or _second_worst_part(*shared) < PART_AGREEMENT:
        return None
    return agreement, overlap, (x / SIDE, y / SIDE)


def _shared(one: np.ndarray, other: np.ndarray, y: int, x: int) -> tuple[np.ndarray, np.ndarray]:
    """What two pictures share where the second is moved by (y, x) pixels."""
    height, width = one.shape
    rows, columns = height - abs(y), width - abs(x)
    top, left = max(y, 0), max(x, 0)
    return (
        one[top : top + rows, left : left + columns],
        other[top - y : top - y + rows, left - x : left - x + columns],
    )


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    norms = np.linalg.norm(one) * np.linalg.norm(other)
    return float(np.vdot(one, other) / norms) if norms else 0.0


def _second_worst_part(one: np.ndarray, other: np.ndarray) -> float:
    """Agreement of the part that agrees least but one, of PARTS × PARTS: 1 for the same, about 0 for unlike ones.

    2 · mean(a b) / (mean(a²) + mean(b²)), both pictures brought to one contrast and with the noise's variance on
    either side of the fraction, so that plain parts agree and a thing on a plain part does not.
    """
    deviations = one.std(), other.std()
    noise = NOISE**2 / float(deviations[0] * deviations[1])
    one, other = one / deviations[0], other / deviations[1]
    agreements = []
    for a, b in zip(_parts(one), _parts(other), strict=True):
        alike, all_there = np.mean(a * b), (np.mean(a * a) + np.mean(b * b)) / 2
        agreements.append(float((alike + noise) / (all_there + noise)))
    return sorted(agreements)[1]


def _parts(picture: np.ndarray) -> list[np.ndarray]:
    return [part for rows in np.array_split(picture, PARTS) for part in np.array_split(rows, PARTS, axis=1)]
