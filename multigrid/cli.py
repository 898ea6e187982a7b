"""The `multigrid` command: one verb a task, one style of options, `key=value` overrides everywhere.

Exit codes: 0 done; 1 the work failed or part of it did; 2 the input is not usable, and nothing was written.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import pathlib
import sys
import tempfile

from multigrid import report
from multigrid.errors import InputError

OK, FAILED, BAD_INPUT = 0, 1, 2
SCALES = 3  # of the network; anchors are dealt to them evenly
TRAIN_CONFIG = "configs/train_config.yaml"
TRAIN_EXAMPLE = "multigrid train --config configs/quickstart.yaml training.epochs=5"
PROBE_OUTPUT = "tests/loss_probe_outputs"
STDERR = 2  # the file descriptor
OVERRIDES = "settings over the config's, such as training.epochs=30 or data.train=my/train.txt"


def main(arguments=None) -> int:
    """Runs one verb.

    Args:
        arguments: the words after `multigrid`; those of the process if None.

    Returns:
        The exit code, see the module.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version of itself
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without a GPU is no error
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    options = _parse(arguments)
    try:
        return options.run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return FAILED


def run_train(options) -> int:
    """Trains, evaluates the best weights on the validation set and says where everything is."""
    config = _load(options, _weights_settings(options))
    _start_backend()
    from multigrid.models.weights import check_weights_name, save_weights
    from multigrid.training.callbacks import NonFiniteLossError
    from multigrid.training.trainer import MultiGridTrainer

    if options.save_weights is not None:
        check_weights_name(options.save_weights)
        report.check_file(options.save_weights, "--save-weights")
    trainer = MultiGridTrainer(config, name=pathlib.Path(options.config).stem)
    trainer.check_run_dir()
    train_data, val_data = trainer.build_data()
    trainer.build_model()
    validation = "no validation" if val_data is None else f"{len(val_data.samples)} to validate"
    parameters = f"{trainer.detector.count_params():,} parameters"
    report.say(f"{len(train_data.samples)} images to train, {validation}; {parameters}")
    try:
        trainer.train()
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    if val_data is not None:
        _show_metrics("Best weights on the validation set", trainer.evaluate("val").metrics)
    if options.save_weights:
        save_weights(trainer.detector, options.save_weights)
        report.say(f"weights: {options.save_weights}")
    report.say(f"run folder: {trainer.run_dir}")
    return OK


def run_evaluate(options) -> int:
    """Measures weights on a split by COCO's rules."""
    config = _load(options, _weights_settings(options))
    folder = pathlib.Path(options.output_dir or f"evaluation/{options.split}")
    report.check_folder(folder, "--output-dir")
    _start_backend()
    from multigrid.training.trainer import MultiGridTrainer

    trainer = _assembled(MultiGridTrainer(config), options.split)
    evaluation = trainer.evaluate(options.split, _progress("detecting", len(trainer.samples[options.split])))
    report.write_json(folder / "metrics.json", evaluation.metrics)
    report.write_json(folder / "detections.json", evaluation.results)
    report.write_json(folder / "ground_truth.json", evaluation.ground_truth)
    _show_metrics(f"{options.split}: {len(trainer.samples[options.split])} images", evaluation.metrics)
    report.say(f"written to {folder}: metrics.json, detections.json, ground_truth.json")
    return OK


def run_predict(options) -> int:
    """Draws what is found on images."""
    config = _load(options, _weights_settings(options))
    report.check_folder(options.output_dir, "--output-dir")
    _check_apart(options.source, options.output_dir)
    paths, broken = _readable_images(options.source)
    _start_backend()
    from multigrid import assembly

    vocabulary = assembly.read_vocabulary(config)
    detector = assembly.build_detector(config, vocabulary)
    predictor = assembly.build_predictor(config, detector, vocabulary.class_names, evaluating=False)
    found = _progress("detecting", len(paths))(predictor.stream(paths))
    records = [_draw_detections(detections, options) for detections in found]
    report.write_json(pathlib.Path(options.output_dir) / "detections.json", records)
    total = sum(len(record["detections"]) for record in records)
    report.say(f"images: {len(paths)}, detections: {total}, written to {options.output_dir}")
    if not total:
        threshold = config.detection.predict_threshold
        report.say(f"nothing scored detection.predict_threshold={threshold:g}; a lower one shows what comes nearest")
    for message in broken:
        print(f"not done: {message}", file=sys.stderr)
    return FAILED if broken else OK


def run_probe(options) -> int:
    """Shows every part of the loss on real batches, before any weight moves."""
    config = _load(options, _weights_settings(options))
    report.check_folder(options.output_dir, "--output-dir")
    _start_backend()
    from multigrid.diagnosis import probe
    from multigrid.training.trainer import MultiGridTrainer

    trainer = MultiGridTrainer(config)
    records, broken = [], []
    try:
        for record in probe.run_probe(trainer, options.num_batches, training_mode=options.training_mode):
            _show_record(record, options.verbose)
            broken += [f"batch {record['batch_idx']}: {name}" for name in probe.non_finite_parts(record)]
            records.append(record)
    except probe.ProbeMismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    folder = pathlib.Path(options.output_dir)
    if options.format in ("json", "both"):
        report.write_json(folder / "loss_components.json", records)
    if options.format in ("csv", "both"):
        report.write_csv(folder / "loss_components.csv", [probe.flat_row(record) for record in records])
    if len(records) < options.num_batches:
        report.say(f"the training data has {len(records)} batches, fewer than --num-batches {options.num_batches}")
    report.say(f"written: {folder}")
    for name in broken:
        print(f"error: {name} is not finite", file=sys.stderr)
    return FAILED if broken else OK


def run_anchors(options) -> int:
    """Fits anchors to the training labels at the network's input size."""
    if options.count < 1 or options.count % SCALES:
        raise InputError(f"--count: expected a multiple of {SCALES}, as many for each scale, received {options.count}")
    config = _load(options, ())
    report.check_file(options.output, "--output")
    _start_backend()
    from multigrid import assembly
    from multigrid.data.samples import read_class_names
    from multigrid.evaluation.anchor_picture import draw_anchors
    from multigrid.geometry.anchor_fit import fit_anchors, match_statistics
    from multigrid.geometry.anchors import read_anchors, write_anchors

    if config.data.classes is None:
        raise InputError("data.classes: expected a file of class names, received null")
    samples = assembly.read_split(config, "train", read_class_names(config.data.classes))
    sizes = assembly.network_sizes(samples, config.model.input_size)
    try:
        fitted = fit_anchors(sizes, count=options.count, seed=config.training.seed)
    except InputError as error:
        raise InputError(f"data.train ({config.data.train}): {error}") from None
    if config.data.anchors is not None:
        report.say(f"before: {match_statistics(read_anchors(config.data.anchors), sizes).describe()}")
    report.say(f"fitted: {match_statistics(fitted, sizes).describe()}")
    write_anchors(fitted, options.output, options.layout)
    picture = pathlib.Path(options.output).with_suffix(".png")
    draw_anchors(fitted, sizes, picture)
    report.say(f"written: {options.output} and {picture}; use it with data.anchors={options.output}")
    return OK


def _load(options, settings):
    from multigrid.config import ConfigLoader

    return ConfigLoader.load(options.config, [*options.overrides, *settings])


def _start_backend() -> None:
    """Imports Keras without the greetings that TensorFlow writes to standard error before it reads its log level.

    They are left where somebody asks for them with TF_CPP_MIN_LOG_LEVEL, and shown where the import fails.
    """
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "3" or "keras" in sys.modules:
        return
    sys.stderr.flush()
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as greetings:
        os.dup2(greetings.fileno(), STDERR)
        try:
            import keras  # noqa: F401
        except BaseException:
            greetings.seek(0)
            os.write(terminal, greetings.read())
            raise
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)


def _weights_settings(options) -> list:
    """--weights and --backbone-weights as overrides: a file that is not there is then found with everything else."""
    settings = []
    for key in ("weights", "backbone_weights"):
        if getattr(options, key, None) is not None:
            # Quoted, for the value is read as YAML: a file may be called `null`.
            settings.append(f"{key}={json.dumps(getattr(options, key))}")
    return settings


def _assembled(trainer, split: str):
    """A trainer whose detector and samples of one split are there; no other labels are read."""
    from multigrid import assembly

    trainer.vocabulary = assembly.read_vocabulary(trainer.config)
    trainer.samples[split] = assembly.read_split(trainer.config, split, trainer.vocabulary.class_names)
    trainer.detector = assembly.build_detector(trainer.config, trainer.vocabulary)
    return trainer


def _progress(description: str, total: int):
    return lambda items: report.progress(items, description, total)


def _check_apart(source, output_dir) -> None:
    """Sees that no picture would take the place of the image that it is drawn from: they have one name.

    Raises:
        InputError: the output folder is the one that the images are in.
    """
    source = pathlib.Path(source)
    folder = source if source.is_dir() else source.parent
    if folder.resolve() == pathlib.Path(output_dir).resolve():
        raise InputError(f"--output-dir: expected a folder other than that of the images, received {output_dir}")


def _readable_images(source) -> tuple[list, list]:
    """The images of a file or folder that can be read, and what is wrong with the others.

    Raises:
        InputError: there is no image, or none can be read.
    """
    from multigrid.data.images import IMAGE_SUFFIXES, for_each_image, read_image

    source = pathlib.Path(source)
    if not source.exists():
        raise InputError(f"{source}: expected an image or a folder of images, received no such file")
    paths = [source] if source.is_file() else sorted(source.iterdir())
    paths = [str(path) for path in paths if source.is_file() or path.suffix.lower() in IMAGE_SUFFIXES]
    looks = for_each_image(lambda path: read_image(path, at_least=(1, 1)).shape, paths)
    broken = [str(look) for look in looks.values() if isinstance(look, InputError)]
    good = [path for path, look in looks.items() if not isinstance(look, InputError)]
    if not good:
        raise InputError(broken[0] if broken else f"{source}: expected a folder of images, received one without")
    return good, broken


def _draw_detections(found, options) -> dict:
    """Writes the image with its boxes; returns the detections as plain values."""
    from multigrid.data.images import read_image
    from multigrid.evaluation.pictures import class_colour, draw_boxes, save_image

    labels = [f"{name} {score:.2f}" for name, score in zip(found.names, found.scores, strict=True)]
    colours = [class_colour(index) for index in found.class_ids]
    name = pathlib.Path(found.path).name
    if pathlib.Path(name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
        name += ".png"  # beside the old ending: a.bmp and a.tif stay two pictures
    picture = draw_boxes(read_image(found.path), found.boxes, labels, colours)
    save_image(pathlib.Path(options.output_dir) / name, picture)
    detections = [
        {"class": name, "score": float(score), "box_xyxy": [round(float(side), 2) for side in box]}
        for name, score, box in zip(found.names, found.scores, found.boxes, strict=True)
    ]
    return {"image": found.path, "width": found.size[1], "height": found.size[0], "detections": detections}


def _show_metrics(title: str, metrics: dict) -> None:
    rows = [("all", metrics["mAP"], metrics["mAP50"], None)]
    rows += [(name, one["AP"], one["AP50"], one["objects"]) for name, one in metrics["per_class"].items()]
    report.table(title, ("class", "mAP", "mAP50", "objects"), rows)


def _show_record(record: dict, verbose: bool) -> None:
    stats, parts = record["batch_stats"], record["loss_components"]
    report.say(
        f"\nbatch {record['batch_idx']}: {stats['batch_size']} images, {stats['total_objects']} objects, "
        f"{stats['num_scales']} scales; total loss {parts['total_loss']:.6g}"
    )
    columns = ("stride", "grid", "objects", "positive cells", "claims lost", "ignored", "density")
    keys = ("stride", "grid_shape", "objects", "positive_cells", "claims_lost", "ignored_cells", "density")
    report.table("Cells", columns, [[scale[key] for key in keys] for scale in stats["per_scale_stats"]])
    scales = dict(zip(record["weighted_components"], record["scaling_coefficients"].items(), strict=True))
    rows = [
        (name, parts[f"{name}_loss"], f"{scales[name][0]} = {scales[name][1]:g}", weighted)
        for name, weighted in record["weighted_components"].items()
    ]
    rows.append(("objectness", parts["objectness_loss"], "", ""))  # of both kinds of cells
    if "regularization_loss" in parts:
        rows.append(("regularization", None, "", parts["regularization_loss"]))
    rows.append(("total", None, "", parts["total_loss"]))
    report.table("Loss", ("component", "raw", "scale", "weighted"), rows)
    if verbose:
        names = list(record["per_scale_losses"][0])
        report.table("Per scale, raw", names, [[scale[name] for name in names] for scale in record["per_scale_losses"]])
    units = [list(unit.values()) for unit in record["per_unit"]]
    columns = ("component", "per", "measured", "fresh head", "best constant head")
    report.table("Is it high? Each component per unit", columns, units)


def _parse(arguments) -> argparse.Namespace:
    """The options; `key=value` words may stand anywhere between them."""
    options, rest = _parser().parse_known_args(arguments)
    for word in rest:
        if word.startswith("-"):  # any other word is checked with the config
            options.parser.error(f"unrecognized argument: {word}")
    options.overrides = [*options.overrides, *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "multigrid",
        description="Train, probe and use a multi-grid object detector.",
        epilog=f"example: {TRAIN_EXAMPLE}; `multigrid <verb> --help` has one for every verb",
    )
    verbs = parser.add_subparsers(metavar="verb", required=True)
    train = _verb(verbs, "train", run_train, TRAIN_EXAMPLE)
    _add_weights(train)
    train.add_argument(
        "--save-weights", metavar="FILE", help="write the best weights here too (.h5, .weights.h5, .keras)"
    )
    evaluate = _verb(verbs, "evaluate", run_evaluate, "multigrid evaluate --config C --weights W --split test")
    _add_weights(evaluate, required=True)
    evaluate.add_argument("--split", choices=("val", "test"), default="val", help="labels to measure on (%(default)s)")
    evaluate.add_argument("--output-dir", help="where the files go (evaluation/SPLIT)")
    predict = _verb(verbs, "predict", run_predict, "multigrid predict --config C --weights W --source images/")
    _add_weights(predict, required=True)
    predict.add_argument("--source", required=True, help="an image, or a folder of images")
    predict.add_argument(
        "--output-dir", default="predictions", help="where pictures and detections.json go (%(default)s)"
    )
    _add_probe(verbs)
    anchors = _verb(
        verbs, "anchors", run_anchors, "multigrid anchors --config C --output anchors.txt data.train=my.txt"
    )
    anchors.add_argument(
        "--output", default="anchors.txt", help="the file to write; a picture goes beside it (%(default)s)"
    )
    anchors.add_argument("--count", type=int, default=9, help="how many, a multiple of 3 (%(default)s)")
    anchors.add_argument("--layout", choices=("line", "scales"), default="line", help="one line in all, or one a scale")
    return parser


def _add_probe(verbs) -> None:
    example = "multigrid probe --config configs/train_config.yaml --weights weights/model.h5 --verbose"
    probe = _verb(verbs, "probe", run_probe, example, config=TRAIN_CONFIG)
    _add_weights(probe)
    probe.add_argument("--num-batches", type=_count, default=2, help="how many training batches (%(default)s)")
    probe.add_argument("--output-dir", default=PROBE_OUTPUT, help="where the files go (%(default)s)")
    probe.add_argument("--format", choices=("json", "csv", "both"), default="both", help="of the files (%(default)s)")
    probe.add_argument("--verbose", action="store_true", help="each component per scale, with its normalizer")
    probe.add_argument(
        "--training-mode",
        action="store_true",
        help="BatchNorm by the batch's statistics, as in fit, not by its averages",
    )


def _count(text: str) -> int:
    """The number of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def _verb(verbs, name: str, run, example: str, config: str | None = None) -> argparse.ArgumentParser:
    summary = run.__doc__
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    text = "YAML file (%(default)s)" if config else "YAML file"
    parser.add_argument("--config", default=config, required=config is None, help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)
    parser.set_defaults(run=run, parser=parser)
    return parser


def _add_weights(parser, required: bool = False) -> None:
    parser.add_argument("--weights", required=required, help="weights of the whole detector (.h5, .weights.h5, .keras)")
    parser.add_argument("--backbone-weights", help="weights of the backbone alone")


if __name__ == "__main__":
    sys.exit(main())
