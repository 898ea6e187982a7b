"""`multigrid predict`: what is found on images and videos."""

from __future__ import annotations

import os
import pathlib
import re
import sys

from multigrid import report
from multigrid.cli.options import (
    FAILED,
    OK,
    add_detector,
    add_parser,
    count,
    detector_config,
    emit,
    progress,
    start_backend,
)
from multigrid.errors import InputError

SOURCE = "images, folders of images, patterns such as 'images/**/*.jpg', videos, or the number of a camera"


def add_verb(verbs) -> None:
    """Adds the options of `predict`."""
    parser = add_parser(verbs, "predict", run_predict, "multigrid predict --run runs/mine --source images/")
    add_detector(parser)
    parser.add_argument("--source", required=True, nargs="+", action="extend", help=SOURCE)
    parser.add_argument(
        "--output-dir",
        default="predictions",
        help="where pictures, videos, detections.json and detections.csv go (%(default)s)",
    )
    parser.add_argument("--no-images", action="store_true", help="write no pictures and no videos")
    parser.add_argument("--show-cells", action="store_true", help="tint the cells that answered for each object")
    parser.add_argument("--limit", type=count, help="the most frames of a video or camera")


def run_predict(options) -> int:
    """Draws what is found on images and videos."""
    words = _without_settings(options)
    config = detector_config(options)
    report.check_folder(options.output_dir, "--output-dir")
    _quiet_opencv()
    from multigrid.prediction.outputs import picture_targets
    from multigrid.prediction.sources import check_any_usable

    items, left_out = _listed(words, options.output_dir)
    targets = picture_targets(items)
    _check_apart(items, targets, options.output_dir)
    check_any_usable(items)
    infos = _infos(items)
    start_backend()
    from multigrid.prediction.predictor import Predictor

    broken = []
    predictor = Predictor.from_config(config)
    stopped, done = _predict(predictor, items, None if options.no_images else targets, infos, options, broken)
    _report(options, config, done, left_out, broken, stopped)
    unasked = stopped and not any(item.kind == "camera" for item in items)
    return FAILED if broken or unasked else OK


def _without_settings(options) -> list:
    """The words of --source; settings that stand behind them go where they belong."""
    settings = [word for word in options.source if _is_setting(word) and not os.path.lexists(word)]
    words = [word for word in options.source if word not in settings]
    if not words:
        options.parser.error(f"--source: expected {SOURCE}, received {' '.join(settings)}")
    options.overrides += settings
    return words


def _is_setting(word: str) -> bool:
    """Whether a word is `key=value` with a key of the config, and no pattern such as 'date=2024/*.jpg'."""
    from multigrid.config.sections import MODEL_FILE_KEY, Config

    key, equals, _ = word.partition("=")
    known = key.split(".")[0] in {*Config.model_fields, MODEL_FILE_KEY}
    return bool(equals) and known and re.fullmatch(r"[\w.]+", key) is not None


def _quiet_opencv() -> None:
    """Lets a video that cannot be opened be named by us alone, unless somebody asks for OpenCV's own words."""
    import cv2

    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    if "OPENCV_LOG_LEVEL" not in os.environ:
        set_level = cv2.utils.logging.setLogLevel if hasattr(cv2.utils, "logging") else cv2.setLogLevel  # OpenCV 5, 4
        set_level(2)  # errors alone


def _listed(words, output_dir) -> tuple[list, int]:
    """The items of all sources, each file once, and how many other files there were.

    What an earlier prediction left is no source of a pattern that reaches into its folder.

    Raises:
        InputError: a source that is missing or comes to nothing.
    """
    from multigrid.prediction.sources import left_out_words, list_source

    items, left_out = {}, 0
    for word in words:
        listing = list_source(word)
        others = [item for item in listing.items if not _is_below(item, output_dir)] or listing.items
        own = len(listing.items) - len(others)
        if own:
            report.say(f"{word}: {own} file{'s' * (own > 1)} in --output-dir left out")
        for item in others:
            if item.kind != "camera" and not os.path.lexists(item.what):  # a dangling link is named when it is due
                raise InputError(
                    f"{word}: expected an image or a folder of images, a pattern, a video or a camera's number, "
                    "received no such file"
                )
            key = item.what if item.kind == "camera" else os.path.abspath(item.what)
            items.setdefault(key, item)
        if listing.left_out:
            report.say(f"{word}: {left_out_words(listing.left_out)}")
        left_out += listing.left_out
    return list(items.values()), left_out


def _is_below(item, folder) -> bool:
    return item.kind != "camera" and pathlib.Path(os.path.realpath(item.what)).is_relative_to(os.path.realpath(folder))


def _check_apart(items, targets, output_dir) -> None:
    """Sees that no picture would take the place of a source.

    Raises:
        InputError: the output folder is one that files are in, or a picture would be one of them.
    """
    sources = [item.what for item in items if item.kind != "camera"]
    report.check_apart(output_dir, sources, "--output-dir")
    report.check_unread((os.path.join(output_dir, target) for target in targets.values()), sources, "--output-dir")


def _infos(items) -> dict:
    """What the headers of videos and cameras say, by their places; what cannot be opened is said when it is due."""
    from multigrid.prediction.video import place_of, read_info

    infos = {}
    for item in items:
        if item.kind != "image":
            try:
                infos[place_of(item.what)] = read_info(item.what)
            except InputError:
                infos[place_of(item.what)] = None
    return infos


def _predict(predictor, items, targets, infos, options, broken) -> tuple:
    """Looks at everything and writes it; (whether it was interrupted, what was handed in)."""
    from multigrid.prediction.outputs import writing

    live = any(item.kind == "camera" for item in items)
    found = predictor.stream(
        [item.what for item in items],
        on_broken=lambda error: broken.append(str(error)),
        cells=options.show_cells,
        batch_size=1 if live else None,
        limit=options.limit,
    )
    rates = {place: info.rate for place, info in infos.items() if info is not None}
    with writing(options.output_dir, targets, rates, cells=options.show_cells) as outputs:
        try:
            for detections in progress("detecting", _total(items, infos, options.limit))(found):
                outputs.add(detections)
        except KeyboardInterrupt:  # how a camera ends; what was done is worth keeping anyway
            return True, outputs
    return False, outputs


def _total(items, infos, limit) -> int | None:
    """How many images and frames there are, as far as headers tell."""
    total = sum(item.kind == "image" for item in items)
    for info in infos.values():
        frames = 0 if info is None else info.frames
        if frames is None and limit is None:
            return None
        total += min(number for number in (frames, limit) if number is not None)
    return total


def _report(options, config, done, left_out, broken, stopped) -> None:
    folder = pathlib.Path(options.output_dir)
    report.say(f"images: {done.images}, detections: {done.detections}, written to {folder}")
    if not done.detections:
        threshold = config.detection.predict_threshold
        report.say(f"nothing scored detection.predict_threshold={threshold:g}; a lower one shows what comes nearest")
    for message in broken:
        print(f"not done: {message}", file=sys.stderr)
    if stopped:
        print("interrupted: what was done is written", file=sys.stderr)
    emit(
        options,
        {
            "images": done.images,
            "detections": done.detections,
            "detections_json": folder / "detections.json",
            "detections_csv": folder / "detections.csv",
            "pictures": None if options.no_images else folder,
            "left_out": left_out,
            "broken": broken,
            "interrupted": stopped,
        },
    )
