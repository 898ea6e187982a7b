"""The files of an evaluation: figures as JSON and CSV, detections and truth in COCO's formats, and the plots."""

from __future__ import annotations

import os
import pathlib
from typing import TYPE_CHECKING

from multigrid.detection.records import write_results
from multigrid.evaluation.plots import draw_plots
from multigrid.report import write_csv, write_json

if TYPE_CHECKING:
    from multigrid.evaluation.run import Evaluation


def save_evaluation(folder: str | os.PathLike, evaluation: Evaluation) -> list[str]:
    """Writes an evaluation.

    Args:
        folder: where to; it is made, and files of these names in it are replaced.
        evaluation: what to write.

    Returns:
        The names of the files: metrics.json, per_class.csv, detections.json, ground_truth.json and the plots.
    """
    folder = pathlib.Path(folder)
    write_json(folder / "metrics.json", evaluation.full_metrics)
    write_csv(folder / "per_class.csv", class_rows(evaluation.full_metrics))
    write_results(folder / "detections.json", evaluation.records)
    write_json(folder / "ground_truth.json", evaluation.ground_truth)
    plots = draw_plots(folder, evaluation.full_metrics, evaluation.curves, evaluation.matches)
    return ["metrics.json", "per_class.csv", "detections.json", "ground_truth.json", *plots]


def class_rows(metrics: dict) -> list[dict]:
    """A row a class: its name, and its figures in the order of the metrics.

    Args:
        metrics: `Evaluation.full_metrics`.
    """
    return [{"class": name, **figures} for name, figures in metrics["per_class"].items()]
