"""Every key and every default, and the loader from YAML plus overrides to a checked, frozen Config."""

from multigrid.config.loader import ConfigLoader
from multigrid.config.sections import (
    LOSS_PARTS,
    OPTIONAL_LOSS_PARTS,
    AugmentationConfig,
    Config,
    DataConfig,
    DetectionConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    ShapesConfig,
    StageConfig,
    TrainingConfig,
    with_objectness,
)
from multigrid.config.values import SHAPES
from multigrid.config.words import describe

__all__ = [
    "AugmentationConfig",
    "Config",
    "ConfigLoader",
    "DataConfig",
    "DetectionConfig",
    "LOSS_PARTS",
    "LossConfig",
    "ModelConfig",
    "OPTIONAL_LOSS_PARTS",
    "OutputConfig",
    "SHAPES",
    "ShapesConfig",
    "StageConfig",
    "TrainingConfig",
    "describe",
    "with_objectness",
]
