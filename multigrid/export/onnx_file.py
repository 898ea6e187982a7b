"""What is done to an ONNX file after Keras wrote it: names, float16, int8."""

from __future__ import annotations

import pathlib

from multigrid.export.graph import INPUT, is_precise
from multigrid.export.libraries import library


def finish(path: pathlib.Path, strides, quantize: str | None, calibration) -> None:
    """Gives the open batch a name, and quantizes.

    Args:
        path: the file, which is written anew.
        strides: of the detector.
        quantize: "float16", "int8" or None.
        calibration: uint8 [N, height, width, 3] images for "int8".
    """
    onnx = library("onnx")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        first = value.type.tensor_type.shape.dim[0]
        if not first.dim_value:
            first.dim_param = "batch"
    if quantize == "float16":
        model = _in_float16(model, strides)
    onnx.save(model, path)
    if quantize == "int8":
        _quantize(path, strides, calibration)


def _in_float16(model, strides):
    """The model with the network in float16, and its end in float32.

    The converter casts every tensor whose type it knows back to float16 behind a step that it leaves alone: it is told
    the types of those tensors only that lead from the network to its end.
    """
    float16 = library("onnxruntime.transformers.float16")
    onnx = library("onnx")
    graph, end = model.graph, _end(model.graph, strides)
    _give_constants(graph, end)
    made_by_network = {name for node in graph.node if node.name not in end for name in node.output}
    border = {name for node in graph.node if node.name in end for name in node.input} & made_by_network
    typed = {value.name: value for value in onnx.shape_inference.infer_shapes(model).graph.value_info}
    del graph.value_info[:]
    graph.value_info.extend(typed[name] for name in sorted(border) if name in typed)
    kinds = [value.type.tensor_type.elem_type for value in graph.output]
    for value in graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.UNDEFINED  # else they are cast to float16
    model = float16.convert_float_to_float16(model, disable_shape_infer=True, node_block_list=sorted(end))
    for value, kind in zip(model.graph.output, kinds, strict=True):
        value.type.tensor_type.elem_type = kind
    return model


def _give_constants(graph, end: set) -> None:
    """Copies the constants that the end shares with the network, which has them in float16."""
    shared = {name for node in graph.node if node.name not in end for name in node.input}
    shared &= {name for node in graph.node if node.name in end for name in node.input}
    for constant in [constant for constant in graph.initializer if constant.name in shared]:
        copy = graph.initializer.add()
        copy.CopyFrom(constant)
        copy.name = f"{constant.name}/end"
        for node in graph.node:
            if node.name in end:
                node.input[:] = [copy.name if name == constant.name else name for name in node.input]


def _end(graph, strides) -> set:
    """Names of the nodes of the last convolutions, and of all that reads what they make."""
    end, made = set(), set()
    for node in graph.node:  # each comes after those that it reads
        if is_precise(node.name, strides) or made.intersection(node.input):
            end.add(node.name)
            made.update(node.output)
    return end


def _quantize(path: pathlib.Path, strides, calibration) -> None:
    """Eight-bit weights and activations, by ONNX Runtime."""
    onnx, quantization = library("onnx"), library("onnxruntime.quantization")
    prepared = path.with_name(f"prepared-{path.name}")
    library("onnxruntime.quantization.shape_inference").quant_pre_process(path, prepared, skip_symbolic_shape=True)
    quantization.quantize_static(
        prepared,
        path,
        _reader(calibration),
        quant_format=quantization.QuantFormat.QDQ,
        per_channel=True,
        nodes_to_exclude=sorted(_end(onnx.load(prepared).graph, strides)),
    )
    prepared.unlink()


def _reader(calibration):
    class Reader(library("onnxruntime.quantization").CalibrationDataReader):
        def __init__(self):
            self.images = iter(calibration)

        def get_next(self):
            image = next(self.images, None)
            return None if image is None else {INPUT: image[None]}

    return Reader()
