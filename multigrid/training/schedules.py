"""Learning rates by step: a rise in a line, then one of Keras' schedules; or a number that callbacks move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import keras
from keras import ops
from keras.optimizers import schedules

from multigrid.config import TrainingConfig
from multigrid.errors import InputError

DEFAULTS = TrainingConfig()
SCHEDULES = ("cosine", "step", "exponential", "constant", "plateau")
STEP_SHARES = (2 / 3, 8 / 9)  # of the training, where the rate drops if nobody says where


@keras.saving.register_keras_serializable("multigrid")
class WarmUpThen(schedules.LearningRateSchedule):
    """Up from 0 in a line to where another schedule begins, which is then followed from its own step 0.

    Args:
        after: a Keras schedule, or a number that stays.
        warmup_steps: of the rise.
    """

    def __init__(self, after, warmup_steps: int):
        self.after, self.warmup_steps = after, warmup_steps

    def __call__(self, step):
        """The learning rate at a step, a float32 scalar."""
        step = ops.cast(step, "float32")
        rate = self.after(ops.maximum(step - self.warmup_steps, 0.0)) if callable(self.after) else self.after
        risen = ops.minimum(step / self.warmup_steps, 1.0) if self.warmup_steps else 1.0
        return ops.cast(rate, "float32") * risen

    def get_config(self) -> dict:
        return {"after": keras.saving.serialize_keras_object(self.after), "warmup_steps": self.warmup_steps}

    @classmethod
    def from_config(cls, config: dict) -> WarmUpThen:
        return cls(keras.saving.deserialize_keras_object(config["after"]), config["warmup_steps"])


class WarmUp(keras.callbacks.Callback):
    """The same rise for a learning rate that is a number, as `ReduceLROnPlateau` needs it; afterwards it rests.

    It goes by the optimizer's own count, so that a resumed training goes on where it was. What another callback makes
    of the learning rate during the rise is kept as a factor of the rest of it.

    Args:
        learning_rate: that the rise ends at.
        steps: of the rise, in batches.
    """

    def __init__(self, learning_rate: float, steps: int):
        super().__init__()
        self.learning_rate, self.steps = learning_rate, steps

    def on_train_begin(self, logs=None):
        self.peak, self.last, self.resting = self.learning_rate, None, self.steps < 1

    def on_train_batch_begin(self, batch, logs=None):
        if self.resting:
            return
        optimizer, step = self.model.optimizer, self._step()
        self.resting = step >= self.steps
        current = float(ops.convert_to_numpy(optimizer.learning_rate))
        if self.last is None:
            # A resumed training finds the rate of the update before or, amid gathered batches, that of this one.
            self.last = current if _same(current, self._risen(step)) else self._risen(self._step(-1))
        if self.last > 0.0 and not _same(current, self.last):
            self.peak *= current / self.last
        self.last = self._risen(step)
        optimizer.learning_rate = self.last

    def _risen(self, step: int) -> float:
        return self.peak * max(0.0, min(1.0, step / max(1, self.steps)))

    def _step(self, ahead: int = 0) -> int:
        """The batch, counted from 0, that completes the coming update, or one so many updates ahead of it."""
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        updates = int(ops.convert_to_numpy(optimizer.iterations))
        return (updates + ahead + 1) * (optimizer.gradient_accumulation_steps or 1) - 1


def build_schedule(
    kind: str,
    learning_rate: float,
    *,
    steps: int,
    warmup_steps: int,
    final_fraction: float,
    step_boundaries: Sequence[int] | None = None,
    step_factor: float = DEFAULTS.step_factor,
):
    """A learning rate by step, for an optimizer; steps are batches, also where several make one update.

    Args:
        kind: "cosine" falls to `final_fraction` by half a cosine, "exponential" by the same factor every step; "step"
            drops by `step_factor` at every boundary; "constant" and "plateau" stay.
        learning_rate: the highest.
        steps: of the whole training.
        warmup_steps: of the rise from 0, fewer than `steps`.
        final_fraction: share of the highest that cosine and exponential end at.
        step_boundaries: steps that are the first with a lower rate; None is two thirds and eight ninths of all steps.
        step_factor: multiplies the rate at each of them.

    Returns:
        A Keras `LearningRateSchedule`; for "plateau" the number itself, which `WarmUp` and Keras' `ReduceLROnPlateau`
        move.

    Raises:
        InputError: an exponential that should end at 0, which it never does.
        ValueError: an unknown kind.
    """
    if kind not in SCHEDULES:
        raise ValueError(f"schedule: expected one of {', '.join(SCHEDULES)}, received {kind!r}")
    if kind == "plateau":
        return float(learning_rate)
    falling = max(1, steps - warmup_steps)
    after = float(learning_rate)
    if kind == "cosine":
        after = schedules.CosineDecay(learning_rate, falling, alpha=final_fraction)
    elif kind == "exponential":
        if not final_fraction > 0:
            raise InputError(
                "training.final_learning_rate_fraction: expected more than 0 with schedule exponential, "
                f"received {final_fraction}"
            )
        after = schedules.ExponentialDecay(learning_rate, falling, final_fraction)
    elif kind == "step":
        boundaries = [round(share * steps) for share in STEP_SHARES] if step_boundaries is None else step_boundaries
        after = _drops(learning_rate, [step - warmup_steps for step in sorted(boundaries)], step_factor)
    return WarmUpThen(after, warmup_steps)


def _same(one: float, other: float) -> bool:
    """Whether two learning rates are one but for the rounding to float32."""
    return math.isclose(one, other, rel_tol=1e-5)


def _drops(learning_rate: float, boundaries: Sequence[int], factor: float):
    """Keras' piecewise constant schedule, in which a boundary is the last step with the rate before it."""
    values = [learning_rate * factor**drops for drops in range(len(boundaries) + 1)]
    return schedules.PiecewiseConstantDecay([step - 1 for step in boundaries], values) if boundaries else learning_rate
