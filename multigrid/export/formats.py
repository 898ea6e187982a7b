"""A Keras model to an artefact of any format, through Keras' own export."""

from __future__ import annotations

import pathlib

import keras

from multigrid.errors import InputError
from multigrid.export import litert, onnx_file, openvino_file
from multigrid.export.graph import INPUT
from multigrid.export.kinds import LIBRARIES, QUANTIZED_FORMATS
from multigrid.export.libraries import library, quietly


def check_can_write(format: str, quantize: str | None) -> None:
    """Sees, before long work, that an artefact of this kind can be made here.

    Raises:
        InputError: another backend than TensorFlow, a missing library, or a format without this quantization.
    """
    if keras.backend.backend() != "tensorflow":
        backend = keras.backend.backend()
        raise InputError(f"export: expected the backend tensorflow (KERAS_BACKEND=tensorflow), received {backend}")
    if quantize is not None and format not in QUANTIZED_FORMATS:
        raise InputError(
            f"--quantize {quantize}: expected the format {', '.join(QUANTIZED_FORMATS)}, received {format}"
        )
    wanted = LIBRARIES[format] + (("nncf",) if (format, quantize) == ("openvino", "int8") else ())
    with quietly():
        for name in wanted:
            library(name)


def write_artefact(
    model: keras.Model, path: pathlib.Path, format: str, *, strides, batch_size=None, quantize=None, calibration=None
) -> None:
    """Writes an artefact.

    Args:
        model: of `exported_graph`.
        path: a folder to make for a SavedModel, else a file with the format's ending.
        format: one of `kinds.FORMATS`.
        strides: of the detector.
        batch_size: images of a run; None leaves it open, where the format can: LiteRT takes 1.
        quantize: "float16", "int8" or None.
        calibration: uint8 [N, height, width, 3] images like those that will come, for "int8".
    """
    batch_size = batch_size or (1 if format == "litert" else None)
    signature = [keras.layers.InputSpec(dtype="uint8", shape=(batch_size, *model.input_shape[1:]), name=INPUT)]
    with quietly():
        if format == "savedmodel":
            model.export(str(path), format="tf_saved_model", input_signature=signature, verbose=False)
        elif format == "litert":
            litert.write(model, path, signature, strides, quantize, calibration)
        elif format == "onnx":
            model.export(str(path), format="onnx", input_signature=signature, verbose=False)
            onnx_file.finish(path, strides, quantize, calibration)
        else:
            model.export(str(path), format="openvino", input_signature=signature, verbose=False)
            openvino_file.finish(path, strides, quantize, calibration)
