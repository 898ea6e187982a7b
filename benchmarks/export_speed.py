"""Keras beside every kind of artefact, on the same images: milliseconds an image, mAP and size.

    python benchmarks/export_speed.py [--config C --weights W] [--output-dir exports/speed] [--rounds 20]

Without a detector named it takes the one that `make quickstart` trains: configs/quickstart.yaml and weights/model.h5.
Where those weights are missing too it says so in a line and exits 0: there is nothing to measure. All else that is
missing is an error.

Exports the detector to each format, all cells without NMS in the graph, in float32 and int8; without --formats, to
those whose libraries are installed, and names the others. The runtimes take turns, so that a busy machine hits all
alike; of each turn the second run counts, and the table has medians of the rounds. Writes speed.csv and speed.png.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
import time

# Before the first import that reads them: the artefacts run on the processor, and so does Keras.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

import numpy as np

from multigrid import ConfigLoader, assembly, report
from multigrid.detection.suppression import Suppression
from multigrid.errors import InputError
from multigrid.export import ExportOptions, export, exported_graph, load
from multigrid.export.formats import check_can_write
from multigrid.export.kinds import ENDINGS, FORMATS, QUANTIZED_FORMATS
from multigrid.export.pictures import letterboxed_batch, spread
from multigrid.export.runtimes import KerasRuntime
from multigrid.export.scoring import ArtefactPipeline, mean_average_precision

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIG, WEIGHTS = ROOT / "configs" / "quickstart.yaml", ROOT / "weights" / "model.h5"
BATCHES = (1, 8)
WARM_UP = 2  # rounds before the first that counts
REST = 0.02  # seconds before a turn: the threads of the runtime before go on waiting for work for a while
CALIBRATION = 100  # images of data.train
KERAS = "keras predict"


class KerasPredict(KerasRuntime):
    """`Model.predict`, as a user of Keras calls it."""

    def _run(self, images):
        return self.model.predict(images, batch_size=len(images), verbose=0)


def main() -> int:
    """Measures, prints the table, and writes it and a picture."""
    options = _options()
    if not options.weights:
        report.say(f"export_speed.py needs a trained detector: expected --weights or {WEIGHTS} of `make quickstart`")
        return 0
    config = ConfigLoader.load(options.config, [f"weights={options.weights}", "model.precision=float32"])
    vocabulary = assembly.read_vocabulary(config)
    detector = assembly.build_detector(config, vocabulary)
    assembly.load_configured_weights(config, detector)
    samples = spread(assembly.read_split(config, options.split, vocabulary.class_names), options.map_images)
    images = letterboxed_batch([sample.path for sample in spread(samples, BATCHES[-1])], config.model.input_size)

    runtimes, sizes = _runtimes(config, detector, vocabulary.class_names, images, options)
    seconds = _seconds(runtimes, images, options.rounds)
    rows = []
    for name, runtime in runtimes.items():
        figures = {f"ms at batch {batch}": 1e3 * seconds[name, batch] / batch for batch in BATCHES}
        faster = {f"times {KERAS} at 1": seconds[KERAS, 1] / seconds[name, 1]}
        score = _precision(config, runtime, samples, vocabulary.class_names)
        rows.append({"runtime": name, **figures, **faster, "mAP": score, "MiB": sizes.get(name)})
    folder, (height, width) = pathlib.Path(options.output_dir), config.model.input_size
    title = (
        f"{height} × {width} px, width {config.model.width:g}, {len(vocabulary.class_names)} classes, "
        f"{os.cpu_count()} cores; mAP on {len(samples)} images of data.{options.split}"
    )
    report.table(f"{title}; medians of {options.rounds} rounds", list(rows[0]), [list(row.values()) for row in rows])
    report.write_csv(folder / "speed.csv", rows)
    _draw(folder / "speed.png", title, rows)
    report.say(f"written to {folder}: speed.csv, speed.png")
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="with --weights (configs/quickstart.yaml)")
    parser.add_argument("--weights", help="with --config (weights/model.h5, where it exists)")
    parser.add_argument("--split", choices=("val", "test"), default="test", help="labels of the mAP (%(default)s)")
    parser.add_argument("--map-images", type=int, default=200, help="so many of them at most (%(default)s)")
    parser.add_argument("--rounds", type=int, default=20, help="of which the median is taken (%(default)s)")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, help="(all that can be made here)")
    parser.add_argument("--no-int8", action="store_true", help="float32 alone")
    parser.add_argument("--output-dir", default="exports/speed", help="artefacts and results (%(default)s)")
    options = parser.parse_args()
    if (options.config is None) != (options.weights is None):
        parser.error("--config, --weights: expected both or neither")
    if options.config is None:
        options.config, options.weights = CONFIG, WEIGHTS if WEIGHTS.is_file() else None
    return options


def _kinds(options) -> list[tuple]:
    """The (format, quantization) pairs to measure; those that were not asked for may lack a library."""
    kinds = []
    for format in options.formats or FORMATS:
        for quantize in (None,) if options.no_int8 or format not in QUANTIZED_FORMATS else (None, "int8"):
            try:
                check_can_write(format, quantize)
            except InputError as error:
                if options.formats:
                    raise
                report.say(f"{format}{f' {quantize}' if quantize else ''}: left out: {error}")
            else:
                kinds.append((format, quantize))
    return kinds


def _runtimes(config, detector, class_names, images, options) -> tuple[dict, dict]:
    """{name: runtime} of Keras and of all artefacts, and the MiB of the latter."""
    kinds, calibration = _kinds(options), None
    if any(quantize for _, quantize in kinds):
        train = assembly.read_split(config, "train", class_names)
        paths = [sample.path for sample in spread(train, CALIBRATION)]
        calibration = letterboxed_batch(paths, config.model.input_size)
    model = exported_graph(detector, config.model.input_size, folded=False)
    runtimes, sizes = {KERAS: KerasPredict(model), "keras predict_on_batch": KerasRuntime(model)}, {}
    for format, quantize in kinds:
        name = f"{format} {quantize}" if quantize else format
        path = pathlib.Path(options.output_dir, f"{name.replace(' ', '-')}{ENDINGS[format]}")
        kind = ExportOptions(format, config.model.input_size, quantize=quantize, rescore=config.detection.rescore)
        record = export(detector, path, class_names, kind, images, calibration=calibration, tell=_tell(name))
        runtimes[name], sizes[name] = load(path), record["bytes"] / 2**20
    return runtimes, sizes


def _tell(name: str):
    return lambda line: report.say(f"{name}: {line}")


def _seconds(runtimes: dict, images: np.ndarray, rounds: int) -> dict:
    """{(name, batch size): median seconds of a batch}."""
    times: dict = {(name, batch): [] for name in runtimes for batch in BATCHES}
    for count in range(WARM_UP + rounds):
        for (name, batch), taken in times.items():
            first = count % (len(images) - batch + 1)
            time.sleep(REST)
            runtimes[name].predict(images[first : first + batch])
            start = time.perf_counter()
            runtimes[name].predict(images[first : first + batch])
            if count >= WARM_UP:
                taken.append(time.perf_counter() - start)
    return {key: statistics.median(taken) for key, taken in times.items()}


def _precision(config, runtime, samples, class_names) -> float | None:
    detection = config.detection
    after = Suppression(detection.suppression, detection.nms_threshold, detection.soft_sigma)
    pipeline = ArtefactPipeline(
        runtime,
        class_names,
        after,
        score_threshold=detection.score_threshold,
        max_detections=detection.max_detections,
    )
    return mean_average_precision(pipeline, samples, class_names)["mAP"]


def _draw(path: pathlib.Path, title: str, rows: list) -> None:
    """Bars of the milliseconds an image, the fastest at batch 1 at the top."""
    from matplotlib.figure import Figure

    rows = sorted(rows, key=lambda row: -row["ms at batch 1"])
    figure = Figure(figsize=(9, 0.6 * len(rows) + 1.6), layout="constrained")
    axes = figure.add_subplot()
    places = np.arange(len(rows))
    for shift, batch in ((0.2, 1), (-0.2, 8)):
        bars = axes.barh(places + shift, [row[f"ms at batch {batch}"] for row in rows], 0.38, label=f"batch {batch}")
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=8)
    labels = [row["runtime"] + ("" if row["mAP"] is None else f"\nmAP {row['mAP']:.3f}") for row in rows]
    axes.set_yticks(places, labels, fontsize=9)
    axes.set_xlabel("milliseconds an image")
    axes.set_title(title, fontsize=9)
    axes.legend()
    with report.replacing(path) as temporary:
        figure.savefig(temporary, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
