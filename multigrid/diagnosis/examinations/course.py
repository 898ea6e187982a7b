"""The course of a training, step by step, and the trial: some steps with the live objects, all put back afterwards."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import keras
import numpy as np

from multigrid.diagnosis.examinations.looks import Watcher
from multigrid.diagnosis.examinations.pace import paced
from multigrid.training.bundle import Step
from multigrid.training.faults import Fault, first_fault
from multigrid.training.optimizers import inner_optimizer

LOOKS = (0, 5, 10, 20, 40, 80, 160)  # steps at which one and the same batch is looked at
_NO_CLONE = (OSError, ValueError, TypeError, NotImplementedError)  # a part that Keras cannot serialize


@dataclass
class Course:
    """What was seen of consecutive steps.

    Attributes:
        rows: one a step, of that step alone: {"step" from 1, "batch" index in the data, "learning_rate", "loss",
            "<part>_loss" of every part, "updates" so far, "data_seconds", "seconds"}; and where the optimizer measures
            them "grad_norm" and "grad_norm/<block>", NaN in a step without an update.
        looks: at some steps, of one and the same batch, see `looks.Watcher.look`.
        fault: the first tensor that was not finite; None where all were.
        broken: (images, truth) of the step that was not finite; None where all were.
        again: `(factor, steps, rate=1.0) -> Course` makes the first steps once more from the same start with the same
            batches; `factor(path, step)` tells what to multiply the change of a variable by (None: nothing), `rate`
            what to multiply learning rates by; None where they cannot be. The attribute is None where nothing can be
            made again.
        trial: whether the doctor made the steps, faster up to the highest learning rate than the training will.
        events: {"step", "what"} of what changed from without, such as the beginning of a stage.
    """

    rows: list = field(default_factory=list)
    looks: list = field(default_factory=list)
    fault: Fault | None = None
    broken: tuple | None = None
    again: Callable | None = None
    trial: bool = False
    events: list = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Batches that were trained on."""
        return self.rows[-1]["step"] if self.rows else 0

    @property
    def finite(self) -> bool:
        """Whether everything was."""
        return self.fault is None

    @property
    def updates(self) -> int:
        """Changes of the weights; with gathered gradients fewer than steps."""
        return int(self.rows[-1].get("updates", self.steps)) if self.rows else 0

    def values(self, name: str) -> np.ndarray:
        """A figure of every step that has it, NaN left out."""
        found = np.array([row[name] for row in self.rows if name in row], "float64")
        return found[~np.isnan(found)]


class Trial:
    """Trains the live detector for some steps; what it moved is as before when the block ends."""

    def __init__(self, case):
        self.case, self.detector = case, case.detector
        self.course = Course(trial=True, again=self._again)
        self.optimizer = inner_optimizer(case.optimizer)
        self.start, self.rates, self.watcher = None, None, None
        self.rows = max(np.shape(truth["classes"])[1] for _, truth in case.batches)  # of objects, padding included

    def __enter__(self):
        optimizer = self.case.optimizer
        if not optimizer.built:
            optimizer.build(self.detector.trainable_variables)
        self.start, self.watcher = _State(self.case), Watcher(self.case)
        self.detector.train_function = None  # what was traced holds another pace
        training = getattr(self.case.config, "training", None)
        rises = training is not None and training.schedule == "plateau" and training.warmup_epochs > 0
        self.rates = paced(self.optimizer, rises)
        return self

    def __exit__(self, *_):
        self.rates.restore()
        self.start.restore()
        self.detector.train_function = self.start.train_function
        self.course.again = None

    def until(self, steps: int) -> Course:
        """Goes on to this step, unless something is no longer finite."""
        course = self.course
        if not course.looks:
            course.looks.append(self.watcher.look(0))
        while course.steps < steps and course.finite:
            self._step(course, None)
            if course.steps in LOOKS and course.finite:
                course.looks.append(self.watcher.look(course.steps))
        return course

    def _again(self, factor, steps: int, rate: float = 1.0) -> Course | None:
        """The first steps once more, see `Course.again`."""
        here, course = _State(self.case), Course(trial=True)
        self.start.restore()
        try:
            if rate != 1.0 and not self.rates.scale(rate):
                return None
            while course.steps < steps and course.finite:
                self._step(course, factor)
        finally:
            self.rates.scale(1.0)
            here.restore()
        return course

    def _step(self, course: Course, factor) -> None:
        index, optimizer = course.steps, self.optimizer
        began = time.perf_counter()
        batch, images, truth = self._batch(index)
        loaded = time.perf_counter()
        self.rates.at(index)
        rate, before = float(_number(optimizer.learning_rate)), counted(self.case.optimizer)
        kept = None if hasattr(optimizer, "non_finite_steps") else [_copy(v) for v in self.detector.weights]
        held = [] if factor is None else [(v, _copy(v)) for v in self.detector.trainable_variables]
        logs = self.detector.train_on_batch(images, truth, return_dict=True)
        for variable, old in held:
            variable.assign(old + factor(variable.path, index) * (_number(variable) - old))
        row = {"step": index + 1, "batch": batch, "learning_rate": rate}
        row |= {name: float(np.mean(value)) for name, value in logs.items()}
        row |= measured(self.case.optimizer, before, index)
        row |= {"data_seconds": loaded - began, "seconds": time.perf_counter() - loaded}
        course.rows.append(row)
        if not _finite(row, before, counted(self.case.optimizer)):
            course.broken = (images, truth)
            course.fault = self._find_fault(images, truth, kept)

    def _batch(self, index: int) -> tuple:
        """(its index in the data, images, truth) of a step; all with one number of rows, for one trace."""
        data = self.case.train_data
        full = max(1, len(data) - 1)  # the last one of an epoch may be shorter
        epoch, batch = divmod(index, full)
        if hasattr(data, "epoch"):
            data.epoch = self.start.epoch + epoch
        images, truth = data[batch][:2]
        self.rows = max(self.rows, np.shape(truth["classes"])[1])
        missing = self.rows - np.shape(truth["classes"])[1]
        padded = {
            "boxes": np.pad(np.asarray(truth["boxes"]), ((0, 0), (0, missing), (0, 0))),
            "classes": np.pad(np.asarray(truth["classes"]), ((0, 0), (0, missing)), constant_values=-1),
        }
        return batch, images, {**truth, **padded}

    def _find_fault(self, images, truth, kept) -> Fault:
        """The first tensor of the step that is not finite, with the weights from before it."""
        for variable, value in zip(self.detector.weights, kept or (), strict=bool(kept)):
            variable.assign(value)
        return first_fault(self.detector, images, truth, backward=False) or self._fault_of_gradient(images, truth)

    def _fault_of_gradient(self, images, truth) -> Fault:
        try:
            found = Step.of(self.detector, images, truth, epoch=0, step=0).fault()
        except _NO_CLONE:
            found = None
        return found or Fault("gradient", "some variable", note=": loss and outputs are")


class _State:
    """All that a step moves, copied."""

    def __init__(self, case):
        detector = case.detector
        self.data, self.epoch = case.train_data, getattr(case.train_data, "epoch", 0)
        everything = [*detector.variables, *detector.metrics_variables, *case.optimizer.variables]
        self.variables = list({id(variable): variable for variable in everything}.values())
        self.values = [_copy(variable) for variable in self.variables]
        self.train_function = detector.train_function
        self.random = random.getstate(), np.random.get_state()

    def restore(self) -> None:
        """Puts it back."""
        for variable, value in zip(self.variables, self.values, strict=True):
            variable.assign(value)
        if hasattr(self.data, "epoch"):
            self.data.epoch = self.epoch
        random.setstate(self.random[0])
        np.random.set_state(self.random[1])


def counted(optimizer) -> dict:
    """What an optimizer has counted so far; little where it measures nothing."""
    inner = inner_optimizer(optimizer)
    names = ("measured_updates", "gradient_norm_sum", "gradient_norm_sums", "non_finite_steps")
    found = {name: _copy(getattr(inner, name)) for name in names if hasattr(inner, name)}
    found["dynamic_scale"] = float(_number(getattr(optimizer, "dynamic_scale", 1.0)))
    return found


def measured(optimizer, before: dict, index: int) -> dict:
    """The gradient norms of the step of this index, NaN where it made no update, and the updates so far."""
    inner, now = inner_optimizer(optimizer), counted(optimizer)
    if "measured_updates" not in now:
        return {"updates": (index + 1) // (inner.gradient_accumulation_steps or 1)}
    made = int(now["measured_updates"] - before["measured_updates"])
    norm = float(now["gradient_norm_sum"] - before["gradient_norm_sum"]) if made else math.nan
    row = {"updates": int(now["measured_updates"]), "grad_norm": norm, "scale": now["dynamic_scale"]}
    for block, old, new in zip(
        inner.blocks, before["gradient_norm_sums"], now["gradient_norm_sums"], strict=True
    ):  # fmt: skip
        row[f"grad_norm/{block}"] = float(new - old) if made else math.nan
    return row


def _finite(row: dict, before: dict, now: dict) -> bool:
    """Whether loss and gradients of a step were; an overflow that only the scaling of the loss made is none."""
    losses = [value for name, value in row.items() if name == "loss" or "_loss" in name]
    dropped = now.get("non_finite_steps", 0) > before.get("non_finite_steps", 0)
    vanished = now["dynamic_scale"] < min(1.0, before["dynamic_scale"])
    return bool(np.isfinite(losses).all()) and not dropped and not vanished


def _number(tensor) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def _copy(tensor) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(tensor))
