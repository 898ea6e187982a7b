"""Trains from scratch on a data set, tests once, and appends the figures to a table.

    python benchmarks/accuracy/run.py --data FOLDER [--experiment FILE.yaml] [--seed 1] [key=value ...]

The settings are those of scratch.yaml, under those of the experiment, under the keys given. FOLDER holds train.txt,
val.txt and test.txt in any label layout that is named so, and classes.txt. Anchors are fitted to train.txt; the best
weights are those of the best validation mAP; test.txt is looked at once, at the end, by the project's evaluator and by
pycocotools on the files it wrote. The two must agree to 1e-4.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import subprocess
import sys
import time

import yaml

from multigrid.cli import main as multigrid
from multigrid.config.yaml_text import YamlLoader

CONFIG = pathlib.Path(__file__).with_name("scratch.yaml")
AGREEMENT = 1e-4


def main() -> int:
    options = _options()
    folder = run_folder(options.name, options.seed, options.experiment, options.output_dir)
    anchors, began = folder.with_name(f"{folder.name}-anchors.txt"), time.time()
    settings = [f"data.{split}={options.data / f'{split}.txt'}" for split in ("train", "val", "test")]
    experiment = settings_of(options.experiment) if options.experiment else []
    overrides = [*experiment, *options.overrides]
    settings += [f"data.classes={options.classes}", *overrides, f"training.seed={options.seed}"]
    run = ["--config", str(CONFIG), *settings]
    _do("anchors", *run, "--output", str(anchors))
    run.append(f"data.anchors={anchors}")
    _do("train", *run, f"output.dir={folder}")
    weights = folder / "weights" / "best.weights.h5"
    minutes = (time.time() - began) / 60
    row = {"commit": _commit(), "data": options.name, "seed": options.seed, "settings": " ".join(overrides)}
    row["minutes"] = round(minutes, 1)
    for split in ("val", "test"):
        results = folder / split
        _do("evaluate", *run, "--weights", str(weights), "--split", split, "--output-dir", str(results))
        metrics = json.loads((results / "metrics.json").read_text())
        row |= {f"{split}_{name}": round(metrics[name], 4) for name in ("mAP50", "mAP")}
        row[f"{split}_agnostic_mAP"] = round(metrics["class_agnostic"]["mAP"], 4)
    row["test_by_class"] = " ".join(f"{name} {one['AP']:.3f}" for name, one in metrics["per_class"].items())
    other = _pycocotools(folder / "test")
    differences = {name: abs(other[name] - metrics[name]) for name in other}
    print(f"pycocotools on the same files: {other}; differences {differences}")
    print(row)
    _append(options.table, row)
    return 0 if max(differences.values()) <= AGREEMENT else 1


def run_folder(name: str, seed: int, experiment: pathlib.Path | None = None, folder=None) -> pathlib.Path:
    """Where a run lies: in the folder given, or in one that says data set, experiment and seed."""
    words = ["accuracy", name, *([experiment.stem] if experiment else []), str(seed)]
    return pathlib.Path(folder or f"runs/{'-'.join(words)}")


def settings_of(experiment: pathlib.Path) -> list[str]:
    """The settings of an experiment's file, which is a part of a config, as `key.sub=value`."""

    def flat(values: dict, prefix: str = ""):
        for key, value in values.items():
            if isinstance(value, dict) and value:
                yield from flat(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}={json.dumps(value)}"

    # numbers as the config reads them: `1e-4` is one
    return list(flat(yaml.load(experiment.read_text(encoding="utf-8"), YamlLoader) or {}))


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of train.txt, val.txt and test.txt")
    parser.add_argument("--classes", type=pathlib.Path, help="file of class names (FOLDER/classes.txt)")
    parser.add_argument("--experiment", type=pathlib.Path, help="YAML of settings that lie over scratch.yaml")
    parser.add_argument("--name", help="of the data set in the table (the folder's name)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output-dir", help="the run folder (runs/accuracy-NAME[-EXPERIMENT]-SEED)")
    parser.add_argument("--table", type=pathlib.Path, default=pathlib.Path("runs/accuracy.csv"))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_intermixed_args()
    if any(word.partition("=")[0].strip() == "training.seed" for word in options.overrides):
        parser.error("training.seed: expected no override, for folder and table name the seed; use --seed")
    options.name = options.name or options.data.name
    options.classes = options.classes or options.data / "classes.txt"
    return options


def _do(*arguments: str) -> None:
    code = multigrid(list(arguments))
    if code:
        sys.exit(code)


def _pycocotools(folder) -> dict:
    """The same figures by the reference implementation, from the files alone."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        truth = COCO(str(folder / "ground_truth.json"))
        evaluation = COCOeval(truth, truth.loadRes(str(folder / "detections.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return {"mAP": float(evaluation.stats[0]), "mAP50": float(evaluation.stats[1]), "mAP75": float(evaluation.stats[2])}


def _commit() -> str:
    words = ["git", "-C", str(CONFIG.parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"


def _append(table, row) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    new = not table.exists()
    if not new and (header := table.read_text().splitlines()[0].split(",")) != list(row):
        sys.exit(f"{table}: expected the columns {', '.join(row)}, received {', '.join(header)}; the row is above")
    with open(table, "a", newline="") as file:
        writer = csv.DictWriter(file, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
