"""The replay bundle: one training step in a folder, with all that is needed to make it again, and nothing else.

batch.npz           images, boxes and classes, as the step saw them
weights.weights.h5  of the detector, before the step
optimizer.npz       its state, in the order of its variables
detector.json       detector, criterion and optimizer, as Keras serializes them, and what is frozen
step.json           epoch, step, learning rate, image files, and the verdict
config.yaml, classes.txt, anchors.txt   of the run, for the reader
"""

from __future__ import annotations

import copy
import json
import os
import pathlib
import shutil
import uuid
import zipfile
from dataclasses import dataclass, field

import keras
import numpy as np

# Keras finds what a bundle holds by the names that these modules register.
import multigrid.losses.multigrid_loss  # noqa: F401
import multigrid.models.detector  # noqa: F401
import multigrid.training.optimizers  # noqa: F401
from multigrid import report
from multigrid.errors import InputError
from multigrid.training.faults import Fault, first_fault

BATCH, WEIGHTS, OPTIMIZER, DETECTOR, STEP = (
    "batch.npz", "weights.weights.h5", "optimizer.npz", "detector.json", "step.json"
)  # fmt: skip
OF_THE_RUN = ("config.yaml", "classes.txt", "anchors.txt")
_UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile)
LOST = "could not be reproduced: everything is finite in the batch as the data gives it now"


@dataclass(frozen=True)
class Step:
    """One step of a training: weights as they were before it, for it moved none, and the optimizer after it."""

    epoch: int  # from 0
    step: int  # of the epoch, from 0
    learning_rate: float
    files: list  # for each image the files that it shows; empty where they are not known
    images: np.ndarray = field(repr=False)  # uint8 [B, H, W, 3]
    truth: dict = field(repr=False)  # boxes float32 [B, M, 4] in input pixels, classes int32 [B, M]
    objects: dict = field(repr=False)  # detector and optimizer as Keras serializes them, frozen: a bool a layer
    weights: list = field(repr=False)
    slots: list = field(repr=False)  # the optimizer's variables

    @classmethod
    def of(cls, detector: keras.Model, images, truth, *, epoch: int, step: int, files=()) -> Step:
        """The step that a compiled detector makes with a batch; its state is copied."""
        described = keras.saving.serialize_keras_object(detector)
        described.pop("compile_config", None)  # it would make an optimizer for what is frozen, too
        objects = {
            "detector": described,
            "optimizer": keras.saving.serialize_keras_object(detector.optimizer),
            "frozen": [not layer.trainable for layer in detector._flatten_layers()],
        }
        rate = float(keras.ops.convert_to_numpy(detector.optimizer.learning_rate))
        weights, slots = _copied(detector.weights), _copied(detector.optimizer.variables)
        return cls(epoch, step, rate, list(files), images, truth, objects, weights, slots)

    def detector(self) -> keras.Model:
        """A new detector with the weights of the step, and with its criterion, not yet compiled."""
        made = _revived(self.objects["detector"])
        for layer, frozen in zip(made._flatten_layers(), self.objects["frozen"], strict=True):
            layer.trainable = not frozen
        for variable, value in zip(made.weights, self.weights, strict=True):
            variable.assign(value)
        return made

    def optimizer(self, detector: keras.Model) -> keras.optimizers.Optimizer:
        """The optimizer of the step, in its state, for such a detector."""
        made = _revived(self.objects["optimizer"])
        made.build(detector.trainable_variables)
        for variable, value in zip(made.variables, self.slots, strict=True):
            variable.assign(value)
        return made

    def fault(self) -> Fault | None:
        """What is not finite first when the step is made again; None where all is finite."""
        return first_fault(self.detector(), self.images, self.truth)

    def figures(self, fault: Fault | None) -> dict:
        """The step and its fault as plain values; epoch and step from 1."""
        return {
            "epoch": self.epoch + 1,
            "step": self.step + 1,
            "learning_rate": self.learning_rate,
            "images": len(self.images),
            "files": self.files,
            "first": fault,
            "verdict": self.verdict(fault),
        }

    def verdict(self, fault: Fault | None) -> str:
        """A fault of this step in one line."""
        return LOST if fault is None else fault.describe(len(self.images), self.files)


def write_bundle(folder, step: Step, fault: Fault | None, run_dir=None) -> pathlib.Path:
    """Writes a bundle; the folder appears whole or not at all.

    Args:
        folder: to make; where it is there already, one of the same name with a number.
        step: to be made again.
        fault: what was not finite first.
        run_dir: the run folder, whose config is copied.

    Returns:
        The folder.
    """
    folder = pathlib.Path(folder)
    temporary = folder.with_name(f".{uuid.uuid4().hex[:12]}")  # as `report.clear_unfinished` knows it
    temporary.mkdir(parents=True)
    try:
        _fill(temporary, step, fault)
        for name in OF_THE_RUN:
            if run_dir is not None and (pathlib.Path(run_dir) / name).is_file():
                shutil.copy(pathlib.Path(run_dir) / name, temporary / name)
        return _move(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_bundle(folder) -> tuple[Step, str]:
    """The step of a bundle, and the verdict that was written with it.

    Raises:
        InputError: no bundle, or a damaged one.
    """
    folder = pathlib.Path(folder)
    missing = [name for name in (BATCH, WEIGHTS, OPTIMIZER, DETECTOR, STEP) if not (folder / name).is_file()]
    if missing:
        raise InputError(f"{folder}: expected a replay bundle, received a folder without {', '.join(missing)}")
    try:
        return _read(folder)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: expected a whole replay bundle, received a damaged one: {reason}") from error


def _fill(folder, step, fault):
    np.savez_compressed(folder / BATCH, images=step.images, **step.truth)
    np.savez(folder / OPTIMIZER, *step.slots)
    step.detector().save_weights(folder / WEIGHTS)
    (folder / DETECTOR).write_text(json.dumps(step.objects), encoding="utf-8")  # a setting may be NaN
    report.write_json(folder / STEP, step.figures(fault))


def _move(temporary, folder) -> pathlib.Path:
    """Gives the folder its name, or the first numbered one that is free."""
    number, target = 1, folder
    while target.exists():
        number += 1
        target = folder.with_name(f"{folder.name}-{number}")
    os.rename(temporary, target)
    return target


def _read(folder) -> tuple[Step, str]:
    figures = json.loads((folder / STEP).read_text("utf-8"))
    objects = json.loads((folder / DETECTOR).read_text("utf-8"))
    with np.load(folder / BATCH) as batch:
        images, truth = batch["images"], {name: batch[name] for name in ("boxes", "classes")}
    with np.load(folder / OPTIMIZER) as slots:
        slots = [slots[name] for name in slots.files]
    empty = _revived(objects["detector"])
    empty.load_weights(folder / WEIGHTS)
    where = (figures["epoch"] - 1, figures["step"] - 1, figures["learning_rate"], figures["files"])
    return Step(*where, images, truth, objects, _copied(empty.weights), slots), figures["verdict"]


def _revived(described: dict):
    """The object of Keras' description, of which Keras leaves nothing."""
    return keras.saving.deserialize_keras_object(copy.deepcopy(described))


def _copied(variables) -> list:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in variables]
