"""What changes training images: an Albumentations pipeline from configuration, and the mixtures mosaic and mixup.

Everywhere here an image is uint8 RGB [height, width, 3], boxes are float32 [N, 4] corners (x1, y1, x2, y2) in pixels of
that image, classes int32 [N], sizes (height, width). Everything random comes from the generator that is handed over.
"""

from __future__ import annotations

import difflib
import inspect
import os
import random
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from pydantic import ValidationError

# At import, Albumentations would ask the network for a newer version of itself.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
import albumentations as A  # noqa: E402, N812
from albumentations.core.type_definitions import Targets  # noqa: E402

from multigrid.data.images import BORDER  # noqa: E402
from multigrid.errors import InputError  # noqa: E402

MIN_SIDE = 2.0  # pixels; a box that is thinner after an augmentation cannot be learned from
MOSAIC_CENTRE = (0.3, 0.7)  # where the four tiles meet, as a share of height and width
MOSAIC_SCALE = (0.5, 1.0)  # size of a tile's image, as a share of the same image letterboxed alone
MIXUP_ALPHA = 8.0  # Beta(8, 8): both images stay visible

_COMPOSITIONS = {"OneOf": A.OneOf, "SomeOf": A.SomeOf, "RandomOrder": A.RandomOrder, "Sequential": A.Sequential}
_TRIALS = 4  # random draws of every step at construction, to see that it keeps size and type
_STEP_ERRORS = (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, cv2.error)
_LEAVES_BOXES = {"RandomGridShuffle"}  # shuffles the image under boxes that stay, though it lists them as its target


class Example(NamedTuple):
    """An image and the boxes and classes of the objects in it, as the module's first paragraph describes them."""

    image: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray


# --- Albumentations ---------------------------------------------------------------------------------------------------


def build_pipeline(
    steps: Sequence[Mapping[str, Any]], input_size: tuple[int, int], *, min_visibility: float
) -> A.Compose:
    """The Albumentations pipeline of these steps, every one of them tried on a drawn image first.

    Args:
        steps: mappings with "name", the name of an Albumentations transform, and its arguments; OneOf, SomeOf,
            RandomOrder and Sequential hold further steps under "transforms". A crop that needs a size gets `input_size`
            if it names none.
        input_size: (height, width) of every image in pixels; a step must keep it.
        min_visibility: the share of its area that a box must keep in a step to stay.

    Returns:
        A Compose for `image` and `bboxes` [N, 5]: corners in pixels and the class.

    Raises:
        InputError: an unknown transform or argument, a bad value, a step that needs what detection has not (masks, …),
            moves pixels but not boxes, or changes the size or the type of the image.
    """
    for place, step in _leaves(steps):
        _try_step(place, _make_step(place, {**step, "p": 1.0}, input_size), input_size, min_visibility)
    return _assemble(steps, input_size, min_visibility)


def _assemble(steps: Sequence[Mapping[str, Any]], input_size: tuple[int, int], min_visibility: float) -> A.Compose:
    return _compose([_make_step(place, step, input_size) for place, step in _numbered(steps)], min_visibility)


def _compose(transforms: list, min_visibility: float) -> A.Compose:
    if not any("bboxes" in transform.available_keys for transform in transforms):
        transforms = [*transforms, A.NoOp(p=0.0)]  # Albumentations warns of boxes that no step looks at
    boxes = A.BboxParams(
        format="pascal_voc",
        min_visibility=min_visibility,
        min_width=MIN_SIDE,
        min_height=MIN_SIDE,
        clip=True,
        filter_invalid_bboxes=True,
    )
    return A.Compose(transforms, bbox_params=boxes)


def _numbered(steps: Sequence[Mapping[str, Any]], prefix: str = ""):
    """(place, step) for every step; the place is what an error calls it: "augmentation step 2.1 (Blur)"."""
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, Mapping) or not isinstance(step.get("name"), str):
            raise InputError(
                f'augmentation step {prefix}{number}: expected a mapping with the key "name", received {step!r}'
            )
        yield f"augmentation step {prefix}{number} ({step['name']})", step


def _inner_steps(place: str, step: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    inner = step.get("transforms")
    if not isinstance(inner, Sequence) or isinstance(inner, str) or not inner:
        raise InputError(f'{place}: expected a list of steps under "transforms", received {inner!r}')
    return list(_numbered(inner, prefix=place.split()[2] + "."))


def _leaves(steps: Sequence[Mapping[str, Any]]):
    pending = list(_numbered(steps))
    while pending:
        place, step = pending.pop(0)
        if step["name"] in _COMPOSITIONS:
            pending = _inner_steps(place, step) + pending
        else:
            yield place, step


def _make_step(place: str, step: Mapping[str, Any], input_size: tuple[int, int]):
    arguments = {key: value for key, value in step.items() if key != "name"}
    if step["name"] in _COMPOSITIONS:
        inner = [_make_step(*inner, input_size) for inner in _inner_steps(place, step)]
        return _construct(place, _COMPOSITIONS[step["name"]], {**arguments, "transforms": inner})
    kind = _find_transform(place, step["name"])
    height, width = input_size
    for key, value in {"height": height, "width": width, "size": (height, width)}.items():
        parameter = inspect.signature(kind).parameters.get(key)
        if parameter is not None and parameter.default is parameter.empty:
            arguments.setdefault(key, value)
    return _construct(place, kind, arguments)


def _find_transform(place: str, name: str) -> type[A.BasicTransform]:
    """The transform of this name, if it can serve for detection."""
    kind = getattr(A, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, A.BasicTransform)):
        known = [n for n, c in vars(A).items() if inspect.isclass(c) and issubclass(c, A.BasicTransform)]
        by_lower = {n.lower(): n for n in [*known, *_COMPOSITIONS]}
        near = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.0)
        raise InputError(f"{place}: expected an Albumentations transform; the nearest name is {by_lower[near[0]]!r}")
    targets = kind._targets if isinstance(kind._targets, tuple) else (kind._targets,)
    if name in _LEAVES_BOXES or not (issubclass(kind, A.ImageOnlyTransform) or Targets.BBOXES in targets):
        raise InputError(f"{place}: expected a transform that moves boxes with the image, received one that does not")
    return kind


def _construct(place: str, kind: type, arguments: dict[str, Any]):
    known = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs", "strict")]
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f", expected one of {', '.join(known)}"
            raise InputError(f"{place}: unknown argument {name!r}{hint}")
    try:
        return kind(**arguments)
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: {_one_line(error)}") from error


def _one_line(error: Exception) -> str:
    cause = error.__cause__ if isinstance(error.__cause__, ValidationError) else error
    if isinstance(cause, ValidationError):
        first = cause.errors()[0]
        if first["loc"] and first["type"] != "missing":
            return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, received {first['input']!r}"
        return ": ".join([*map(str, first["loc"]), first["msg"]])
    return " ".join(str(error).split())


def _try_step(place: str, transform: A.BasicTransform, input_size: tuple[int, int], min_visibility: float) -> None:
    """Apply one step a few times, with and without boxes; raise what it does wrong."""
    height, width = input_size
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    box = np.array([[0.2 * width, 0.3 * height, 0.5 * width, 0.7 * height, 0]], np.float32)
    pipeline = _compose([transform], min_visibility)
    for seed in range(_TRIALS):
        _seed(pipeline, np.random.default_rng(seed))
        try:
            result = pipeline(image=image.copy(), bboxes=box[: seed % 2].copy())["image"]
        except _STEP_ERRORS as error:
            raise InputError(f"{place}: cannot be applied to an image with boxes: {_one_line(error)}") from error
        if result.shape != image.shape or result.dtype != np.uint8:
            raise InputError(
                f"{place}: expected to keep {height} x {width} x 3 uint8, received "
                f"{' x '.join(map(str, result.shape))} {result.dtype}"
            )


def _seed(pipeline: A.Compose, rng: np.random.Generator) -> None:
    # Not `set_random_seed`: it gives every step the same seed, so that steps would be drawn in step with each other.
    pipeline.set_random_state(rng, random.Random(int(rng.integers(2**62))))


class Augmentation:
    """A pipeline that any number of threads may call at once: all that it draws comes from the caller's generator.

    Albumentations keeps random and box state inside a pipeline, so every thread assembles its own on its first call.

    Args:
        steps: as in `build_pipeline`.
        input_sizes: the (height, width) to try every step on; images of other sizes are welcome later.
        min_visibility: as in `build_pipeline`.

    Raises:
        InputError: as in `build_pipeline`.
    """

    def __init__(
        self,
        steps: Sequence[Mapping[str, Any]],
        input_sizes: Sequence[tuple[int, int]],
        *,
        min_visibility: float,
    ):
        self.steps = [dict(step) if isinstance(step, Mapping) else step for step in steps]
        self.min_visibility = min_visibility
        self._local = threading.local()
        for size in input_sizes:
            build_pipeline(self.steps, size, min_visibility=min_visibility)

    def __call__(self, example: Example, rng: np.random.Generator) -> Example:
        """The example after the pipeline.

        Raises:
            InputError: the pipeline changed the image's size or type (which not every draw of a step needs to show).
        """
        pipeline = self._pipeline(example.image.shape[:2])
        _seed(pipeline, rng)
        labelled = np.column_stack([example.boxes, example.classes]).astype(np.float32)
        result = pipeline(image=example.image, bboxes=labelled)
        image, labelled = result["image"], np.asarray(result["bboxes"], np.float32)
        if image.shape != example.image.shape or image.dtype != np.uint8:
            raise InputError(
                f"augmentation: expected to keep {example.image.shape} uint8, received {image.shape} {image.dtype}"
            )
        if not len(labelled):
            return Example(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
        # Normalizing and back moves a box on the border by a rounding error.
        limits = np.array([*image.shape[1::-1], *image.shape[1::-1]], np.float32)
        return Example(image, np.clip(labelled[:, :4], 0, limits), np.rint(labelled[:, 4]).astype(np.int32))

    def _pipeline(self, size: tuple[int, int]) -> A.Compose:
        pipelines = self._local.__dict__
        if size not in pipelines:
            pipelines[size] = _assemble(self.steps, size, self.min_visibility)
        return pipelines[size]


# --- mixtures ---------------------------------------------------------------------------------------------------------


def clip_to_window(
    boxes: np.ndarray, classes: np.ndarray, window: tuple[float, float, float, float], min_visibility: float
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of boxes seen through a window.

    Args:
        boxes: float32 [N, 4] corners in pixels.
        classes: int32 [N].
        window: (x1, y1, x2, y2) in the same pixels.
        min_visibility: boxes that keep less than this share of their area are dropped, and those thinner than MIN_SIDE.

    Returns:
        boxes float32 [K, 4], clipped, in the same coordinates; classes int32 [K].
    """
    x1, y1, x2, y2 = window
    clipped = np.clip(boxes, np.array([x1, y1, x1, y1], np.float32), np.array([x2, y2, x2, y2], np.float32))
    sides, whole = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = (sides.prod(axis=1) >= min_visibility * whole.prod(axis=1)) & (sides >= MIN_SIDE).all(axis=1)
    return clipped[kept], classes[kept]


def draw_mosaic(size: tuple[int, int], rng: np.random.Generator) -> tuple[tuple[int, int], np.ndarray]:
    """Where the tiles of a mosaic of this (height, width) meet, (row, column) in pixels, and each one's scale, [4]."""
    row, column = (int(round(share * side)) for share, side in zip(rng.uniform(*MOSAIC_CENTRE, 2), size, strict=True))
    return (row, column), rng.uniform(*MOSAIC_SCALE, 4)


def join_tiles(
    tiles: Sequence[Example],
    centre: tuple[int, int],
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    min_visibility: float,
) -> Example:
    """A mosaic: each quarter shows a window of its tile, drawn at random; a smaller tile lies against the centre.

    Args:
        tiles: four examples of any sizes: upper left, upper right, lower left, lower right.
        centre: (row, column) where the quarters meet, in pixels.
        size: (height, width) of the mosaic.
        rng: what the windows are drawn from.
        min_visibility: as in `clip_to_window`; a box is clipped to its tile's window.

    Returns:
        The mosaic; gaps are grey as the letterbox border is.
    """
    canvas = np.full((*size, 3), BORDER, np.uint8)
    boxes, classes = [], []
    for quarter, tile in enumerate(tiles):
        rows, source_rows = _overlap(tile.image.shape[0], centre[0], size[0], quarter >= 2, rng)
        columns, source_columns = _overlap(tile.image.shape[1], centre[1], size[1], quarter % 2 == 1, rng)
        canvas[rows, columns] = tile.image[source_rows, source_columns]
        shift = np.array([columns.start - source_columns.start, rows.start - source_rows.start] * 2, np.float32)
        window = (columns.start, rows.start, columns.stop, rows.stop)
        seen, labels = clip_to_window(tile.boxes + shift, tile.classes, window, min_visibility)
        boxes.append(seen)
        classes.append(labels)
    return Example(canvas, np.concatenate(boxes), np.concatenate(classes))


def _overlap(length: int, centre: int, total: int, after: bool, rng: np.random.Generator) -> tuple[slice, slice]:
    """Along one axis: where a tile of this length lands on the canvas, and which part of the tile."""
    room = total - centre if after else centre
    shown = min(length, room)
    first = int(rng.integers(length - shown + 1))
    start = centre if after else centre - shown
    return slice(start, start + shown), slice(first, first + shown)


def blend(first: Example, second: Example, rng: np.random.Generator) -> Example:
    """Mixup: both images of the same size, weighted by Beta(MIXUP_ALPHA, MIXUP_ALPHA), with the objects of both."""
    weight = float(rng.beta(MIXUP_ALPHA, MIXUP_ALPHA))
    image = cv2.addWeighted(first.image, weight, second.image, 1 - weight, 0.0)
    return Example(image, np.concatenate([first.boxes, second.boxes]), np.concatenate([first.classes, second.classes]))
