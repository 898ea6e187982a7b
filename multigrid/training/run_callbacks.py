"""The callbacks of a training, in the order in which they act when an epoch ends."""

from __future__ import annotations

import functools

import keras

from multigrid.errors import InputError
from multigrid.evaluation.run import evaluate
from multigrid.training import callbacks as watch
from multigrid.training.callback_list import build_callbacks
from multigrid.training.freezing import WhatMoves
from multigrid.training.guard import NonFiniteGuard
from multigrid.training.optimizers import configured_warmup, inner_optimizer
from multigrid.training.processes import AgreedFigures, process_count
from multigrid.training.stages import Stage
from multigrid.training.stopping import TimeBudget
from multigrid.training.tracking import GroupedTensorBoard, PredictionPictures
from multigrid.training.weight_files import WeightFiles

DOCTOR = "multigrid.diagnosis.watch.DoctorWatch"


def lasting_callbacks(trainer) -> list:
    """Those that see the whole training, in the order in which they act when an epoch ends."""
    training, weights = trainer.config.training, trainer.own_dir / "weights"
    monitor, mode = monitor_of(trainer)
    chosen = [
        WeightFiles(weights, monitor, mode, every=training.save_every, keep=training.keep_last),
        GroupedTensorBoard(trainer.own_dir / "tensorboard"),
        trainer.lines,
    ]
    if training.time_budget is not None:
        chosen.append(TimeBudget(training.time_budget))
    return [*chosen, *build_callbacks(trainer.config.callbacks, trainer.own_dir), *_doctor(trainer), *trainer.callbacks]


def _doctor(trainer) -> list:
    """The doctor, where it is to look on: it knows training, and not the other way round, so it is found by name."""
    if trainer.config.diagnosis != "watch":
        return []
    watching = build_callbacks([{"name": DOCTOR}], trainer.own_dir)
    for callback in watching:
        callback.trainer = trainer
    return watching


def closing_callbacks(trainer) -> list:
    """Those that act when it is settled whether an epoch is the last."""
    training = trainer.config.training
    if training.pictures_every is None or not trainer.samples.get("val"):
        return []
    predictor, folder = trainer.predictor(evaluating=False), trainer.own_dir / "tensorboard"
    every, epochs = training.pictures_every, training.total_epochs
    return [PredictionPictures(predictor, trainer.samples["val"], every, folder, epochs=epochs)]


def stage_callbacks(trainer, stage: Stage, title: str, data) -> list:
    """Those of one call of `fit`: figures first, then who reads them."""
    training = trainer.config.training
    chosen = [watch.DataEpoch(data), NonFiniteGuard(data, trainer.own_dir, training.on_nan), watch.OptimizerFigures()]
    if inner_optimizer(trainer.detector.optimizer).use_ema:
        chosen.append(watch.SwapEMAWeights(swap_on_epoch=True))
    if measures_map(trainer):
        predictor = trainer.predictor(evaluating=True)
        measure = functools.partial(_metrics, predictor, trainer.samples["val"], trainer.class_names)
        chosen.append(watch.ValidationMetrics(measure, training.validate_every, stage.first_epoch))
    chosen.append(WhatMoves(title, stage.frozen, said=len(trainer.stages) > 1))
    if process_count() > 1:
        chosen.append(AgreedFigures())
    monitor, mode = monitor_of(trainer)
    every = training.validate_every if monitor.startswith("val_mAP") else 1
    if training.schedule == "plateau":
        patience = training.plateau_patience * every
        chosen.append(keras.callbacks.ReduceLROnPlateau(monitor, training.plateau_factor, patience, mode=mode))
        length = stage.phase_end - stage.phase_first
        chosen.append(
            configured_warmup(training, len(trainer.train_data), epochs=length, learning_rate=stage.learning_rate)
        )
    if training.early_stopping is not None:
        chosen.append(keras.callbacks.EarlyStopping(monitor, mode=mode, patience=training.early_stopping * every))
    return chosen


def monitor_of(trainer) -> tuple[str, str]:
    """The figure that says which weights are the best, and whether "max" or "min" of it is."""
    monitor = trainer.config.training.monitor
    if monitor == "auto":
        monitor = "val_mAP" if measures_map(trainer) else "val_loss" if trainer.val_data is not None else "loss"
    return monitor, "max" if monitor.startswith("val_mAP") else "min"


def measures_map(trainer) -> bool:
    """Whether there are labelled objects to measure a validation mAP on."""
    return any(len(sample.boxes) for sample in trainer.samples.get("val", ()))


def check_monitor(trainer) -> None:
    """Sees that the figure that chooses the best weights will be there."""
    monitor, possible = trainer.config.training.monitor, ["loss"]
    possible += ["val_loss"] if trainer.val_data is not None else []
    possible += ["val_mAP", "val_mAP50"] if measures_map(trainer) else []
    if monitor not in ("auto", *possible):
        raise InputError(
            f"training.monitor: expected auto or one of {', '.join(possible)}, which this training has, "
            f"received {monitor}"
        )


def _metrics(predictor, samples, class_names) -> dict:
    return evaluate(predictor, samples, class_names).metrics
