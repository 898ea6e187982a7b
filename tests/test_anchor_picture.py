"""The picture of anchors and boxes."""

import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.evaluation.anchor_picture import draw_anchors
from multigrid.geometry.anchors import Anchors

ANCHORS = Anchors([[[90, 100]], [[30, 40]], [[10, 20]]])


def test_the_picture_is_written_whole_and_shows_the_boxes(tmp_path):
    sizes = np.random.default_rng(3).uniform(8, 120, (60, 2))
    draw_anchors(ANCHORS, sizes, tmp_path / "new" / "anchors.png")
    draw_anchors(ANCHORS, sizes[:20], tmp_path / "few.png")
    pictures = [(tmp_path / "new" / "anchors.png").read_bytes(), (tmp_path / "few.png").read_bytes()]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures) and pictures[0] != pictures[1]
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["anchors.png"]


def test_no_boxes_are_no_picture(tmp_path):
    with pytest.raises(InputError, match="at least one box, received none"):
        draw_anchors(ANCHORS, [], tmp_path / "anchors.png")
    assert not list(tmp_path.iterdir())
