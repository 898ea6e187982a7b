"""Stages: which epochs, what is frozen, and where the learning rate begins anew."""

import pytest

from multigrid.config import TrainingConfig
from multigrid.errors import InputError
from multigrid.training.stages import Stage, plan_stages

BLOCKS = ["stem", "stage1", "stage2", "neck_32", "head_32", "grid_32"]
BACKBONE = ("stem", "stage1", "stage2")


def plan(**settings) -> list:
    return plan_stages(TrainingConfig(**settings), BLOCKS)


def test_a_training_without_stages_is_one_stage():
    assert plan(epochs=7) == [Stage(0, 7, (), None, 0, 7)]


@pytest.mark.parametrize(
    "rule, frozen",
    [
        ("backbone", BACKBONE),
        ("all-but-head", (*BACKBONE, "neck_32")),
        (("neck_32", "stem"), ("stem", "neck_32")),
        ("none", ()),
    ],
)
def test_a_rule_names_blocks_from_the_image_on(rule, frozen):
    (stage,) = plan(epochs=2, freeze=rule)
    assert stage.frozen == frozen


def test_stages_follow_each_other_without_gaps_and_make_the_epochs_of_the_training():
    settings = {"stages": [{"epochs": 5, "freeze": "backbone"}, {"epochs": 20, "learning_rate": 1e-4}], "epochs": 3}
    assert plan(**settings) == [Stage(0, 5, BACKBONE, None, 0, 5), Stage(5, 25, (), 1e-4, 5, 25)]
    assert TrainingConfig(**settings).total_epochs == 25
    assert TrainingConfig(epochs=3).total_epochs == 3


def test_a_gradual_stage_frees_blocks_from_the_head_on_in_one_schedule():
    # 3 frozen blocks over 7 epochs: epoch e leaves 3 - round(3 e / 6), that is 3, 3 (0.5 is rounded to 0), 2, 1 (1.5 is
    # rounded to 2), 1, 1 (2.5 is rounded to 2) and 0
    stages = plan(stages=[{"epochs": 2}, {"epochs": 7, "freeze": "backbone", "gradual": True, "learning_rate": 0.1}])
    assert stages[1:] == [
        Stage(2, 4, BACKBONE, 0.1, 2, 9),
        Stage(4, 5, BACKBONE[:2], 0.1, 2, 9),
        Stage(5, 8, BACKBONE[:1], 0.1, 2, 9),
        Stage(8, 9, (), 0.1, 2, 9),
    ]
    assert [stage.begins_phase for stage in stages] == [True, True, False, False, False]


def test_two_epochs_are_enough_to_free_everything():
    stages = plan(stages=[{"epochs": 2, "freeze": "backbone", "gradual": True}])
    assert [stage.frozen for stage in stages] == [BACKBONE, ()]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"freeze": ("stage2", "stage9")},
            r"training\.freeze: expected blocks of stem, .*, grid_32, received stage9",
        ),
        ({"freeze": tuple(BLOCKS)}, r"training\.freeze: expected some blocks to be left to train, received all"),
        (
            {"stages": [{"epochs": 3}, {"epochs": 1, "freeze": "backbone", "gradual": True}]},
            r"training\.stages\[1\]\.gradual: expected at least 2 epochs",
        ),
        ({"stages": [{"epochs": 3, "freeze": ("body",)}]}, r"training\.stages\[0\]\.freeze: .* received body"),
    ],
)
def test_what_cannot_be_done_is_said(settings, message):
    with pytest.raises(InputError, match=message):
        plan(**settings)
