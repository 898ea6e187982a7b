"""A detector to an artefact that is proved before it takes its place."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import logging
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from multigrid import report
from multigrid.config import DetectionConfig
from multigrid.detection.suppression import Suppression
from multigrid.errors import InputError
from multigrid.export.check import CheckError, Differences, compare, tolerance_of
from multigrid.export.formats import check_can_write, write_artefact
from multigrid.export.graph import INPUT, GraphSuppression, exported_graph
from multigrid.export.kinds import ENDINGS, LIBRARIES
from multigrid.export.libraries import quietly
from multigrid.export.pictures import LETTERBOX
from multigrid.export.runtimes import SAVED_MODEL_FILE, KerasRuntime, load
from multigrid.export.scoring import ArtefactPipeline, mean_average_precision

ROUNDS = 24  # for int8 LiteRT, whose calibration crashes on loops; eight did for every image of a blood cell data set
DEFAULTS = DetectionConfig()

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """What kind of artefact.

    Attributes:
        format: a word of `kinds.FORMATS`.
        input_size: (height, width) in pixels.
        suppression: within the graph; None gives all cells.
        rescore: see `DecodeGrids`.
        quantize: "float16", "int8" or None.
        batch_size: images of a run; None leaves it open, where the format can.
        afterwards: what is done to cells outside the graph when mAP is measured.
        score_threshold: least score of a detection, likewise.
        max_detections: of an image, likewise.
    """

    format: str
    input_size: tuple[int, int]
    suppression: GraphSuppression | None = None
    rescore: bool = DEFAULTS.rescore
    quantize: str | None = None
    batch_size: int | None = None
    afterwards: Suppression = dataclasses.field(default_factory=Suppression)
    score_threshold: float = DEFAULTS.score_threshold
    max_detections: int = DEFAULTS.max_detections

    def __post_init__(self):
        if self.suppression is not None and (self.format, self.quantize) == ("litert", "int8"):
            object.__setattr__(self, "suppression", dataclasses.replace(self.suppression, rounds=ROUNDS))


def check_target(path: str | os.PathLike, format: str, place: str) -> pathlib.Path:
    """Sees, before long work, that an artefact can take its place.

    Args:
        path: where it is to go.
        format: its word.
        place: the option that names the path, for the error.

    Raises:
        InputError: another ending than the format's, or something else is there.
    """
    path, ending = pathlib.Path(path), ENDINGS[format]
    if ending and path.suffix != ending:
        raise InputError(f"{place}: expected a file that ends with {ending}, received {path}")
    if ending:
        report.check_file(path, place)
    elif path.exists() and not (path / SAVED_MODEL_FILE).is_file():
        raise InputError(f"{place}: expected a new folder or that of a SavedModel, received {path}")
    report.check_folder(path.parent, place)
    return path


def export(
    detector,
    path: str | os.PathLike,
    class_names: Sequence[str],
    options: ExportOptions,
    images: np.ndarray,
    *,
    calibration: np.ndarray | None = None,
    samples: Sequence = (),
    tell: Callable[[str], None] = logger.info,
) -> dict:
    """Writes an artefact, and beside it `<artefact>.json`, if it says what the Keras model says.

    Args:
        detector: a `MultiGridDetector` in float32; stays as it is.
        path: where to: a folder for a SavedModel, else a file with the format's ending.
        class_names: one a class.
        options: what kind of artefact.
        images: uint8 [N, height, width, 3] letterboxed, to compare on.
        calibration: uint8 [M, height, width, 3] letterboxed, for "int8"; no other looks at them.
        samples: labelled images; where it is quantized, mAP is measured on them before and after.
        tell: called with a line about each step.

    Returns:
        What the JSON file holds.

    Raises:
        InputError: a path, a format or a library that will not do.
        CheckError: the artefact says something else; no file is left.
    """
    path = check_target(path, options.format, "export")
    check_can_write(options.format, options.quantize)
    if options.quantize == "int8" and calibration is None:
        raise ValueError("calibration: expected images for int8, received None")
    with _placing(path) as temporary:
        _make(detector, temporary, options, calibration, tell)
        found = _prove(detector, temporary, class_names, options, images, samples, tell)
        record = _record(temporary, detector, class_names, options, calibration) | found
        report.write_json(temporary.with_name(f"{path.name}.json"), record)
    return json.loads(report.json_text(record))


def _make(detector, path: pathlib.Path, options: ExportOptions, calibration, tell) -> None:
    start = time.perf_counter()
    model = exported_graph(detector, options.input_size, options.suppression, rescore=options.rescore)
    write_artefact(
        model, path, options.format, strides=detector.strides,
        batch_size=options.batch_size, quantize=options.quantize, calibration=calibration,
    )  # fmt: skip
    tell(f"converted to {options.format} in {time.perf_counter() - start:.1f} s")


def _prove(detector, path: pathlib.Path, class_names, options: ExportOptions, images, samples, tell) -> dict:
    """What the artefact is like beside the Keras model, for its record; it is closed again."""
    plain = exported_graph(detector, options.input_size, options.suppression, rescore=options.rescore, folded=False)
    with quietly():
        runtimes = {"keras": KerasRuntime(plain), options.format: load(path)}
    differences = _checked(runtimes, options, images, tell)
    scores = _scores(runtimes, options, class_names, samples, tell) if options.quantize else None
    return {"check": differences, "batch": runtimes[options.format].batch, "mAP": scores}


@contextlib.contextmanager
def _placing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path of the same name in a folder beside `path`, whose files take their place when the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = path.parent / f".{uuid.uuid4().hex[:12]}"  # a name that `report.clear_unfinished` knows
    folder.mkdir()
    try:
        yield folder / path.name
        for made in sorted(folder.iterdir(), key=lambda made: made.suffix == ".json"):
            target = path.parent / made.name
            if target.is_dir():
                shutil.rmtree(target)
            os.replace(made, target)
    finally:
        shutil.rmtree(folder)


def _checked(runtimes: dict, options: ExportOptions, images, tell) -> Differences:
    start = time.perf_counter()
    with quietly():  # runtimes greet when they first run
        reference, found = (runtime.predict(images) for runtime in runtimes.values())
    suppressed = options.suppression is not None
    differences = compare(reference, found, tolerance_of(options.quantize, suppressed), suppressed=suppressed)
    tell(f"checked in {time.perf_counter() - start:.1f} s: {differences.describe()}")
    if not differences.compared:
        logger.warning("nothing was detected in the images of the check: it says nothing about the artefact")
    if not differences.passed:
        raise CheckError(differences)
    return differences


def _scores(runtimes: dict, options: ExportOptions, class_names, samples, tell) -> dict | None:
    """mAP of the Keras model and of the artefact, and what the one is below the other."""
    if not samples:
        return None
    found, start = {}, time.perf_counter()
    for name, runtime in runtimes.items():
        after = options.afterwards if options.suppression is None else None
        pipeline = ArtefactPipeline(
            runtime,
            class_names,
            after,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
        )
        found[name] = mean_average_precision(pipeline, samples, class_names)
    before, after = (figures["mAP"] for figures in found.values())
    lost = None if before is None or after is None else before - after
    if lost is not None:
        rule = "" if options.suppression else " (one class a cell: not the mAP of multigrid evaluate)"
        tell(
            f"mAP on {len(samples)} images in {time.perf_counter() - start:.1f} s{rule}: {before:.4f} in Keras, "
            f"{after:.4f} in {options.format} {options.quantize}, lost {lost:.4f}"
        )
    return {"images": len(samples), **found, "lost": lost}


def _record(path: pathlib.Path, detector, class_names, options: ExportOptions, calibration) -> dict:
    """What an artefact is and how it is used."""
    height, width = options.input_size
    rows = "detections, highest score first, then zeros of class -1" if options.suppression else "cells"
    versions = {
        name: _version(name) for name in ("multigrid-detector", "keras", "tensorflow", *LIBRARIES[options.format])
    }
    quantization = {"type": options.quantize} if options.quantize else None
    if options.quantize == "int8":
        quantization["calibration_images"] = len(calibration)
    return {
        "format": options.format,
        "file": path.name,
        "bytes": _size(path),
        "input": {
            "name": INPUT,
            "dtype": "uint8",
            "shape": ["batch", height, width, 3],
            "letterbox": LETTERBOX,
        },
        "outputs": {
            "boxes": "[batch, D, 4] float32, corners x1, y1, x2, y2 in input pixels",
            "scores": "[batch, D] float32",
            "classes": "[batch, D] int32",
            "D": rows,
        },
        "classes": list(class_names),
        "anchors": detector.anchors,
        "rescore": options.rescore,
        "suppression": options.suppression,
        "quantization": quantization,
        "versions": versions,
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError:  # a checkout that was not installed
        return None


def _size(path: pathlib.Path) -> int:
    """Bytes of an artefact: of a folder all files, of OpenVINO's pair both."""
    files = path.rglob("*") if path.is_dir() else path.parent.iterdir()
    return sum(file.stat().st_size for file in files if file.is_file())
