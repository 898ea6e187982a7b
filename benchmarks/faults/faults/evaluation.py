"""Faults of decoding, suppression and metric."""

from __future__ import annotations

import keras
import numpy as np

from faults.kinds import fault
from multigrid.detection.decode import DecodeGrids


def decode_with(predictor, *, anchors=None, strides: float = 1.0, offset_activation: str | None = None) -> None:
    """Gives a predictor a decoder with other anchors, strides so many times longer, or another activation."""
    decoder = predictor.model.get_layer("decode")
    options = decoder.get_config()
    if anchors is not None:
        options["anchors"] = np.asarray(anchors).tolist()
    options["strides"] = [stride * strides for stride in decoder.strides]
    options["offset_activation"] = offset_activation or options["offset_activation"]
    grids = decoder._inbound_nodes[0].input_tensors
    predictor.model = keras.Model(predictor.model.input, DecodeGrids(**options)(grids), name=predictor.model.name)


@fault("E03", "evaluation", "P", (3.0, 1.8, 1.4), ("MG803",))
def predictor_has_other_anchors(making, factor):
    """So many times too large."""

    def change(predictor):
        anchors = np.array(predictor.model.get_layer("decode").anchors)
        decode_with(predictor, anchors=anchors * factor)

    making.change("predictor", change)


@fault("L19", "evaluation", "P", ("tanh",), ("MG803", "MG616"), further=True)
def predictor_has_other_activation(making, activation):
    making.change("predictor", lambda predictor: decode_with(predictor, offset_activation=activation))


@fault("E01", "evaluation", "P", (0.9, 0.6, 0.4), ("MG801",), further=True)
def score_threshold_too_high(making, threshold):
    making.config(f"detection.score_threshold={threshold}", f"detection.predict_threshold={threshold}")


@fault("E02", "evaluation", "P", (0.98, 0.05), ("MG802",), further=True, settings=("detection.suppression=nms",))
def suppression_threshold_wrong(making, threshold):
    making.config(f"detection.nms_threshold={threshold}")


@fault("E08", "evaluation", "P", (1, 2), ("MG808",), further=True)
def too_few_detections(making, most):
    making.config(f"detection.max_detections={most}")


@fault("E06", "evaluation", "P", ("all",), ("MG806",), further=True)
def predictor_in_training_mode(making, _):
    """BatchNorm goes by the images that are looked at together."""

    def change(predictor):
        model = predictor.model
        model.predict_on_batch = lambda images: {
            name: np.asarray(values) for name, values in model(images, training=True).items()
        }

    making.change("predictor", change)


@fault("E09", "evaluation", "P", (0.9999, 0.999), ("MG518",), further=True, settings=("backbone_weights=null",))
def average_too_slow(making, momentum):
    """The moving average of the weights, which is evaluated, has hardly left the first ones."""
    making.config(f"training.ema={momentum}")
