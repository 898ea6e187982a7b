"""What each layer of a detector answers, heard while it answers."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import keras

HOLDERS = (keras.Model, keras.layers.InputLayer, keras.metrics.Metric)


@contextlib.contextmanager
def listening(detector: keras.Model, heard: Callable) -> Iterator[None]:
    """Calls `heard(layer, inputs, outputs)` for every layer that answers while the block runs.

    Layers that only hold others, or images, are left out: what they answer others have answered. A `call` that somebody
    has put onto a layer is heard like its own, and is there again afterwards.

    Args:
        detector: run without compilation, within the block.
        heard: `inputs` is the tuple of positional arguments.
    """
    layers = [layer for layer in detector._flatten_layers(include_self=False) if not isinstance(layer, HOLDERS)]
    own = [vars(layer).get("call") for layer in layers]
    for layer in layers:
        layer.call = _heard(layer, heard)
    try:
        yield
    finally:
        for layer, call in zip(layers, own, strict=True):
            del layer.call
            if call is not None:
                layer.call = call


def _heard(layer, heard: Callable) -> Callable:
    call = layer.call

    @functools.wraps(call)
    def answered(*args, **kwargs):
        outputs = call(*args, **kwargs)
        heard(layer, args, outputs)
        return outputs

    return answered
