"""Blocks: the parts of a detector that are frozen, and given learning rates, as one."""

from __future__ import annotations

import re

_OWN = re.compile(r"(stem|stage\d+|(?:neck|head|grid)_\d+)(?:_|/|$)")
_HEAD = ("head_", "grid_")
BACKBONE = "backbone"


def block_of(path: str) -> str:
    """The block of a layer's name or a variable's path, such as "stage3" of "stage3_block1_expand_conv/kernel".

    What no layer of this package is called belongs to a backbone of the user's own: "backbone".
    """
    for part in path.split("/"):
        found = _OWN.match(part)
        if found:
            return found.group(1)
    return BACKBONE


def blocks_of(detector) -> list[str]:
    """The blocks of a detector that have weights, from the image on."""
    return list(dict.fromkeys(block_of(variable.path) for variable in detector.weights))


def backbone_blocks(blocks: list[str]) -> list[str]:
    """Those of the backbone."""
    return [block for block in blocks if not block.startswith((*_HEAD, "neck_"))]


def head_blocks(blocks: list[str]) -> list[str]:
    """Those that make the grids: the last convolutions of every scale."""
    return [block for block in blocks if block.startswith(_HEAD)]
