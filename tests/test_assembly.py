"""From a config to objects: what is read, what is refused, what is said."""

import logging

import numpy as np
import pytest

from multigrid import assembly
from multigrid.config import Config
from multigrid.data.samples import Sample
from multigrid.data.shapes import CLASS_NAMES
from multigrid.errors import InputError
from multigrid.geometry.anchors import Anchors

ANCHORS = Anchors([[[90, 60], [60, 95]], [[40, 28], [30, 48]], [[8, 6], [12, 19]]])


def sample(boxes, classes, size=(60, 120)):
    return Sample("image.png", np.array(boxes, "float32"), np.array(classes, "int32"), 1, size)


def test_drawn_scenes_are_not_taken_for_other_classes(tmp_path):
    folder = tmp_path / "scenes"
    config = Config(data={"test": "shapes", "shapes": {"folder": str(folder), "train": 1, "val": 1, "test": 2}})
    with pytest.raises(InputError, match="data.test: expected labels of cat, dog, received 'shapes', which has disc"):
        assembly.read_split(config, "test", ("cat", "dog"))
    assert not folder.exists()
    assert len(assembly.read_split(config, "test", CLASS_NAMES)) == 2


def test_sizes_are_those_that_the_network_sees():
    # 60 × 120 into 64 × 96: the width decides, 96 / 120 = 0.8
    sizes = assembly.network_sizes([sample([[10, 5, 40, 55]], [0])], (64, 96))
    np.testing.assert_allclose(sizes, [[24.0, 40.0]], atol=1e-4)


def test_a_rule_for_class_weights_counts_the_training_labels():
    config = Config(loss={"class_weights": "balanced"})
    vocabulary = assembly.Vocabulary(("a", "b"), ANCHORS)
    samples = [sample([[0, 0, 9, 7]] * 3, [0, 0, 1]), sample([[0, 0, 9, 7]], [0])]
    # N / (C n): 4 / (2 · 3) and 4 / (2 · 1)
    assert assembly.build_criterion(config, vocabulary, samples).class_weights == pytest.approx([2 / 3, 2.0])
    with pytest.raises(InputError, match="loss.class_weights: expected training labels to count"):
        assembly.build_criterion(config, vocabulary)


def test_anchors_that_do_not_fit_are_said_with_numbers(caplog):
    config = Config(model={"input_size": (64, 96)})
    tiny = [sample([[0, 0, 1.5, 20], [5, 5, 7, 25]], [0, 0])]
    with caplog.at_level(logging.WARNING):
        assembly.warn_about_anchors(config, ANCHORS, tiny)
    assert "data.anchors" in caplog.text and "IoL" in caplog.text
    caplog.clear()
    # 30 × 48 and 40 × 28 after the scale of 0.8: two of the anchors themselves
    assembly.warn_about_anchors(config, ANCHORS, [sample([[0, 0, 37.5, 60], [10, 10, 60, 45]], [0, 0])])
    assert not caplog.text
