"""What an artefact finds on labelled images, measured by COCO's rules."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from multigrid.detection.candidates import Candidates, best_candidates
from multigrid.detection.detections import Detections
from multigrid.detection.pipeline import in_image
from multigrid.detection.suppression import Suppression
from multigrid.evaluation.run import evaluate
from multigrid.export.pictures import letterboxed
from multigrid.export.runtimes import Runtime


class ArtefactPipeline:
    """Image files to detections, through an artefact.

    Args:
        runtime: the loaded artefact, or a Keras model in its place.
        class_names: one a class.
        suppression: what is done to cells; None where the graph has done it.
        score_threshold: least score of a detection.
        max_detections: the most an image can have.
        batch_size: images handed over at once.
    """

    def __init__(
        self,
        runtime: Runtime,
        class_names: Sequence[str],
        suppression: Suppression | None,
        *,
        score_threshold: float,
        max_detections: int,
        batch_size: int = 8,
    ):
        self.runtime, self.class_names, self.suppression = runtime, tuple(class_names), suppression
        self.score_threshold, self.max_detections = score_threshold, max_detections
        self.batch_size = batch_size
        self.network_seconds = 0.0

    def stream(self, paths: Iterable, *, trace=None) -> Iterator[Detections]:
        """The `Detections` of image files, one an image, in their order.

        Raises:
            ValueError: a trace is asked for; artefacts do not tell what they drop.
        """
        if trace is not None:
            raise ValueError("trace: expected None, for an artefact does not tell what it drops, received one")
        paths = list(paths)
        for first in range(0, len(paths), self.batch_size):
            batch = paths[first : first + self.batch_size]
            loaded = [letterboxed(path, self.runtime.input_size) for path in batch]
            images = np.stack([image for image, _ in loaded])
            start = time.perf_counter()
            outputs = self.runtime.predict(images)
            self.network_seconds += time.perf_counter() - start
            for row, (path, (_, letterbox)) in enumerate(zip(batch, loaded, strict=True)):
                yield self._detections({name: values[row] for name, values in outputs.items()}, path, letterbox)

    def _detections(self, found: dict, path: str, letterbox) -> Detections:
        boxes, size = letterbox.undo_boxes(found["boxes"], clip=False), letterbox.source_size
        says = (found["scores"] >= self.score_threshold) & (found["classes"] >= 0)
        rows = np.flatnonzero(says & in_image(boxes, size))
        kept = best_candidates(boxes, found["scores"][:, None], rows, np.zeros_like(rows))
        kept = kept._replace(classes=found["classes"][kept.cells])
        boxes, scores, classes = self._suppressed(kept)
        boxes = np.clip(boxes, 0, size[::-1] * 2).astype("float32")
        return Detections(boxes, scores, classes, self.class_names, size, str(path))

    def _suppressed(self, candidates: Candidates) -> tuple:
        if self.suppression is None:
            return candidates.boxes, candidates.scores, candidates.classes
        left = self.suppression(candidates, self.max_detections, self.score_threshold)
        return left.boxes, left.scores, candidates.classes[left.leads]


def mean_average_precision(pipeline: ArtefactPipeline, samples: Sequence, class_names: Sequence[str]) -> dict:
    """{"mAP", "mAP50"} of an artefact on labelled images, in [0, 1]."""
    metrics = evaluate(pipeline, samples, class_names).metrics
    return {name: metrics[name] for name in ("mAP", "mAP50")}
