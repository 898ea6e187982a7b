"""A detector over labelled samples: detections, ground truth and metrics."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from multigrid.config import DetectionConfig
from multigrid.detection.pipeline import DetectionPipeline
from multigrid.detection.records import as_results, to_records
from multigrid.detection.trace import Trace
from multigrid.evaluation import files
from multigrid.evaluation.agnostic import AGNOSTIC_FIGURES, class_agnostic_metrics
from multigrid.evaluation.calibration import calibration
from multigrid.evaluation.confusion import confusion_matrix
from multigrid.evaluation.curves import Curve, curves_of
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth
from multigrid.evaluation.matching import Matches, match
from multigrid.evaluation.voc import voc_ap

PREDICT_THRESHOLD = DetectionConfig().predict_threshold


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What an evaluation leaves behind. What is more than COCO's metrics is computed when it is first asked for."""

    metrics: dict  # COCO's: mAP, mAP50, …, per_class; see `coco_metrics`
    records: np.ndarray  # [D] of `records.RECORD`: all detections, image by image
    ground_truth: dict  # COCO annotations of the same images
    predict_threshold: float  # least score of a detection that is shown to people
    trace: Trace | None  # where detections are lost, counted at the two thresholds; None where it was not asked for
    seconds: dict  # {"network", "all"}: in the network, and from the first image to COCO's metrics

    @property
    def results(self) -> list[dict]:
        """COCO's results: a new list at every call, ten times the size of `records`."""
        return list(as_results(self.records))

    @property
    def strides(self) -> np.ndarray:
        """[D] int32 input pixels a cell of the grid that found each detection, in the order of `results`."""
        return self.records["stride"]

    @property
    def class_names(self) -> list[str]:
        """One a class."""
        return list(self.metrics["per_class"])

    @functools.cached_property
    def matches(self) -> Matches:
        """Which detection found which object, at IoU 0.5."""
        return match(self.ground_truth, self.records)

    @functools.cached_property
    def curves(self) -> tuple[Curve, list[Curve]]:
        """Precision and recall over confidence, of all detections in one list and of each class."""
        return curves_of(self.matches, len(self.class_names))

    @functools.cached_property
    def full_metrics(self) -> dict:
        """All metrics, as metrics.json holds them.

        Returns:
            `metrics`; with "precision", "recall", "f1" and "best_threshold" of the threshold where the F1 of all
            detections in one list is highest, in "per_class" of the one where the class's own is; "voc", and VOC's two
            figures in "per_class" too; "class_agnostic", mAP, mAP50 and mAP75 as if all classes were one; "confusion"
            at `predict_threshold`; "calibration".
        """
        voc = voc_ap(self.ground_truth, self.records)
        voc_per_class = voc.pop("per_class")
        pooled, each = self.curves
        per_class = {
            name: {**figures, **voc_per_class[name], **one.best()}
            for (name, figures), one in zip(self.metrics["per_class"].items(), each, strict=True)
        }
        return {
            **self.metrics,
            **pooled.best(),
            "per_class": per_class,
            "voc": voc,
            "class_agnostic": self._class_agnostic(),
            "confusion": confusion_matrix(self.ground_truth, self.records, self.predict_threshold),
            "calibration": calibration(self.matches.score, self.matches.true_positive),
        }

    def _class_agnostic(self) -> dict:
        """`class_agnostic_metrics`; of one class the metrics themselves, for none of its boxes is another class's."""
        if len(self.class_names) == 1:
            return {name: self.metrics[name] for name in AGNOSTIC_FIGURES}
        return class_agnostic_metrics(self.ground_truth, self.records)

    def save(self, folder: str | os.PathLike) -> list[str]:
        """Writes metrics, detections, ground truth and plots into a folder, which is made; see `files`.

        Returns:
            The names of the files.
        """
        return files.save_evaluation(folder, self)


def evaluate(
    predictor: DetectionPipeline,
    samples: Sequence,
    class_names: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
    *,
    predict_threshold: float = PREDICT_THRESHOLD,
    trace: bool = False,
) -> Evaluation:
    """Runs a predictor over samples and measures it by COCO's rules.

    No image is kept; of the detections one array of 56 bytes each.

    Args:
        predictor: with a low score threshold, for average precision looks at the whole curve.
        samples: labelled images.
        class_names: one a class.
        progress: wraps the stream of detections, to show how far it is.
        predict_threshold: least score of a detection that is shown to people; that of the predictor if it is higher.
        trace: whether to count where detections are lost.

    Returns:
        An `Evaluation`.
    """
    start, network_start = time.perf_counter(), predictor.network_seconds
    least = predictor.score_threshold
    predict_threshold = max(least, predict_threshold)
    counts = predictor.new_trace((least, predict_threshold)) if trace else None
    stream = progress(predictor.stream((sample.path for sample in samples), trace=counts))
    parts = [to_records(0, [], [], [])]
    for sample, found in zip(samples, stream, strict=True):
        parts.append(to_records(sample.image_id, found.boxes, found.scores, found.class_ids, found.strides))
    records = np.concatenate(parts)
    ground_truth = to_coco_ground_truth(samples, class_names)
    metrics = coco_metrics(ground_truth, records, class_names)
    network = predictor.network_seconds - network_start
    seconds = {"network": network, "all": time.perf_counter() - start}
    return Evaluation(metrics, records, ground_truth, predict_threshold, counts, seconds)
