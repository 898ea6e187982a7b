"""A detector that is asked: from a run folder, a config or a model in memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence

from multigrid import assembly
from multigrid.config import Config, ConfigLoader
from multigrid.detection.detections import Detections
from multigrid.detection.pipeline import DetectionPipeline
from multigrid.detection.trace import Trace
from multigrid.errors import InputError
from multigrid.prediction.run_folder import run_config
from multigrid.prediction.sources import expand, is_camera, open_items, single_image


class Predictor(DetectionPipeline):
    """Detections of images and videos; see `DetectionPipeline` for its arguments, `prediction.sources` for sources."""

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
        elif overrides:
            raise ValueError("overrides: expected none over a Config, received some; model_copy changes one")
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

        The folder may have been moved: see `run_config`.

        Raises:
            InputError: no run folder, or one without weights.
        """
        return cls.from_config(run_config(run_dir, overrides), evaluating=evaluating)

    @classmethod
    def of(cls, config: Config, detector, class_names: Sequence[str], *, evaluating: bool) -> Predictor:
        """A predictor of a detector in memory, with the config's numbers."""
        return cls(
            detector, class_names, config.model.input_size, **assembly.detection_options(config, evaluating=evaluating)
        )

    def predict(
        self, source, *, on_broken: Callable[[InputError], None] | None = None, cells: bool = False
    ) -> Detections | list[Detections]:
        """What is found: `Detections` of one image; of anything else a list of them, one an image or frame.

        The detections of a video do not keep its frames; `stream` gives them with each.

        Args:
            source: see `prediction.sources`.
            on_broken: of several images: called with what is wrong with one that cannot be read, which is left out.
            cells: whether the detections tell the cells that say so.

        Raises:
            InputError: an image that cannot be read, by name, where `on_broken` is None or the source is one image.
            TypeError: no source, or pixels that are no uint8 RGB.
        """
        if single_image(source):
            return next(self.stream(source, cells=cells, batch_size=1))
        return [found.without_frame() for found in self.stream(source, on_broken=on_broken, cells=cells)]

    def stream(
        self,
        source,
        *,
        on_broken: Callable[[InputError], None] | None = None,
        cells: bool = False,
        trace: Trace | None = None,
        batch_size: int | None = None,
        limit: int | None = None,
    ) -> Iterator[Detections]:
        """`Detections` of any source, one an image or frame in their order, in bounded memory.

        Args:
            source: see `prediction.sources`. Iterables are asked for more as the network works.
            on_broken: called with what is wrong with a source that cannot be read, which is then left out.
            cells: whether the detections tell the cells that say so.
            trace: counts where detections are lost.
            batch_size: images a forward pass; the predictor's own if None, and 1 where the source is a camera, which
                would be seen late otherwise.
            limit: the most frames of a video or camera.

        Raises:
            InputError: what cannot be read, by name, where `on_broken` is None.
            TypeError: no source, or pixels that are no uint8 RGB.
        """
        if batch_size is None and is_camera(source):
            batch_size = 1
        yield from super().stream(
            open_items(expand(source), limit), on_broken=on_broken, cells=cells, trace=trace, batch_size=batch_size
        )
