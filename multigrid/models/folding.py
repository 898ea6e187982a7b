"""BatchNorm folded into the convolutions before it: the same function with fewer steps."""

from __future__ import annotations

import keras
import numpy as np
from keras import layers


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """An equal model without the BatchNorms that follow a convolution, in float32 and with weights of its own.

    A BatchNorm at inference is a scale and a shift a channel: the convolution's kernel takes the one, its bias the
    other. One that does not follow a linear convolution, or a convolution that something else reads too, stays.

    Args:
        model: functional, models within it too; stays as it is.

    Returns:
        A functional `keras.Model` for inference.
    """
    plain = keras.Model(model.input, model.output)  # a subclass would not be cloned layer by layer
    followers = _followers(plain)
    folded = {id(norm) for norm in followers.values()}
    copies = {}

    def copy(layer):
        if id(layer) in folded:
            return layers.Identity(name=layer.name)
        config = layer.get_config()
        if "dtype" in config:
            config["dtype"] = "float32"
        if id(layer) in followers:
            config["use_bias"] = True
        copies[id(layer)] = layer.__class__.from_config(config)
        return copies[id(layer)]

    def call(layer, *args, **kwargs):
        return args[0] if isinstance(layer, layers.Identity) else layer(*args, **kwargs)

    clone = keras.models.clone_model(plain, clone_function=copy, call_function=call, recursive=True)
    for layer in _flat(plain):
        if id(layer) not in folded and layer.weights:
            values = _folded_weights(layer, followers[id(layer)]) if id(layer) in followers else layer.get_weights()
            copies[id(layer)].set_weights(values)
    return clone


def _flat(model) -> list:
    """All layers that are no models."""
    return [part for layer in model.layers for part in (_flat(layer) if isinstance(layer, keras.Model) else [layer])]


def _followers(model) -> dict:
    """{id of a convolution: the BatchNorm that can be folded into it}."""
    found, readers, norms = {}, {}, []
    for graph in _graphs(model):
        for tensor in keras.tree.flatten(graph.outputs):
            readers[id(tensor)] = readers.get(id(tensor), 0) + 1
        for layer in graph.layers:
            for node in layer._inbound_nodes:
                for tensor in node.input_tensors:
                    readers[id(tensor)] = readers.get(id(tensor), 0) + 1
            if isinstance(layer, layers.BatchNormalization) and len(layer._inbound_nodes) == 1:
                norms.append(layer)
    for norm in norms:
        tensor = norm.input
        before = tensor._keras_history.operation
        alone = readers[id(tensor)] == 1 and len(before._inbound_nodes) == 1
        if alone and type(before) is layers.Conv2D and before.activation is keras.activations.linear:
            found[id(before)] = norm
    return found


def _graphs(model) -> list:
    """The model and all models within it."""
    return [model, *(graph for layer in model.layers if isinstance(layer, keras.Model) for graph in _graphs(layer))]


def _folded_weights(convolution, norm) -> list:
    """Kernel and bias of a convolution that also does what the BatchNorm behind it does."""
    kernel, *bias = convolution.get_weights()
    scale, shift = _scale_and_shift(norm)
    return [
        (kernel * scale).astype("float32"),
        ((bias[0].astype("float64") if bias else 0.0) * scale + shift).astype("float32"),
    ]


def _scale_and_shift(norm):
    """What a BatchNorm does to each channel at inference: y = scale · x + shift, in float64."""
    mean, variance = (np.asarray(v, "float64") for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma, "float64")
    shift = np.asarray(norm.beta, "float64") if norm.center else 0.0
    return scale, shift - mean * scale
