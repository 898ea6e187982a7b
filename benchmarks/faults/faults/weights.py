"""Faults of what was loaded, and of what moves."""

from __future__ import annotations

import keras
import numpy as np

from faults.kinds import fault
from multigrid import assembly
from multigrid.models.blocks import backbone_blocks, block_of, blocks_of
from multigrid.models.hdf5_file import write_keras_2
from multigrid.models.matching import model_layers

FROZEN = "training.freeze=backbone"
SCRATCH = "backbone_weights=null"


def norms(model) -> list:
    """All BatchNorm layers within a model, from the image on."""
    layers = model._flatten_layers(include_self=False)
    return [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]


def _last(items, share: float) -> list:
    """The last of them, this share of all."""
    return list(items)[len(items) - round(share * len(items)) :]


@fault("W01", "weights", "S", (1.0, 0.5, 0.2), ("MG401", "MG402"), settings=(FROZEN,))
def backbone_not_loaded(making, share):
    """This share of the backbone's blocks, from the deep end, is as it was before the file was read."""

    def forget(trainer):
        detector = trainer.detector
        fresh = assembly.build_detector(trainer.config, trainer.vocabulary)
        blocks = _last(backbone_blocks(blocks_of(detector)), share)
        for variable, before in zip(detector.backbone.variables, fresh.backbone.variables, strict=True):
            if block_of(variable.path) in blocks:
                variable.assign(before)
        trainer.ledgers = []

    making.change("detector", forget)


@fault("W04", "weights", "S", (1.0, 0.5, 0.2), ("MG403",), settings=(FROZEN,))
def norm_statistics_not_loaded(making, share):
    def reset(trainer):
        for layer in _last(norms(trainer.detector.backbone), share):
            layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
            layer.moving_variance.assign(np.ones(layer.moving_variance.shape))

    making.change("detector", reset)


@fault("W07", "weights", "S", ("all", "all but the grids", "backbone"), ("MG406",), settings=(SCRATCH,))
def layers_frozen(making, which):
    """Of a detector whose backbone begins at random."""

    def freeze(trainer):
        detector = trainer.detector
        for layer in detector.layers:
            if which == "backbone":
                layer.trainable = layer is not detector.backbone
            else:
                layer.trainable = which != "all" and layer.name.startswith("grid_")

    making.change("detector", freeze)


@fault("W02", "weights", "S", (0.9, 0.6, 0.3), ("MG402", "MG401"), further=True, settings=(FROZEN,))
def backbone_loaded_in_part(making, share):
    """The file that the config names lacks this share of the backbone's layers, from the deep end."""
    from multigrid.models.darknet import darknet53
    from multigrid.models.weights import load_weights

    config = making.stage.config(making.settings)
    backbone = darknet53(config.model.width, config.model.depth)
    load_weights(backbone, making.stage.backbone)
    layers = model_layers(backbone)
    path = making.file("backbone.h5")
    write_keras_2(path, layers[: len(layers) - round(share * len(layers))])
    making.config(f"backbone_weights={path}", "allow_partial=true")


@fault("W05", "weights", "S", (1.0, 0.6, 0.3), ("MG404",), further=True, settings=(FROZEN,))
def slope_differs_from_weights(making, slope):
    """Of the LeakyReLU in the backbone; the weights were trained with 0.1."""

    def change(trainer):
        for layer in trainer.detector.backbone.layers:
            if isinstance(layer, keras.layers.LeakyReLU):
                layer.negative_slope = slope

    making.change("detector", change)


@fault("W06", "weights", "E", (0.5, 0.9), ("MG405",), further=True, settings=("training.batch_size=2",))
def frozen_backbone_counts_on(making, momentum):
    """All of the backbone is frozen but its BatchNorm statistics, which follow small batches at this momentum."""

    def change(trainer):
        for layer in trainer.detector.backbone.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = momentum
                layer.gamma.trainable = layer.beta.trainable = False
            else:
                layer.trainable = False

    making.change("detector", change)


@fault("W08", "weights", "S", ("head and grids", "grids"), ("MG407",), further=True)
def head_frozen(making, which):
    def freeze(trainer):
        for layer in trainer.detector.layers:
            if layer.name.startswith(("head_", "grid_") if which == "head and grids" else "grid_"):
                layer.trainable = False

    making.change("detector", freeze)


@fault("W11", "weights", "S", (1.0, 0.01, None), ("MG409",), further=True)
def weights_not_a_number(making, share):
    """Of one kernel in the middle: all, a hundredth, or a single number."""

    def spoil(trainer):
        kernel = trainer.detector.backbone.get_layer("stage3_down_conv").kernel
        values = keras.ops.convert_to_numpy(kernel).copy()
        count = 1 if share is None else max(1, round(share * values.size))
        values.reshape(-1)[:count] = np.nan
        kernel.assign(values)

    making.change("detector", spoil)
