"""Artefacts loaded again: one class a format, and the same three outputs from each.

`predict` takes uint8 RGB [B, height, width, 3] at the artefact's size and returns {"boxes": [B, D, 4] float32 corners
in input pixels, "scores": [B, D] float32, "classes": [B, D] int32}. One of a fixed batch is run as often as needed.
"""

from __future__ import annotations

import os
import pathlib

import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.export.graph import INPUT, OUTPUTS
from multigrid.export.kinds import ENDINGS
from multigrid.export.libraries import library

SAVED_MODEL_FILE = "saved_model.pb"


class Runtime:
    """What all formats share.

    Attributes:
        format: its word.
        batch: images of a run, None where any number will do.
        input_size: (height, width) in pixels.
    """

    format: str
    batch: int | None
    input_size: tuple[int, int]

    def predict(self, images: np.ndarray) -> dict:
        """The outputs of a batch of images, see the module.

        Raises:
            ValueError: images of another type or shape, or none.
        """
        if images.dtype != np.uint8 or images.shape[1:] != (*self.input_size, 3) or not len(images):
            expected = f"uint8 [B, {self.input_size[0]}, {self.input_size[1]}, 3] with at least one image"
            raise ValueError(f"images: expected {expected}, received {images.dtype} {list(images.shape)}")
        step = self.batch or len(images)
        parts = [self._run(_filled(images[first : first + step], step)) for first in range(0, len(images), step)]
        return {name: np.concatenate([part[name] for part in parts])[: len(images)] for name in OUTPUTS}

    def _run(self, images: np.ndarray) -> dict:
        """Outputs of one run."""
        raise NotImplementedError


class KerasRuntime(Runtime):
    """A Keras model of `exported_graph`, for comparisons.

    Args:
        model: the model.
    """

    format = "keras"

    def __init__(self, model):
        self.model, self.batch = model, None
        self.input_size = tuple(model.input_shape[1:3])

    def _run(self, images):
        return self.model.predict_on_batch(images)


class SavedModelRuntime(Runtime):
    """A TensorFlow SavedModel, run by TensorFlow."""

    format = "savedmodel"

    def __init__(self, path):
        self._layer = keras.layers.TFSMLayer(os.fspath(path), call_endpoint="serving_default")
        (spec,) = self._layer.call_endpoint_fn.structured_input_signature[1].values()
        self.batch, self.input_size = _batch_and_size(spec.shape.as_list())

    def _run(self, images):
        return {name: keras.ops.convert_to_numpy(value) for name, value in self._layer(images).items()}


class OnnxRuntime(Runtime):
    """An ONNX file, run by ONNX Runtime on the processor.

    Its threads wait asleep: left to themselves they spin, which takes the cores from whoever else computes.
    """

    format = "onnx"

    def __init__(self, path):
        onnxruntime = library("onnxruntime")
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        (image,) = self._session.get_inputs()
        shape = [side if isinstance(side, int) else None for side in image.shape]
        self.batch, self.input_size = _batch_and_size(shape)

    def _run(self, images):
        return dict(zip(OUTPUTS, self._session.run(list(OUTPUTS), {INPUT: images}), strict=True))


class LiteRtRuntime(Runtime):
    """A LiteRT (TensorFlow Lite) file, run by its interpreter with a thread a core."""

    format = "litert"

    def __init__(self, path):
        interpreter = library("ai_edge_litert.interpreter").Interpreter
        self._interpreter = interpreter(os.fspath(path), num_threads=os.cpu_count())
        self._run_signature = self._interpreter.get_signature_runner("serving_default")
        (image,) = self._interpreter.get_input_details()
        shape = [None if side < 0 else int(side) for side in image["shape_signature"]]
        self.batch, self.input_size = _batch_and_size(shape)

    def _run(self, images):
        return {name: np.array(value) for name, value in self._run_signature(**{INPUT: images}).items()}


class OpenVinoRuntime(Runtime):
    """An OpenVINO model (.xml beside its .bin), run on the processor.

    Computes in float32: left to itself OpenVINO computes in bfloat16 on processors that can.
    """

    format = "openvino"

    def __init__(self, path):
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        self._model = library("openvino").Core().compile_model(os.fspath(path), "CPU", settings)
        shape = [None if side.is_dynamic else side.get_length() for side in self._model.inputs[0].partial_shape]
        self.batch, self.input_size = _batch_and_size(shape)

    def _run(self, images):
        outputs = self._model([images])
        return {name: np.array(outputs[name]) for name in OUTPUTS}


RUNTIMES = {one.format: one for one in (SavedModelRuntime, OnnxRuntime, LiteRtRuntime, OpenVinoRuntime)}


def load(path: str | os.PathLike) -> Runtime:
    """Loads an artefact of any format.

    Args:
        path: a SavedModel's folder, or a file that ends with .onnx, .tflite or .xml.

    Returns:
        The `Runtime` of its format.

    Raises:
        InputError: nothing of the kind is there, or the library that runs it is missing.
    """
    path = pathlib.Path(path)
    if (path / SAVED_MODEL_FILE).is_file():
        return SavedModelRuntime(path)
    for format, ending in ENDINGS.items():
        if ending and path.suffix == ending and path.is_file():
            return RUNTIMES[format](path)
    raise InputError(f"{path}: expected a SavedModel's folder, .onnx, .tflite or .xml, received none of them")


def _batch_and_size(shape):
    batch, height, width, _ = shape
    return batch, (height, width)


def _filled(images, size):
    """As many images as the artefact takes at once: the last repeated."""
    missing = size - len(images)
    return np.concatenate([images, np.repeat(images[-1:], missing, axis=0)]) if missing else images
