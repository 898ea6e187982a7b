"""Blocks: what is frozen, and given a learning rate, as one."""

import keras
import pytest

from multigrid.models.blocks import backbone_blocks, block_of, blocks_of, head_blocks
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]


@pytest.mark.parametrize(
    "path, block",
    [
        ("stem_conv/kernel", "stem"),
        ("stage3_block12_expand_bn/moving_mean", "stage3"),
        ("neck_32_conv1_conv/kernel", "neck_32"),
        ("neck_8_carry_bn/beta", "neck_8"),
        ("multigrid_detector/head_16_conv/kernel", "head_16"),
        ("grid_16/bias", "grid_16"),
        ("grid_16", "grid_16"),
        ("conv2d_3/kernel", "backbone"),
        ("stagecoach/kernel", "backbone"),
    ],
)
def test_a_variable_belongs_to_the_block_of_its_layer(path, block):
    assert block_of(path) == block


def test_a_detector_has_every_block_from_the_image_on():
    blocks = blocks_of(MultiGridDetector(ANCHORS, 3, width=1 / 16, depth=1 / 8))
    body = ["stem", "stage1", "stage2", "stage3", "stage4", "stage5"]
    assert blocks[:6] == body and backbone_blocks(blocks) == body
    head = {f"{kind}_{stride}" for kind in ("head", "grid") for stride in (32, 16, 8)}
    assert set(blocks[6:]) == head | {"neck_32", "neck_16", "neck_8"}
    assert set(head_blocks(blocks)) == head


def test_a_backbone_of_the_users_own_is_one_block():
    images = keras.Input((None, None, 3))
    maps, x = {}, images
    for level in range(1, 6):
        x = keras.layers.Conv2D(4 * level, 3, strides=2, padding="same")(x)
        maps[f"stride_{2**level}"] = x
    backbone = keras.Model(images, {name: maps[name] for name in ("stride_8", "stride_16", "stride_32")})
    blocks = blocks_of(MultiGridDetector(ANCHORS, 3, width=1 / 16, backbone=backbone))
    assert blocks[0] == "backbone" and backbone_blocks(blocks) == ["backbone"]
