"""Frozen means frozen: every tensor, BatchNorm's statistics included."""

import os

import keras
import numpy as np
import pytest

from multigrid.config import Config
from multigrid.data.shapes import CLASS_NAMES
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.blocks import block_of
from multigrid.models.detector import MultiGridDetector
from multigrid.training.freezing import FrozenWeightsMovedError, WhatMoves, fingerprints, freeze
from multigrid.training.trainer import MultiGridTrainer

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
BACKBONE = {"stem", "stage1", "stage2", "stage3", "stage4", "stage5"}


@pytest.fixture(scope="module")
def files(draw_scenes):
    return draw_scenes(train=10)


@pytest.fixture
def detector():
    keras.utils.set_random_seed(3)
    criterion = MultiGridLoss(ANCHORS, len(CLASS_NAMES), assignment="paper")
    return MultiGridDetector(ANCHORS, len(CLASS_NAMES), width=1 / 16, depth=1 / 8, criterion=criterion)


def batches():
    """Two batches of noise, an object at every scale in each."""
    images = np.random.default_rng(2).integers(0, 256, (4, 64, 96, 3), dtype=np.uint8)
    boxes = np.array([[3, 5, 51, 40], [20, 11, 36, 40], [60, 31, 71, 38]], "float32")
    return images, {"boxes": np.stack([boxes] * 4), "classes": np.array([[0, 2, 4]] * 4, "int32")}


def blocks_that_moved(before, after) -> set:
    assert before.keys() == after.keys()
    return {block_of(path) for path in before if before[path] != after[path]}


@pytest.mark.backend
@pytest.mark.parametrize("frozen", [sorted(BACKBONE), ["stage2", "neck_16"], []])
def test_two_epochs_move_every_tensor_of_the_free_blocks_and_none_of_the_frozen(detector, frozen):
    freeze(detector, frozen)
    detector.compile(keras.optimizers.AdamW(1e-3, weight_decay=0.1, use_ema=True), jit_compile=False)
    before = fingerprints(detector)
    detector.fit(*batches(), batch_size=2, epochs=2, verbose=0)
    after = fingerprints(detector)
    expected = {path for path in before if block_of(path) not in frozen}
    assert {path for path in before if before[path] != after[path]} == expected


def test_what_is_freed_moves_again(detector):
    freeze(detector, sorted(BACKBONE))
    freeze(detector, ["stem"])
    detector.compile(keras.optimizers.SGD(1e-3), jit_compile=False)
    before = fingerprints(detector)
    detector.fit(*batches(), batch_size=2, verbose=0)
    moved = blocks_that_moved(before, fingerprints(detector))
    assert "stem" not in moved and BACKBONE - {"stem"} <= moved


def test_the_stages_of_a_training_move_exactly_what_they_should(files, tmp_path, capsys):
    class AtEpochEnds(keras.callbacks.Callback):
        taken = []

        def on_epoch_end(self, epoch, logs=None):
            self.taken.append(fingerprints(self.model))

    stages = [
        {"epochs": 2, "freeze": "backbone"},
        {"epochs": 2, "freeze": ("stem", "stage1"), "gradual": True},
    ]
    config = Config(
        data={**files, "workers": 1, "shapes": {"folder": os.path.abspath("datasets/shapes")}},
        model={"width": 0.0625, "depth": 0.125, "input_size": (64, 96)},
        training={"stages": stages, "batch_size": 5, "warmup_epochs": 0.0},
        loss={"assignment": "paper"},
        output={"dir": str(tmp_path / "run")},
    )
    trainer = MultiGridTrainer(config, callbacks=[AtEpochEnds()])
    start = fingerprints(trainer.build_model())
    trainer.train()
    taken = [start, *AtEpochEnds.taken]
    moved = [blocks_that_moved(before, after) for before, after in zip(taken, taken[1:], strict=False)]
    everything = {block_of(path) for path in start}
    assert moved[0] == moved[1] == everything - BACKBONE
    assert moved[2] == everything - {"stem", "stage1"}
    assert moved[3] == everything
    said = capsys.readouterr().out
    assert "stage 1 of 3: " in said and "frozen: stem, stage1, stage2, stage3, stage4, stage5\n" in said
    assert "stage 2 of 3: " in said and "frozen: stem, stage1\n" in said
    assert f"stage 3 of 3: {len(start)} tensors moved, 0 stayed; frozen: nothing\n" in said


def test_a_frozen_tensor_that_moves_all_the_same_ends_the_training(detector):
    detector.compile(keras.optimizers.SGD(1e-3), jit_compile=False)  # frozen after compile: Keras would not notice
    with pytest.raises(FrozenWeightsMovedError, match=r"stage 1: expected stage5 to stay .* first stage5_down_conv"):
        detector.fit(*batches(), batch_size=2, verbose=0, callbacks=[WhatMoves("stage 1", ["stage5"])])
