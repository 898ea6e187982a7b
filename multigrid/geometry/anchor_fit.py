"""Anchors against a data set: the ones that fit its boxes best, and how well given ones do.

Convention of this module: a size is (width, height) in pixels of the network's input.
"""

from __future__ import annotations

import dataclasses

import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.geometry.anchors import Anchors, strides_of
from multigrid.geometry.boxes import iol

RESTARTS = 8
MAX_ITERATIONS = 100
# k-means settles on far fewer boxes than a large data set holds; more only cost time.
FIT_LIMIT = 20_000
WORST_SHOWN = 3
DEALS = ("stride", "area")
BACK = 1.0005  # how far within its scale an anchor is put that has grown out of it
SUITED_CELLS = 3.0  # side, in cells, of the objects that a scale is for: the 3×3 cells of one then cover it


def fit_anchors(sizes_wh, count: int = 9, scales: int = 3, seed: int = 0, deal: str = "stride") -> Anchors:
    """The anchors that match a data set's boxes best: k-means with the distance 1 - IoL, several restarts.

    Of more than `FIT_LIMIT` boxes a random sample of that many is used.

    Args:
        sizes_wh: [N, 2] float, (width, height) in input pixels.
        count: the number of anchors, a multiple of `scales`.
        scales: the number of scales.
        seed: of the restarts; the same seed gives the same anchors.
        deal: "stride": boxes go to the scale whose cells suit their size, see `suited_scale`, and each scale's anchors
            are fitted to its own boxes; one with fewer distinct sizes than anchors gets `typical_sizes` besides.
            "area": all anchors are fitted to all boxes and dealt by area, as many to each scale, as in YOLOv3.

    Returns:
        Anchors, rounded to 0.01 pixel.

    Raises:
        InputError: fewer distinct sizes than anchors ("area"), sizes that are not positive, or a count that cannot be
            dealt.
        ValueError: `deal` is another word.
    """
    if deal not in DEALS:
        raise ValueError(f"deal: expected one of {', '.join(DEALS)}, received {deal!r}")
    if count < 1 or count % scales:
        raise InputError(f"anchors: expected a count that is a multiple of {scales} scales, received {count}")
    sizes = _checked_sizes(sizes_wh)
    random = np.random.default_rng(seed)
    if len(sizes) > FIT_LIMIT:
        sizes = random.choice(sizes, FIT_LIMIT, replace=False)
    if deal == "area":
        return Anchors.from_flat(_fitted(sizes, count, random), scales)
    suited, typical = suited_scale(sizes, scales), typical_sizes(count // scales, scales)
    return Anchors(
        [
            _of_scale(sizes[suited == scale], typical[scale], sides, random)
            for scale, sides in enumerate(suited_sides(scales))
        ]
    )


def suited_sides(scales: int = 3) -> np.ndarray:
    """The least and the largest side that suits each scale, [scales, 2] float in pixels, coarse to fine.

    The middle of a scale is `SUITED_CELLS` cells, and neighbours meet halfway, as a ratio: strides 32, 16 and 8 at 68
    and 34 pixels.
    """
    middle = SUITED_CELLS * np.asarray(strides_of(scales))
    between = np.sqrt(middle[:-1] * middle[1:])
    return np.stack([np.append(between, 0.0), np.append(np.inf, between)], axis=1)


def suited_scale(sizes_wh, scales: int = 3) -> np.ndarray:
    """The scale whose cells suit the size of each box, the side of a square of its area, see `suited_sides`.

    Where anchors follow k-means alone, objects of nearly one size are shared out among all scales, and each has to
    learn them.

    Args:
        sizes_wh: [N, 2] float, (width, height) in input pixels.
        scales: the number of scales.

    Returns:
        [N] int, 0 the coarsest.
    """
    side = np.sqrt(np.prod(np.asarray(sizes_wh, "float64"), axis=1))
    return (side[:, None] >= suited_sides(scales)[:, 0]).argmax(axis=1)


def typical_sizes(count: int, scales: int = 3) -> np.ndarray:
    """Squares that spread over the sizes which suit each scale: [scales, count, 2] in pixels, small to large."""
    middle = SUITED_CELLS * np.asarray(strides_of(scales))[:, None]
    sides = middle * 2.0 ** (np.linspace(-0.5, 0.5, count + 2)[1:-1])
    return np.stack([sides, sides], axis=-1)


def _of_scale(sizes: np.ndarray, typical: np.ndarray, sides: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The anchors of one scale, as many as there are typical sizes, small to large, within the sides that suit it."""
    distinct, count = np.unique(_rounded(sizes), axis=0), len(typical)
    if len(distinct) >= count:
        fitted = _fitted(sizes, count, random)
    else:
        fitted = np.concatenate([distinct, typical[len(distinct) :]])
    # a file of anchors is dealt by area: what has grown out of its scale (a median of wide and tall boxes) goes back
    side = np.sqrt(fitted.prod(axis=1, keepdims=True))
    fitted = _rounded(fitted * np.clip(side, sides[0] * BACK, sides[1] / BACK) / side)
    return fitted[np.argsort(fitted.prod(axis=1), kind="stable")]


def _fitted(sizes: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The centres [count, 2] of the best of several k-means."""
    distinct, weights = np.unique(_rounded(sizes), axis=0, return_counts=True)
    if len(distinct) < count:
        raise InputError(f"anchors: expected at least {count} distinct box sizes to fit, received {len(distinct)}")
    fits = [_k_means(sizes, _spread_seeds(distinct, weights, count, random)) for _ in range(RESTARTS)]
    return _rounded(max(fits, key=lambda fit: fit[0])[1])


def _rounded(sizes: np.ndarray) -> np.ndarray:
    """To a hundredth of a pixel, as anchors are; letterboxing leaves boxes of one size a rounding error apart."""
    return np.maximum(np.round(sizes, 2), 0.01)


def _spread_seeds(distinct: np.ndarray, weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` of the distinct sizes, each drawn with the chance of its distance to those drawn before (k-means++)."""
    chosen = [int(random.choice(len(distinct), p=weights / weights.sum()))]
    while len(chosen) < count:
        distance = 1.0 - numpy_iol(distinct, distinct[chosen]).max(axis=1)
        # A distance may round to 0 between sizes that differ; every size not yet drawn keeps a chance.
        chance = weights * np.maximum(distance, 1e-6).astype(np.float64)
        chance[chosen] = 0.0
        chosen.append(int(random.choice(len(distinct), p=chance / chance.sum())))
    return distinct[chosen]


def _k_means(sizes: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """(mean best IoL, centres [K, 2]) of the best iteration; the median update may make the mean worse again."""
    best_mean, best_centres, previous = -1.0, centres, None
    for _ in range(MAX_ITERATIONS):
        overlaps = numpy_iol(sizes, centres)
        nearest, best_iol = overlaps.argmax(axis=1), overlaps.max(axis=1)
        if best_iol.mean() > best_mean:
            best_mean, best_centres = float(best_iol.mean()), centres
        if previous is not None and np.array_equal(nearest, previous):
            break
        centres, previous = _moved(sizes, centres, nearest, best_iol), nearest
    return best_mean, best_centres


def _moved(sizes: np.ndarray, centres: np.ndarray, nearest: np.ndarray, best_iol: np.ndarray) -> np.ndarray:
    """Each centre at the median of its boxes; a centre without boxes goes to one of the worst matched boxes."""
    moved = centres.copy()
    worst_first = iter(np.argsort(best_iol, kind="stable"))
    for index in range(len(centres)):
        members = sizes[nearest == index]
        moved[index] = np.median(members, axis=0) if len(members) else sizes[next(worst_first)]
    return moved


def _checked_sizes(sizes_wh) -> np.ndarray:
    sizes = np.asarray(sizes_wh, dtype=np.float32).reshape(-1, 2)
    if len(sizes) == 0:
        raise InputError("anchors: expected the sizes of at least one box, received none")
    good = np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)
    if not good.all():
        first = int(np.argmin(good))
        raise InputError(
            f"anchors: expected positive, finite box sizes, received {sizes[first].tolist()} for box {first + 1}"
        )
    return sizes


def numpy_iol(sizes_wh: np.ndarray, anchors_wh: np.ndarray) -> np.ndarray:
    """`boxes.iol` of sizes [N, 2] and anchors [K, 2], (width, height) in input pixels, as a NumPy array [N, K]."""
    return np.asarray(keras.ops.convert_to_numpy(iol(sizes_wh, anchors_wh)))


@dataclasses.dataclass(frozen=True)
class AnchorFit:
    """How well anchors match a data set's boxes.

    Args:
        boxes: the number of boxes.
        mean_iol: the mean over boxes of the IoL with the best of all anchors.
        share_above_half: the share of boxes whose best IoL is above 0.5.
        share_above_quarter: likewise above 0.25; below that, an anchor is more than four times off.
        anchors: the anchors that were compared.
        shares: the share of boxes that each anchor matches, [scales][A], coarse to fine; they sum to 1.
        worst: up to three (width, height, best IoL), the worst matched first.
    """

    boxes: int
    mean_iol: float
    share_above_half: float
    share_above_quarter: float
    anchors: Anchors
    shares: tuple[tuple[float, ...], ...]
    worst: tuple[tuple[float, float, float], ...]

    @property
    def scale_shares(self) -> tuple[float, ...]:
        """The share of boxes that each scale takes, coarse to fine."""
        return tuple(sum(scale) for scale in self.shares)

    @property
    def fits(self) -> bool:
        """Whether training can go on without a warning: mean IoL at least 0.5, at least 90 % of boxes above 0.25."""
        return self.mean_iol >= 0.5 and self.share_above_quarter >= 0.9

    def describe(self) -> str:
        """One paragraph of numbers."""
        used = "; ".join(
            " ".join(f"{w:.4g}x{h:.4g} {share:.1%}" for (w, h), share in zip(sizes, shares, strict=True))
            for sizes, shares in zip(self.anchors.sizes, self.shares, strict=True)
        )
        worst = ", ".join(f"{width:.4g}x{height:.4g} ({value:.2f})" for width, height, value in self.worst)
        scales = " / ".join(f"{share:.1%}" for share in self.scale_shares)
        return (
            f"{self.boxes} boxes: mean best IoL {self.mean_iol:.3f}, above 0.5 for {self.share_above_half:.1%}, above "
            f"0.25 for {self.share_above_quarter:.1%}; boxes a scale, coarse to fine: {scales}; boxes an anchor: "
            f"{used}; worst matched sizes (IoL): {worst}."
        )

    def warning(self, command: str) -> str | None:
        """What to tell the user, or None where the anchors fit.

        Args:
            command: what to type to fit anchors to this data set.
        """
        if self.fits:
            return None
        return (
            f"The anchors do not fit the boxes: expected a mean best IoL of at least 0.5 and at least 90% of the boxes "
            f"above 0.25, received {self.mean_iol:.3f} and {self.share_above_quarter:.1%} over {self.boxes} boxes. "
            f"Fit them with: {command}"
        )


def match_statistics(anchors: Anchors, sizes_wh) -> AnchorFit:
    """How well the anchors match these boxes.

    Args:
        anchors: the anchors.
        sizes_wh: [N, 2] float, (width, height) in input pixels, at the network's input size.

    Returns:
        AnchorFit.

    Raises:
        InputError: no boxes, or sizes that are not positive and finite.
    """
    sizes = _checked_sizes(sizes_wh)
    overlaps = numpy_iol(sizes, anchors.flat())
    best = overlaps.max(axis=1)
    counts = np.bincount(overlaps.argmax(axis=1), minlength=len(anchors.flat()))
    shares = (counts / len(sizes)).reshape(anchors.num_scales, anchors.per_scale)
    worst = np.argsort(best, kind="stable")[:WORST_SHOWN]
    return AnchorFit(
        boxes=len(sizes),
        mean_iol=float(best.mean()),
        share_above_half=float((best > 0.5).mean()),
        share_above_quarter=float((best > 0.25).mean()),
        anchors=anchors,
        shares=tuple(tuple(scale) for scale in shares.tolist()),
        worst=tuple((float(sizes[i, 0]), float(sizes[i, 1]), float(best[i])) for i in worst),
    )
