"""Which of several experiments learns better: each trained on each data set with several seeds, and compared.

    python benchmarks/accuracy/compare.py --data FOLDER [FOLDER ...] [--experiments single across] [--seeds 1 2 3]

An experiment is a file of settings in benchmarks/accuracy/experiments, named by its stem; a run of `run.py` that is in
runs/ already is not made again. Every experiment has the suppression that suits it best: the rule, and its numbers, of
the highest val mAP, mean over the seeds. Prints for each data set and experiment test mAP50 and mAP, mean and spread
over the seeds, and the first epoch whose val mAP, mean over the seeds and by the config's own suppression, reaches the
best of the first experiment named.
Writes comparison.csv and comparison.png into --output-dir.
"""

import argparse
import itertools
import pathlib
import subprocess
import sys

import matplotlib
import pandas as pd

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from run import run_folder
from suppression import FIGURES, measured_rules

from multigrid import report

HERE = pathlib.Path(__file__).parent
TESTED = pathlib.Path("test", "metrics.json")  # in a run folder, when `run.py` is through


def main() -> int:
    options = _options()
    _refuse_half_finished(options)
    rows, curves = [], {}
    for data in options.data:
        for name in options.experiments:
            runs = [_trained(data, name, seed) for seed in options.seeds]
            curves[data.name, name] = pd.concat([_val_map(run) for run in runs], axis=1).mean(axis=1, skipna=False)
            rows.append({"data": data.name, "experiment": name, **_figures(runs)})
    frame = pd.DataFrame(rows)
    for row in frame.itertuples():
        target = curves[row.data, options.experiments[0]].max()
        frame.loc[row.Index, "epochs_to_reach"] = _first_epoch(curves[row.data, row.experiment], target)
    options.output_dir.mkdir(parents=True, exist_ok=True)
    frame.to_csv(options.output_dir / "comparison.csv", index=False)
    report.table(f"Seeds {options.seeds}, suppression chosen on val", list(frame), frame.round(4).values.tolist())
    _draw(curves, options.output_dir / "comparison.png")
    report.say(f"written to {options.output_dir}: comparison.csv, comparison.png")
    return 0


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", type=pathlib.Path, required=True, help="folders, as run.py wants them")
    parser.add_argument(
        "--experiments", nargs="+", default=["single", "across"], help="the others are to reach the first (%(default)s)"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output-dir", type=pathlib.Path, default=pathlib.Path("runs/comparison"))
    options = parser.parse_args()
    if len({folder.name for folder in options.data}) < len(options.data):
        parser.error("--data: expected folders of different names, by which runs are told apart")
    return options


def _refuse_half_finished(options) -> None:
    """Ends before the first training where a run folder lies that none can go into."""
    every = itertools.product(options.data, options.experiments, options.seeds)
    folders = [run_folder(data.name, seed, _experiment(name)) for data, name, seed in every]
    begun = [str(folder) for folder in folders if not _tested(folder) and folder.is_dir() and any(folder.iterdir())]
    if begun:
        sys.exit(
            f"expected finished runs or none, received without {TESTED}: {', '.join(begun)}; wait where one still "
            "trains, else remove the folder, and it is trained anew"
        )


def _trained(data: pathlib.Path, name: str, seed: int) -> pathlib.Path:
    """The run folder of an experiment, which is trained first where there is none that was tested."""
    folder = run_folder(data.name, seed, _experiment(name))
    if not _tested(folder):
        command = [sys.executable, str(HERE / "run.py"), "--data", str(data), "--seed", str(seed)]
        code = subprocess.run([*command, "--experiment", str(_experiment(name))]).returncode
        if code:
            sys.exit(f"{folder}: run.py ended with {code}; what it said is above")
    return folder


def _experiment(name: str) -> pathlib.Path:
    return HERE / "experiments" / f"{name}.yaml"


def _tested(folder: pathlib.Path) -> bool:
    return (folder / TESTED).exists()


def _val_map(run: pathlib.Path) -> pd.Series:
    """val mAP by epoch, from 1."""
    values = pd.read_csv(run / "results.csv")["val_mAP"]
    return values.set_axis(values.index + 1)


def _figures(runs: list) -> dict:
    """Test figures of the suppression that is best on val, over the runs of one experiment."""
    rules = pd.DataFrame([row for run in runs for row in measured_rules(run)])
    by_rule = rules.groupby(["rule", "numbers"])["val_mAP"].mean()
    rule, numbers = by_rule.idxmax()
    chosen = rules[(rules["rule"] == rule) & (rules["numbers"] == numbers)]
    found = {"suppression": f"{rule} {numbers}", "val_mAP": by_rule.max()}
    for name in FIGURES[:2]:
        values = chosen[f"test_{name}"]
        found |= {f"test_{name}": values.mean(), f"test_{name}_min": values.min(), f"test_{name}_max": values.max()}
    return found


def _first_epoch(curve: pd.Series, target: float) -> float:
    reached = curve.index[curve >= target]
    return float(reached[0]) if len(reached) else float("nan")


def _draw(curves: dict, path: pathlib.Path) -> None:
    names = list(dict.fromkeys(data for data, _ in curves))
    figure, axes = plt.subplots(1, len(names), figsize=(5 * len(names), 3.2), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for (data, experiment), curve in curves.items():
            if data == name:
                axis.plot(curve, label=experiment)
        axis.set(title=name, xlabel="epoch", ylabel="val mAP, mean over seeds")
        axis.legend(frameon=False)
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
