"""MultiGridTrainer: a config becomes data, a detector, and a run folder with what training left."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import pathlib
import tempfile

import keras
import numpy as np

from multigrid import assembly, report
from multigrid.config import Config, ConfigLoader
from multigrid.errors import InputError
from multigrid.evaluation.run import evaluate
from multigrid.geometry.anchors import write_anchors
from multigrid.models.blocks import blocks_of
from multigrid.models.weights import load_weights
from multigrid.training import callbacks as watch
from multigrid.training import snapshots
from multigrid.training.callback_list import build_callbacks, check_callbacks
from multigrid.training.checkpoints import TrainingInterrupted
from multigrid.training.course import Course, begin_stage
from multigrid.training.devices import building
from multigrid.training.freezing import WhatMoves
from multigrid.training.guard import NonFiniteGuard
from multigrid.training.optimizers import configured_warmup
from multigrid.training.processes import (
    AgreedFigures,
    by_first,
    check_same_batch,
    first_process_first,
    gathered,
    is_first,
    process_count,
)
from multigrid.training.run_state import newest_state
from multigrid.training.stages import Stage, plan_stages
from multigrid.training.stopping import StopSignals, TimeBudget
from multigrid.training.tracking import GroupedTensorBoard, PredictionPictures
from multigrid.training.weight_files import WeightFiles

RUNS = "runs"  # in the working directory

logger = logging.getLogger(__name__)


class MultiGridTrainer:
    """Trains a detector as a config says.

    Every part may be the caller's own: hand it over, or set the attribute before the step that would build it.

    Args:
        config: a checked `Config`.
        name: of the run; the run folder is `runs/<name>-N` where the config names none.
        detector: a `MultiGridDetector` to train instead of the config's.
        train_data: a `keras.utils.PyDataset` of batches instead of the config's.
        val_data: likewise, to validate on.
        callbacks: more Keras callbacks.

    Attributes:
        vocabulary: class names and anchors, after `build_data`.
        samples: {"train": […], "val": […]}, after `build_data`.
        run_dir: the run folder, after `train`.
        ledgers: what came of the tensors of each weights file, after `build_model`.
        stages: what is trained when, after `build_model`.
        stopped_by: the signal that ended `train`, and where; None where none did.
    """

    def __init__(self, config: Config, *, name="train", detector=None, train_data=None, val_data=None, callbacks=()):
        self.config, self.name = config, name
        self.detector, self.train_data, self.val_data = detector, train_data, val_data
        self.callbacks = list(callbacks)
        self.vocabulary = None
        self.samples = {}
        self.run_dir = None
        self.ledgers = []
        self.stages, self.keeps_compilation = None, False
        self.stopped_by = None
        self._resumes, self._state = False, None
        self._lines = watch.EpochLines(config.training.total_epochs)

    @classmethod
    def from_run(cls, run_dir, overrides=(), **parts) -> MultiGridTrainer:
        """A trainer that goes on with a run that was stopped, or killed, at any moment.

        Args:
            run_dir: the run folder.
            overrides: settings over the run's, such as "training.time_budget=60". With none that touches what is
                trained, the result is what it would have been without the stop.
            parts: further arguments of the constructor.

        Raises:
            InputError: no run folder, or one whose last training is of another shape than the settings.
        """
        run_dir = pathlib.Path(run_dir)
        if not (run_dir / "config.yaml").is_file():
            raise InputError(f"{run_dir}: expected a run folder with a config.yaml, received none")
        by_first(functools.partial(report.clear_unfinished, run_dir))
        state = newest_state(run_dir / "checkpoints")
        if state is not None:  # what it began with is history, and the files may be gone
            overrides = [*overrides, "weights=null", "backbone_weights=null"]
        trainer = cls(ConfigLoader.load(run_dir / "config.yaml", overrides), **parts)
        trainer.run_dir, trainer._resumes, trainer._state = run_dir, True, state
        return trainer

    def build_data(self):
        """Reads labels and makes the generators.

        Returns:
            (train_data, val_data); val_data is None where the config has no validation labels.

        Raises:
            InputError: labels, images, classes or anchors that cannot be used.
        """
        with first_process_first():  # scenes are drawn once
            return self._built_data()

    def _built_data(self):
        config = self.config
        self.vocabulary = self.vocabulary or assembly.read_vocabulary(config)
        if self.train_data is None:
            self.samples["train"] = assembly.read_split(config, "train", self.vocabulary.class_names)
            assembly.warn_about_anchors(config, self.vocabulary.anchors, self.samples["train"])
            self.train_data = assembly.build_generator(config, self.samples["train"], training=True)
        if self.val_data is None and config.data.val is not None:
            self.samples["val"] = assembly.read_split(config, "val", self.vocabulary.class_names)
            self.val_data = assembly.build_generator(config, self.samples["val"], training=False)
        return self.train_data, self.val_data

    def build_model(self):
        """Makes the detector and compiles it; a detector that is there stays, and what is compiled stays as it is.

        Returns:
            The compiled `MultiGridDetector`.

        Raises:
            InputError: weights that do not fit, or a detector that is there for other classes or anchors.
        """
        self._need_data()
        if self.detector is None:
            criterion = assembly.build_criterion(self.config, self.vocabulary, self.samples.get("train", ()))
            with building(self.config.training.strategy):
                self.detector = assembly.build_detector(self.config, self.vocabulary, criterion)
            self.ledgers = assembly.load_configured_weights(self.config, self.detector, required="backbone")
        self._check_detector()
        if self.stages is None:
            training = self.config.training
            self.detector.drops_non_finite = training.on_nan == "skip"
            self.stages = plan_stages(training, blocks_of(self.detector))
            self.keeps_compilation = self.detector.compiled and not training.stages and training.freeze == "none"
            if not self.keeps_compilation:
                begin_stage(self.detector, training, self.stages[0], len(self.train_data))
            self._check_monitor()
        return self.detector

    def train(self) -> keras.callbacks.History:
        """Trains to the end and leaves the best weights in the detector; after `from_run`, from where that stopped.

        SIGINT and SIGTERM save and end it: `stopped_by` then says which and where.

        Returns:
            Keras' History of all epochs, those before a resumption included; `run_dir` holds the rest.

        Raises:
            InputError: bad data or weights, a detector for others, or a run folder in use; nothing is written then.
            NonFiniteLossError: the loss is no longer a number.
        """
        if not self._resumes:
            self.check_run_dir()
        self.build_model()
        check_callbacks(self.config.callbacks)
        if self.detector.criterion is None:
            raise ValueError("detector: expected one with a criterion to train with, received one without")
        if not self._resumes:
            if process_count() > 1:
                check_same_batch(self.train_data[0])
            self.run_dir = pathlib.Path(by_first(self._begin_run))
        self._see_run_dir()
        if not self._resumes:
            picture = self._own_dir / "train_batch.jpg"
            snapshots.save_training_batch(picture, self.train_data, self.detector, self._names())
        with StopSignals().listening() as signals:
            course = Course(self, signals)
            try:
                course.run(self._state)
                self.stopped_by = signals.received and f"{signals.received} after epoch {len(course.rows)}"
            except TrainingInterrupted as stop:
                self.stopped_by = f"{signals.received} {stop}"
            finally:
                self._lines.stop()
        self._finish()
        return _history(self.detector, course.rows)

    def _begin_run(self) -> str:
        """Makes the run folder and writes what is known before the first step."""
        self.run_dir = self._new_run_dir()
        self._save_config()
        return str(self.run_dir)

    def _see_run_dir(self) -> None:
        """Sees that every process can read what the first one writes, and has a place for its own.

        All compute the same, in the same order, or they would wait for each other for ever: so all write too, the
        others to a folder that goes with them.
        """
        seeing = gathered((self.run_dir / "config.yaml").is_file())
        if not all(seeing):
            blind = ", ".join(str(index) for index, sees in enumerate(seeing) if not sees)
            raise InputError(f"{self.run_dir}: expected a folder that all processes see, received none on {blind}")
        self._own_dir = self.run_dir
        if not is_first():
            self._scratch = tempfile.TemporaryDirectory()
            self._own_dir = pathlib.Path(self._scratch.name)
            (self._own_dir / "weights").mkdir()

    def _finish(self) -> None:
        """Leaves the best weights in the detector, and a picture of what they find."""
        gathered(0)  # the first process has written all
        best = self.run_dir / "weights" / "best.weights.h5"
        if not best.exists():  # stopped in the first epoch
            return
        load_weights(self.detector, best)
        if self.samples.get("val"):
            predictor = self._predictor(evaluating=False)
            snapshots.save_predictions(self._own_dir / "predictions.jpg", predictor, self.samples["val"])

    def check_run_dir(self) -> None:
        """Sees that the run folder can be made, before data and model cost time.

        Raises:
            InputError: `output.dir` is in use, or no folder can be made there.
        """
        by_first(self._check_run_dir)

    def _check_run_dir(self) -> None:
        folder = self.config.output.dir
        if folder is None:
            report.check_folder(RUNS, "output.dir (null)")
            return
        report.check_folder(folder, "output.dir")
        if os.path.isdir(folder) and os.listdir(folder):
            raise InputError(f"output.dir: expected a new or empty folder, received {folder}, which is in use")

    def evaluate(self, split: str = "val", progress=iter):
        """COCO metrics of the detector as it is on "val" or "test": an `Evaluation`."""
        if split not in self.samples:
            self.vocabulary = self.vocabulary or assembly.read_vocabulary(self.config)
            self.samples[split] = assembly.read_split(self.config, split, self._names())
        return evaluate(self._predictor(evaluating=True), self.samples[split], self._names(), progress)

    def _predictor(self, *, evaluating: bool):
        return assembly.build_predictor(self.config, self.detector, self._names(), evaluating=evaluating)

    def _need_data(self):
        if self.train_data is None or self.vocabulary is None:
            self.build_data()

    def _names(self):
        return self.vocabulary.class_names

    def _check_monitor(self) -> None:
        """Sees that the figure that chooses the best weights will be there."""
        monitor, possible = self.config.training.monitor, ["loss"]
        possible += ["val_loss"] if self.val_data is not None else []
        possible += ["val_mAP", "val_mAP50"] if self._measures_map() else []
        if monitor not in ("auto", *possible):
            raise InputError(
                f"training.monitor: expected auto or one of {', '.join(possible)}, which this training has, "
                f"received {monitor}"
            )

    def _check_detector(self) -> None:
        """Sees that the detector is for the classes and anchors that the labels are read with."""
        detector, names, anchors = self.detector, self._names(), self.vocabulary.anchors.sizes
        if detector.num_classes != len(names):
            raise InputError(
                f"detector: expected one for the {len(names)} classes of data.classes, received {detector.num_classes}"
            )
        theirs = np.asarray(detector.anchors, "float32")
        if theirs.shape != anchors.shape or not np.allclose(theirs, anchors):
            raise InputError(
                f"detector: expected the anchors of data.anchors, {anchors.tolist()}, received {theirs.tolist()}"
            )

    def _save_config(self) -> None:
        """Writes the config with classes and anchors of the run's own: later changes to the files are not for it."""
        folder, data = self.run_dir, self.config.data
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in self._names()), encoding="utf-8")
        write_anchors(self.vocabulary.anchors, folder / "anchors.txt", layout="scales")
        copies = {name: str(folder / f"{name}.txt") for name in ("classes", "anchors")}
        config = self.config.model_copy(update={"data": data.model_copy(update=copies)})
        with report.replacing(folder / "config.yaml") as temporary:  # last, and whole: who sees it may resume
            temporary.write_text(config.text(folder / "config.yaml"), encoding="utf-8")

    def lasting_callbacks(self) -> list:
        """Those that see the whole training, in the order in which they act when an epoch ends."""
        training, weights = self.config.training, self._own_dir / "weights"
        monitor, mode = self._monitor()
        chosen = [
            WeightFiles(weights, monitor, mode, every=training.save_every, keep=training.keep_last),
            GroupedTensorBoard(self._own_dir / "tensorboard"),
            self._lines,
        ]
        if training.time_budget is not None:
            chosen.append(TimeBudget(training.time_budget))
        chosen += [*build_callbacks(self.config.callbacks, self._own_dir), *self.callbacks]
        if training.pictures_every is not None and self.samples.get("val"):
            folder, epochs = self._own_dir / "tensorboard", training.total_epochs
            predictor = self._predictor(evaluating=False)
            chosen.append(
                PredictionPictures(predictor, self.samples["val"], training.pictures_every, folder, epochs=epochs)
            )
        return chosen

    def stage_callbacks(self, stage: Stage, title: str, data) -> list:
        """Those of one call of `fit`: figures first, then who reads them."""
        training = self.config.training
        chosen = [watch.DataEpoch(data), NonFiniteGuard(data, self._own_dir, training.on_nan), watch.OptimizerFigures()]
        optimizer = self.detector.optimizer
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            chosen.append(watch.SwapEMAWeights(swap_on_epoch=True))
        if self._measures_map():
            predictor = self._predictor(evaluating=True)
            measure = functools.partial(_metrics, predictor, self.samples["val"], self._names())
            chosen.append(watch.ValidationMetrics(measure, training.validate_every, stage.first_epoch))
        chosen.append(WhatMoves(title, stage.frozen))
        if process_count() > 1:
            chosen.append(AgreedFigures())
        monitor, mode = self._monitor()
        every = training.validate_every if monitor.startswith("val_mAP") else 1
        if training.schedule == "plateau":
            patience = training.plateau_patience * every
            chosen.append(keras.callbacks.ReduceLROnPlateau(monitor, training.plateau_factor, patience, mode=mode))
            length = stage.phase_end - stage.phase_first
            chosen.append(
                configured_warmup(training, len(self.train_data), epochs=length, learning_rate=stage.learning_rate)
            )
        if training.early_stopping is not None:
            chosen.append(keras.callbacks.EarlyStopping(monitor, mode=mode, patience=training.early_stopping * every))
        return chosen

    def _monitor(self) -> tuple[str, str]:
        """The figure that says which weights are the best, and whether "max" or "min" of it is."""
        monitor = self.config.training.monitor
        if monitor == "auto":
            monitor = "val_mAP" if self._measures_map() else "val_loss" if self.val_data is not None else "loss"
        return monitor, "max" if monitor.startswith("val_mAP") else "min"

    def _measures_map(self) -> bool:
        return any(len(sample.boxes) for sample in self.samples.get("val", ()))  # no objects, no mAP

    def _new_run_dir(self) -> pathlib.Path:
        """Makes the run folder: the one the config names, or the next `runs/<name>-N`."""
        if self.config.output.dir is not None:
            folder = pathlib.Path(self.config.output.dir)
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = _next_folder(pathlib.Path(RUNS), self.name)
        (folder / "weights").mkdir()
        return folder


def _next_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        with contextlib.suppress(FileExistsError):
            (parent / f"{name}-{number}").mkdir()
            return parent / f"{name}-{number}"
        number += 1


def _metrics(predictor, samples, class_names) -> dict:
    return evaluate(predictor, samples, class_names).metrics


def _history(detector, rows) -> keras.callbacks.History:
    """Keras' History of all epochs."""
    history = keras.callbacks.History()
    history.set_model(detector)
    history.epoch = [row["epoch"] for row in rows]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "epoch"]
    history.history = {name: [row.get(name) for row in rows] for name in names}
    return history
