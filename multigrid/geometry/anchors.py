"""The anchors: the sizes that boxes are coded against. Read, write, fit to a data set, compare with it, draw.

Convention of this module: a size is (width, height) in pixels of the network's input. Scales run coarse to fine
(strides 32, 16, 8), so the first scale holds the largest anchors.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.geometry.boxes import iol

FINEST_STRIDE = 8
RESTARTS = 8
MAX_ITERATIONS = 100
# k-means settles on far fewer boxes than a large data set holds; more only cost time.
FIT_LIMIT = 20_000
WORST_SHOWN = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Anchors:
    """The anchor sizes of every scale; equal and hashable by value.

    Args:
        sizes: [scales, A, 2] float32 (nested lists will do), (width, height) in input pixels, scales coarse to fine.

    Raises:
        InputError: the shape is another one, or a size is not positive and finite.
    """

    sizes: np.ndarray

    def __post_init__(self):
        try:
            sizes = np.array(self.sizes, dtype=np.float32)
        except (TypeError, ValueError):
            raise InputError(
                f"anchors: expected numbers [scales, anchors a scale, 2], received {self.sizes!r}"
            ) from None
        if sizes.ndim != 3 or sizes.shape[-1] != 2 or sizes.size == 0:
            raise InputError(f"anchors: expected sizes [scales, anchors a scale, 2], received shape {sizes.shape}")
        if not (np.isfinite(sizes).all() and (sizes > 0).all()):
            raise InputError(f"anchors: expected positive, finite sizes, received {sizes.tolist()}")
        sizes.flags.writeable = False
        object.__setattr__(self, "sizes", sizes)

    @classmethod
    def from_flat(cls, sizes_wh, scales: int = 3) -> Anchors:
        """Anchors sorted by area and dealt to the scales, the largest to the coarsest.

        Args:
            sizes_wh: [scales * A, 2] float, (width, height) in input pixels, in any order.
            scales: the number of scales.

        Returns:
            Anchors; within a scale they run small to large.

        Raises:
            InputError: the sizes cannot be dealt evenly.
        """
        sizes = np.asarray(sizes_wh, dtype=np.float32).reshape(-1, 2)
        if len(sizes) == 0 or len(sizes) % scales:
            raise InputError(f"anchors: expected a multiple of {scales} sizes, {scales} scales, received {len(sizes)}")
        ordered = sizes[np.argsort(sizes.prod(axis=1), kind="stable")]
        return cls(ordered.reshape(scales, -1, 2)[::-1])

    @property
    def num_scales(self) -> int:
        """The number of scales."""
        return self.sizes.shape[0]

    @property
    def per_scale(self) -> int:
        """The number of anchors a scale."""
        return self.sizes.shape[1]

    @property
    def strides(self) -> tuple[int, ...]:
        """Input pixels a cell, coarse to fine: (32, 16, 8) for three scales."""
        return tuple(FINEST_STRIDE * 2**power for power in reversed(range(self.num_scales)))

    def flat(self) -> np.ndarray:
        """All sizes, float32 [scales * A, 2], coarse to fine: index = scale * A + anchor."""
        return self.sizes.reshape(-1, 2)

    def to_list(self) -> list:
        """The sizes as nested lists of floats; `Anchors(anchors.to_list())` is equal to `anchors`."""
        return self.sizes.tolist()

    def __eq__(self, other):
        if not isinstance(other, Anchors):
            return NotImplemented
        return np.array_equal(self.sizes, other.sizes)

    def __hash__(self):
        return hash((self.sizes.shape, self.sizes.tobytes()))


def read_anchors(path: str | os.PathLike, scales: int = 3) -> Anchors:
    """The anchors of a text file in either common layout; the layout is seen from the number of lines.

    One line holds all pairs "width,height" (keras-yolo3, Darknet) and is dealt to the scales by area. Otherwise a
    line holds one scale; the line with the largest area belongs to the coarsest grid, and the order within a line
    stays. Empty lines and what follows a `#` are no content.

    Args:
        path: the file.
        scales: the number of scales that the network has.

    Returns:
        Anchors in the pixels that the file gives.

    Raises:
        InputError: naming file and line.
    """
    rows = [(number, _parse_line(text, path, number)) for number, text in _content_lines(path)]
    if len(rows) not in (1, scales):
        raise InputError(f"{path}: expected 1 line of anchors or {scales}, one a scale, received {len(rows)} lines")
    (first_number, first), *others = rows
    if not others:
        if len(first) % scales:
            raise InputError(
                f"{path}, line {first_number}: expected a multiple of {scales} pairs, one share a scale, "
                f"received {len(first)}"
            )
        return Anchors.from_flat(first, scales)
    for number, pairs in others:
        if len(pairs) != len(first):
            raise InputError(
                f"{path}, line {number}: expected {len(first)} pairs as in line {first_number}, received {len(pairs)}"
            )
    lines = sorted((pairs for _, pairs in rows), key=lambda pairs: -sum(width * height for width, height in pairs))
    return Anchors(lines)


def _content_lines(path) -> list[tuple[int, str]]:
    try:
        text = pathlib.Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "bytes that are not text"
        raise InputError(f"{path}: expected a text file of anchors, received: {reason}") from error
    lines = [(number, line.split("#")[0].strip()) for number, line in enumerate(text.splitlines(), start=1)]
    lines = [(number, line) for number, line in lines if line]
    if not lines:
        raise InputError(f'{path}: expected pairs "width,height", received an empty file')
    return lines


def _parse_line(text: str, path, number: int) -> list[tuple[float, float]]:
    """The pairs of one line; between them spaces, commas or both: `10,13 16,30`, `10,13, 16,30`, `10,13,16,30`."""
    groups = [word.strip(",").split(",") for word in text.split()]
    groups = [group for group in groups if group != [""]]
    if groups and all(len(group) == 1 for group in groups):  # `10, 13, 16, 30`
        groups = [[group[0] for group in groups]]
    values: list[float] = []
    for group in groups:
        try:
            values += [float(word) for word in group]
        except ValueError:
            received = ",".join(group)
            raise InputError(f'{path}, line {number}: expected pairs "width,height", received "{received}"') from None
        if len(group) % 2:
            received = ",".join(group) if len(groups) > 1 else f"{len(group)} numbers"
            raise InputError(f'{path}, line {number}: expected pairs "width,height", received "{received}"')
    pairs = list(zip(values[0::2], values[1::2], strict=True))
    for width, height in pairs:
        if not (math.isfinite(width) and math.isfinite(height) and width > 0 and height > 0):
            raise InputError(f'{path}, line {number}: expected positive, finite sizes, received "{width:g},{height:g}"')
    if not pairs:
        raise InputError(f'{path}, line {number}: expected pairs "width,height", received "{text}"')
    return pairs


def write_anchors(anchors: Anchors, path: str | os.PathLike, layout: str = "line") -> None:
    """Writes the anchors so that `read_anchors` returns them.

    Args:
        anchors: the anchors.
        path: the file; its folder is made.
        layout: "line", all pairs on one line, small to large; or "scales", one line a scale, fine to coarse.

    Raises:
        ValueError: the layout is another word.
    """
    fine_to_coarse = [" ".join(_pair(size) for size in scale) for scale in anchors.sizes[::-1]]
    if layout == "scales":
        text = "\n".join(fine_to_coarse)
    elif layout == "line":
        ordered = anchors.flat()[np.argsort(anchors.flat().prod(axis=1), kind="stable")]
        text = ", ".join(_pair(size) for size in ordered)
    else:
        raise ValueError(f'expected layout "line" or "scales", received {layout!r}')
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def _pair(size) -> str:
    # The shortest digits that give the same float32 back.
    return ",".join(np.format_float_positional(value, trim="-") for value in size)


def fit_anchors(sizes_wh, count: int = 9, scales: int = 3, seed: int = 0) -> Anchors:
    """The anchors that match a data set's boxes best: k-means with the distance 1 - IoL, several restarts.

    Of more than `FIT_LIMIT` boxes a random sample of that many is used.

    Args:
        sizes_wh: [N, 2] float, (width, height) in input pixels.
        count: the number of anchors, a multiple of `scales`.
        scales: the number of scales.
        seed: of the restarts; the same seed gives the same anchors.

    Returns:
        Anchors, rounded to 0.01 pixel.

    Raises:
        InputError: fewer distinct sizes than anchors, sizes that are not positive, or a count that cannot be dealt.
    """
    if count < 1 or count % scales:
        raise InputError(f"anchors: expected a count that is a multiple of {scales} scales, received {count}")
    sizes = _checked_sizes(sizes_wh)
    random = np.random.default_rng(seed)
    if len(sizes) > FIT_LIMIT:
        sizes = random.choice(sizes, FIT_LIMIT, replace=False)
    distinct, weights = np.unique(sizes, axis=0, return_counts=True)
    if len(distinct) < count:
        raise InputError(f"anchors: expected at least {count} distinct box sizes to fit, received {len(distinct)}")
    fits = [_k_means(sizes, _spread_seeds(distinct, weights, count, random)) for _ in range(RESTARTS)]
    _, best = max(fits, key=lambda fit: fit[0])
    return Anchors.from_flat(np.maximum(np.round(best, 2), 0.01), scales)


def _spread_seeds(distinct: np.ndarray, weights: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """`count` of the distinct sizes, each drawn with the chance of its distance to those drawn before (k-means++)."""
    chosen = [int(random.choice(len(distinct), p=weights / weights.sum()))]
    while len(chosen) < count:
        distance = 1.0 - _numpy_iol(distinct, distinct[chosen]).max(axis=1)
        # A distance may round to 0 between sizes that differ; every size not yet drawn keeps a chance.
        chance = weights * np.maximum(distance, 1e-6).astype(np.float64)
        chance[chosen] = 0.0
        chosen.append(int(random.choice(len(distinct), p=chance / chance.sum())))
    return distinct[chosen]


def _k_means(sizes: np.ndarray, centres: np.ndarray) -> tuple[float, np.ndarray]:
    """(mean best IoL, centres [K, 2]) of the best iteration; the median update may make the mean worse again."""
    best_mean, best_centres, previous = -1.0, centres, None
    for _ in range(MAX_ITERATIONS):
        overlaps = _numpy_iol(sizes, centres)
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


def _numpy_iol(sizes_wh: np.ndarray, anchors_wh: np.ndarray) -> np.ndarray:
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
    overlaps = _numpy_iol(sizes, anchors.flat())
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


def draw_anchors(anchors: Anchors, sizes_wh, path: str | os.PathLike) -> None:
    """Draws boxes and anchors: their sizes on logarithmic axes, and the anchors as rectangles to scale.

    A box has the colour of the scale that takes it. Anchors are numbered by their flat index; the list beside the
    rectangles says the share of the boxes that each matches.

    Args:
        anchors: the anchors.
        sizes_wh: [N, 2] float, (width, height) in input pixels.
        path: the picture file; its folder is made.

    Raises:
        InputError: no boxes, or sizes that are not positive and finite.
    """
    # Loaded here because it costs most of a second and only this picture needs it.
    from matplotlib.figure import Figure

    sizes = _checked_sizes(sizes_wh)
    fit = match_statistics(anchors, sizes)
    figure = Figure(figsize=(13, 6), dpi=100, layout="constrained")
    figure.suptitle(f"{fit.boxes} boxes: mean best IoL {fit.mean_iol:.3f}, above 0.5 for {fit.share_above_half:.1%}")
    scatter, rectangles = figure.subplots(1, 2)
    _draw_sizes(scatter, anchors, sizes, fit)
    _draw_rectangles(rectangles, anchors, fit)
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_sizes(axes, anchors: Anchors, sizes: np.ndarray, fit: AnchorFit) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    scale_of_box = _numpy_iol(sizes, anchors.flat()).argmax(axis=1) // anchors.per_scale
    for scale, stride in enumerate(anchors.strides):
        width, height = sizes[scale_of_box == scale].T
        label = f"stride {stride}: {fit.scale_shares[scale]:.1%} of the boxes"
        axes.scatter(width, height, s=8, alpha=0.35, color=f"C{scale}", linewidths=0, label=label)
    for index, (width, height) in enumerate(anchors.flat()):
        colour = f"C{index // anchors.per_scale}"
        axes.text(
            width,
            height,
            str(index),
            fontsize=8,
            ha="center",
            va="center",
            bbox={"boxstyle": "square,pad=0.2", "facecolor": "white", "edgecolor": colour, "alpha": 0.85},
        )
    axes.set(xscale="log", yscale="log", xlabel="width, input pixels", ylabel="height, input pixels")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FormatStrFormatter("%g"))
        axis.set_minor_formatter("")
    both = np.concatenate([sizes, anchors.flat()])
    limits = (both.min() / 1.3, both.max() * 1.3)
    axes.set(xlim=limits, ylim=limits, aspect="equal", title="sizes of boxes (points) and anchors (numbers)")
    axes.grid(True, which="both", alpha=0.2)
    axes.legend(loc="upper left", fontsize=9, markerscale=2)


def _draw_rectangles(axes, anchors: Anchors, fit: AnchorFit) -> None:
    from matplotlib.patches import Rectangle

    shares = np.asarray(fit.shares).reshape(-1)
    for index, (width, height) in enumerate(anchors.flat()):
        label = f"{index}: {width:.4g} x {height:.4g}  {shares[index]:.1%}"
        colour = f"C{index // anchors.per_scale}"
        corner = (-width / 2, -height / 2)
        axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=1.5, label=label))
    side = float(anchors.sizes.max()) / 2 * 1.05
    axes.set(xlim=(-side, side), ylim=(-side, side), aspect="equal", xlabel="input pixels")
    axes.set_title("the anchors to scale, on one centre")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9, title="anchor, share of boxes")
