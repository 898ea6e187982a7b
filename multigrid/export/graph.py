"""The graph that is exported: uint8 images in, boxes, scores and classes out."""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

from multigrid.detection.decode import with_decoder
from multigrid.detection.graph_suppression import MAX_CANDIDATES, suppressed
from multigrid.models.folding import fold_batch_norm

INPUT = "images"
OUTPUTS = ("boxes", "scores", "classes")


@dataclass(frozen=True)
class Suppression:
    """Greedy NMS within the graph."""

    score_threshold: float  # least score of a detection
    iou_threshold: float  # overlap above which the weaker of two boxes of a class goes
    max_detections: int  # rows of every output
    max_candidates: int = MAX_CANDIDATES  # (cell, class) pairs that are looked at, best scores first


class BestClass(keras.layers.Layer):
    """The best class of every cell: boxes and scores of all classes become boxes, scores and classes.

    Args:
        cells: their number, which the decoder's outputs do not tell before they run.
    """

    def __init__(self, cells: int, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.cells = cells

    def call(self, decoded):
        boxes, scores = _with_cells(decoded, self.cells)
        # not argmax: Keras' own looks at the sign of zeros with bit operations, which no converter knows
        score, label = ops.top_k(scores, 1)
        return {"boxes": boxes, "scores": score[..., 0], "classes": ops.cast(label[..., 0], "int32")}


class Suppress(keras.layers.Layer):
    """Greedy NMS, see `suppressed`.

    Args:
        cells: their number, which the decoder's outputs do not tell before they run.
        suppression: thresholds and sizes.
    """

    def __init__(self, cells: int, suppression: Suppression, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.cells, self.suppression = cells, suppression

    def call(self, decoded):
        boxes, scores = _with_cells(decoded, self.cells)
        return suppressed(boxes, scores, **vars(self.suppression))


def exported_graph(
    detector, input_size: tuple[int, int], suppression: Suppression | None = None, *, folded: bool = True, rescore=False
) -> keras.Model:
    """A model with the contract of every artefact.

    Args:
        detector: a `MultiGridDetector`; stays as it is.
        input_size: (height, width) in pixels.
        suppression: NMS within the graph; None gives all cells, each with its best class.
        folded: whether BatchNorm is folded into the convolutions.
        rescore: see `DecodeGrids`.

    Returns:
        From uint8 [B, height, width, 3] to {"boxes": [B, D, 4] float32 corners in input pixels, "scores": [B, D]
        float32, "classes": [B, D] int32}.
    """
    model = with_decoder(detector, rescore=rescore)
    images = keras.Input((*input_size, 3), dtype="uint8", name=INPUT)
    decoded = (fold_batch_norm(model) if folded else model)(images)
    cells = sum((input_size[0] // stride) * (input_size[1] // stride) for stride in detector.strides)
    last = BestClass(cells, name="detections") if suppression is None else Suppress(cells, suppression, name="detections")
    return keras.Model(images, last(decoded), name="exported")


def _with_cells(decoded, cells):
    """Boxes and scores whose number of cells is known when the graph is made."""
    boxes, scores = decoded["boxes"], decoded["scores"]
    return ops.reshape(boxes, (-1, cells, 4)), ops.reshape(scores, (-1, cells, scores.shape[-1]))
