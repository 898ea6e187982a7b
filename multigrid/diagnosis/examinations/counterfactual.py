"""Counterfactuals: the first steps once more, from the same start with the same batches, with one thing undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from multigrid.diagnosis.examinations import settings

MOST = 40  # steps
LAST = 5  # steps at the end that are compared
RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of the Adam family, that a range test tries; SGD's are ten times as high
TESTED = 20  # steps at each, or more, as many as went wrong
AS_LOW = 1.03  # times the lowest loss of a range test that counts as low as that


@dataclass(frozen=True)
class Comparison:
    """How the same steps went with one thing undone.

    Attributes:
        steps: that are compared, the last of them by their losses.
        before: mean loss of the last steps as it was; infinite where it was not finite.
        after: with the thing undone.
    """

    steps: int
    before: float
    after: float

    @property
    def stable(self) -> bool:
        """Whether all was finite with the thing undone."""
        return bool(np.isfinite(self.after))

    @property
    def gain(self) -> float:
        """How many times smaller the loss is with the thing undone."""
        if not self.stable:
            return 0.0
        return self.before / max(self.after, 1e-9)


def undone(case, name: str, factor: Callable[[str, int], float], steps: int | None = None) -> Comparison | None:
    """Makes the steps of a trial again with changes of the weights multiplied by `factor(path, step)`.

    Args:
        case: with a trial that is running.
        name: of the experiment; it is made once for a number of steps.
        factor: what the change of the variable of this path at this step, from 0, is multiplied by.
        steps: to make; as many as the course has, `MOST` at most, if None.

    Returns:
        A `Comparison`; None where there is no trial, as while somebody else trains.
    """
    course = case.course
    if course is None or course.again is None:
        return None
    steps = min(course.steps, MOST) if steps is None else steps

    key = undone, name, steps
    if key not in case.results:
        case.results[key] = Comparison(steps, _end(course, steps), _end(course.again(factor, steps), steps))
    return case.results[key]


@dataclass(frozen=True)
class RangeTest:
    """The same steps at several learning rates.

    Attributes:
        rates: highest of each training, ascending.
        losses: at the end of it, infinite where something was not finite.
        steps: that each made.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steps: int

    @property
    def best(self) -> float | None:
        """The smallest rate whose loss is about as low as that of any; None where no loss was finite, or all are alike.

        It is never the highest one while the next is finite: in so few steps what is close to too much looks best.
        """
        lowest = min(self.losses)
        near = [
            rate
            for rate, loss in zip(self.rates, self.losses, strict=True)
            if loss <= lowest + (AS_LOW - 1.0) * abs(lowest)
        ]
        if not np.isfinite(lowest) or len(near) == len(self.rates):
            return None
        return min(near[0], self.rates[-2]) if np.isfinite(self.losses[-2]) else near[0]

    @property
    def words(self) -> str:
        """What came out."""
        tried = ", ".join(f"{loss:.4g} at {rate:g}" for rate, loss in zip(self.rates, self.losses, strict=True))
        return f"the first {self.steps} steps, made at several rates, end at a loss of {tried}"


def range_test(case) -> RangeTest | None:
    """Makes the first steps of a trial at several learning rates; None where that cannot be done."""
    course, live = case.course, case.examined(settings.optimization)
    if course is None or course.again is None or not 0.0 < live.peak < np.inf:
        return None
    rates, losses = tuple(rate * (1.0 if live.adaptive else 10.0) for rate in RATES), []
    steps = max(TESTED, min(course.steps, MOST))
    for rate in rates:
        made = course.again(None, steps, rate / live.peak)
        if made is None:
            return None
        losses.append(_end(made, steps))
    return RangeTest(rates, tuple(losses), steps)


def _end(course, steps: int) -> float:
    """Mean loss of the last of these steps; infinite where one was not finite or not made."""
    losses = [row["loss"] for row in course.rows[:steps]]
    if len(losses) < steps or not course.finite and course.steps <= steps:
        return float("inf")
    return float(np.mean(losses[-LAST:]))
