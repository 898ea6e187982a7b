"""The stages of a training: what stays frozen, and how high the learning rate is, from which epoch to which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from multigrid.config import StageConfig, TrainingConfig
from multigrid.errors import InputError
from multigrid.models.blocks import backbone_blocks, head_blocks


@dataclass(frozen=True)
class Stage:
    """A stretch of epochs that is trained by one call of `fit`."""

    first_epoch: int  # from 0, counted over the whole training
    end_epoch: int  # the first one that is not in it
    frozen: tuple[str, ...]  # blocks
    learning_rate: float | None  # the highest; None is the training's
    phase_first: int  # where the schedule of the learning rate begins: that of a gradual stage runs through its steps
    phase_end: int

    @property
    def begins_phase(self) -> bool:
        """Whether optimizer and schedule begin anew."""
        return self.first_epoch == self.phase_first


def plan_stages(training: TrainingConfig, blocks: Sequence[str]) -> list[Stage]:
    """The stages of a config; one without `training.stages` has one.

    Args:
        training: the section of the config.
        blocks: of the detector, from the image on.

    Returns:
        Stages without gaps, from epoch 0 to `training.total_epochs`. A gradual one is several, each with fewer frozen.

    Raises:
        InputError: a block that the detector does not have, or a gradual stage of a single epoch.
    """
    if not training.stages:
        only = StageConfig(epochs=training.epochs, freeze=training.freeze)
        return _steps(only, 0, blocks, "training")
    stages, first = [], 0
    for number, stage in enumerate(training.stages):
        stages += _steps(stage, first, blocks, f"training.stages[{number}]")
        first += stage.epochs
    return stages


def frozen_blocks(rule: str | Sequence[str], blocks: Sequence[str], place: str) -> tuple[str, ...]:
    """The blocks that a `freeze` rule names, from the image on.

    Args:
        rule: "none", "backbone", "all-but-head" or names of blocks.
        blocks: of the detector.
        place: the key that holds the rule, for the error.

    Raises:
        InputError: a block that the detector does not have.
    """
    named = {"none": (), "backbone": backbone_blocks(blocks)}
    named["all-but-head"] = [block for block in blocks if block not in head_blocks(blocks)]
    chosen = named[rule] if isinstance(rule, str) else rule
    unknown = [block for block in chosen if block not in blocks]
    if unknown:
        raise InputError(f"{place}.freeze: expected blocks of {', '.join(blocks)}, received {', '.join(unknown)}")
    if len(set(chosen)) == len(blocks):
        raise InputError(f"{place}.freeze: expected some blocks to be left to train, received all of them")
    return tuple(block for block in blocks if block in chosen)


def _steps(stage: StageConfig, first: int, blocks, place: str) -> list[Stage]:
    frozen, end = frozen_blocks(stage.freeze, blocks, place), first + stage.epochs
    if not stage.gradual:
        return [Stage(first, end, frozen, stage.learning_rate, first, end)]
    if stage.epochs < 2:
        raise InputError(f"{place}.gradual: expected at least 2 epochs, all frozen first and none last, received 1")
    kept = [len(frozen) - round(len(frozen) * epoch / (stage.epochs - 1)) for epoch in range(stage.epochs)]
    starts = [epoch for epoch in range(stage.epochs) if epoch == 0 or kept[epoch] != kept[epoch - 1]]
    return [
        Stage(first + start, first + stop, frozen[: kept[start]], stage.learning_rate, first, end)
        for start, stop in zip(starts, [*starts[1:], stage.epochs], strict=True)
    ]
