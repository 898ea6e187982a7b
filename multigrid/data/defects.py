"""What is wrong with a box of a label file, and the one line that says it for all of them."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from typing import Protocol

EXAMPLES = 3
"""Offenders named for each kind of defect."""


@dataclass(frozen=True)
class Defect:
    """One finding in a label file.

    Attributes:
        kind: dropped boxes are "empty", "inverted", "non-finite", "unknown-class", "outside" or "crowd"; what is kept
            is "clipped" (a box more than a pixel beyond the border) or "size-mismatch" (the label file tells another
            image size than the image has).
        place: where it stands: "file, line 12", "file, object 3".
        box: (x1, y1, x2, y2) in pixels as the file gives it, before clipping; () where it is not about a box.
        detail: what was expected or done.
        dropped: whether the box was left out of the sample.
    """

    kind: str
    place: str
    box: tuple[float, ...]
    detail: str
    dropped: bool = True


class _HasBoxes(Protocol):
    boxes: Sized


def describe_defects(defects: Sequence[Defect], samples: Sequence[_HasBoxes] | None = None) -> str:
    """One line with the count of every kind and its first offenders; "" where there are none.

    Args:
        defects: what `read_samples` returned.
        samples: what it returned beside them, to say of how many boxes.
    """
    dropped = [defect for defect in defects if defect.dropped]
    kept = [defect for defect in defects if not defect.dropped]
    parts = []
    if dropped:
        total = "" if samples is None else f" of {sum(len(sample.boxes) for sample in samples) + len(dropped)}"
        noun = "box" if len(dropped) == 1 and not total else "boxes"
        parts.append(f"{len(dropped)}{total} {noun} dropped: {_by_kind(dropped)}")
    if kept:
        parts.append(f"noted, nothing dropped: {_by_kind(kept)}")
    return "; ".join(parts)


def _by_kind(defects: Sequence[Defect]) -> str:
    kinds: dict[str, list[Defect]] = {}
    for defect in defects:
        kinds.setdefault(defect.kind, []).append(defect)
    return ", ".join(f"{len(found)} {kind} ({_examples(found)})" for kind, found in kinds.items())


def _examples(defects: Sequence[Defect]) -> str:
    named = [f"{defect.place}: {_what(defect)}" for defect in defects[:EXAMPLES]]
    return "; ".join(named + ["..."] if len(defects) > EXAMPLES else named)


def _what(defect: Defect) -> str:
    numbers = ",".join(f"{value:.6g}" for value in defect.box)
    # A box tells by itself why it is empty, inverted or not finite.
    if numbers and defect.kind in ("empty", "inverted", "non-finite"):
        return numbers
    return f"{numbers}, {defect.detail}" if numbers else defect.detail
