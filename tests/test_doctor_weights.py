"""Causes in what was loaded and what is frozen: each is named, and its look-alikes are not."""

import keras
import numpy as np
import pytest
from small_runs import make_config

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import activity, coverage
from multigrid.diagnosis.rules import dynamics, freezing, weights
from multigrid.models.weights import save_weights
from multigrid.training.trainer import MultiGridTrainer

OURS = [value for module in (weights, freezing) for value in vars(module).values() if hasattr(value, "explains")]


def settled(detector) -> None:
    """Gives every BatchNorm the statistics of noise, as if it had been trained."""
    rng = np.random.default_rng(1)
    images = keras.ops.convert_to_tensor(rng.integers(0, 255, (4, 64, 96, 3)).astype("uint8"))
    norms = [layer for layer in detector._flatten_layers() if coverage.is_norm(layer)]
    momenta = [layer.momentum for layer in norms]
    for number in range(3):
        for layer in norms:
            layer.momentum = number / (number + 1)
        detector(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    """One whose config names backbone weights, which are loaded."""
    folder = tmp_path_factory.mktemp("weights")
    files = draw_scenes(train=8)
    first = MultiGridTrainer(make_config(files, folder / "first"))
    settled(first.build_model())
    save_weights(first.detector.backbone, folder / "backbone.weights.h5")
    config = make_config(files, folder / "run", backbone_weights=str(folder / "backbone.weights.h5"))
    made = MultiGridTrainer(config)
    made.build_model()
    return made


@pytest.fixture
def case(trainer):
    """The case of the trainer, which is as it was afterwards."""
    detector = trainer.detector
    kept = [np.array(keras.ops.convert_to_numpy(variable)) for variable in detector.weights]
    layers = detector._flatten_layers(include_self=False)
    trainable = {id(layer): layer.trainable for layer in layers}
    yield Case.of(trainer)
    for layer in layers:
        layer.trainable = True
    for layer in layers:
        if not isinstance(layer, keras.Model):
            layer.trainable = trainable[id(layer)]
    for variable, value in zip(detector.weights, kept, strict=True):
        variable.assign(value)


def named(case, rules=OURS) -> dict:
    """Confidence by rule, of those that speak."""
    found = {rule.id: rule.function(case) for rule in rules}
    return {name: verdict.confidence for name, verdict in found.items() if verdict is not None}


def norms_of_backbone(case):
    return [layer for layer in case.detector.backbone._flatten_layers() if coverage.is_norm(layer)]


def at_random(variables) -> None:
    for seed, variable in enumerate(variables):
        variable.assign(np.random.default_rng(seed).normal(0.0, 0.1, variable.shape))


def without_statistics(case) -> None:
    for layer in norms_of_backbone(case):
        layer.moving_mean.assign(np.zeros(layer.moving_mean.shape))
        layer.moving_variance.assign(np.ones(layer.moving_variance.shape))


def test_weights_that_are_loaded_raise_nothing(case):
    assert named(case) == {}


def test_a_fresh_training_without_weights_raises_nothing(draw_scenes, tmp_path):
    fresh = Case.of(MultiGridTrainer(make_config(draw_scenes(train=8), tmp_path / "run")))
    assert named(fresh) == {}


def test_a_backbone_that_is_not_loaded(case):
    at_random(case.detector.backbone.trainable_variables)
    without_statistics(case)
    found = named(case)
    assert found["MG401"] > 0.9 and "MG402" not in found and "MG403" not in found


def test_a_backbone_that_is_loaded_in_part(case):
    at_random(case.detector.backbone.trainable_variables[-12:])
    found = named(case)
    assert found["MG402"] > 0.9 and "MG401" not in found and "MG403" not in found


def test_statistics_that_are_not_loaded(case):
    without_statistics(case)
    found = named(case)
    assert found["MG403"] > 0.9 and "MG401" not in found and "MG402" not in found


def test_weights_that_have_moved_in_training_are_no_failed_load(case):
    at_random(case.detector.backbone.trainable_variables)
    case.step = 100
    assert "MG401" not in named(case)


def test_a_slope_and_an_epsilon_that_are_not_those_of_the_weights(case):
    leaky, norm = _bricks(case)
    slope, epsilon = leaky.negative_slope, norm.epsilon
    try:
        leaky.negative_slope = 0.3
        assert named(case)["MG404"] > 0.8
        leaky.negative_slope = slope
        assert named(case) == {}
        norm.epsilon = 1e-3
        assert named(case)["MG404"] > 0.8
    finally:
        leaky.negative_slope, norm.epsilon = slope, epsilon


def _bricks(case):
    layers = {layer.name: layer for layer in case.detector._flatten_layers()}
    return layers["stage2_down_leaky"], layers["stage2_down_bn"]


def test_normalizations_that_count_among_frozen_convolutions(case):
    for layer in case.detector.backbone._flatten_layers(include_self=False):
        if layer.variables and not coverage.is_norm(layer):
            layer.trainable = False
    found = named(case)
    assert found["MG405"] > max(value for name, value in found.items() if name != "MG405")


def test_a_backbone_that_is_frozen_whole_keeps_its_statistics(case):
    for layer in case.detector.backbone._flatten_layers(include_self=False):
        layer.trainable = False
    found = named(case)
    assert "MG405" not in found and found.get("MG406", 0.0) < 0.5  # loaded features may be kept by hand


def test_nothing_trains(case):
    for layer in case.detector.layers:
        layer.trainable = False
    found = named(case)
    assert found["MG406"] == 1.0 and "MG407" not in found


def test_a_frozen_backbone_of_random_features(case):
    without_statistics(case)
    for layer in case.detector.backbone._flatten_layers(include_self=False):
        layer.trainable = False
    assert named(case)["MG406"] > 0.8


def test_stages_that_freeze_the_backbone_first_are_no_fault(draw_scenes, tmp_path, trainer):
    stages = [{"epochs": 1, "freeze": "backbone"}, {"epochs": 2}]
    path = trainer.config.backbone_weights
    config = make_config(draw_scenes(train=8), tmp_path / "run", {"stages": stages}, backbone_weights=path)
    assert named(Case.of(MultiGridTrainer(config))) == {}


def test_a_frozen_head(case):
    for layer in case.detector.layers:
        if layer.name.startswith("grid_"):
            layer.trainable = False
    found = named(case)
    assert found["MG407"] > 0.9 and "MG406" not in found


def test_weights_that_are_not_finite(case):
    kernel = case.detector.get_layer("head_16_conv").kernel
    values = np.array(kernel.numpy())
    values.flat[3] = np.nan
    kernel.assign(values)
    assert named(case)["MG409"] == 1.0


def test_images_that_are_scaled_otherwise_than_the_weights_expect(case):
    healthy = case.examined(activity.scalings)
    assert min(healthy, key=lambda name: healthy[name].distance) in ("as it is", "0 to 1")
    scaling = case.detector.get_layer("scale_to_unit")
    kept = scaling.scale, scaling.offset
    case.results.clear()
    try:
        scaling.scale, scaling.offset = 1.0, 0.0
        found = named(case, [weights.other_preprocessing])
        assert found["MG408"] > 0.5 and (scaling.scale, scaling.offset) == (1.0, 0.0)
    finally:
        scaling.scale, scaling.offset = kept


def noise(contrast=1.0, mean=127.0) -> np.ndarray:
    """Images as `settled` has them, (4, 64, 96, 3) uint8, but for contrast and mean."""
    values = np.random.default_rng(7).uniform(-127, 127, (4, 64, 96, 3))
    return np.clip(mean + contrast * values, 0, 255).astype("uint8")


def test_weights_of_images_from_minus_one_to_one(case):
    scaling = case.detector.get_layer("scale_to_unit")
    kept = scaling.scale, scaling.offset
    try:
        scaling.scale, scaling.offset = activity.SCALINGS["-1 to 1"]
        settled(case.detector)
    finally:
        scaling.scale, scaling.offset = kept
    case.batch = (noise(), case.batch[1])
    verdict = weights.other_preprocessing.function(case)
    assert verdict.confidence > 0.5 and "-1 to 1" in verdict.remedy.text


@pytest.mark.parametrize(("contrast", "mean"), [(0.45, 140.0), (0.3, 127.0)])
def test_images_of_another_contrast_are_not_scaled_otherwise(case, contrast, mean):
    kernel = case.detector.backbone.get_layer("stem_conv").kernel  # made to look for edges, as filters that learnt do
    values = keras.ops.convert_to_numpy(kernel)
    kernel.assign(values - 0.8 * values.mean((0, 1, 2)))
    settled(case.detector)
    case.batch = (noise(contrast, mean), case.batch[1])
    found = case.examined(activity.scalings)
    assert found["as it is"].ratio < 0.3 and found["as it is"].distance > 1.4 * found["-1 to 1"].distance
    assert "MG408" not in named(case, [weights.other_preprocessing])


def test_dead_channels(case):
    assert named(case, [dynamics.dead_channels]) == {}
    leaky, norm = _bricks(case)
    slope = leaky.negative_slope
    case.results.clear()
    try:
        leaky.negative_slope = 0.0
        assert named(case, [dynamics.dead_channels]) == {}  # a plain ReLU is alive
        case.results.clear()
        norm.beta.assign(np.full(norm.beta.shape, -10.0))
        assert named(case, [dynamics.dead_channels])["MG751"] > 0.5
    finally:
        leaky.negative_slope = slope
