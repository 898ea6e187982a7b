"""The anchors: the sizes that boxes are coded against, and their files.

Convention of this module: a size is (width, height) in pixels of the network's input. Scales run coarse to fine
(strides 32, 16, 8), so the first scale holds the largest anchors.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib

import numpy as np

from multigrid.errors import InputError
from multigrid.geometry.cells import STRIDES


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
        return strides_of(self.num_scales)

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


def strides_of(scales: int) -> tuple[int, ...]:
    """Input pixels a cell of so many scales, coarse to fine: (32, 16, 8) for three."""
    return tuple(STRIDES[-1] * 2**power for power in reversed(range(scales)))


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
        text = pathlib.Path(path).read_text(encoding="utf-8-sig")
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
    """Writes the anchors so that `read_anchors` returns them; the file appears whole or not at all.

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
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _pair(size) -> str:
    # The shortest digits that give the same float32 back.
    return ",".join(np.format_float_positional(value, trim="-") for value in size)
