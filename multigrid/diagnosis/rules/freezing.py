"""Causes in what is frozen and what moves."""

from __future__ import annotations

from multigrid.diagnosis.examinations import coverage
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.models.blocks import blocks_of
from multigrid.training.stages import plan_stages

FREE = Remedy(
    "Set layer.trainable = True for what should learn, and compile again; or let training.freeze say it.",
    settings=("training.freeze=none",),
    part="detector",
)


@rule("MG405", "BatchNorm of frozen layers keeps counting", group="weights", stage="static")
def frozen_norms_count(case):
    """Convolutions do not learn, while the BatchNorm layers among them are not frozen."""
    blocks, asked = case.examined(coverage.trained_blocks), _frozen_by_config(case)
    half = [
        name for name, seen in blocks.items()
        if seen.convolutions and seen.frozen_convolutions == seen.convolutions and seen.frozen_norms < seen.norms
    ]  # fmt: skip
    if not half:
        return None
    counting = sum(blocks[name].norms - blocks[name].frozen_norms for name in half)
    return Verdict(
        0.9 if set(half) & asked else 0.75,
        (
            Observation("blocks whose convolutions are frozen", ", ".join(half), "with their BatchNorm"),
            Observation("BatchNorm layers there that go on counting", counting, "0"),
        ),
        ("kernels do not learn there, statistics move with every batch: the features drift under the same weights",),
        Remedy(
            "Freeze whole blocks, BatchNorm included: training.freeze does, or layer.trainable = False.",
            settings=("training.freeze=backbone",),
            part="detector",
        ),
    )


@rule(
    "MG406", "Nothing trains, or the backbone is frozen for good", group="weights", stage="static",
    explains=("MG504", "MG659"),
)  # fmt: skip
def nothing_trains(case):
    """No variable is trainable, or no layer of a backbone that has nothing to keep or that nobody wants frozen."""
    blocks = case.examined(coverage.trained_blocks)
    trainable = len(case.detector.trainable_variables)
    if not trainable:
        kernels = sum(seen.convolutions for seen in blocks.values())
        seen = (Observation("trainable variables", 0, f"{kernels} kernels and more"),)
        return Verdict(1.0, seen, ("no step can change anything, whatever the learning rate",), FREE)
    backbone = {name: seen for name, seen in blocks.items() if coverage.in_backbone(name)}
    frozen = [name for name, seen in backbone.items() if seen.frozen_convolutions == seen.convolutions]
    unasked = set(frozen) - _frozen_by_config(case)
    fresh = [name for name in frozen if blocks[name].fresh]
    if not frozen or not unasked and not (len(fresh) == len(backbone) and not _freed_later(case)):
        return None
    return Verdict(
        _confidence(case, frozen, fresh, backbone),
        (
            Observation("blocks of the backbone that learn", len(backbone) - len(frozen), len(backbone)),
            Observation("frozen ones that the config does not freeze", len(unasked), "0"),
        ),
        (
            f"{trainable} variables do learn: a learning rate of 0 would stop them too",
            f"{len(fresh)} of the frozen blocks have never been trained: their BatchNorm has counted nothing",
        ),
        FREE,
    )


def _confidence(case, frozen, fresh, backbone) -> float:
    if len(frozen) < len(backbone):
        return 0.4
    if len(fresh) == len(backbone):
        return 0.9
    return 0.7 if case.config is not None and not case.ledgers else 0.45


@rule("MG407", "The head is frozen", group="weights", stage="static", explains=("MG504", "MG659"))
def head_frozen(case):
    """The output grids cannot learn, other layers can."""
    blocks, asked = case.examined(coverage.trained_blocks), _frozen_by_config(case)
    grids = [name for name in blocks if name.startswith("grid_")]
    frozen = [name for name in grids if blocks[name].frozen_convolutions]
    if not frozen or not case.detector.trainable_variables:
        return None
    return Verdict(
        0.4 if set(frozen) <= asked else 0.95,
        (Observation("output grids that do not learn", ", ".join(frozen), "none"),),
        (
            f"{len(case.detector.trainable_variables)} other variables do learn, so that not all is frozen",
            "the objectness bias cannot learn how rare objects are, and no class can be learnt",
        ),
        Remedy(
            "Free the blocks head_* and grid_*, and compile again.", settings=("training.freeze=none",), part="detector"
        ),
    )


def _frozen_by_config(case) -> set:
    """Blocks that the config freezes at the beginning."""
    return set(_stages(case)[0].frozen) if case.config is not None else set()


def _freed_later(case) -> bool:
    """Whether the config has a stage with nothing frozen."""
    return case.config is not None and any(not stage.frozen for stage in _stages(case))


def _stages(case) -> list:
    return plan_stages(case.config.training, blocks_of(case.detector))
