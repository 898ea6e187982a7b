"""A trained detector as an artefact that runs without Keras: SavedModel, ONNX, LiteRT, OpenVINO."""

import importlib

_HOMES = {
    "CheckError": "check",
    "ExportOptions": "exporter",
    "GraphSuppression": "graph",
    "export": "exporter",
    "exported_graph": "graph",
    "load": "runtimes",
}

__all__ = list(_HOMES)


def __getattr__(name: str):
    """Loads a public name from its home when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multigrid.export' has no attribute {name!r}")
    return getattr(importlib.import_module(f"multigrid.export.{_HOMES[name]}"), name)
