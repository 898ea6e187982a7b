"""A picture of anchors and of the boxes that they are to match."""

from __future__ import annotations

import os

import numpy as np

from multigrid.geometry.anchor_fit import AnchorFit, match_statistics, numpy_iol
from multigrid.geometry.anchors import Anchors
from multigrid.report import replacing


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

    fit = match_statistics(anchors, sizes_wh)
    sizes = np.asarray(sizes_wh, dtype=np.float32).reshape(-1, 2)
    figure = Figure(figsize=(13, 6), dpi=100, layout="constrained")
    figure.suptitle(f"{fit.boxes} boxes: mean best IoL {fit.mean_iol:.3f}, above 0.5 for {fit.share_above_half:.1%}")
    scatter, rectangles = figure.subplots(1, 2)
    _draw_sizes(scatter, anchors, sizes, fit)
    _draw_rectangles(rectangles, anchors, fit)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def _draw_sizes(axes, anchors: Anchors, sizes: np.ndarray, fit: AnchorFit) -> None:
    from matplotlib.ticker import FormatStrFormatter, LogLocator

    scale_of_box = numpy_iol(sizes, anchors.flat()).argmax(axis=1) // anchors.per_scale
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
