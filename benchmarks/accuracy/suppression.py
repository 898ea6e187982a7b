"""Which suppression suits a trained detector: mAP of every rule, its numbers chosen on val, looked at once on test.

    python benchmarks/accuracy/suppression.py RUN [RUN ...] [--output-dir runs/suppression] [key=value ...]

RUN is a run folder whose config names val and test. The network sees every image once; each rule then makes its own of
the same boxes, which are all kept in memory: it is for small data sets. Writes suppression.csv (all that was tried) and
suppression.png beside the table.
"""

import argparse
import pathlib
from collections.abc import Sequence

import matplotlib
import pandas as pd

matplotlib.use("Agg")

from matplotlib import pyplot as plt

from multigrid import Predictor, assembly, report
from multigrid.config import ConfigLoader
from multigrid.detection.suppression import Suppression
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth, to_coco_results

OVERLAPS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
BY_OVERLAP = ("nms", "diou_nms", "iol_nms", "wbf", "consensus", "vote")
TRIED = [
    *({"rule": rule, "threshold": overlap} for rule in BY_OVERLAP for overlap in OVERLAPS),
    *({"rule": "soft_nms", "sigma": sigma} for sigma in (0.1, 0.3, 0.5, 0.7, 1.0)),
]
FIGURES = ("mAP", "mAP50", "mAP75")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, metavar="RUN")
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("runs/suppression"))
    options, rest = parser.parse_known_args()
    overrides = [word for word in [*map(str, options.runs), *rest] if "=" in word]
    runs = [run for run in options.runs if "=" not in str(run)]
    rows = [row for run in runs for row in measured_rules(run, overrides)]
    options.output_dir.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame(rows)
    frame.to_csv(options.output_dir / "suppression.csv", index=False)
    chosen = frame.loc[frame.groupby(["run", "rule"], sort=False)["val_mAP"].idxmax()]
    columns = ["run", "rule", "numbers", *(f"{split}_{name}" for split in ("val", "test") for name in FIGURES)]
    report.table("Each rule with the numbers that are best on val", columns, chosen[columns].values.tolist())
    _draw(chosen, options.output_dir / "suppression.png")
    report.say(f"written to {options.output_dir}: suppression.csv, suppression.png")


def measured_rules(run: pathlib.Path, overrides: Sequence[str] = ()) -> list[dict]:
    """One row for everything that is tried on a run."""
    predictor = Predictor.from_run(run, overrides, evaluating=True)
    config = ConfigLoader.load(run / "config.yaml", overrides)
    rows = [{"run": run.name, "rule": one["rule"], "numbers": _numbers(one)} for one in TRIED]
    for split in ("val", "test"):
        samples = assembly.read_split(config, split, predictor.class_names)
        seen = [_seen(predictor, sample) for sample in report.progress(samples, f"{run.name}, {split}", len(samples))]
        truth = to_coco_ground_truth(samples, predictor.class_names)
        for row, tried in zip(rows, TRIED, strict=True):
            predictor.suppression = Suppression(**tried)
            metrics = coco_metrics(truth, _results(predictor, samples, seen), predictor.class_names)
            row |= {f"{split}_{name}": metrics[name] for name in FIGURES}
    return rows


def _seen(predictor: Predictor, sample) -> tuple:
    """An image as the pipeline keeps it, without its pixels, and what the network says of it, decoded."""
    loaded = predictor._load_one(sample.path, strict=True)
    decoded = [predictor._forward([view], 1) for view in loaded.views]
    return loaded._replace(views=[]), [{name: part[0] for name, part in view.items()} for view in decoded]


def _results(predictor: Predictor, samples, seen) -> list[dict]:
    results = []
    for sample, (loaded, decoded) in zip(samples, seen, strict=True):
        found = predictor._detections(decoded, loaded, cells=False, trace=None)
        results += to_coco_results(sample.image_id, found.boxes, found.scores, found.class_ids)
    return results


def _numbers(tried: dict) -> str:
    return " ".join(f"{name}={value:g}" for name, value in tried.items() if name != "rule")


def _draw(chosen: pd.DataFrame, path: pathlib.Path) -> None:
    runs = list(dict.fromkeys(chosen["run"]))
    figure, axes = plt.subplots(1, len(runs), figsize=(5 * len(runs), 3.2), squeeze=False, layout="constrained")
    for axis, run in zip(axes[0], runs, strict=True):
        own = chosen[chosen["run"] == run]
        axis.barh(own["rule"], own["test_mAP"], color="#4878a8")
        for index, value in enumerate(own["test_mAP"]):
            axis.text(value, index, f" {value:.3f}", va="center")
        axis.set(title=run, xlabel="test mAP", xlim=(0, 1.15 * own["test_mAP"].max()))
        axis.invert_yaxis()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
