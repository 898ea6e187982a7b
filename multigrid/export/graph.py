"""The graph that is exported: uint8 images in, boxes, scores and classes out."""

from __future__ import annotations

from dataclasses import dataclass

import keras
from keras import ops

from multigrid.detection.decode import with_decoder
from multigrid.detection.graph_suppression import MAX_CANDIDATES, suppressed
from multigrid.models.folding import fold_batch_norm
from multigrid.models.head import grid_name

INPUT = "images"
OUTPUTS = ("boxes", "scores", "classes")
DETECTIONS = "detections"  # the last layer


@dataclass(frozen=True)
class GraphSuppression:
    """Suppression within the graph; see `suppressed`."""

    score_threshold: float  # least score of a detection
    iou_threshold: float  # overlap above which the weaker of two boxes of a class goes
    max_detections: int  # rows of every output
    max_candidates: int = MAX_CANDIDATES  # (cell, class) pairs that are looked at, best scores first
    rule: str = "nms"  # a word of `graph_suppression.RULES`
    rounds: int | None = None  # of the rule, for a graph without loops


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

    def compute_output_spec(self, decoded):
        return _outputs(decoded["boxes"].shape[0], self.cells)


class Suppress(keras.layers.Layer):
    """Suppression within the graph.

    Args:
        cells: their number, which the decoder's outputs do not tell before they run.
        suppression: thresholds and sizes.
    """

    def __init__(self, cells: int, suppression: GraphSuppression, **kwargs):
        super().__init__(dtype="float32", **kwargs)
        self.cells, self.suppression = cells, suppression

    def call(self, decoded):
        boxes, scores = _with_cells(decoded, self.cells)
        return suppressed(boxes, scores, **vars(self.suppression))

    def compute_output_spec(self, decoded):
        return _outputs(decoded["boxes"].shape[0], self.suppression.max_detections)


def exported_graph(
    detector,
    input_size: tuple[int, int],
    suppression: GraphSuppression | None = None,
    *,
    rescore: bool = False,
    folded: bool = True,
) -> keras.Model:
    """A model with the inputs and outputs of every artefact.

    Args:
        detector: a `MultiGridDetector`; stays as it is.
        input_size: (height, width) in pixels, multiples of 32.
        suppression: within the graph; None gives all cells, each with its best class.
        rescore: see `DecodeGrids`.
        folded: whether BatchNorm is folded into the convolutions.

    Returns:
        A `keras.Model` from uint8 RGB [B, height, width, 3] to {"boxes": [B, D, 4] float32 corners in input pixels,
        "scores": [B, D] float32, "classes": [B, D] int32}.
    """
    decoding = with_decoder(detector, rescore=rescore)
    images = keras.Input((*input_size, 3), dtype="uint8", name=INPUT)
    decoded = (fold_batch_norm(decoding) if folded else decoding)(images)
    cells = sum((input_size[0] // stride) * (input_size[1] // stride) for stride in detector.strides)
    if suppression is None:
        last = BestClass(cells, name=DETECTIONS)
    else:
        last = Suppress(cells, suppression, name=DETECTIONS)
    return keras.Model(images, last(decoded), name="exported")


def is_precise(name: str, strides) -> bool:
    """Whether a step of a converted graph belongs to the last convolutions or to what follows them.

    Those stay in floating point: one step of eight bits between a size of 20 and of 22 px is too coarse for a box.

    Args:
        name: what a converter made of the names of Keras' layers, "exported_1/decode_1/Exp".
        strides: of the detector, which name its last convolutions.
    """
    layers = ("decode", DETECTIONS, *(grid_name(stride) for stride in strides))
    return any(f"/{layer}/" in name or f"/{layer}_" in name for layer in layers)


def _outputs(batch, rows: int) -> dict:
    """What comes out, without making it: tracing the loop of a suppression takes seconds."""
    return {
        "boxes": keras.KerasTensor((batch, rows, 4), "float32"),
        "scores": keras.KerasTensor((batch, rows), "float32"),
        "classes": keras.KerasTensor((batch, rows), "int32"),
    }


def _with_cells(decoded, cells):
    """Boxes and scores whose number of cells is known when the graph is made."""
    boxes, scores = decoded["boxes"], decoded["scores"]
    return ops.reshape(boxes, (-1, cells, 4)), ops.reshape(scores, (-1, cells, scores.shape[-1]))
