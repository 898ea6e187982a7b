"""The pace of a trial: the live schedule of the learning rate, whose rise takes a few steps and not some epochs."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops
from keras.optimizers import schedules

RISE = 10  # steps
PROBES = 100  # steps of a schedule at which its highest rate is looked for, beside powers of two
LONGEST = 1_000_000  # steps that a schedule is looked at


class _Hastened(schedules.LearningRateSchedule):
    """A schedule, times a variable, whose first `rise` steps are gone through in `RISE`, and which then goes on."""

    def __init__(self, schedule, rise: int):
        self.schedule, self.rise = schedule, rise
        self.times = keras.Variable(1.0, trainable=False, dtype="float32", name="times")

    def __call__(self, step):
        step = ops.cast(step, "float32")
        risen = self.rise * ops.minimum((step + 1.0) / RISE, 1.0)
        later = ops.where(step < RISE, risen, self.rise + step - RISE) if self.rise > RISE else step
        return self.times * self.schedule(later)

    def get_config(self) -> dict:
        return {"schedule": keras.saving.serialize_keras_object(self.schedule), "rise": self.rise}


class _Scheduled:
    """The pace of an optimizer with a schedule."""

    def __init__(self, optimizer, schedule):
        self.optimizer, self.schedule = optimizer, schedule
        self.hastened = _Hastened(schedule, peak_of(schedule)[0])
        optimizer.learning_rate = self.hastened

    def scale(self, times: float) -> bool:
        """Multiplies all rates from now on; whether that can be done: a compiled step of JAX has its rates in it."""
        self.hastened.times.assign(times)
        return keras.backend.backend() != "jax"

    def at(self, step: int) -> None:
        """Nothing: the schedule knows."""

    def restore(self) -> None:
        """Gives the optimizer its own schedule back."""
        self.optimizer.learning_rate = self.schedule


class _Number:
    """The pace of an optimizer whose rate is a number, that callbacks would raise to."""

    def __init__(self, optimizer, rises: bool):
        self.optimizer, self.rises, self.times = optimizer, rises, 1.0
        self.rate = float(np.asarray(ops.convert_to_numpy(optimizer.learning_rate)))

    def scale(self, times: float) -> bool:
        """Multiplies all rates from now on; whether that can be done."""
        self.times = times
        return True

    def at(self, step: int) -> None:
        """Sets the rate of a step."""
        risen = min(1.0, (step + 1) / RISE) if self.rises else 1.0
        self.optimizer.learning_rate = self.times * self.rate * risen

    def restore(self) -> None:
        """The rate as it was."""
        self.optimizer.learning_rate = self.rate


class _Untouched:
    """The pace of an optimizer whose rate comes from a function of its caller's."""

    def scale(self, times: float) -> bool:
        """Whether rates can be multiplied: not these."""
        return False

    def at(self, step: int) -> None:
        """Nothing."""

    def restore(self) -> None:
        """Nothing."""


def paced(optimizer, rises: bool = False):
    """Hastens an optimizer's rise of the learning rate: an object with `at(step)`, `scale(times)` and `restore()`.

    Args:
        optimizer: without what Keras puts around it for float16.
        rises: whether a rate that is a number is to be risen to.
    """
    schedule = schedule_of(optimizer)
    if schedule is not None:
        return _Scheduled(optimizer, schedule)
    return _Untouched() if callable(optimizer._learning_rate) else _Number(optimizer, rises)


def schedule_of(optimizer):
    """The schedule of an optimizer; None where its rate is a number."""
    rate = getattr(optimizer, "_learning_rate", None)
    return rate if isinstance(rate, schedules.LearningRateSchedule) else None


def rates_of(schedule, steps: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A schedule at many of its steps: (steps, rates).

    Args:
        schedule: a Keras schedule.
        steps: of the whole training; a million if not known, close together at the beginning.
    """
    even = np.linspace(0, (steps or LONGEST // 100) - 1, PROBES)
    powers = [] if steps else [2.0**power for power in range(int(np.log2(LONGEST)))]
    at = np.unique(np.concatenate([even, powers, np.arange(RISE + 1)]).astype("int64"))
    at = at[at < (steps or LONGEST)]
    return _asked(schedule, at)


def peak_of(schedule, steps: int | None = None) -> tuple[int, float]:
    """(step, rate) of a schedule's highest rate: the first step that has it, or nearly."""
    at, rates = rates_of(schedule, steps)
    if not np.isfinite(rates).all():
        return 0, float("nan")
    highest = int(rates.argmax())
    around = np.linspace(at[max(0, highest - 1)], at[min(len(at) - 1, highest + 1)], PROBES // 2)
    at, rates = _asked(schedule, np.unique(np.concatenate([at, around.astype("int64")])))
    return int(at[np.flatnonzero(rates >= 0.995 * rates.max())[0]]), float(rates.max())


def _asked(schedule, at) -> tuple[np.ndarray, np.ndarray]:
    return at, np.array([float(ops.convert_to_numpy(schedule(ops.convert_to_tensor(step, "int64")))) for step in at])
