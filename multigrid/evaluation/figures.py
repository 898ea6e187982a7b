"""Files of matplotlib figures, in which names of any letters and any length may stand."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping

from multigrid.report import replacing

# Matplotlib's own font has no Chinese, Japanese or Korean letters. Which of these is there depends on the system.
MORE_FONTS = (
    "Noto Sans CJK JP", "Noto Sans CJK SC", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Microsoft YaHei", "Yu Gothic",
    "Malgun Gothic", "Hiragino Sans", "Arial Unicode MS",
)  # fmt: skip


@contextlib.contextmanager
def figure_file(path, width: float, height: float, dpi: int, look: Mapping | None = None) -> Iterator:
    """A figure that is written when the block ends well.

    Args:
        path: the picture file; its folder is made.
        width: in inches.
        height: in inches.
        dpi: dots an inch.
        look: matplotlib's settings by name.

    Yields:
        matplotlib's `Figure`.
    """
    # Loaded here because it costs most of a second and only pictures need it.
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import fontManager

    there = {font.name for font in fontManager.ttflist}
    fonts = ["sans-serif", *(name for name in MORE_FONTS if name in there)]
    # A name is no formula, though it may be called "5$".
    settings = {**(look or {}), "font.family": fonts, "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)  # an empty square says as much
        figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
        yield figure
        with replacing(path) as temporary:
            figure.savefig(temporary)


def write_plain_powers(axis) -> None:
    """Ticks of a logarithmic axis as 0.01 and 100, where matplotlib would write a formula."""
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter("")


def shortened(name: str, longest: int) -> str:
    """A name of at most so many letters."""
    return name if len(name) <= longest else name[: longest - 1] + "…"
