"""The curves of runs in one picture: a panel a figure, a colour a run."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np

from multigrid.config import OPTIONAL_LOSS_PARTS
from multigrid.report import replacing
from multigrid.training.comparison import Run, differences, text_of

COLUMNS = 3
PANEL_SIZE = (4.8, 3.1)  # inches
LEGEND_KEYS, LEGEND_LENGTH = 4, 28  # differences that the legend tells, and characters of a value worth telling there
LEGEND_ORDER = ("training", "loss", "model", "augmentation", "data")  # of the sections, the telling ones first
SPAN_FOR_LOGARITHMS = 15.0
PARTS = ("localization", "objectness", "anchor", "classification", *OPTIONAL_LOSS_PARTS)


def panels(runs: Sequence[Run], chosen: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """What each panel shows, as far as any run has it.

    Args:
        runs: of `read_runs`.
        chosen: one panel each; if empty: the loss and its parts, in training and validation, mAP, learning rate and
            norm of the gradients.

    Returns:
        Names of figures: one, or two of which the second is drawn dashed.
    """
    losses = [("loss", "val_loss"), *((f"{part}_loss", f"val_{part}_loss") for part in PARTS)]
    wanted = [*losses, ("val_mAP50",), ("val_mAP",), ("learning_rate",), ("grad_norm",)]
    if chosen:
        wanted = [(figure,) for figure in chosen]
    shown = [tuple(figure for figure in panel if any(run.has(figure) for run in runs)) for panel in wanted]
    return [panel for panel in shown if panel]


def draw_runs(runs: Sequence[Run], path: str | os.PathLike, chosen: Sequence[str] = ()) -> None:
    """Draws the curves of runs by epoch; epochs that measured nothing are bridged.

    Args:
        runs: of `read_runs`, of whatever lengths.
        path: the picture file; its folder is made.
        chosen: figures to draw, as for `panels`.
    """
    # Loaded here because it costs most of a second and only this picture needs it.
    from matplotlib.figure import Figure

    shown = panels(runs, chosen)
    columns = min(COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    size = (PANEL_SIZE[0] * max(2, columns), PANEL_SIZE[1] * rows + 0.25 * (len(runs) + 1))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    colours = _colours(len(runs))
    axes = figure.subplots(rows, columns, squeeze=False).reshape(-1)
    for one, names in zip(axes, shown, strict=False):
        _draw_panel(one, runs, names, colours)
    for one in axes[len(shown) :]:
        one.set_axis_off()
    figure.legend(handles=_legend(runs, colours), loc="outside upper left", fontsize=9, frameon=False)
    with replacing(path) as temporary:
        figure.savefig(temporary)


def legend_texts(runs: Sequence[Run]) -> list[str]:
    """A line a run: its name, and some of the settings in which it differs."""
    unlike = differences(runs)
    short = [key for key, values in unlike.items() if all(len(text_of(value)) <= LEGEND_LENGTH for value in values)]
    told = sorted(short, key=_telling)[:LEGEND_KEYS]
    rest = f", and {len(unlike) - len(told)} more" if told and len(unlike) > len(told) else ""
    texts = []
    for index, run in enumerate(runs):
        parts = [f"{key.split('.', 1)[-1]} {text_of(unlike[key][index])}" for key in told]
        texts.append(f"{run.name}: {', '.join(parts)}{rest}" if parts else run.name)
    return texts


def _telling(key: str) -> int:
    section = key.split(".")[0]
    return LEGEND_ORDER.index(section) if section in LEGEND_ORDER else len(LEGEND_ORDER)


def _draw_panel(axes, runs: Sequence[Run], names: tuple[str, ...], colours) -> None:
    from matplotlib.ticker import MaxNLocator

    drawn = []
    for run, colour in zip(runs, colours, strict=True):
        for name, style in zip(names, ("-", "--"), strict=False):
            if run.has(name):
                measured = np.isfinite(run.figures[name])
                epochs, values = run.epochs[measured], run.figures[name][measured]
                marker = "o" if len(values) < 15 else None
                axes.plot(epochs, values, style, color=colour, marker=marker, markersize=3, linewidth=1.3, alpha=0.9)
                drawn.append(values)
    drawn = np.concatenate(drawn)
    if "mAP" not in names[0] and drawn.min() > 0 and drawn.max() > SPAN_FOR_LOGARITHMS * drawn.min():
        axes.set_yscale("log")
    axes.set_title(names[0] if len(names) == 1 else f"{names[0]} (dashed: validation)", fontsize=10)
    axes.set_xlabel("epoch", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(True, which="both", alpha=0.2)


def _legend(runs: Sequence[Run], colours) -> list:
    from matplotlib.lines import Line2D

    return [
        Line2D([], [], color=colour, linewidth=2, label=text)
        for colour, text in zip(colours, legend_texts(runs), strict=True)
    ]


def _colours(count: int) -> list:
    from matplotlib import colormaps

    palette = colormaps["tab10" if count <= 10 else "tab20"].colors
    return [palette[index % len(palette)] for index in range(count)]
