"""multigrid: a Keras 3 object detector whose training explains itself."""

import importlib

__version__ = "0.1.0"

_HOMES = {
    "Anchors": "geometry.anchors",
    "Config": "config",
    "ConfigLoader": "config",
    "Detections": "detection.detections",
    "InputError": "errors",
    "LossBreakdown": "losses.multigrid_loss",
    "MultiGridDataGenerator": "data.generator",
    "MultiGridDetector": "models.detector",
    "MultiGridLoss": "losses.multigrid_loss",
    "MultiGridTrainer": "training.trainer",
    "Predictor": "prediction.predictor",
    "Sample": "data.samples",
    "darknet53": "models.darknet",
    "diagnose": "diagnosis.doctor",
    "load_weights": "models.weights",
    "read_anchors": "geometry.anchors",
    "read_samples": "data.samples",
    "run_probe": "diagnosis.probe",
    "save_weights": "models.weights",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str):
    """Loads a public name from its home when it is first asked for: `multigrid --help` need not wait for TensorFlow."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multigrid' has no attribute {name!r}")
    return getattr(importlib.import_module(f"multigrid.{_HOMES[name]}"), name)


def __dir__():
    return sorted(__all__)
