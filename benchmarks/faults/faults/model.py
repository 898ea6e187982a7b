"""Faults of the network and its head."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from faults.kinds import fault
from multigrid.geometry.cells import STRIDES
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.head import grid_name

FINEST = STRIDES[-1]


def grid_layers(trainer) -> list:
    return [trainer.detector.get_layer(grid_name(stride)) for stride in STRIDES]


def _bias(making, value: float) -> None:
    def change(trainer):
        for layer in grid_layers(trainer):
            bias = ops.convert_to_numpy(layer.bias).copy()
            bias[4] = value
            layer.bias.assign(bias)

    making.change("detector", change)


@fault("M02", "model", "B", (0.0,), ("MG702",), further=True)
def no_objectness_prior(making, logit):
    _bias(making, logit)


@fault("M03", "model", "B", (50.0, 12.0, 4.6), ("MG703",), further=True)
def objectness_prior_inverted(making, logit):
    _bias(making, logit)


@fault("M04", "model", "B", (20.0, 5.0, 1.0), ("MG704",), further=True)
def head_begins_too_large(making, deviation):
    def change(trainer):
        rng = np.random.default_rng(making.seed)
        for layer in grid_layers(trainer):
            layer.kernel.assign(rng.normal(0.0, deviation, layer.kernel.shape))

    making.change("detector", change)


@fault("M05", "model", "B", (1.0, 0.8), ("MG751",), further=True)
def channels_dead(making, share):
    """This share of the channels before the grids is below zero for every image, and the activation has no slope."""

    def change(trainer):
        for stride in STRIDES:
            norm = trainer.detector.get_layer(f"head_{stride}_bn")
            beta = ops.convert_to_numpy(norm.beta).copy()
            beta[: round(share * len(beta))] = -10.0
            norm.beta.assign(beta)
            trainer.detector.get_layer(f"head_{stride}_leaky").negative_slope = 0.0

    making.change("detector", change)


@fault(
    "M06", "model", "B", ("all",), ("MG706",), further=True, settings=("loss.localization=mse", "loss.coord_scale=1.0")
)  # fmt: skip
def channels_exchanged(making, _):
    """Width and height, in the targets alone."""

    def encode(self, y_true, outputs):
        found = MultiGridLoss.encode(self, y_true, outputs)
        return found._replace(log_size=found.log_size[..., ::-1])

    making.criterion(encode=encode)


@fault("M07", "model", "E", (STRIDES, (16, FINEST), (FINEST,)), ("MG707", "MG751"), further=True)
def scale_has_no_signal(making, strides):
    """What comes before the grids of these strides is zero."""

    def change(trainer):
        for stride in strides:
            layer = trainer.detector.get_layer(f"head_{stride}_leaky")
            layer.call = lambda inputs: ops.zeros_like(inputs)

    making.change("detector", change)


@fault("M08", "model", "B", (STRIDES, (16, FINEST)), ("MG708", "MG707"), further=True)
def layers_begin_at_zero(making, strides):
    """The last two layers before the grids of these strides, so that neither gets a gradient through the other."""

    def change(trainer):
        for stride in strides:
            for name in (f"head_{stride}_bn", grid_name(stride)):
                layer = trainer.detector.get_layer(name)
                first = layer.gamma if isinstance(layer, keras.layers.BatchNormalization) else layer.kernel
                first.assign(ops.zeros_like(first))

    making.change("detector", change)
