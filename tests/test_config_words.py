"""The words that the config allows are those that the code behind it knows, and its grid is the network's."""

import typing

import pytest

from multigrid.config import DetectionConfig, LossConfig, ModelConfig, TrainingConfig, values
from multigrid.detection import suppression
from multigrid.geometry import cells
from multigrid.losses import components, multigrid_loss, targets
from multigrid.models import head
from multigrid.training import optimizers


def words_of(section, key):
    """Every word that a key takes, however deep its type holds them."""
    found, pending = set(), [section.model_fields[key].annotation]
    while pending:
        kind = pending.pop()
        if typing.get_origin(kind) is typing.Literal:
            found |= set(typing.get_args(kind))
        else:
            pending += typing.get_args(kind)
    return found


PAIRS = [
    (LossConfig, "assignment", targets.ASSIGNMENTS),
    (LossConfig, "localization", components.LOCALIZATIONS),
    (LossConfig, "classification", components.CLASSIFICATIONS),
    (LossConfig, "anchor", components.ANCHORS),
    (LossConfig, "class_weights", components.CLASS_WEIGHTS),
    (LossConfig, "loss_normalization", multigrid_loss.NORMALIZERS),
    (ModelConfig, "neck", head.COARSEST_FILTERS),
    (ModelConfig, "neck", head.CONVOLUTIONS),
    (ModelConfig, "offset_activation", cells.OFFSET_ACTIVATIONS),
    (TrainingConfig, "optimizer", optimizers.OPTIMIZERS),
    (DetectionConfig, "suppression", suppression.RULES),
]


@pytest.mark.parametrize(("section", "key", "known"), PAIRS, ids=lambda value: value if isinstance(value, str) else "")
def test_the_config_allows_the_words_that_the_code_knows(section, key, known):
    words = words_of(section, key)
    assert len(words) >= 2 and words == set(known)


def test_input_sizes_are_multiples_of_the_coarsest_grids_stride():
    # The config imports no framework, so it keeps a number of its own.
    assert values.STRIDE == max(cells.STRIDES) == cells.STRIDES[0]
