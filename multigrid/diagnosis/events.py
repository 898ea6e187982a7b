"""What changes a training from without, and when: marked where its curves are drawn, and no trouble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multigrid.diagnosis.case import Case
from multigrid.models.blocks import blocks_of
from multigrid.training.stages import plan_stages

DROPPING = ("step", "plateau")  # schedules; others may fall as far smoothly, at their end
DROP = 0.6  # times the rate before, from which one has dropped


@dataclass(frozen=True)
class Event:
    """A change that the config plans.

    Attributes:
        epoch: epochs that are over by then; warm-up may end amid one.
        what: in a few words.
        breaks: whether figures before it and after it are not to be compared.
    """

    epoch: float
    what: str
    breaks: bool


def planned(case: Case) -> list[Event]:
    """The changes of a case's whole training in the order in which they come; [] without a config."""
    if case.config is None:
        return []
    training, found = case.config.training, []
    for stage in plan_stages(training, blocks_of(case.detector)):
        if stage.first_epoch:
            what = f"{len(stage.frozen)} blocks frozen" if stage.frozen else "all layers train"
            found.append(Event(stage.first_epoch, what, True))
        if stage.begins_phase and training.warmup_epochs and not case.keeps_compilation:
            found.append(Event(stage.first_epoch + training.warmup_epochs, "warm-up ends", False))
    data = case.train_data
    unmixed = getattr(data, "mosaic_off_epochs", 0)
    mixes = getattr(data, "mosaic", 0.0) or getattr(data, "mixup", 0.0)
    if mixes and 0 < unmixed < training.total_epochs:
        found.append(Event(training.total_epochs - unmixed, "mosaic and mixup end", True))
    return sorted(found, key=lambda event: event.epoch)


def drops(case: Case, rows: Sequence[dict], position: str) -> list[dict]:
    """Where the learning rate drops from one row to the next: {position, "what"}; [] with a schedule that has no drops.

    Args:
        case: its config, if it has one, names the schedule.
        rows: of steps or epochs, with "learning_rate".
        position: what the rows are counted by, "step" or "epoch".
    """
    if case.config is None or case.config.training.schedule not in DROPPING:
        return []
    rated = [row for row in rows if "learning_rate" in row]
    return [
        {position: after[position], "what": "learning rate drops"}
        for before, after in zip(rated, rated[1:], strict=False)
        if after["learning_rate"] < DROP * before["learning_rate"]
    ]
