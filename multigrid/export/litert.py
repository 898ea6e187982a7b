"""LiteRT (TensorFlow Lite) files, in float32, float16 and int8."""

from __future__ import annotations

import pathlib
import tempfile

import keras
import tensorflow as tf

from multigrid.export.graph import INPUT, is_precise
from multigrid.export.libraries import library

OUTPUT = "StatefulPartitionedCall"  # what the converter calls the steps that make the outputs


def write(model: keras.Model, path: pathlib.Path, signature, strides, quantize: str | None, calibration) -> None:
    """Writes a file that needs no operations but LiteRT's own.

    Args:
        model: of `exported_graph`.
        path: the file, ending with .tflite.
        signature: Keras' description of the input, with a fixed batch.
        strides: of the detector.
        quantize: "float16" stores the weights so, "int8" also computes so; None is float32.
        calibration: uint8 [N, height, width, 3] images for "int8".
    """
    options = {"target_spec": {"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]}}
    if quantize == "float16":
        options["target_spec"]["supported_types"] = [tf.float16]
        options["optimizations"] = [tf.lite.Optimize.DEFAULT]
    model.export(str(path), format="litert", input_signature=signature, verbose=False, **options)
    if quantize == "int8":
        path.write_bytes(_quantized(model, signature, _precise_steps(path, strides), calibration))


def _precise_steps(path: pathlib.Path, strides) -> list:
    """What the converter calls the tensors that are to stay in floating point."""
    interpreter = library("ai_edge_litert.interpreter").Interpreter(str(path))
    names = [tensor["name"] for tensor in interpreter.get_tensor_details()]
    return [name for name in names if is_precise(name, strides) or name.startswith(OUTPUT)]


def _quantized(model, signature, precise: list, calibration) -> bytes:
    """The file with eight-bit weights and activations; the converter itself has no way to leave steps out."""
    size = signature[0].shape[0]
    batches = [image[None].repeat(size, axis=0) for image in calibration]

    def dataset():
        yield from ({INPUT: batch} for batch in batches)

    with tempfile.TemporaryDirectory() as folder:
        model.export(folder, format="tf_saved_model", input_signature=signature, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = dataset
        debugger = tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=dataset,
            debug_options=tf.lite.experimental.QuantizationDebugOptions(denylisted_nodes=precise),
        )
    return debugger.get_nondebug_quantized_model()
