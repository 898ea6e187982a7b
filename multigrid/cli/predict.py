"""`multigrid predict`: what is found on images."""

from __future__ import annotations

import pathlib
import sys

from multigrid import report
from multigrid.cli.options import (
    FAILED,
    OK,
    add_config,
    add_parser,
    add_weights,
    load_config,
    progress,
    start_backend,
    weights_settings,
)
from multigrid.errors import InputError


def add_verb(verbs) -> None:
    """Adds the options of `predict`."""
    parser = add_parser(verbs, "predict", run_predict, "multigrid predict --config C --weights W --source images/")
    add_config(parser)
    add_weights(parser, required=True)
    parser.add_argument("--source", required=True, help="an image, or a folder of images")
    parser.add_argument(
        "--output-dir", default="predictions", help="where pictures and detections.json go (%(default)s)"
    )


def run_predict(options) -> int:
    """Draws what is found on images."""
    config = load_config(options, weights_settings(options))
    report.check_folder(options.output_dir, "--output-dir")
    _check_apart(options.source, options.output_dir)
    paths, broken = _readable_images(options.source)
    start_backend()
    from multigrid.prediction.predictor import Predictor

    predictor = Predictor.from_config(config)
    found = progress("detecting", len(paths))(predictor.stream(paths))
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
    from multigrid.pictures import class_colour, draw_boxes, save_image

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
