"""Pieces of a page that needs nothing but itself: no script, no font, no file beside it.

Every text that is given becomes text of the page, whatever characters it holds; what a function here returns is HTML.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

JPEG_QUALITY = 82
STYLE = """
:root { color-scheme: light dark; --ground: #fbfbfa; --card: #ffffff; --ink: #1b1f23; --faint: #5d666f;
  --line: #dfe3e6; --bar: #0072b2; --weak: #e5f0f7; --warn: #b3470a; }
@media (prefers-color-scheme: dark) { :root { --ground: #14171a; --card: #1c2125; --ink: #e8ebed; --faint: #9ba6b0;
  --line: #333b42; --bar: #56b4e9; --weak: #22303a; --warn: #f0a060; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; } h2 { font-size: 1.15rem; margin: 0 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; } .faint { color: var(--faint); font-size: .9rem; }
.prose { white-space: pre-wrap; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 16px; margin: 16px 0; }
.verdict { border-left: 4px solid var(--warn); padding-left: 12px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: 10px; margin: 14px 0; }
.tile { background: var(--weak); border-radius: 8px; padding: 10px 12px; overflow-wrap: anywhere; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; font-size: .86rem; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 0 4px 12px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--faint); } th:first-child, td:first-child { text-align: left; padding-left: 0; }
th:first-child, td:first-child { position: sticky; left: 0; background: var(--card); max-width: 40vw;
  overflow: hidden; text-overflow: ellipsis; }
.bars { display: grid; grid-template-columns: minmax(0, 1fr); gap: 9px; margin: 10px 0; }
.bar { display: grid; grid-template-columns: minmax(0, 1fr) auto; gap: 0 10px; font-size: .92rem; }
.bar > span { overflow-wrap: anywhere; } .bar > b { font-variant-numeric: tabular-nums; }
.track { grid-column: 1 / -1; height: 9px; background: var(--weak); border-radius: 5px; overflow: hidden; }
.track > i { display: block; height: 100%; background: var(--bar); border-radius: 5px; min-width: 1px; }
.bar.marked .track > i { background: var(--warn); } .bar.marked b { color: var(--warn); }
.pictures { display: grid; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); gap: 10px; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 14px; }
figure { margin: 0; } figure img { display: block; max-width: 100%; height: auto; border-radius: 6px; }
.plots img { width: 100%; background: #fff; }
figcaption { font-size: .82rem; color: var(--faint); overflow-wrap: anywhere; padding-top: 2px; }
details { margin: 10px 0; } summary { cursor: pointer; color: var(--bar); font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 4px 12px; margin: 0; font-size: .9rem; }
dt { color: var(--faint); overflow-wrap: anywhere; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 480px) { main { padding: 10px; } section { padding: 12px; } }
"""


def page(title: str, sections: Iterable[str]) -> str:
    """A whole document.

    Args:
        title: text of the window.
        sections: HTML.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def text(value) -> str:
    """Any value as text: figures in three digits after the point, None as a dash."""
    if value is None:
        return "–"
    if isinstance(value, (float, np.floating)):
        return f"{value:.3f}" if np.isfinite(value) else "–"
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return html.escape(str(value))


def section(heading: str, *parts: str) -> str:
    """A section with its heading; the parts are HTML."""
    return f"<section>\n<h2>{text(heading)}</h2>\n" + "\n".join(parts) + "\n</section>"


def paragraph(value: str, kind: str = "") -> str:
    """A paragraph of text; `kind` is a class of the style, "faint" or "verdict"."""
    return f'<p class="{kind}">{text(value)}</p>' if kind else f"<p>{text(value)}</p>"


def tiles(figures: Sequence[tuple]) -> str:
    """Large figures side by side: (name, value) each."""
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{text(value)}</b>{text(name)}</div>' for name, value in figures
    ) + "</div>"  # fmt: skip


def table(columns: Sequence[str], rows: Iterable[Sequence]) -> str:
    """A table that scrolls within itself where it is wider than the page."""
    head = "".join(f"<th>{text(column)}</th>" for column in columns)
    body = "\n".join("<tr>" + "".join(f"<td>{text(value)}</td>" for value in row) + "</tr>" for row in rows)
    return f'<div class="wide" tabindex="0"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def bars(rows: Iterable[tuple]) -> str:
    """Bars one below the other: (text, figure as text, share from 0 to 1, whether it is marked) each."""
    return '<div class="bars">' + "\n".join(
        f'<div class="bar{" marked" if marked else ""}"><span>{text(name)}</span><b>{text(figure)}</b>'
        f'<div class="track"><i style="width:{100 * min(max(share, 0.0), 1.0):.1f}%"></i></div></div>'
        for name, figure, share, marked in rows
    ) + "</div>"  # fmt: skip


def details(summary: str, *parts: str) -> str:
    """Parts that are seen when they are asked for."""
    return f"<details><summary>{text(summary)}</summary>\n" + "\n".join(parts) + "\n</details>"


def settings(values: Iterable[tuple]) -> str:
    """Names and values, one pair a line."""
    return "<dl>" + "\n".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in values) + "</dl>"


def picture(source: str, caption: str, place: str = "") -> str:
    """A picture, given as a data URI, with a caption and, in small letters, where it is from."""
    said = text(caption)
    small = f"<br><small>{text(place)}</small>" if place else ""
    return f'<figure><img src="{source}" alt="{said}"><figcaption>{said}{small}</figcaption></figure>'


def png_uri(data: bytes) -> str:
    """The bytes of a PNG file as a data URI."""
    return "data:image/png;base64," + base64.b64encode(data).decode("ascii")


def jpeg_uri(image: np.ndarray) -> str:
    """A uint8 RGB image [height, width, 3] as a data URI."""
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written, data = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not written:
        raise OSError("a picture could not be encoded as JPEG")
    return "data:image/jpeg;base64," + base64.b64encode(data.tobytes()).decode("ascii")
