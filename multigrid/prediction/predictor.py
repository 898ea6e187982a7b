"""A detector that is asked: from a run folder, a config or a model in memory."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

from multigrid import assembly
from multigrid.config import Config, ConfigLoader
from multigrid.detection.pipeline import DetectionPipeline
from multigrid.errors import InputError


class Predictor(DetectionPipeline):
    """Detections of images, see `DetectionPipeline` for its arguments."""

    @classmethod
    def from_config(
        cls, config: Config | str | os.PathLike, overrides: Sequence[str] = (), *, evaluating: bool = False
    ) -> Predictor:
        """The predictor that a config describes, with the weights that it names.

        Args:
            config: a `Config`, or a YAML file.
            overrides: settings over the file's, such as "weights=weights/model.h5".
            evaluating: whether to keep detections of low score, as a metric wants them.

        Raises:
            InputError: a config that is wrong, names no weights, or names some that do not fit.
        """
        if not isinstance(config, Config):
            config = ConfigLoader.load(config, list(overrides))
        if config.weights is None:
            raise InputError("weights: expected a file of trained weights, received null")
        vocabulary = assembly.read_vocabulary(config)
        detector = assembly.build_detector(config, vocabulary)
        assembly.load_configured_weights(config, detector)
        return cls.of(config, detector, vocabulary.class_names, evaluating=evaluating)

    @classmethod
    def from_run(
        cls, run_dir: str | os.PathLike, overrides: Sequence[str] = (), *, evaluating: bool = False
    ) -> Predictor:
        """The predictor of a run folder, with its best weights unless the overrides name others.

        Raises:
            InputError: no run folder, or one without weights.
        """
        run_dir = pathlib.Path(run_dir)
        if not (run_dir / "config.yaml").is_file():
            raise InputError(f"{run_dir}: expected a run folder with a config.yaml, received none")
        best = run_dir / "weights" / "best.weights.h5"
        settings = [] if any(word.startswith("weights=") for word in overrides) else [f"weights={best}"]
        return cls.from_config(
            run_dir / "config.yaml", ["backbone_weights=null", *settings, *overrides], evaluating=evaluating
        )

    @classmethod
    def of(cls, config: Config, detector, class_names: Sequence[str], *, evaluating: bool) -> Predictor:
        """A predictor of a detector in memory, with the config's numbers."""
        return cls(
            detector, class_names, config.model.input_size, **assembly.detection_options(config, evaluating=evaluating)
        )
