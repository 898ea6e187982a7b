"""`multigrid export`: trained weights as an artefact that runs without Keras."""

from __future__ import annotations

import pathlib
import time

from multigrid import report
from multigrid.cli.options import (
    FAILED,
    OK,
    add_detector,
    add_parser,
    count,
    detector_config,
    emit,
    start_backend,
)
from multigrid.errors import InputError
from multigrid.export.kinds import ENDINGS, FORMATS, QUANTIZATIONS

EXAMPLE = "multigrid export --run runs/mine --format onnx --nms"


def add_verb(verbs) -> None:
    """Adds the options of `export`."""
    parser = add_parser(verbs, "export", run_export, EXAMPLE)
    add_detector(parser)
    parser.add_argument("--format", choices=FORMATS, required=True, help="kind of artefact")
    parser.add_argument("--nms", action="store_true", help="suppress within the graph: detections, not all cells")
    parser.add_argument(
        "--score-threshold", type=float, help="with --nms: least score of a detection (detection.score_threshold)"
    )
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="smaller numbers; not for savedmodel")
    parser.add_argument(
        "--calibration", help="for int8: a folder of images, or a label file, like those that will come (data.train)"
    )
    parser.add_argument("--calibration-images", type=count, default=100, help="so many of them (%(default)s)")
    parser.add_argument("--images", help="folder of images to compare on (those of data.val, else drawn scenes)")
    parser.add_argument("--check-images", type=count, default=8, help="so many of them (%(default)s)")
    parser.add_argument(
        "--map-images",
        type=count,
        default=500,
        help="images of data.val to measure mAP on when quantized (%(default)s)",
    )
    parser.add_argument("--batch-size", type=count, help="images of a run (any number; of litert 1)")
    parser.add_argument("--output", help="the artefact (exports/<weights>[-nms][-float16|-int8]<ending>)")


def run_export(options) -> int:
    """Writes a SavedModel, ONNX, LiteRT or OpenVINO file, and proves it on images."""
    start = time.perf_counter()
    if options.calibration is not None and options.quantize != "int8":
        options.parser.error("--calibration: expected --quantize int8, for nothing else is calibrated")
    # whatever it was trained in: artefacts begin with float32
    config = detector_config(options, after=["model.precision=float32"], labels=_labels(options))
    start_backend()
    from multigrid.export.check import CheckError
    from multigrid.export.exporter import check_target, export
    from multigrid.export.formats import check_can_write

    path = check_target(options.output or _default_output(options, config), options.format, "--output")
    check_can_write(options.format, options.quantize)
    kind = _kind(options, config)
    detector, class_names = _detector(config)
    samples = _samples(options, config, class_names)
    if options.quantize and not samples:
        report.say("mAP: not measured, for there are no labelled images (data.val)")
    images, calibration = _images(options, config, samples), _calibration(options, config, class_names)
    try:
        record = export(
            detector, path, class_names, kind, images, calibration=calibration, samples=samples, tell=report.say
        )
    except CheckError as error:
        report.say(f"not written: {error}")
        emit(options, {"error": str(error), "check": error.differences})
        return FAILED
    report.say(
        f"written to {path}: {record['bytes'] / 2**20:.2f} MiB, and {path.name}.json; "
        f"{time.perf_counter() - start:.1f} s in all"
    )
    emit(options, {"path": path, **record})
    return OK


def _labels(options) -> list:
    """The splits of a run that can be read here: to compare on and to calibrate with."""
    if options.run_dir is None:
        return []
    from multigrid.prediction.run_folder import labels_there

    return labels_there(options.run_dir)


def _default_output(options, config) -> pathlib.Path:
    """In `exports`, by the name of the run or of the weights."""
    by_run = options.run_dir is not None and options.weights is None
    stem = pathlib.Path(options.run_dir).resolve().name if by_run else pathlib.Path(config.weights).name.split(".")[0]
    marks = [stem, *(["nms"] if options.nms else []), *([options.quantize] if options.quantize else [])]
    return pathlib.Path("exports", f"{'-'.join(marks)}{ENDINGS[options.format]}")


def _kind(options, config):
    """The `ExportOptions` of options and config; says where the artefact does something else than the config."""
    from multigrid.detection.graph_suppression import RULES
    from multigrid.detection.suppression import Suppression
    from multigrid.export.exporter import ExportOptions
    from multigrid.export.graph import GraphSuppression

    detection, inside = config.detection, None
    if options.score_threshold is not None and not (options.nms and 0.0 <= options.score_threshold <= 1.0):
        raise InputError(f"--score-threshold: expected 0 to 1 and --nms, received {options.score_threshold:g}")
    if options.nms:
        rule = detection.suppression if detection.suppression in RULES else "nms"
        if rule != detection.suppression:
            report.say(f"suppression: the graph has greedy NMS, not the config's {detection.suppression}")
        least = detection.score_threshold if options.score_threshold is None else options.score_threshold
        inside = GraphSuppression(least, detection.nms_threshold, detection.max_detections, rule=rule)
    if detection.flip or detection.scales != (1.0,):
        report.say("detection.flip, detection.scales: the artefact looks at an image once, as it is")
    return ExportOptions(
        options.format,
        config.model.input_size,
        inside,
        detection.rescore,
        options.quantize,
        options.batch_size,
        Suppression(detection.suppression, detection.nms_threshold, detection.soft_sigma),
        detection.score_threshold,
        detection.max_detections,
    )


def _detector(config):
    from multigrid import assembly

    vocabulary = assembly.read_vocabulary(config)
    detector = assembly.build_detector(config, vocabulary)
    assembly.load_configured_weights(config, detector)
    return detector, vocabulary.class_names


def _samples(options, config, class_names) -> list:
    """Some samples of data.val, where they are needed and there are any."""
    from multigrid import assembly
    from multigrid.export.pictures import spread

    if config.data.val is None or (options.images and not options.quantize):
        return []
    return spread(assembly.read_split(config, "val", class_names), max(options.map_images, options.check_images))


def _images(options, config, samples):
    """Letterboxed images to compare on."""
    from multigrid.export.pictures import drawn_batch, images_in, letterboxed_batch, spread

    if options.images:
        paths = images_in(options.images, "--images")
    elif samples:
        paths = [sample.path for sample in samples]
    else:
        report.say("check: on drawn scenes, for there is neither --images nor data.val")
        return drawn_batch(options.check_images, config.model.input_size)
    return letterboxed_batch(spread(paths, options.check_images), config.model.input_size)


def _calibration(options, config, class_names):
    """Letterboxed images that int8 is calibrated on; None where it is not wanted."""
    from multigrid import assembly
    from multigrid.export.pictures import images_in, readable_batch, spread

    if options.quantize != "int8":
        return None
    source = options.calibration or config.data.train
    if source is None:
        raise InputError("--calibration: expected a folder of images or a label file, or data.train, received neither")
    if options.calibration and _holds_images(source):
        paths = images_in(source, "--calibration")
    else:
        config = config.model_copy(update={"data": config.data.model_copy(update={"train": source})})
        paths = [sample.path for sample in assembly.read_split(config, "train", class_names)]
    paths = spread(paths, options.calibration_images)
    try:
        images, errors = readable_batch(paths, config.model.input_size)
    except InputError as error:
        raise InputError(f"--calibration: {error}") from error
    if errors:
        listed = "; ".join(map(str, errors))
        report.say(f"calibration: {len(errors)} of {len(paths)} images cannot be read and are left out: {listed}")
    report.say(f"calibration: {len(images)} images of {source}")
    return images


def _holds_images(source: str) -> bool:
    """Whether a source is a folder with images in it; one with annotations is a label file's place."""
    from multigrid.data.images import IMAGE_SUFFIXES

    folder = pathlib.Path(source)
    return folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())
