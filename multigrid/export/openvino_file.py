"""What is done to an OpenVINO model after Keras wrote it: float16, int8."""

from __future__ import annotations

import os
import pathlib

from multigrid.export.graph import is_precise
from multigrid.export.libraries import library

NOT_STEPS = ("Constant", "Parameter", "Result")


def finish(path: pathlib.Path, strides, quantize: str | None, calibration) -> None:
    """Quantizes.

    Args:
        path: the .xml file, which is written anew with the .bin beside it.
        strides: of the detector.
        quantize: "float16" stores the weights so, "int8" also computes so; None leaves the files as they are.
        calibration: uint8 [N, height, width, 3] images for "int8".
    """
    if quantize is None:
        return
    openvino = library("openvino")
    # reading maps the .bin into memory, which is written anew below
    model = openvino.Core().read_model(path.read_bytes(), _weights(path))
    if quantize == "int8":
        model = _quantized(model, strides, calibration)
    openvino.save_model(model, path, compress_to_fp16=quantize == "float16")


def _weights(path: pathlib.Path):
    return library("openvino").Tensor(library("numpy").fromfile(path.with_suffix(".bin"), "uint8"))


def _quantized(model, strides, calibration):
    """The model with eight-bit weights and activations, by NNCF."""
    os.environ.setdefault("NNCF_CI", "1")  # it would report its use to its makers
    nncf = library("nncf")
    steps = [step.get_friendly_name() for step in model.get_ops() if step.get_type_name() not in NOT_STEPS]
    precise = [name for name in steps if is_precise(name, strides)]
    return nncf.quantize(
        model,
        nncf.Dataset([image[None] for image in calibration]),
        subset_size=len(calibration),
        ignored_scope=nncf.IgnoredScope(names=precise),
    )
