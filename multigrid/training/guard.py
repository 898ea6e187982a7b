"""The guard: at the first value of a training that is not finite it stops or drops the batch, and keeps the step."""

from __future__ import annotations

import contextlib
import logging
import pathlib
from collections.abc import Iterator

import keras
import numpy as np

from multigrid.config import TrainingConfig
from multigrid.training.bundle import Step, write_bundle
from multigrid.training.checkpoints import RestOfEpoch
from multigrid.training.faults import Fault
from multigrid.training.optimizers import inner_optimizer

# what stands in the way of a bundle must not stand in the way of the news
_NO_BUNDLE = (OSError, ValueError, TypeError, NotImplementedError)

logger = logging.getLogger(__name__)


class NonFiniteLossError(RuntimeError):
    """A training step was not finite; the message names the tensor, the step and the images."""


class NonFiniteGuard(keras.callbacks.Callback):
    """Sees the first loss or gradient that is NaN or infinite, says which tensor was first, and writes a replay bundle.

    Nothing of such a step reaches the weights: the optimizer and the detector leave them as they were. In half
    precision a gradient that overflows only because the loss is scaled is no fault.

    In the logs of an epoch "dropped_batches" counts them where `on_nan` is "skip". What cannot be helped by skipping,
    weights that are not finite or an epoch without a batch that is, stops the training all the same.

    Args:
        data: the training data, asked for the batch again, `data[step]`, and for the image files that it shows.
        folder: the run folder; None writes nothing.
        on_nan: "stop" or "skip"; with "skip" the detector's `drops_non_finite` has to be set before it trains.
    """

    REMEMBERED = ("seen", "steps", "dropped", "left_out")

    def __init__(self, data, folder=None, on_nan: str = TrainingConfig().on_nan):
        super().__init__()
        self.data, self.folder, self.on_nan = data, folder, on_nan
        self.first = data.first if isinstance(data, RestOfEpoch) else 0  # of the epoch's steps
        self.epoch = 0
        self.seen = False  # the first is kept, and said

    def on_train_begin(self, logs=None):
        self._new_epoch()
        self.before = {}  # of the optimizer; read before the first step, for a training that is resumed has a past

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self._new_epoch()

    def on_train_batch_begin(self, batch, logs=None):
        self.before = self.before or self._optimizer_state()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        wrong = self._wrong(logs or {})
        if not wrong:
            return
        self.dropped += 1
        if self.on_nan == "stop":
            raise NonFiniteLossError(self._describe(batch, wrong))
        if not self.seen:
            logger.warning("%s; batches like this are dropped and counted", self._describe(batch, wrong))

    def on_epoch_end(self, epoch, logs=None):
        if self.on_nan != "skip":
            return
        if self.dropped and self.dropped == self.steps:
            raise NonFiniteLossError(f"epoch {epoch + 1}: all {self.steps} batches were dropped, none was finite")
        if logs is not None:
            logs["dropped_batches"] = self.dropped

    def _new_epoch(self) -> None:
        self.steps = self.dropped = 0
        self.known, self.left_out = [], 0.0

    def _wrong(self, logs) -> list:
        """What was not finite in this step, in words; empty where all was.

        Logs are means over the epoch so far: a value that is not finite shows at its own step, and stays.
        """
        wrong = []
        if "dropped_batches" in logs:  # the means are over the rest, and NaN while there is none
            if logs["dropped_batches"] > self.left_out:
                wrong.append("the loss was not finite")
            self.left_out = float(logs["dropped_batches"])
        else:
            names = [name for name, value in logs.items() if not np.all(np.isfinite(value))]
            wrong += [f"{name} became {logs[name]}" for name in names if name not in self.known]
            self.known = names
        before, now = self.before, self._optimizer_state()
        if now["non_finite_steps"] > before["non_finite_steps"]:
            wrong.append("a gradient was not finite")
        if now["dynamic_scale"] < min(1.0, before["dynamic_scale"]):
            wrong.append(f"a gradient was not finite with its loss scaled by {before['dynamic_scale']:g}")
        self.before = now
        return wrong

    def _describe(self, batch, wrong) -> str:
        """Where it is and what was first; keeps the step, if it is the first one."""
        self.seen = True
        place = f"epoch {self.epoch + 1}, step {self.first + batch + 1}: "
        try:
            with _of_this_process():
                text, fault = self._examined(batch, wrong)
        except _NO_BUNDLE as error:
            reason = " ".join(str(error).split())[-300:]  # Keras says at the end what the matter is
            return f"{place}{', '.join(wrong)}; no replay bundle could be written: {type(error).__name__}: {reason}"

        if fault is not None and fault.kind == "weights" and self.on_nan == "skip":
            raise NonFiniteLossError(f"{place}{text}; to skip batches is of no use")
        return place + text

    def _examined(self, batch, wrong) -> tuple[str, Fault | None]:
        """What was first, in words, and the same as a value; writes the bundle."""
        if hasattr(self.model, "jax_state_sync"):
            self.model.jax_state_sync()  # during an epoch `fit` holds the state on JAX
        images, truth = self.data[batch][:2]
        number, files = self.first + batch, _files(self.data, batch)
        step = Step.of(self.model, images, truth, epoch=self.epoch, step=number, files=files)
        fault = step.fault()
        text = step.verdict(fault) if fault else f"{', '.join(wrong)}; it {step.verdict(fault)}"
        if self.folder is not None:
            name = f"nan-epoch-{self.epoch + 1}-step-{number + 1}"
            folder = write_bundle(pathlib.Path(self.folder) / name, step, fault, self.folder)
            text += f"; to make this step again: multigrid replay {folder}"
        return text, fault

    def _optimizer_state(self) -> dict:
        """How many steps the optimizer has skipped, and what it multiplies the loss by in half precision."""
        optimizer = self._model.optimizer  # `self.model` would sync on JAX after each step
        inner, state = inner_optimizer(optimizer), {"non_finite_steps": 0.0, "dynamic_scale": 1.0}
        for holder, name in ((inner, "non_finite_steps"), (optimizer, "dynamic_scale")):
            if optimizer.built and hasattr(holder, name):
                state[name] = float(keras.ops.convert_to_numpy(self._current(getattr(holder, name))))
        return state

    def _current(self, variable):
        """A variable's value; during an epoch `fit` on JAX holds it, and a sync after each step would cost time."""
        held = getattr(self._model, "_jax_state", None)
        if not held or self._model._jax_state_synced:
            return variable
        index = next(i for i, other in enumerate(self._model.optimizer.variables) if other is variable)
        return held["optimizer_variables"][index]


def _files(data, batch) -> list:
    """For each image of a batch the files that it shows; empty where the data does not say."""
    if isinstance(data, RestOfEpoch):
        return _files(data.data, data.first + batch)
    if not hasattr(data, "sample_indices"):
        return []
    return [[data.samples[one].path for one in dict.fromkeys(indices)] for indices in data.sample_indices(batch)]


@contextlib.contextmanager
def _of_this_process() -> Iterator[None]:
    """Lets what is made in the block live on this process alone, whatever devices and hosts share the training."""
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)
