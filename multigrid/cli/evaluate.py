"""`multigrid evaluate`: how good weights are on labelled images."""

from __future__ import annotations

import pathlib
import time

from multigrid import report
from multigrid.cli.options import (
    OK,
    add_detector,
    add_parser,
    detector_config,
    emit,
    labels_of,
    progress,
    show_metrics,
    start_backend,
)

LOW = 0.5  # a mAP50 below which the doctor is worth asking
TEST_TIME_AUGMENTATION = ("detection.flip=true", "detection.scales=[0.83, 1.0, 1.17]")


def add_verb(verbs) -> None:
    """Adds the options of `evaluate`."""
    parser = add_parser(verbs, "evaluate", run_evaluate, "multigrid evaluate --run runs/quickstart-1 --split test")
    add_detector(parser)
    parser.add_argument("--split", choices=("val", "test"), default="val", help="labels to measure on (%(default)s)")
    augmentation = " ".join(TEST_TIME_AUGMENTATION)
    parser.add_argument("--tta", action="store_true", help=f"test-time augmentation: {augmentation}")
    parser.add_argument("--output-dir", help="where the files go (evaluation/SPLIT, of --run in its folder)")


def run_evaluate(options) -> int:
    """Measures weights on a split, and writes figures, plots and a report."""
    start = time.perf_counter()
    before = TEST_TIME_AUGMENTATION if options.tta else ()
    config = detector_config(options, before, labels=[options.split])
    folder = pathlib.Path(options.output_dir or _default_folder(options))
    report.check_folder(folder, "--output-dir")
    start_backend()
    from multigrid.evaluation.funnel import build_funnel
    from multigrid.evaluation.funnel_words import verdict
    from multigrid.evaluation.html_report import write_report

    evaluation, samples = _evaluation(config, options.split, folder)
    files = evaluation.save(folder)
    page = write_report(folder, evaluation, samples, evaluation.class_names, _settings(config, options))
    said = verdict(build_funnel(evaluation.trace, evaluation.matches, evaluation.class_names))
    seconds = {**evaluation.seconds, "command": time.perf_counter() - start}
    show_metrics(f"{options.split}: {len(samples)} images", evaluation.metrics)
    report.say(said)
    for line in summary(evaluation.full_metrics, seconds):
        report.say(line)
    if options.run_dir and (evaluation.metrics["mAP50"] or 0.0) < LOW:
        report.say(f"what may have held it back in training: multigrid doctor {options.run_dir}")
    report.say(f"written to {folder}: {page.name} with errors.json and funnel.json, {', '.join(files)}")
    found = {"split": options.split, "folder": folder, "report": page, "verdict": said, "files": files}
    found["seconds"] = seconds
    emit(options, {**found, "metrics": evaluation.full_metrics})
    return OK


def summary(metrics: dict, seconds: dict) -> list[str]:
    """What is worth a line beside the table.

    Args:
        metrics: `Evaluation.full_metrics`.
        seconds: `Evaluation.seconds`, and as "command" those of the command until now.
    """
    lines, voc, agnostic = [], metrics["voc"], metrics["class_agnostic"]
    if len(metrics["per_class"]) > 1 and agnostic["mAP"] is not None:
        lines.append(f"all classes as one: mAP {agnostic['mAP']:.4g}, mAP50 {agnostic['mAP50']:.4g}")
    if metrics["best_threshold"] is not None:
        lines.append(
            f"best F1 {metrics['f1']:.4g} at confidence {metrics['best_threshold']:.4g}: "
            f"precision {metrics['precision']:.4g}, recall {metrics['recall']:.4g}"
        )
    if voc["AP_every_point"] is not None:
        lines.append(
            f"VOC AP at IoU {voc['iou']:g}: {voc['AP_every_point']:.4g} at every point, {voc['AP_11point']:.4g} at 11"
        )
    lines.append(
        f"{seconds['all']:.1f} s from the first image to COCO's metrics, "
        f"{seconds['network'] / seconds['all']:.0%} of it in the network; {seconds['command']:.1f} s in all"
    )
    return lines


def _evaluation(config, split: str, folder: pathlib.Path) -> tuple:
    """An `Evaluation`, and the samples that it was made on; none of them may lie in the folder of the results."""
    from multigrid import assembly
    from multigrid.data.label_contents import files_behind
    from multigrid.evaluation.run import evaluate
    from multigrid.prediction.predictor import Predictor

    class_names = assembly.read_vocabulary(config).class_names
    samples = assembly.read_split(config, split, class_names)
    images = [sample.path for sample in samples]
    behind = [file for source in labels_of(config, [split]) for file in files_behind(source, images)]
    report.check_apart(folder, [*images, *behind], "--output-dir")
    predictor = Predictor.from_config(config, evaluating=True)
    shown = progress("detecting", len(samples))
    threshold = config.detection.predict_threshold
    return evaluate(predictor, samples, class_names, shown, predict_threshold=threshold, trace=True), samples


def _default_folder(options) -> pathlib.Path:
    """A run's evaluations are part of it: none takes the place of another run's."""
    return pathlib.Path(options.run_dir or "", "evaluation", options.split)


def _settings(config, options) -> dict:
    """What the figures depend on, for the page."""
    run = options.run_dir and pathlib.Path(options.run_dir).resolve().name
    chosen = {"run": run, "split": options.split, "labels": getattr(config.data, options.split)}
    chosen["weights"] = config.weights
    return {**chosen, "input_size": config.model.input_size, **config.detection.model_dump()}
