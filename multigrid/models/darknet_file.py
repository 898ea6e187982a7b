"""Darknet's own weight files: a header and then bare float32, so that the model must say what the numbers are.

Header: int32 major, minor, revision, then the images seen as int64, or as int32 in files with 10 major + minor < 2. For
every convolution in the order of the cfg: beta, gamma, mean and variance of its BatchNorm, or its bias; then the kernel
as (out, in, height, width). All of it little-endian. Nothing in the file tells one network from another but the number
of floats, which must therefore be right to the last one.

Source: `load_weights_upto` and `save_weights_upto` in parser.c of github.com/pjreddie/darknet.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import struct
from collections.abc import Sequence

import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.models.matching import ModelLayer, backbone_of, bricks_of
from multigrid.models.stored import StoredFile, StoredLayer

VERSION = (0, 2, 5)
LARGEST_VERSION = 1000  # Darknet's own bound; text and pictures read as numbers far beyond it
NORM_ORDER = ("beta", "gamma", "moving_mean", "moving_variance")  # Darknet's; Keras has gamma first
FEEDS_NECK = ("stage3", "stage4", "stage5")
BOXES_A_CELL = 3  # of YOLOv3, each with 5 numbers and the classes


@dataclasses.dataclass(frozen=True)
class Convolution:
    """What a file holds for one convolution: the kernel's shape as Keras has it, and a BatchNorm's name or none."""

    name: str
    kernel: tuple[int, int, int, int]
    norm: str | None

    @property
    def floats(self) -> int:
        """How many numbers that is."""
        return math.prod(self.kernel) + self.kernel[-1] * (1 if self.norm is None else len(NORM_ORDER))


def is_darknet(path) -> bool:
    """Whether a file begins with a header of Darknet's."""
    with open(path, "rb") as file:
        start = file.read(12)
    return len(start) == 12 and all(0 <= number < LARGEST_VERSION for number in struct.unpack("<3i", start)[:2])


def read_darknet(path, layers: Sequence[ModelLayer]) -> StoredFile:
    """The tensors of a Darknet file, as the backbone of a model has them, under the names they have there.

    Args:
        path: of a file with the backbone alone (`darknet53.conv.74`) or with YOLOv3's neck and head behind it.
        layers: of the model, in order.

    Raises:
        InputError: a backbone that such a file cannot hold, or another number of floats than it asks for.
    """
    plan = _plan(path, layers)
    numbers, notes = _floats(path)
    expected, rest = sum(one.floats for one in plan), ()
    described = f"{expected:,} floats for the {len(plan)} convolutions of the backbone"
    if numbers.size != expected:
        rest, said = _yolov3_rest(layers, numbers.size - expected, expected)
        if not rest:
            raise InputError(f"{path}: expected {described}{said}, received {numbers.size:,}")
        notes = (*notes, f"behind the backbone are the neck and head of YOLOv3 for {_classes(rest)} classes")
    stored, at = [], 0
    for convolution in (*plan, *rest):
        stored += _layers_of(convolution, numbers[at : at + convolution.floats])
        at += convolution.floats
    return StoredFile("Darknet binary", tuple(stored), ordered=True, notes=notes)


def write_darknet(path, layers: Sequence[ModelLayer]) -> None:
    """Writes the backbone among the layers of a model as a Darknet file.

    Raises:
        InputError: a backbone that such a file cannot hold.
    """
    plan = _plan(path, layers)
    tensors = {layer.name: layer.tensors for layer in layers}
    with open(path, "wb") as file:
        file.write(struct.pack("<3iq", *VERSION, 0))
        for convolution in plan:
            own, norm = tensors[convolution.name], tensors.get(convolution.norm)
            vectors = [own["bias"]] if norm is None else [norm[role] for role in NORM_ORDER]
            kernel = np.transpose(keras.ops.convert_to_numpy(own["kernel"]), (3, 2, 0, 1))
            for value in (*map(keras.ops.convert_to_numpy, vectors), kernel):
                file.write(np.ascontiguousarray(value, "<f4").tobytes())


def _plan(path, layers: Sequence[ModelLayer]) -> list[Convolution]:
    """The convolutions of the backbone, in order."""
    blocks = backbone_of(layers)
    backbone = [layer for layer in layers if layer.block in blocks]
    bricks = bricks_of(backbone)
    taken = {index for brick in bricks for index in brick.layers}
    for index, layer in enumerate(backbone):
        if index not in taken:
            raise _unfit(path, layer.name)
    if not bricks:
        raise _unfit(path, "none")
    return [_convolution(path, *(backbone[index] for index in brick.layers)) for brick in bricks]


def _convolution(path, own: ModelLayer, norm: ModelLayer | None = None) -> Convolution:
    """What a file holds for a convolution of a model, and its BatchNorm."""
    roles = {"kernel", "bias"} if norm is None else {"kernel"}
    if set(own.tensors) != roles or (norm is not None and set(norm.tensors) != set(NORM_ORDER)):
        raise _unfit(path, own.name)
    kernel = tuple(own.tensors["kernel"].shape)
    vector = own.tensors["bias"] if norm is None else norm.tensors["gamma"]
    if tuple(vector.shape) != kernel[-1:]:  # as of a depthwise convolution, whose kernel is turned otherwise
        raise _unfit(path, own.name)
    return Convolution(own.name, kernel, norm and norm.name)


def _unfit(path, received: str) -> InputError:
    return InputError(
        f"{path}: expected a backbone of convolutions, each with BatchNorm or a bias, which is all that Darknet's "
        f"format holds, received {received}"
    )


def _floats(path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The numbers behind the header, and what the header says."""
    content = pathlib.Path(path).read_bytes()
    major, minor = struct.unpack("<2i", content[:8])
    wide = 10 * major + minor >= 2
    header = 20 if wide else 16
    body = len(content) - header
    if body < 0 or body % 4:
        raise InputError(
            f"{path}: expected a header of {header} bytes and whole floats of 4, received {len(content):,} bytes: a "
            "file that was cut off"
        )
    (seen,) = struct.unpack("<q" if wide else "<i", content[12:header])
    return np.frombuffer(content, "<f4", offset=header), (f"trained on {seen:,} images",) if seen > 0 else ()


def _layers_of(convolution: Convolution, numbers: np.ndarray) -> list[StoredLayer]:
    """One convolution's numbers, taken apart."""
    filters, at, vectors = convolution.kernel[-1], 0, {}
    for role in ("bias",) if convolution.norm is None else NORM_ORDER:
        vectors[role] = numbers[at : at + filters]
        at += filters
    height, width, channels, _ = convolution.kernel
    kernel = numbers[at:].reshape(filters, channels, height, width).transpose(2, 3, 1, 0)
    if convolution.norm is None:
        return [StoredLayer(convolution.name, {"kernel": kernel, **vectors})]
    return [StoredLayer(convolution.name, {"kernel": kernel}), StoredLayer(convolution.norm, vectors)]


# --- YOLOv3's neck and head behind the backbone


def _yolov3_rest(layers, floats: int, before: int) -> tuple[tuple[Convolution, ...], str]:
    """What must stand in so many floats behind the backbone, or nothing; and in words what could stand there."""
    filters = _filters_for_neck(layers)
    if filters is None:
        return (), ""
    fixed = sum(one.floats for one in _neck_and_head(filters, 0))
    each = sum(one.floats for one in _neck_and_head(filters, 1)) - fixed  # floats that one more channel takes
    said = f", or {before + fixed:,} + {each * BOXES_A_CELL:,} · (5 + classes) with YOLOv3's neck and head behind them"
    channels, left = divmod(floats - fixed, each)
    if left or channels % BOXES_A_CELL or channels <= 5 * BOXES_A_CELL:
        return (), said
    rest = _neck_and_head(filters, channels)
    shapes = {layer.name: tuple(layer.tensors["kernel"].shape) for layer in layers if "kernel" in layer.tensors}
    if all(shapes.get(one.name) == one.kernel for one in rest if one.norm):
        return rest, said
    return tuple(_renamed(one) for one in rest), said


def _renamed(one: Convolution) -> Convolution:
    """Under a name that no model has: what stands there is another neck's."""
    return dataclasses.replace(one, name=f"yolov3_{one.name}", norm=one.norm and f"yolov3_{one.norm}")


def _neck_and_head(filters: tuple[int, int, int], channels: int) -> tuple[Convolution, ...]:
    """The layers of yolov3.cfg behind the backbone, under the names that a "full" neck has for them.

    Args:
        filters: of the backbone's maps of strides 8, 16, 32.
        channels: of a grid, 3 · (5 + classes). The grids are not those of this project, and are called otherwise.
    """
    found, carried = [], 0

    def add(name, size, inputs, outputs):
        found.append(Convolution(f"{name}_conv", (size, size, inputs, outputs), f"{name}_bn"))
        return outputs

    for stride, wide in zip((32, 16, 8), filters[::-1], strict=True):
        narrow, inputs = wide // 2, wide
        if carried:
            inputs += add(f"neck_{stride}_carry", 1, carried, narrow)
        for number in range(1, 6):
            size, outputs = (1, narrow) if number % 2 else (3, wide)
            inputs = add(f"neck_{stride}_conv{number}", size, inputs, outputs)
        carried = inputs
        add(f"head_{stride}", 3, narrow, wide)
        found.append(Convolution(f"yolov3_grid_{stride}", (1, 1, wide, channels), None))
    return tuple(found)


def _filters_for_neck(layers) -> tuple[int, int, int] | None:
    """How many filters the backbone's maps of strides 8, 16, 32 have; None of a backbone of the user's own."""
    last = {layer.block: layer.tensors["kernel"].shape[-1] for layer in layers if "kernel" in layer.tensors}
    return tuple(last[block] for block in FEEDS_NECK) if all(block in last for block in FEEDS_NECK) else None


def _classes(rest) -> int:
    return rest[-1].kernel[-1] // BOXES_A_CELL - 5
