"""The pictures of an evaluation: curves, bars and the confusion matrix, in one look, for a narrow screen.

Colours are Okabe and Ito's, which people who see few colours tell apart, and one scale from light to dark. Up to eight
classes have a colour each; more are thin grey lines below the curve of all, for nobody tells eighty colours apart.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from multigrid.evaluation.curves import Curve
from multigrid.evaluation.figures import figure_file, shortened, write_plain_powers
from multigrid.evaluation.matching import Matches

WIDTH, HEIGHT, DPI = 6.0, 4.5, 150  # inches, and dots an inch
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D1F", "#5F4B8B")
ALL_COLOUR, FAINT_COLOUR, MARK_COLOUR = "black", "#9AA5AD", "#D55E00"
NUMBERED = 12  # classes up to which a confusion matrix shows its counts
NAMED = 100  # classes up to which a picture has room for their names
LONGEST_NAME = 28  # letters of a name that are shown
HIGHEST = 24.0  # inches, 3600 dots
POINTS = 1000  # of a curve; no picture shows more
LOOK = {"font.size": 11, "axes.titlesize": 12, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True}


def draw_plots(
    folder: str | os.PathLike, metrics: dict, curves: tuple[Curve, list[Curve]], matches: Matches
) -> list[str]:
    """Draws all pictures of an evaluation.

    Args:
        folder: where to; it is made.
        metrics: `Evaluation.full_metrics`.
        curves: of all detections in one list, and of each class.
        matches: detections and the objects that they found.

    Returns:
        The names of the files.
    """
    names = list(metrics["per_class"])
    overlaps = matches.iou[matches.true_positive]
    drawings = {
        "pr_curves.png": lambda path: draw_precision_recall(path, names, *curves, metrics),
        "f1_confidence.png": lambda path: draw_f1(path, names, *curves),
        "confusion_matrix.png": lambda path: draw_confusion(path, metrics["confusion"]),
        "ap_per_class.png": lambda path: draw_average_precisions(path, metrics),
        "iou_of_matches.png": lambda path: draw_overlaps(path, overlaps),
        "calibration.png": lambda path: draw_calibration(path, metrics["calibration"]),
    }
    for name, draw in drawings.items():
        draw(pathlib.Path(folder) / name)
    return list(drawings)


def draw_precision_recall(path, names: Sequence[str], pooled: Curve, each: Sequence[Curve], metrics: dict) -> None:
    """Draws precision over recall at IoU 0.5 with the envelope that average precision takes.

    Args:
        path: the picture file.
        names: one a class.
        pooled: of all detections in one list.
        each: one a class.
        metrics: for "mAP50", and "AP50" by class.
    """
    with _picture(path) as figure:
        axes = figure.subplots()
        precisions = [metrics["per_class"][name]["AP50"] for name in names]
        for (name, curve, style), precision in zip(_styled(names, each), precisions, strict=True):
            _draw_envelope(axes, curve, label=_labelled(shortened(name, LONGEST_NAME), precision), **style)
        _draw_envelope(axes, pooled, label="all in one list", color=ALL_COLOUR, linewidth=2)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
        axes.set_title(_labelled("precision and recall at IoU 0.5: mAP50", metrics["mAP50"]))
        _legend(axes, "lower left", len(each))


def draw_f1(path, names: Sequence[str], pooled: Curve, each: Sequence[Curve]) -> None:
    """Draws F1 over the score that a detection must reach; arguments as for `draw_precision_recall`."""
    thresholds, best = np.linspace(0, 1, 401), pooled.best()
    with _picture(path) as figure:
        axes = figure.subplots()
        for name, curve, style in _styled(names, each):
            if curve.objects:
                label = _labelled(shortened(name, LONGEST_NAME), curve.best()["f1"])
                axes.plot(thresholds, curve.f1_at(thresholds), label=label, **style)
        if pooled.objects:
            axes.plot(thresholds, pooled.f1_at(thresholds), label="all in one list", color=ALL_COLOUR, linewidth=2)
        title = "F1 at IoU 0.5"
        if best["best_threshold"] is not None:
            axes.axvline(best["best_threshold"], color=MARK_COLOUR, linestyle="--")
            title += f": best {best['f1']:.3f} at confidence {best['best_threshold']:.3f}"
        axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence", ylabel="F1", title=title)
        _legend(axes, "best", len(each))


def draw_confusion(path, confusion: dict) -> None:
    """Draws which class was taken for which: the shade is the share of the row, the number the count.

    Args:
        path: the picture file.
        confusion: of `confusion_matrix`.
    """
    counts, labels = np.array(confusion["counts"]), confusion["labels"]
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(WIDTH, 0.17 * len(labels) + 2.0), HIGHEST)
    few = len(labels) <= NUMBERED + 1
    with _picture(path, side, side * 0.95) as figure:
        axes = figure.subplots()
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        labels, size = _short(labels), 10 if few else 7.5
        places = np.arange(len(labels))
        axes.set_xticks(places, labels, rotation=45 if few else 90, ha="right" if few else "center", fontsize=size)
        axes.set_yticks(places, labels, fontsize=size)
        axes.grid(False)
        axes.set(xlabel="predicted", ylabel="truth")
        # Of the figure, for beside long names the axes are narrower.
        figure.suptitle(f"confidence from {confusion['threshold']:g}; shade: share of the row", fontsize=12)
        for row, column in np.argwhere(counts > 0) if few else ():
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=size, color=colour)


def draw_average_precisions(path, metrics: dict) -> None:
    """Draws AP as a bar and AP50 as a dot for each class, the best on top, those without objects last.

    Args:
        path: the picture file.
        metrics: of `coco_metrics`.
    """
    figures = metrics["per_class"]
    order = sorted(figures, key=lambda name: -1.0 if figures[name]["AP"] is None else figures[name]["AP"])
    values = [(place, figures[name]) for place, name in enumerate(order)]
    known = [(place, one["AP"], one["AP50"]) for place, one in values if one["AP"] is not None]
    places, bars, dots = np.array(known, float).reshape(-1, 3).T
    with _picture(path, height=min(max(3.0, 0.24 * len(order) + 1.6), HIGHEST)) as figure:
        axes = figure.subplots()
        axes.barh(places, bars, color=COLOURS[0], label="AP (IoU 0.5 to 0.95)")
        axes.plot(dots, places, "o", color=COLOURS[1], markeredgecolor="black", markersize=5, label="AP50")
        for place, one in values if len(order) <= NAMED else ():
            axes.text(1.03, place, "no objects" if one["AP"] is None else f"{one['AP']:.2f}", va="center", fontsize=9)
        labels = _short(order)
        axes.set_yticks(np.arange(len(labels)), labels, fontsize=10 if len(order) <= 30 else 8.5)
        axes.set(xlim=(0, 1.25), ylim=(-0.7, len(order) - 0.3), xticks=np.linspace(0, 1, 6))
        axes.grid(False, axis="y")
        axes.set_title(_labelled("average precision: mAP", metrics["mAP"]))
        figure.legend(loc="outside lower center", ncols=2, fontsize=10, frameon=False)


def draw_overlaps(path, overlaps) -> None:
    """Draws how well the boxes lie that found an object.

    Args:
        path: the picture file.
        overlaps: [K] float IoUs in [0.5, 1].
    """
    with _picture(path) as figure:
        axes = figure.subplots()
        axes.hist(overlaps, bins=np.linspace(0.5, 1, 21), color=COLOURS[0], edgecolor="white")
        title = f"IoU of {len(overlaps)} detections that found an object"
        if len(overlaps):
            axes.axvline(np.median(overlaps), color=MARK_COLOUR, linestyle="--")
            title += f": median {np.median(overlaps):.2f}"
        axes.set(xlim=(0.5, 1), xlabel="IoU with the object", ylabel="detections", title=title)


def draw_calibration(path, calibration: dict) -> None:
    """Draws the share of detections that found an object over their scores, and how many there are.

    Args:
        path: the picture file.
        calibration: of `calibration.calibration`.
    """
    bins = calibration["bins"]
    left, width = np.array([(one["from"], one["to"] - one["from"]) for one in bins]).T
    shares = [np.nan if one["share_correct"] is None else one["share_correct"] for one in bins]
    scores = [np.nan if one["mean_score"] is None else one["mean_score"] for one in bins]
    with _picture(path, height=5.5) as figure:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        upper.plot([0, 1], [0, 1], color=FAINT_COLOUR, linestyle="--", label="score = share")
        upper.bar(left, shares, width, align="edge", color=COLOURS[4], edgecolor="white", label="found an object")
        upper.plot(scores, shares, "o-", color=COLOURS[0], label="at the mean score")
        upper.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="share correct")
        upper.set_title(_labelled("calibration: expected error", calibration["expected_calibration_error"]))
        upper.legend(loc="upper left", fontsize=10)
        lower.bar(left, [one["detections"] for one in bins], width, align="edge", color=FAINT_COLOUR, edgecolor="white")
        lower.set(yscale="symlog", ylim=(0, None), xlabel="score", ylabel="detections")
        write_plain_powers(lower.yaxis)


def _picture(path, width: float = WIDTH, height: float = HEIGHT):
    return figure_file(path, width, height, DPI, LOOK)


def _styled(names, curves) -> Iterator[tuple[str, Curve, dict]]:
    """(name, curve, how to draw it) of each class."""
    for index, (name, curve) in enumerate(zip(names, curves, strict=True)):
        if len(names) <= len(COLOURS):
            style = {"color": COLOURS[index], "linestyle": ("-", "--")[index % 2], "linewidth": 1.4}
            yield name, curve, style
        else:
            yield name, curve, {"color": FAINT_COLOUR, "linewidth": 0.7, "alpha": 0.7}


def _draw_envelope(axes, curve: Curve, **style) -> None:
    if not (curve.objects and len(curve.scores)):
        return
    chosen = np.unique(np.linspace(0, len(curve.scores) - 1, POINTS).astype(int))
    recall, precision = curve.recall[chosen], curve.envelope[chosen]
    axes.plot([0, *recall], [precision[0], *precision], drawstyle="steps-pre", **style)


def _short(names: Sequence[str]) -> list[str]:
    """Names as a picture has room for them: cut, or none at all where there are too many."""
    return [shortened(name, LONGEST_NAME) for name in names] if len(names) <= NAMED + 1 else []


def _labelled(text: str, figure: float | None) -> str:
    return text if figure is None else f"{text} {figure:.3f}"


def _legend(axes, where: str, classes: int) -> None:
    """The lines' names, or with many classes that the grey ones are they."""
    handles, labels = axes.get_legend_handles_labels()
    if classes > len(COLOURS) and len(handles) > 1:
        handles, labels = [handles[-1], handles[0]], [labels[-1], f"each of {classes} classes"]
    if handles:
        axes.legend(handles, labels, loc=where, fontsize=10)
