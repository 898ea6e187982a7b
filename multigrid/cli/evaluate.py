"""`multigrid evaluate`: how good weights are on labelled images."""

from __future__ import annotations

import pathlib

from multigrid import report
from multigrid.cli.options import (
    OK,
    add_config,
    add_parser,
    add_weights,
    assembled,
    load_config,
    progress,
    show_metrics,
    start_backend,
    weights_settings,
)


def add_verb(verbs) -> None:
    """Adds the options of `evaluate`."""
    parser = add_parser(verbs, "evaluate", run_evaluate, "multigrid evaluate --config C --weights W --split test")
    add_config(parser)
    add_weights(parser, required=True)
    parser.add_argument("--split", choices=("val", "test"), default="val", help="labels to measure on (%(default)s)")
    parser.add_argument("--output-dir", help="where the files go (evaluation/SPLIT)")


def run_evaluate(options) -> int:
    """Measures weights on a split by COCO's rules."""
    config = load_config(options, weights_settings(options))
    folder = pathlib.Path(options.output_dir or f"evaluation/{options.split}")
    report.check_folder(folder, "--output-dir")
    start_backend()
    from multigrid.training.trainer import MultiGridTrainer

    trainer = assembled(MultiGridTrainer(config), options.split)
    evaluation = trainer.evaluate(options.split, progress("detecting", len(trainer.samples[options.split])))
    report.write_json(folder / "metrics.json", evaluation.metrics)
    report.write_json(folder / "detections.json", evaluation.results)
    report.write_json(folder / "ground_truth.json", evaluation.ground_truth)
    show_metrics(f"{options.split}: {len(trainer.samples[options.split])} images", evaluation.metrics)
    report.say(f"written to {folder}: metrics.json, detections.json, ground_truth.json")
    return OK
