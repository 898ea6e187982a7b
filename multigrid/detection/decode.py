"""Raw grids to boxes and scores, as a layer that can stand behind any detector."""

import keras
from keras import ops

from multigrid.geometry import cells as cell_geometry


@keras.saving.register_keras_serializable("multigrid")
class DecodeGrids(keras.layers.Layer):
    """Boxes and class scores of every cell.

    Takes the detector's list of raw grids [B, H/stride, W/stride, 5 + A + C] and returns {"boxes": [B, N, 4] corners in
    input pixels, not clipped, "objectness": [B, N], "scores": [B, N, C], objectness × class}, all float32.

    Args:
        anchors: [scales, A, 2] nested numbers, (width, height) in input pixels, coarse to fine.
        strides: pixels a cell of each scale.
        offset_activation: how offset logits are read, see `geometry.cells.offset`.
        class_activation: how class logits are read, "sigmoid" or "softmax".
        rescore: whether the score is also multiplied by the probability (softmax) of the anchor that the cell prefers.
    """

    def __init__(
        self, anchors, strides, *, offset_activation: str, class_activation: str, rescore: bool = False, **kwargs
    ):
        super().__init__(dtype="float32", **kwargs)
        self.anchors, self.strides = anchors, tuple(strides)
        self.offset_activation, self.class_activation = offset_activation, class_activation
        self.rescore = rescore

    def call(self, grids):
        layout = cell_geometry.layout_of(grids, self.strides)
        channels = cell_geometry.split_channels(cell_geometry.flatten(grids), len(self.anchors[0]))
        boxes = cell_geometry.decode_boxes(channels, layout, self.anchors, self.offset_activation)
        classes = ops.softmax(channels.classes) if self.class_activation == "softmax" else ops.sigmoid(channels.classes)
        objectness = ops.sigmoid(channels.objectness)
        confidence = objectness * ops.max(ops.softmax(channels.anchor), axis=-1) if self.rescore else objectness
        return {"boxes": boxes, "objectness": objectness, "scores": confidence[..., None] * classes}

    def compute_output_spec(self, grids):
        classes = grids[0].shape[-1] - 5 - len(self.anchors[0])
        batch = grids[0].shape[0]
        shapes = {"boxes": (batch, None, 4), "objectness": (batch, None), "scores": (batch, None, classes)}
        return {name: keras.KerasTensor(shape, "float32") for name, shape in shapes.items()}

    def get_config(self) -> dict:
        names = ("anchors", "strides", "offset_activation", "class_activation", "rescore", "name")
        return {name: getattr(self, name) for name in names}


def with_decoder(detector, *, rescore: bool = False) -> keras.Model:
    """A model from uint8 images to what `DecodeGrids` returns that shares the detector's weights."""
    decode = DecodeGrids(
        detector.anchors,
        detector.strides,
        offset_activation=detector.offset_activation,
        class_activation=detector.class_activation,
        rescore=rescore,
        name="decode",
    )
    model = keras.Model(detector.input, decode(detector.outputs), name="detector_with_decoder")
    model.jit_compile = detector.prefers_xla
    return model
