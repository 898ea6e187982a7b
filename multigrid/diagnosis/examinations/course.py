"""The course of a training, step by step, and the trial: some steps with the live objects, all put back afterwards."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Course:
    """What was seen of consecutive steps.

    Attributes:
        rows: one a step, of that step alone: {"step" from 1, "learning_rate", "loss", "<part>_loss" of every part,
            "grad_norm", "grad_norm/<block>", …}.
        looks: at some steps, of one and the same batch: {"step", "positive_confidence" mean objectness probability of
            positive cells, "negative_confidence", "update_ratio/<block>", …}.
        fault: the first tensor that was not finite; None where all were.
    """

    rows: list = field(default_factory=list)
    looks: list = field(default_factory=list)
    fault: object = None

    @property
    def steps(self) -> int:
        """Updates that were made."""
        return len(self.rows)

    @property
    def finite(self) -> bool:
        """Whether every loss was."""
        return self.fault is None


class Trial:
    """Trains the live detector for some steps; what it moved is as before when the block ends."""

    def __init__(self, case):
        self.case, self.course = case, Course()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def until(self, steps: int) -> Course:
        """Goes on to this step."""
        return self.course
