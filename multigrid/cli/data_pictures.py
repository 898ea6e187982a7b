"""The pictures of `multigrid data`: images with their boxes, with their defects, near-duplicates, and counts."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Sequence

import cv2
import numpy as np

from multigrid.data.images import image_size, read_image
from multigrid.data.inspection import Split, box_areas
from multigrid.evaluation.figures import figure_file, shortened
from multigrid.pictures import class_colour, contact_sheet, draw_boxes, save_image

IMAGES, COLUMNS = 24, 6  # of a sheet
TILE = 360  # the longer side of an image on it, in pixels
LETTER = 8  # width of a label's letter in pixels
WRONG = (255, 0, 0)
MANY_CLASSES = 80  # above, nobody could read their names below the bars
LONGEST_NAME = 30
LETTERS_IN_A_LINE = 70  # of all names together


def draw_pictures(splits: Sequence[Split], found: dict, class_names, folder: pathlib.Path, seed: int) -> list:
    """Writes every picture that there is something for.

    Args:
        splits: what was read.
        found: what was found, as data.json has it.
        class_names: in the order of the class ids.
        folder: where the files go.
        seed: of the images drawn.

    Returns:
        The paths written.
    """
    sheets = {
        "samples.jpg": _sample_tiles(splits, class_names, seed),
        "defects.jpg": _defect_tiles(found),
        "near-duplicates.jpg": _pair_tiles(found["near_duplicates"] or ()),
    }
    written = []
    for name, tiles in sheets.items():
        if tiles:
            images, captions = zip(*tiles, strict=True)
            save_image(folder / name, contact_sheet(images, COLUMNS, captions))
            written.append(folder / name)
    if any(one["boxes"] for one in found["splits"].values()):
        _draw_counts(splits, found, folder / "boxes.png")
        written.append(folder / "boxes.png")
    return written


def _tile(path: str, boxes, labels=None, colours=None) -> np.ndarray:
    """An image with boxes in its own pixels, at the size of a tile."""
    image = read_image(path, at_least=(TILE, TILE))
    # A JPEG may come at a fraction of its size, which the boxes do not know.
    height, width = image_size(path)
    scale = TILE / max(height, width)
    side = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = cv2.resize(image, side, interpolation=cv2.INTER_AREA)
    return draw_boxes(image, np.asarray(boxes, np.float64).reshape(-1, 4) * scale, labels, colours)


def _sample_tiles(splits, class_names, seed: int) -> list:
    everything = [(split, sample) for split in splits for sample in split.samples]
    chosen = random.Random(seed).sample(everything, min(IMAGES, len(everything)))
    tiles = []
    for split, sample in chosen:
        colours = [class_colour(int(index)) for index in sample.classes]
        tile = _tile(sample.path, sample.boxes, _labels(sample, class_names), colours)
        tiles.append((tile, f"{split.name}: {pathlib.Path(sample.path).name}"))
    return tiles


def _labels(sample, class_names) -> list[str]:
    """The name of each box's class where it is not wider than the box, and once a class where all boxes are small."""
    names = [class_names[index] for index in sample.classes]
    widths = (sample.boxes[:, 2] - sample.boxes[:, 0]) * TILE / max(sample.size)
    wide = [width >= LETTER * len(name) for name, width in zip(names, widths, strict=True)]
    named = {name for name, fits in zip(names, wide, strict=True) if fits}
    return [
        name if fits or (name not in named and names.index(name) == index) else ""
        for index, (name, fits) in enumerate(zip(names, wide, strict=True))
    ]


def _defect_tiles(found) -> list:
    """The first images with a box that something is wrong with, every such box of theirs drawn."""
    wrong: dict[str, list] = {}
    for one in found["defects"]:
        wrong.setdefault(one["path"], []).append((one["kind"], [one["box"]] if one["box"] else []))
    for one in found["repeated_boxes"]:
        wrong.setdefault(one["path"], []).append(("twice", one["boxes"]))
    tiles = []
    for path, said in list(wrong.items())[:IMAGES]:
        kinds = ", ".join(dict.fromkeys(kind for kind, _ in said))
        labelled = [(_in_order(box), kind) for kind, boxes in said for box in boxes if np.isfinite(box).all()]
        boxes, labels = [box for box, _ in labelled], [kind for _, kind in labelled]
        tiles.append((_tile(path, boxes, labels, WRONG), f"{pathlib.Path(path).name}: {kinds}"))
    return tiles


def _in_order(box) -> list[float]:
    """A box with its corners in order, so that an inverted one can be seen."""
    x1, y1, x2, y2 = box
    return [min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)]


def _pair_tiles(pairs) -> list:
    tiles = []
    for number, one in enumerate(pairs[: IMAGES // 2], 1):
        for split, path in zip(one["splits"], one["paths"], strict=True):
            tiles.append((_tile(path, ()), f"pair {number}, {split}: {pathlib.Path(path).name}"))
    return tiles


def _draw_counts(splits, found, path: pathlib.Path) -> None:
    """Draws how many boxes each class has, and how large boxes are."""
    with figure_file(path, width=13, height=5, dpi=100) as figure:
        classes, sizes = figure.subplots(1, 2)
        _draw_classes(classes, splits, found)
        _draw_sizes(sizes, splits)
        for axes in (classes, sizes):
            axes.grid(True, axis="y", alpha=0.2)
            axes.legend(fontsize=9)


def _draw_classes(axes, splits, found) -> None:
    names, width = list(found["classes"]), 0.8 / len(splits)
    for index, split in enumerate(splits):
        counts = [found["splits"][split.name]["classes"][name]["boxes"] for name in names]
        axes.bar(np.arange(len(names)) + index * width, counts, width, label=split.name)
    many = len(names) > MANY_CLASSES
    shown = ["" if many else shortened(name, LONGEST_NAME) for name in names]
    upright = sum(map(len, shown)) > LETTERS_IN_A_LINE or len(names) > 8
    axes.set_xticks(np.arange(len(names)) + 0.4 - width / 2, shown, rotation=90 if upright else 0)
    axes.set(title="boxes of each class", ylabel="boxes")
    axes.margins(y=0.15)  # room for the legend above the highest bar


def _draw_sizes(axes, splits) -> None:
    bins = np.geomspace(4, 2048, 37)
    for split in splits:
        sides = np.sqrt(box_areas([split]))
        axes.hist(sides, bins, weights=np.full(len(sides), 1 / max(len(sides), 1)), histtype="step", label=split.name)
    axes.set(title="sizes of boxes, share of the split", xlabel="√(width · height), pixels of the image", xscale="log")
    sides = [4, 16, 64, 256, 1024]
    axes.set_xticks(sides, [str(side) for side in sides])
