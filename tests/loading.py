"""What the tests of weight files share: models whose numbers are all different, and a load that is refused."""

import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.models.weights import load_weights


def shake(model, seed):
    """The model, each of its numbers now its own and BatchNorm's statistics those of no fresh network."""
    rng = np.random.default_rng(seed)
    model.set_weights([weight + rng.uniform(0.01, 0.2, weight.shape) for weight in model.get_weights()])
    return model


def bytes_of(model):
    """All weights, to the bit."""
    return [weight.tobytes() for weight in model.get_weights()]


def assert_refused(model, path, *words, **options):
    """Loading says so in one line that names the file, and changes nothing."""
    before = bytes_of(model)
    with pytest.raises(InputError) as caught:
        load_weights(model, path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: expected ") and "\n" not in message
    for word in words:
        assert word in message
    assert bytes_of(model) == before
