"""Cases of a config, a run folder or a replay bundle."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from multigrid.config import Config
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations.course import Course
from multigrid.errors import InputError
from multigrid.prediction.run_folder import BEST, LAST, labels_there, run_config
from multigrid.training.bundle import STEP, read_bundle
from multigrid.training.comparison import RESULTS, Run, monitored, read_runs
from multigrid.training.faults import first_fault
from multigrid.training.trainer import MultiGridTrainer


def is_bundle(folder: str | os.PathLike) -> bool:
    """Whether a folder is a replay bundle, and not a run."""
    return (pathlib.Path(folder) / STEP).is_file()


def of_config(config: Config) -> Case:
    """The case of a training that is about to begin."""
    return Case.of(MultiGridTrainer(config))


def of_run(run_dir: str | os.PathLike, overrides: Sequence[str] = ()) -> Case:
    """The case of a run folder: its config, its best weights, its curves and, where it stopped, the step it stopped at.

    Args:
        run_dir: the folder.
        overrides: settings over those of the run.

    Raises:
        InputError: no run folder, or one whose training labels are no longer where they were.
    """
    run_dir = pathlib.Path(run_dir)
    if not (run_dir / "config.yaml").is_file():
        raise InputError(f"{run_dir}: expected a run folder or a replay bundle, received neither")
    labels = labels_there(run_dir)
    if "train" not in labels and not any(word.startswith("data.train=") for word in overrides):
        raise InputError(f"{run_dir}: expected its training labels where they were; say data.train=LABELS")
    trained = _trained(run_dir)
    settings = list(overrides) if trained else ["weights=null", *overrides]
    if trained == [LAST] and not any(word.startswith("weights=") for word in overrides):
        settings.insert(0, f'weights="{(run_dir / LAST).absolute()}"')
    trainer = MultiGridTrainer(run_config(run_dir, settings, labels))
    case = Case.of(trainer)
    (run,) = read_runs([run_dir]) if (run_dir / RESULTS).is_file() else (None,)
    case.history = _history(run)
    if run is not None and trained and not any(word.startswith("weights=") for word in overrides):
        case.step = _epoch_of(trained[0], run) * len(case.train_data)
    case.course = _where_it_stopped(run_dir)
    return case


def missing_parts(run_dir: str | os.PathLike, overrides: Sequence[str] = ()) -> list[str]:
    """What a run folder lacks, and what follows for its examination by `of_run`: a line each."""
    run_dir, lines = pathlib.Path(run_dir), []
    if not _trained(run_dir) and not any(word.startswith("weights=") for word in overrides):
        lines.append(f"{run_dir}: no weights of its own; a new network is examined")
    if not (run_dir / RESULTS).is_file():
        lines.append(f"{run_dir}: no {RESULTS}; its epochs are not examined")
    return lines


def of_bundle(folder: str | os.PathLike) -> Case:
    """The case of a replay bundle: the step's own batch, and the detector and optimizer as they were before it.

    Raises:
        InputError: no bundle, or a damaged one.
    """
    step, _ = read_bundle(folder)
    detector = step.detector()
    detector.compile(step.optimizer(detector), jit_compile=detector.prefers_xla)
    case = Case(detector, [(step.images, step.truth)], step=1)
    case.course = _course_of(step)
    return case


def _trained(run_dir: pathlib.Path) -> list:
    """The weights that a run folder has, the best first."""
    return [name for name in (BEST, LAST) if (run_dir / name).is_file()]


def _epoch_of(weights, run: Run) -> int:
    """After which epoch of a run its weights were saved."""
    monitor = run.settings.get("training.monitor", "auto")
    figure = monitored([run]) if monitor == "auto" else monitor
    if weights == LAST or not run.has(figure):
        return int(run.epochs[-1])
    best = np.nanargmax if figure.startswith("val_mAP") else np.nanargmin
    return int(run.epochs[best(run.figures[figure])])


def _history(run: Run | None) -> list[dict]:
    """The rows of results.csv; [] where no epoch was finished."""
    if run is None:
        return []
    return [
        {"epoch": int(epoch), **{name: float(values[row]) for name, values in run.figures.items()}}
        for row, epoch in enumerate(run.epochs)
    ]


def _where_it_stopped(run_dir: pathlib.Path) -> Course | None:
    """The step of the newest bundle of a run, made again; None where it met nothing that was not finite."""
    bundles = sorted(run_dir.glob(f"nan-epoch-*/{STEP}"), key=os.path.getmtime)
    if not bundles:
        return None
    step, _ = read_bundle(bundles[-1].parent)
    return _course_of(step)


def _course_of(step) -> Course:
    """The one step, made again."""
    row = {"step": step.step + 1, "batch": step.step, "learning_rate": step.learning_rate, "loss": np.nan}
    fault = first_fault(step.detector(), step.images, step.truth)
    return Course(rows=[row], fault=fault, broken=(step.images, step.truth))
