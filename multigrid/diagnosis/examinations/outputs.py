"""Outputs of one's own making for the live criterion: a designed scene, and what a perfect head would say of it.

A loss can be asked anything: given grids that say something known, its parts tell how it counts, masks and compares,
without a network and within milliseconds.
"""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.geometry import cells as cell_geometry
from multigrid.losses.targets import Targets, target_grids

CONFIDENCE = 9.0  # logits of a perfect head; the objectness loss of a cell is then 1e-4
SMALL = -4.0  # ln(size / anchor) of cells that answer for nothing: boxes that overlap nothing
LEAST_SIDE = 6.0  # pixels of a designed object
LARGEST_SHARE = 0.8  # of the shorter side of the image
OFF_ANCHOR = (1.08, 0.94)  # width and height of a designed object by those of an anchor
PADDING = 2  # rows without an object in every image


@dataclass(frozen=True)
class Scene:
    """Objects in known places, encoded by the live criterion, and the perfect answer to them.

    Images: 0 has an object of every scale and one more of the finest; 1 has the finest of image 0 alone, at the same
    place; then one for each further anchor, an object of every scale; the last one is empty.
    """

    size: tuple[int, int]  # (height, width) of the images in pixels
    boxes: np.ndarray  # [B, M, 4] corners in pixels
    classes: np.ndarray  # [B, M], -1 for padding
    targets: Targets  # of the live criterion
    layout: cell_geometry.CellLayout
    cells: np.ndarray  # [B, N, 5 + A + C] float32, the perfect answer
    per_scale: int  # A

    @property
    def positive(self) -> np.ndarray:
        """[B, N] bool: the cells that answer for an object."""
        return self.cells[..., 4] > 0.0

    @property
    def first_class(self) -> int:
        """The channel of the first class."""
        return 5 + self.per_scale

    @property
    def scale_of_cells(self) -> np.ndarray:
        """[N] int."""
        return as_array(self.layout.scale)

    def claims(self, image: int, row: int) -> np.ndarray:
        """Cells of an image that answer for one of its objects: [k] int."""
        return as_array(self.targets.cell)[image, row][as_array(self.targets.positive)[image, row]]

    def part(self, images) -> Scene:
        """The scene with only some of its images, or with some of them several times."""
        images = np.asarray(images)
        targets = Targets(*(ops.take(ops.convert_to_tensor(value), images, axis=0) for value in self.targets))
        fields = (self.boxes[images], self.classes[images], targets, self.layout, self.cells[images])
        return Scene(self.size, *fields, self.per_scale)


@dataclass(frozen=True)
class Numbers:
    """What the criterion says of a scene's cells, in NumPy; S scales."""

    total: float
    parts: dict  # name -> [S], normalized, before the coefficient
    weighted: dict  # name -> [S], as in the total
    counts: dict  # name -> [S]
    normalizers: np.ndarray  # [S]

    def sum(self, name: str) -> float:
        """A part over all scales; 0 where there is none of the name."""
        return float(np.sum(self.parts.get(name, 0.0)))


def examine(case) -> Scene | None:
    """The designed scene at the size of the training images; None where the criterion's targets are of another kind."""
    return scene_of(case, case.batches[0][0].shape[1:3])


def scene_of(case, size) -> Scene | None:
    """The designed scene at some (height, width) in pixels, or None as `examine`."""
    boxes, classes = designed_truth(case.anchors, size, case.detector.num_classes)
    return encoded_scene(case, boxes, classes, size)


def encoded_scene(case, boxes, classes, size) -> Scene | None:
    """Objects as the live criterion encodes them, and the perfect answer; None where its targets are of another kind,
    or about rows of its own.

    Args:
        case: a `Case`.
        boxes: [B, M, 4] corners in pixels.
        classes: [B, M], -1 for padding.
        size: (height, width) of the images in pixels.
    """
    outputs = empty_outputs(case, len(boxes), size)
    targets = case.criterion.encode({"boxes": boxes, "classes": classes}, outputs)
    if not tells_claims(targets) or tuple(targets.classes.shape) != classes.shape:
        return None
    layout = cell_geometry.layout_of(outputs, strides_of(case))
    cells = perfect_answer(case, targets, layout)
    return Scene(tuple(size), boxes, classes, targets, layout, cells, case.anchors.shape[1])


def tells_claims(targets) -> bool:
    """Whether an encoder's targets are of the kind that the package's own encoder returns."""
    return all(hasattr(targets, name) for name in Targets._fields)


def designed_truth(anchors, size, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes [B, M, 4] float32 corners in pixels and classes [B, M] int32 of the images that `Scene` describes."""
    scales, per_scale = anchors.shape[:2]
    crowd = [_designed(anchors, size, scale, 0) for scale in range(scales)]
    crowd.append(_designed(anchors, size, scales - 1, per_scale - 1, far=True))
    images = [crowd, [crowd[scales - 1]]]
    for anchor in range(1, min(per_scale, 3)):
        images.append([_designed(anchors, size, scale, anchor) for scale in range(scales)])
    images.append([])
    rows = max(map(len, images)) + PADDING
    boxes, classes = np.zeros((len(images), rows, 4), "float32"), np.full((len(images), rows), -1, "int32")
    for image, objects in enumerate(images):
        for row, box in enumerate(objects):
            boxes[image, row], classes[image, row] = box, (row + image) % num_classes
    classes[1, 0] = classes[0, scales - 1]
    return boxes, classes


def perfect_answer(case, targets, layout, confidence: float = CONFIDENCE) -> np.ndarray:
    """What a head would say that knows the targets: [B, N, 5 + A + C] float32 raw numbers.

    Cells that answer for nothing have a small box and no objectness.
    """
    per_scale, classes = case.anchors.shape[1], case.detector.num_classes
    wanted = as_array(cell_geometry.flatten(target_grids(targets, layout, per_scale, classes)))
    positive = wanted[..., 4:5] > 0.5
    logits = cell_geometry.offset_logits(ops.convert_to_tensor(wanted[..., 0:2]), activation_of(case))
    chosen = confidence * (2.0 * wanted[..., 4:] - 1.0)
    said = np.concatenate([as_array(logits), wanted[..., 2:4], chosen], axis=-1)
    nothing = np.zeros(said.shape[-1], "float32")
    nothing[2:4], nothing[4] = SMALL, -confidence
    return np.where(positive, said, nothing).astype("float32")


class _Compiled(keras.Model):
    """The live criterion's breakdown as a compiled function: a twelfth of the time, and a scene is asked often."""

    def __init__(self, criterion, layout):
        super().__init__(dtype="float32", name="asked_loss")
        self.criterion, self.layout = criterion, layout
        self.compile(jit_compile=False)

    def call(self, inputs):
        targets = Targets(*(inputs[name] for name in Targets._fields))
        said = self.criterion.breakdown(targets, cell_geometry.unflatten(inputs["cells"], self.layout))
        return {
            "total": said.total,
            "parts": said.parts,
            "weighted": said.weighted,
            "counts": said.counts,
            "normalizers": said.normalizers,
        }


def _compiled(case) -> _Compiled:
    return _Compiled(case.criterion, case.examined(examine).layout)


def measure(case, scene: Scene, cells=None, targets=None) -> Numbers:
    """What the live criterion says of a scene of the training images' size.

    Args:
        case: a `Case`.
        scene: `examine(case)`, or some of its images.
        cells: [B, N, 5 + A + C] raw numbers; the perfect answer if None.
        targets: others than the scene's.
    """
    inputs = {name: as_array(value) for name, value in (targets or scene.targets)._asdict().items()}
    inputs["cells"] = np.asarray(scene.cells if cells is None else cells, "float32")
    return _numbers(case.examined(_compiled).predict_on_batch(inputs))


def measure_as_it_is(case, scene: Scene, cells) -> Numbers:
    """`measure` with the criterion's attributes of this very moment."""
    grids = cell_geometry.unflatten(ops.convert_to_tensor(cells, "float32"), scene.layout)
    said = case.criterion.breakdown(scene.targets, grids)
    names = ("total", "parts", "weighted", "counts", "normalizers")
    return _numbers({name: getattr(said, name) for name in names})


def _numbers(said: dict) -> Numbers:
    plain = {
        name: {part: as_array(one).astype("float64") for part, one in value.items()}
        if isinstance(value, dict)
        else as_array(value).astype("float64")
        for name, value in said.items()
    }
    return Numbers(**{**plain, "total": float(plain["total"])})


def start_cells(case, scene: Scene) -> np.ndarray:
    """What a fresh head says: its bias in every cell."""
    return np.broadcast_to(case.detector.initial_bias(), scene.cells.shape).astype("float32")


def empty_outputs(case, images: int, size) -> list:
    """Grids of zeros, [B, rows, columns, 5 + A + C] each, for this number of images of (height, width) in pixels."""
    channels = 5 + case.anchors.shape[1] + case.detector.num_classes
    shapes = [(images, size[0] // stride, size[1] // stride, channels) for stride in case.detector.strides]
    return [ops.zeros(shape) for shape in shapes]


def activation_of(case) -> str:
    """How the criterion reads offset logits, as far as it says so."""
    return getattr(case.criterion, "offset_activation", case.detector.offset_activation)


def strides_of(case) -> tuple:
    """Pixels a cell by the criterion, as far as it says so."""
    return tuple(getattr(case.criterion, "strides", case.detector.strides))


def as_array(values) -> np.ndarray:
    """In NumPy."""
    if isinstance(values, keras.Variable):  # NumPy reads tensors without a warning
        values = ops.convert_to_tensor(values)
    return np.asarray(ops.convert_to_numpy(values))


def _designed(anchors, size, scale: int, anchor: int, far: bool = False) -> list:
    """Corners of an object of an anchor's size, nowhere near the middle of a cell or of the image."""
    sides = np.clip(anchors[scale, anchor] * OFF_ANCHOR, LEAST_SIDE, LARGEST_SHARE * min(size))
    x, y = (0.81, 0.79) if far else (0.33 + 0.17 * scale + 0.03 * anchor, 0.62 - 0.14 * scale + 0.05 * anchor)
    centre = np.array([x * size[1], y * size[0]])
    return [*(centre - sides / 2), *(centre + sides / 2)]
