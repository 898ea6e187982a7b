"""A detector over labelled samples: detections, ground truth and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from multigrid.detection.pipeline import DetectionPipeline
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth, to_coco_results


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves behind; all of it can be written as JSON."""

    metrics: dict  # mAP, mAP50, …, per_class
    results: list  # COCO results: detections in original image pixels
    ground_truth: dict  # COCO annotations of the same images


def evaluate(
    predictor: DetectionPipeline,
    samples: Sequence,
    class_names: Sequence[str],
    progress: Callable[[Iterable], Iterable] = iter,
) -> Evaluation:
    """Runs a predictor over samples and measures it by COCO's rules.

    Args:
        predictor: with a low score threshold, for average precision looks at the whole curve.
        samples: labelled images.
        class_names: one a class.
        progress: wraps the stream of detections, to show how far it is.

    Returns:
        An `Evaluation`.
    """
    stream = progress(predictor.stream(sample.path for sample in samples))
    results = []
    for sample, found in zip(samples, stream, strict=True):
        results += to_coco_results(sample.image_id, found.boxes, found.scores, found.class_ids)
    ground_truth = to_coco_ground_truth(samples, class_names)
    return Evaluation(coco_metrics(ground_truth, results, class_names), results, ground_truth)
