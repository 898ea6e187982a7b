"""Counterfactuals: the first steps once more, from the same start with the same batches, with one thing undone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

MOST = 40  # steps
LAST = 5  # steps at the end that are compared


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


def _end(course, steps: int) -> float:
    """Mean loss of the last of these steps; infinite where one was not finite or not made."""
    losses = [row["loss"] for row in course.rows[:steps]]
    if len(losses) < steps or not course.finite and course.steps <= steps:
        return float("inf")
    return float(np.mean(losses[-LAST:]))
