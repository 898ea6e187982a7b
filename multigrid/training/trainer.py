"""MultiGridTrainer: a config becomes data, a detector, and a run folder with what training left."""

from __future__ import annotations

import contextlib
import os
import pathlib

import keras
import numpy as np

from multigrid import assembly, report
from multigrid.config import Config
from multigrid.errors import InputError
from multigrid.evaluation.run import evaluate
from multigrid.geometry.anchors import write_anchors
from multigrid.models.weights import load_weights
from multigrid.training import callbacks as watch
from multigrid.training import snapshots
from multigrid.training.optimizers import configured_optimizer

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
    """

    def __init__(self, config: Config, *, name="train", detector=None, train_data=None, val_data=None, callbacks=()):
        self.config, self.name = config, name
        self.detector, self.train_data, self.val_data = detector, train_data, val_data
        self.callbacks = list(callbacks)
        self.vocabulary = None
        self.samples = {}
        self.run_dir = None

    def build_data(self):
        """Reads labels and makes the generators.

        Returns:
            (train_data, val_data); val_data is None where the config has no validation labels.

        Raises:
            InputError: labels, images, classes or anchors that cannot be used.
        """
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
            self.detector = assembly.build_detector(self.config, self.vocabulary, criterion)
        self._check_detector()
        if not self.detector.compiled:
            training = self.config.training
            jit_compile = self.detector.prefers_xla if training.jit_compile == "auto" else training.jit_compile
            optimizer = configured_optimizer(training, len(self.train_data))
            self.detector.compile(optimizer, jit_compile=jit_compile)
        return self.detector

    def train(self) -> keras.callbacks.History:
        """Trains to the end and leaves the best weights in the detector.

        Returns:
            Keras' History; `run_dir` holds the rest.

        Raises:
            InputError: bad data or weights, a detector for others, or a run folder in use; nothing is written then.
            NonFiniteLossError: the loss is no longer a number.
        """
        self.check_run_dir()
        self.build_model()
        if self.detector.criterion is None:
            raise ValueError("detector: expected one with a criterion to train with, received one without")
        self.run_dir = self._new_run_dir()
        self._save_config()
        snapshots.save_training_batch(self.run_dir / "train_batch.jpg", self.train_data, self.detector, self._names())
        lines = watch.EpochLines()
        try:
            history = self.detector.fit(
                self.train_data,
                validation_data=self.val_data,
                epochs=self.config.training.epochs,
                shuffle=False,  # the generator has its own, seeded order
                callbacks=self._callbacks(lines),
                verbose=0,
            )
        finally:
            lines.stop()
        load_weights(self.detector, self.run_dir / "weights" / "best.weights.h5")
        if self.samples.get("val"):
            predictor = assembly.build_predictor(self.config, self.detector, self._names(), evaluating=False)
            snapshots.save_predictions(self.run_dir / "predictions.jpg", predictor, self.samples["val"])
        return history

    def check_run_dir(self) -> None:
        """Sees that the run folder can be made, before data and model cost time.

        Raises:
            InputError: `output.dir` is in use, or no folder can be made there.
        """
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
        predictor = assembly.build_predictor(self.config, self.detector, self._names(), evaluating=True)
        return evaluate(predictor, self.samples[split], self._names(), progress)

    def _need_data(self):
        if self.train_data is None or self.vocabulary is None:
            self.build_data()

    def _names(self):
        return self.vocabulary.class_names

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
        config.save(folder / "config.yaml")

    def _callbacks(self, lines) -> list:
        """In the order in which they act when an epoch ends: figures first, then who reads them."""
        training, folder = self.config.training, self.run_dir
        measured = any(len(sample.boxes) for sample in self.samples.get("val", ()))  # no objects, no mAP
        monitor = "val_mAP" if measured else "val_loss" if self.val_data is not None else "loss"
        mode = "max" if measured else "min"
        weights = {"save_weights_only": True}
        chosen = [watch.DataEpoch(self.train_data), watch.StopOnNonFinite(self.train_data), watch.OptimizerFigures()]
        optimizer = self.detector.optimizer
        if getattr(optimizer, "inner_optimizer", optimizer).use_ema:
            chosen.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
        if measured:
            predictor = assembly.build_predictor(self.config, self.detector, self._names(), evaluating=True)
            chosen.append(
                watch.ValidationMetrics(
                    lambda: evaluate(predictor, self.samples["val"], self._names()).metrics, training.validate_every
                )
            )
        best = folder / "weights" / "best.weights.h5"
        chosen += [
            keras.callbacks.ModelCheckpoint(best, monitor=monitor, mode=mode, save_best_only=True, **weights),
            keras.callbacks.ModelCheckpoint(folder / "weights" / "last.weights.h5", **weights),
            keras.callbacks.CSVLogger(folder / "results.csv"),
            keras.callbacks.TensorBoard(folder / "tensorboard", write_graph=False),
            lines,
        ]
        if training.early_stopping is not None:
            patience = training.early_stopping * (training.validate_every if measured else 1)
            chosen.append(keras.callbacks.EarlyStopping(monitor, mode=mode, patience=patience))
        return chosen + self.callbacks

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
