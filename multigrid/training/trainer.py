"""MultiGridTrainer: a config becomes data, a detector, and a run folder with what training left."""

from __future__ import annotations

import contextlib
import functools
import os
import pathlib
import tempfile

import keras
import numpy as np
import yaml

from multigrid import assembly, report
from multigrid.config import Config, ConfigLoader
from multigrid.errors import InputError
from multigrid.evaluation.run import evaluate
from multigrid.geometry.anchors import write_anchors
from multigrid.models.blocks import blocks_of
from multigrid.models.weights import load_weights
from multigrid.prediction.predictor import Predictor
from multigrid.prediction.run_folder import BEST
from multigrid.training import callbacks as watch
from multigrid.training import run_callbacks, snapshots
from multigrid.training.callback_list import build_callbacks, check_callbacks
from multigrid.training.checkpoints import TrainingInterrupted
from multigrid.training.course import Course, begin_stage
from multigrid.training.devices import building
from multigrid.training.processes import (
    by_first,
    check_same_batch,
    first_process_first,
    gathered,
    is_first,
    process_count,
)
from multigrid.training.run_state import newest_state
from multigrid.training.stages import plan_stages
from multigrid.training.stopping import StopSignals

RUNS = "runs"  # in the working directory


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
        own_detector: whether the detector is the caller's, after `build_model`.
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
        self.stages, self.keeps_compilation, self.own_detector = None, False, None
        self.stopped_by = None
        self._predictors = {}
        self._resumes, self._state, self._kept = False, None, {}
        self.lines = watch.EpochLines(config.training.total_epochs)

    @classmethod
    def from_run(cls, run_dir, overrides=(), **parts) -> MultiGridTrainer:
        """A trainer that goes on with a run that was stopped, or killed, at any moment.

        Args:
            run_dir: the run folder.
            overrides: settings over the run's, such as "training.time_budget=60", which are the run's from then on.
                With none that touches what is trained, the result is what it would have been without the stop.
            parts: further arguments of the constructor.

        Raises:
            InputError: no run folder, or one whose last training is of another shape than the settings.
        """
        run_dir = pathlib.Path(run_dir)
        if not (run_dir / "config.yaml").is_file():
            raise InputError(f"{run_dir}: expected a run folder with a config.yaml, received none")
        by_first(functools.partial(report.clear_unfinished, run_dir))
        state = newest_state(run_dir / "checkpoints")
        first_weights = ("weights", "backbone_weights") if state is not None else ()
        nothing = [f"{key}=null" for key in first_weights]  # what it began with is history, and the files may be gone
        trainer = cls(ConfigLoader.load(run_dir / "config.yaml", [*nothing, *overrides]), **parts)
        written = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
        kept = {key: written.get(key) for key in first_weights}
        if any(word.startswith("output.dir=") for word in overrides):
            raise InputError(f"output.dir: expected none with a run to go on with, {run_dir}, received another folder")
        if any(getattr(trainer.config, key) is not None for key in kept):
            raise InputError(f"{run_dir}: expected no weights to begin with, for the run has its own, received some")
        trainer.run_dir, trainer._resumes, trainer._state, trainer._kept = run_dir, True, state, kept
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
        if self.own_detector is None:
            self.own_detector = self.detector is not None
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
            run_callbacks.check_monitor(self)
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
        self._need_data()
        self._check_boxes()
        self.build_model()
        self._check_callbacks()
        if self.detector.criterion is None:
            raise ValueError("detector: expected one with a criterion to train with, received one without")
        if not self._resumes:
            if process_count() > 1:
                check_same_batch(self.train_data[0])
            self.run_dir = pathlib.Path(by_first(self._begin_run))
        self._see_run_dir()
        if self._resumes:
            if self._state is not None:
                self._state.restore_weights(self.detector)  # or an error, before settings that do not fit are kept
            by_first(lambda: self._save_config(**self._kept))
        else:
            picture = self.own_dir / "train_batch.jpg"
            snapshots.save_training_batch(picture, self.train_data, self.detector, self.class_names)
        with StopSignals().listening() as signals:
            course = Course(self, signals)
            try:
                course.run(self._state)
                self.stopped_by = signals.received and f"{signals.received} after epoch {len(course.rows)}"
            except TrainingInterrupted as stop:
                self.stopped_by = f"{signals.received} {stop}"
            finally:
                self.lines.stop()
                course.conclude()
        self._finish()
        return _history(self.detector, course.rows)

    def _begin_run(self) -> str:
        """Makes the run folder and writes what is known before the first step."""
        self.run_dir = self._new_run_dir()
        if self.ledgers:
            report.write_json(self.run_dir / "weights.json", [ledger.plain() for ledger in self.ledgers])
        self._save_vocabulary()
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
        self.own_dir = self.run_dir
        if not is_first():
            self._scratch = tempfile.TemporaryDirectory()
            self.own_dir = pathlib.Path(self._scratch.name)
            (self.own_dir / "weights").mkdir()

    def _finish(self) -> None:
        """Leaves the best weights in the detector, and a picture of what they find."""
        gathered(0)  # the first process has written all
        best = self.run_dir / BEST
        if not best.exists():  # stopped in the first epoch
            return
        load_weights(self.detector, best)
        if self.samples.get("val"):
            predictor = self.predictor(evaluating=False)
            snapshots.save_predictions(self.own_dir / "predictions.jpg", predictor, self.samples["val"])

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
            self.samples[split] = assembly.read_split(self.config, split, self.class_names)
        return evaluate(self.predictor(evaluating=True), self.samples[split], self.class_names, progress)

    def predictor(self, *, evaluating: bool):
        """A `Predictor` with the detector: with the low threshold to evaluate, or with the one for the eye.

        One serves for the whole training: each traces a graph of its own.
        """
        key = id(self.detector), evaluating
        if key not in self._predictors:
            made = Predictor.of(self.config, self.detector, self.class_names, evaluating=evaluating)
            self._predictors[key] = made
        return self._predictors[key]

    def _need_data(self):
        if self.train_data is None or self.vocabulary is None:
            self.build_data()

    @property
    def class_names(self) -> tuple:
        """One a class, after `build_data`."""
        return self.vocabulary.class_names

    def _check_boxes(self) -> None:
        """Sees that the labels have something to learn; data of your own is yours to know."""
        samples = self.samples.get("train")
        if samples and not any(len(sample.boxes) for sample in samples):
            raise InputError(
                f"data.train ({self.config.data.train}): expected at least one box that can be used, received none in "
                f"{len(samples)} images"
            )

    def _check_callbacks(self) -> None:
        """Sees that the config's callbacks can be made, before there is a run folder."""
        check_callbacks(self.config.callbacks)
        with tempfile.TemporaryDirectory() as nowhere:
            build_callbacks(self.config.callbacks, nowhere)

    def _check_detector(self) -> None:
        """Sees that the detector is for the classes and anchors that the labels are read with."""
        detector, names, anchors = self.detector, self.class_names, self.vocabulary.anchors.sizes
        if detector.num_classes != len(names):
            raise InputError(
                f"detector: expected one for the {len(names)} classes of data.classes, received {detector.num_classes}"
            )
        theirs = np.asarray(detector.anchors, "float32")
        if theirs.shape != anchors.shape or not np.allclose(theirs, anchors):
            raise InputError(
                f"detector: expected the anchors of data.anchors, {anchors.tolist()}, received {theirs.tolist()}"
            )

    def _save_vocabulary(self) -> None:
        """Writes classes and anchors of the run's own: later changes to the files are not for it."""
        with report.replacing(self.run_dir / "classes.txt") as temporary:
            temporary.write_text("".join(f"{name}\n" for name in self.class_names), encoding="utf-8")
        write_anchors(self.vocabulary.anchors, self.run_dir / "anchors.txt", layout="scales")

    def _save_config(self, **kept) -> None:
        """Writes the config with the run's own classes and anchors; `kept` keys are those of before a resumption."""
        folder, data = self.run_dir, self.config.data
        copies = {name: str(folder / f"{name}.txt") for name in ("classes", "anchors")}
        config = self.config.model_copy(update={"data": data.model_copy(update=copies), **kept})
        with report.replacing(folder / "config.yaml") as temporary:  # last, and whole: who sees it may resume
            temporary.write_text(config.text(folder / "config.yaml"), encoding="utf-8")

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


def _history(detector, rows) -> keras.callbacks.History:
    """Keras' History of all epochs."""
    history = keras.callbacks.History()
    history.set_model(detector)
    history.epoch = [row["epoch"] for row in rows]
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name != "epoch"]
    history.history = {name: [row.get(name) for row in rows] for name in names}
    return history
