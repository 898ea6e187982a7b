"""The kinds of artefacts, by their words: what their files end with, what they are quantized to, what they need."""

ENDINGS = {"savedmodel": "", "onnx": ".onnx", "litert": ".tflite", "openvino": ".xml"}
FORMATS = tuple(ENDINGS)
QUANTIZATIONS = ("float16", "int8")
QUANTIZED_FORMATS = ("onnx", "litert", "openvino")
# the libraries that make and run each, by the names that they are imported by
LIBRARIES = {
    "savedmodel": (),
    "onnx": ("tf2onnx", "onnx", "onnxruntime"),
    "litert": ("ai_edge_litert",),
    "openvino": ("openvino",),
}
