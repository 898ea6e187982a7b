"""The detector: what goes in, what a fresh one says, one loss for fit, evaluate and the breakdown, save and load."""

import json

import keras
import numpy as np
import pytest

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS
from multigrid.geometry.cells import split_channels
from multigrid.losses.multigrid_loss import LossBreakdown, MultiGridLoss
from multigrid.models.detector import COUNT_NAMES, LossParts, MultiGridDetector
from multigrid.models.head import grid_name
from multigrid.training.optimizers import build_optimizer

pytestmark = pytest.mark.backend

ANCHORS = [[[40.0, 28.0], [70.0, 50.0]], [[20.0, 14.0], [30.0, 34.0]], [[8.0, 6.0], [12.0, 15.0]]]
CLASSES = 3
NARROW = {"width": 1 / 16, "depth": 1 / 8}
SCALES = {"coord_scale": 2.5, "object_scale": 1.5, "no_object_scale": 0.7, "anchor_scale": 0.3, "class_scale": 0.6}
STRIDES = (32, 16, 8)


def build(**options):
    keras.utils.set_random_seed(11)
    options = {"criterion": MultiGridLoss(ANCHORS, CLASSES, **SCALES), **NARROW, **options}
    return MultiGridDetector(ANCHORS, CLASSES, **options)


@pytest.fixture(scope="module")
def prepared():
    """A compiled detector and its weights."""
    detector = build()
    detector.compile(keras.optimizers.SGD(0.01), jit_compile=detector.prefers_xla)
    # A fresh head says nothing of the image, fresh blocks add little and fresh statistics are those of no image: a test
    # would not see what is wrong with any of them.
    rng = np.random.default_rng(2)
    weights = detector.get_weights()
    detector.set_weights([w + rng.uniform(0.0, 0.2, w.shape) if w.ndim == 1 else w for w in weights])
    for stride in STRIDES:
        kernel = detector.get_layer(grid_name(stride)).kernel
        kernel.assign(20.0 * keras.ops.convert_to_numpy(kernel))
    return detector, detector.get_weights()


@pytest.fixture
def detector(prepared):
    """The compiled detector, with the same weights in every test."""
    prepared[0].set_weights(prepared[1])
    prepared[0].reset_metrics()
    return prepared[0]


def draw(count=4, height=64, width=96):
    """Images of noise with 0, 1 or 2 boxes of several sizes."""
    rng = np.random.default_rng(17)
    images = rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    boxes, classes = np.zeros((count, 8, 4), "float32"), np.full((count, 8), -1, "int32")
    for row in range(count):
        for number in range(row % 3):
            w, h = rng.uniform(8.0, 60.0), rng.uniform(6.0, 40.0)
            left, top = rng.uniform(0.0, width - w), rng.uniform(0.0, height - h)
            boxes[row, number] = (left, top, left + w, top + h)
            classes[row, number] = rng.integers(CLASSES)
    return images, {"boxes": boxes, "classes": classes}


def part_of(truth, rows):
    return {name: values[rows] for name, values in truth.items()}


def number(value):
    return float(keras.ops.convert_to_numpy(value))


def everything(detector):
    """All state, as bytes."""
    variables = [*detector.variables, *detector.metrics_variables, *detector.optimizer.variables]
    return [np.asarray(keras.ops.convert_to_numpy(variable)).tobytes() for variable in variables]


class Batches(keras.utils.PyDataset):
    """Batches of 4, the last one shorter; with targets or without."""

    def __init__(self, images, truth=None):
        super().__init__()
        self.images, self.truth = images, truth

    def __len__(self):
        return -(-len(self.images) // 4)

    def __getitem__(self, index):
        rows = slice(4 * index, 4 * index + 4)
        return (self.images[rows],) if self.truth is None else (self.images[rows], part_of(self.truth, rows))


# --- what goes in, what comes out


def test_grids_come_coarse_to_fine_with_5_and_anchors_and_classes_as_channels(detector):
    # 64 × 96 at strides 32, 16, 8; 5 + 2 + 3 channels
    grids = detector.predict_on_batch(draw()[0])
    assert [grid.shape for grid in grids] == [(4, 2, 3, 10), (4, 4, 6, 10), (4, 8, 12, 10)]
    assert {grid.dtype.name for grid in grids} == {"float32"}


def test_a_fresh_detector_believes_its_priors():
    fresh = build(objectness_prior=0.02)
    for grid in fresh.predict_on_batch(draw()[0]):
        channels = split_channels(grid, 2)
        np.testing.assert_allclose(1.0 / (1.0 + np.exp(-channels.objectness)), 0.02, atol=0.01)
        # three classes, all as likely: 1/3
        np.testing.assert_allclose(1.0 / (1.0 + np.exp(-channels.classes)), 1 / 3, atol=0.1)
        for rest in (channels.xy, channels.wh, channels.anchor):
            np.testing.assert_allclose(rest, 0.0, atol=0.4)


def test_the_default_prior_is_one_in_a_hundred_cells():
    # ln(0.01 / 0.99) = -4.595, ln((1/3) / (2/3)) = -0.693
    np.testing.assert_allclose(build().initial_bias(), [0, 0, 0, 0, -4.595, 0, 0, -0.693, -0.693, -0.693], atol=1e-3)


def test_bytes_are_what_the_backbone_sees_between_0_and_1(detector):
    images = draw()[0]
    assert images.min() == 0 and images.max() == 255
    rest = keras.Model(detector.get_layer("scale_to_unit").output, detector.outputs)
    expected = rest.predict_on_batch(images.astype("float32") / 255.0)
    for found, wanted in zip(detector.predict_on_batch(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
def test_images_that_are_not_bytes_are_refused(detector, dtype):
    with pytest.raises(TypeError, match=rf"expected uint8 in 0\.\.255 \(scaling is inside\), received {dtype}"):
        detector(draw()[0].astype(dtype))


def test_images_that_are_not_bytes_are_refused_inside_a_compiled_function_too():
    with pytest.raises(TypeError, match="expected uint8"):
        build().predict(draw()[0] / 255.0, verbose=0)


@pytest.mark.parametrize("size", [(65, 96), (64, 80)])
def test_sides_off_the_coarsest_grid_are_refused(detector, size):
    with pytest.raises(ValueError, match=r"sides that are multiples of 32, received \(4, "):
        detector(draw(4, *size)[0])


@pytest.mark.parametrize("anchors", [ANCHORS[:2], [[40.0, 28.0]] * 3, [[[1.0, 2.0, 3.0]]] * 3])
def test_anchors_of_another_shape_are_refused(anchors):
    with pytest.raises(ValueError, match=r"anchors: expected shape \[3, A, 2\], received"):
        MultiGridDetector(anchors, CLASSES, **NARROW)


def test_a_criterion_that_reads_the_grids_otherwise_is_refused():
    other = MultiGridLoss(ANCHORS, CLASSES, offset_activation="tanh")
    with pytest.raises(ValueError, match="criterion: expected its offset_activation to be 'sigmoid', received 'tanh'"):
        build(criterion=other, offset_activation="sigmoid")
    with pytest.raises(ValueError, match="criterion: expected its num_classes to be 3, received 4"):
        build(criterion=MultiGridLoss(ANCHORS, CLASSES + 1))
    with pytest.raises(ValueError, match=r"criterion: expected its anchors to be \[\[\[40.0.*, received \[\[\[41.0"):
        build(criterion=MultiGridLoss([[[41.0, 28.0], ANCHORS[0][1]], *ANCHORS[1:]], CLASSES))
    with pytest.raises(ValueError, match="criterion: expected its anchors to be"):
        build(criterion=MultiGridLoss([scale[:1] for scale in ANCHORS], CLASSES))


@pytest.mark.parametrize(
    ("classification", "class_activation"), [("bce", "softmax"), ("focal", "softmax"), ("softmax", "sigmoid")]
)
def test_a_criterion_that_reads_class_logits_otherwise_is_refused(classification, class_activation):
    criterion = MultiGridLoss(ANCHORS, CLASSES, classification=classification)
    words = f"received classification '{classification}' and class_activation '{class_activation}'"
    with pytest.raises(ValueError, match=words):
        build(criterion=criterion, class_activation=class_activation)


def test_another_backbone_takes_the_place_of_darknet():
    images = keras.Input((None, None, 3))
    maps, x = {}, images
    for stride in (2, 4, 8, 16, 32):
        x = maps[f"stride_{stride}"] = keras.layers.Conv2D(4, 3, strides=2, padding="same")(x)
    own = keras.Model(images, {name: maps[name] for name in ("stride_8", "stride_16", "stride_32")}, name="own")
    detector = build(backbone=own)
    assert detector.backbone is own and "darknet53" not in [layer.name for layer in detector.layers]
    assert [grid.shape for grid in detector.predict_on_batch(draw()[0])] == [
        (4, 2, 3, 10), (4, 4, 6, 10), (4, 8, 12, 10)
    ]  # fmt: skip


def test_mixed_precision_computes_in_bfloat16_and_answers_in_float32():
    mixed = build(dtype="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"
    assert mixed.dtype_policy.name == "mixed_bfloat16"
    assert mixed.backbone.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert {grid.dtype.name for grid in mixed.predict_on_batch(draw()[0])} == {"float32"}


def test_a_saved_detector_of_mixed_precision_comes_back_with_it(tmp_path):
    mixed = build(dtype="mixed_bfloat16")
    mixed.save(tmp_path / "mixed.keras")
    again = keras.saving.load_model(tmp_path / "mixed.keras")  # under the global policy float32
    assert again.dtype_policy.name == "mixed_bfloat16"
    assert again.get_layer("neck_16_conv1_conv").compute_dtype == "bfloat16"
    for model, other in ((mixed, again), (mixed.backbone, again.backbone)):
        assert [layer.compute_dtype for layer in other.layers] == [layer.compute_dtype for layer in model.layers]
    for one, two in zip(mixed.predict_on_batch(draw()[0]), again.predict_on_batch(draw()[0]), strict=True):
        np.testing.assert_array_equal(one, two)


# --- the loss


def test_the_loss_that_keras_asks_for_is_the_criterions_total(detector):
    images, truth = draw()
    grids = detector(images)
    expected = number(detector.criterion(truth, grids))
    assert expected > 0
    assert number(detector.compute_loss(images, truth, grids)) == pytest.approx(expected, rel=1e-6)


def test_evaluate_reports_the_breakdowns_of_its_batches_weighed_by_their_images(detector):
    images, truth = draw(10)  # batches of 4, 4 and 2
    logs = detector.evaluate(Batches(images, truth), verbose=0, return_dict=True)
    rows = [slice(0, 4), slice(4, 8), slice(8, 10)]
    found = [detector.loss_breakdown(images[part], part_of(truth, part)) for part in rows]

    def mean(of):
        return np.average([keras.ops.convert_to_numpy(of(breakdown)) for breakdown in found], axis=0, weights=[4, 4, 2])

    assert logs["loss"] == pytest.approx(mean(lambda breakdown: breakdown.total), rel=1e-5)
    for name in LOSS_PARTS:
        by_scale = mean(lambda breakdown, name=name: breakdown.parts[name])
        assert logs[f"{name}_loss"] == pytest.approx(by_scale.sum(), rel=1e-5)
        assert [logs[f"{name}_loss_{stride}"] for stride in STRIDES] == pytest.approx(by_scale.tolist(), rel=1e-5)
    for name in COUNT_NAMES:  # an image
        total = sum(number(keras.ops.sum(breakdown.counts[name])) for breakdown in found)
        assert logs[name] == pytest.approx(total / 10)


def test_fits_first_step_reports_the_breakdown_in_training_mode(detector):
    images, truth = draw()
    before = detector.loss_breakdown(images, truth, training=True)
    logs = detector.train_on_batch(images, truth, return_dict=True)
    assert float(logs["loss"]) == pytest.approx(number(before.total), rel=1e-5)
    for name in LOSS_PARTS:
        assert float(logs[f"{name}_loss"]) == pytest.approx(number(before.part(name)), rel=1e-5)
    # BatchNorm by this batch is not BatchNorm by moving averages: were the two equal, this test would show nothing
    assert number(detector.loss_breakdown(images, truth).total) != pytest.approx(number(before.total), rel=1e-3)


@pytest.mark.parametrize("training", [False, True])
def test_the_breakdown_changes_nothing(detector, training):
    images, truth = draw()
    detector.train_on_batch(images, truth)  # whatever is made at first use exists, and the metrics hold something
    before = everything(detector)
    detector.loss_breakdown(images, truth, training=training)
    assert everything(detector) == before


def test_an_epochs_parts_add_up_to_its_loss_whatever_the_last_batchs_size(detector):
    images, truth = draw(10)  # batches of 4, 4 and 2
    history = detector.fit(Batches(images, truth), epochs=2, verbose=0, shuffle=False).history
    assert len(history["loss"]) == 2
    for epoch in range(2):
        logs = {name: values[epoch] for name, values in history.items()}
        total = sum(SCALES[scale] * logs[f"{name}_loss"] for name, scale in LOSS_PARTS.items())
        assert logs["loss"] == pytest.approx(total, rel=1e-5)
        assert logs["objectness_loss"] == pytest.approx(logs["object_loss"] + logs["no_object_loss"], rel=1e-6)
        for name in LOSS_PARTS:
            by_scale = [logs[f"{name}_loss_{stride}"] for stride in STRIDES]
            assert sum(by_scale) == pytest.approx(logs[f"{name}_loss"], rel=1e-5)
        assert logs["objects"] == pytest.approx((truth["classes"] >= 0).sum() / 10)


def test_sample_weights_are_refused():
    fresh, (images, truth) = build(), draw()
    fresh.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    with pytest.raises(ValueError, match=r"sample_weight: expected none \(class weights belong to the loss"):
        fresh.fit(images, truth, sample_weight=np.ones(4), verbose=0)


def regularized_backbone():
    images = keras.Input((None, None, 3))
    maps, x = {}, images
    for stride in (2, 4, 8, 16, 32):
        x = maps[f"stride_{stride}"] = keras.layers.Conv2D(4, 3, strides=2, padding="same", kernel_regularizer="l2")(x)
    return keras.Model(images, {name: maps[name] for name in ("stride_8", "stride_16", "stride_32")})


def test_the_regularizers_of_a_backbone_are_in_the_total_and_have_a_log_of_their_own():
    detector, (images, truth) = build(backbone=regularized_backbone()), draw()
    detector.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    kernels = [layer.kernel for layer in detector.backbone.layers if isinstance(layer, keras.layers.Conv2D)]
    penalty = sum(0.01 * np.square(keras.ops.convert_to_numpy(kernel)).sum() for kernel in kernels)  # Keras' own 0.01
    assert penalty > 0.1
    breakdown = detector.loss_breakdown(images, truth)
    assert number(breakdown.regularization) == pytest.approx(penalty, rel=1e-5)
    parts = sum(number(keras.ops.sum(values)) for values in breakdown.weighted.values())
    assert number(breakdown.total) == pytest.approx(parts + penalty, rel=1e-5)
    logs = detector.evaluate(Batches(*draw(6)), verbose=0, return_dict=True)  # batches of 4 and 2
    assert logs["regularization_loss"] == pytest.approx(penalty, rel=1e-5)
    weighted = sum(SCALES[scale] * logs[f"{name}_loss"] for name, scale in LOSS_PARTS.items())
    assert logs["loss"] == pytest.approx(weighted + penalty, rel=1e-5)
    before = detector.loss_breakdown(images, truth, training=True)
    first = detector.train_on_batch(images, truth, return_dict=True)
    assert float(first["loss"]) == pytest.approx(number(before.total), rel=1e-5)


def test_a_detector_without_regularizers_logs_none(detector):
    images, truth = draw()
    assert detector.loss_breakdown(images, truth).regularization is None
    assert "regularization_loss" not in detector.evaluate(images, truth, verbose=0, return_dict=True)


def breakdown_with(images, value, parts=tuple(LOSS_PARTS)):
    """So many images; every part is the value at the first of two scales, twice that at the second."""
    values = {name: np.array([value, 2.0 * value], "float32") for name in parts}
    counts = {name: np.array([images, images], "float32") for name in ("images", *COUNT_NAMES)}
    total = keras.ops.convert_to_tensor(3.0 * value * len(parts))
    return LossBreakdown(total, values, values, np.ones(2, "float32"), counts, dict.fromkeys(parts, 1.0))


def test_loss_parts_are_means_over_images():
    tracker = LossParts((32, 16))

    tracker.update_state(breakdown_with(4, 1.0))
    tracker.update_state(breakdown_with(1, 6.0))
    logs = {name: number(value) for name, value in tracker.result().items()}
    # (4 · 1 + 1 · 6) / 5 = 2 at stride 32, twice that at 16; counts are sums: (4 + 1) · 2 scales / 5 images
    assert (logs["anchor_loss_32"], logs["anchor_loss_16"], logs["anchor_loss"]) == (2.0, 4.0, 6.0)
    assert (logs["objectness_loss"], logs["positives"]) == (12.0, 2.0)
    tracker.reset_state()
    assert number(tracker.result()["anchor_loss"]) == 0.0


def test_optional_parts_are_logged_where_they_are_there():
    tracker = LossParts((32, 16))
    tracker.update_state(breakdown_with(4, 1.0))
    assert not [name for name in tracker.result() if name.startswith(tuple(OPTIONAL_LOSS_PARTS))]
    tracker = LossParts((32, 16))
    tracker.update_state(breakdown_with(2, 1.5, (*LOSS_PARTS, "suppression")))
    logs = {name: number(value) for name, value in tracker.result().items()}
    assert (logs["suppression_loss"], logs["suppression_loss_32"], logs["suppression_loss_16"]) == (4.5, 1.5, 3.0)
    assert "consensus_loss" not in logs and "loss" not in logs


def test_optional_parts_are_in_the_logs_of_fit_and_in_its_loss():
    extras = {"consensus_scale": 0.4, "suppression_scale": 1.2}
    # a low threshold, so that a fresh head has ignored cells
    detector = build(criterion=MultiGridLoss(ANCHORS, CLASSES, ignore_threshold=0.1, **SCALES, **extras))
    detector.compile(keras.optimizers.SGD(0.0), jit_compile=detector.prefers_xla)
    logs = detector.fit(Batches(*draw(6)), verbose=0, shuffle=False).history
    scales = SCALES | extras
    parts = {name: logs[f"{name}_loss"][0] for name in LOSS_PARTS | OPTIONAL_LOSS_PARTS}
    assert parts["consensus"] > 0.01 and parts["suppression"] > 0.01
    total = sum(scales[scale] * parts[name] for name, scale in (LOSS_PARTS | OPTIONAL_LOSS_PARTS).items())
    assert logs["loss"][0] == pytest.approx(total, rel=1e-5)
    for name in OPTIONAL_LOSS_PARTS:
        assert sum(logs[f"{name}_loss_{stride}"][0] for stride in STRIDES) == pytest.approx(parts[name], rel=1e-5)


# --- what is not finite


def test_batches_that_are_not_finite_are_left_out_of_the_means_and_counted():
    tracker = LossParts((32, 16))
    for images, value in ((4, 1.0), (2, np.nan), (1, 6.0), (3, np.inf)):
        tracker.update_state(breakdown_with(images, value), drop_non_finite=True)
    logs = {name: number(value) for name, value in tracker.result().items()}
    # as without the two: (4 · 1 + 1 · 6) / 5 = 2 at stride 32; five parts of thrice that; as many objects as images
    assert (logs["anchor_loss_32"], logs["loss"], logs["objects"]) == (2.0, 30.0, 2.0)
    assert logs["dropped_batches"] == 2.0
    tracker.reset_state()
    assert number(tracker.result()["dropped_batches"]) == 0.0


def test_means_of_which_all_was_dropped_are_not_numbers():
    tracker = LossParts((32, 16))
    tracker.update_state(breakdown_with(4, np.nan), drop_non_finite=True)
    logs = {name: number(value) for name, value in tracker.result().items()}
    assert np.isnan(logs["loss"]) and np.isnan(logs["anchor_loss"]) and logs["dropped_batches"] == 1.0


def test_the_loss_that_is_logged_is_that_of_the_batches_that_are_kept():
    detector, (images, truth) = build(criterion=MultiGridLoss(ANCHORS, CLASSES, class_weights=[1, 1, np.inf])), draw(8)
    # the last class is in the second batch alone, and its loss is not finite
    truth["classes"] = np.where(truth["classes"] < 0, -1, np.repeat([[0], [2]], 4, axis=0)).astype("int32")
    detector.compile(keras.optimizers.SGD(0.0), jit_compile=detector.prefers_xla)
    expected = detector.evaluate(Batches(images[:4], part_of(truth, slice(0, 4))), verbose=0, return_dict=True)
    plain = detector.evaluate(Batches(images, truth), verbose=0, return_dict=True)
    assert "dropped_batches" not in plain
    assert not np.isfinite(plain["loss"])
    detector.drops_non_finite = True
    detector.compile(keras.optimizers.SGD(0.0), jit_compile=detector.prefers_xla)
    logs = detector.evaluate(Batches(images, truth), verbose=0, return_dict=True)
    assert logs.pop("dropped_batches") == 1.0
    assert logs == pytest.approx(expected, rel=1e-5)


def moving_statistics(detector):
    """Copies of BatchNorm's moving means and variances, by path."""
    return {
        variable.path: np.array(keras.ops.convert_to_numpy(variable))
        for variable in detector.non_trainable_variables
        if variable.path.endswith(("moving_mean", "moving_variance"))
    }


@pytest.mark.parametrize("broken", ["stem_conv", "grid_8"])
def test_a_training_step_whose_outputs_are_not_finite_leaves_the_moving_statistics(detector, broken):
    images, truth = draw()
    layer = next(layer for layer in detector._flatten_layers() if layer.name == broken)
    kernel = keras.ops.convert_to_numpy(layer.kernel).copy()
    before = moving_statistics(detector)
    assert len(before) > 20
    layer.kernel.assign(np.where(np.arange(kernel.size).reshape(kernel.shape) == 3, np.inf, kernel))
    detector.train_on_batch(images, truth)
    after = moving_statistics(detector)
    assert [path for path in before if not np.array_equal(before[path], after[path])] == []


def test_a_statistic_that_overflows_though_the_outputs_are_finite_is_not_kept_either(detector):
    # activations of 1e25 have a variance beyond float32; divided by it they are 0, and the outputs are finite
    layer = next(layer for layer in detector._flatten_layers() if layer.name == "stem_conv")
    layer.kernel.assign(1e25 * keras.ops.convert_to_numpy(layer.kernel))
    before = moving_statistics(detector)
    assert all(np.isfinite(grid).all() for grid in detector(draw()[0], training=True))
    after = moving_statistics(detector)
    assert [path for path in before if not np.array_equal(before[path], after[path])] == []


def test_a_training_step_whose_outputs_are_finite_moves_every_moving_statistic_as_batchnorm_does(detector):
    images, truth = draw()
    layer = detector.backbone.get_layer("stem_bn")
    inputs = keras.Model(detector.backbone.input, detector.backbone.get_layer("stem_conv").output)
    mean = np.mean(keras.ops.convert_to_numpy(inputs(images / np.float32(255.0))), axis=(0, 1, 2))
    before = moving_statistics(detector)
    detector.train_on_batch(images, truth)
    after = moving_statistics(detector)
    assert [path for path in before if np.array_equal(before[path], after[path])] == []
    path = layer.moving_mean.path
    expected = layer.momentum * before[path] + (1 - layer.momentum) * mean
    np.testing.assert_allclose(after[path], expected, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_and_those_outside_of_training_are_not_touched():
    frozen, (images, _) = build(), draw()
    frozen.backbone.trainable = False
    before = moving_statistics(frozen)
    frozen(images)
    assert all(np.array_equal(value, before[path]) for path, value in moving_statistics(frozen).items())
    frozen(images, training=True)
    moved = {path for path, value in moving_statistics(frozen).items() if not np.array_equal(value, before[path])}
    own = {variable.path for variable in frozen.backbone.variables}
    assert moved and not moved & own


def test_sixty_steps_on_one_batch_bring_the_loss_down(detector):
    images, truth = draw()
    first = detector.train_on_batch(images, truth, return_dict=True)["loss"]
    for _ in range(59):
        detector.reset_metrics()
        last = detector.train_on_batch(images, truth, return_dict=True)["loss"]
    assert float(last) < 0.8 * float(first)


def test_images_without_objects_leave_only_the_loss_of_empty_cells(detector):
    images, truth = draw()
    logs = detector.train_on_batch(images, {**truth, "classes": np.full((4, 8), -1, "int32")}, return_dict=True)
    empty = {"localization", "object", "anchor", "classification"}
    assert {name for name in LOSS_PARTS if float(logs[f"{name}_loss"]) == 0.0} == empty
    assert all(np.all(np.isfinite(value)) for value in detector.get_weights())


# --- the contract of a Keras model


def test_what_predict_makes_of_an_array_it_makes_of_a_dataset(detector):
    images = draw(10)[0]
    by_array = detector.predict(images, batch_size=4, verbose=0)
    by_dataset = detector.predict(Batches(images), verbose=0)
    for one, other in zip(by_array, by_dataset, strict=True):
        assert len(one) == 10
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_predicting_needs_no_compile_and_training_does():
    images, truth = draw()
    fresh = build()
    assert len(fresh.predict(images, verbose=0)) == 3
    with pytest.raises(ValueError, match="compile"):
        fresh.fit(images, truth)


def test_without_a_criterion_it_predicts_and_says_what_training_lacks():
    images, truth = draw()
    bare = build(criterion=None)
    assert len(bare.predict_on_batch(images)) == 3
    bare.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    for act in (lambda: bare.fit(images, truth, verbose=0), lambda: bare.loss_breakdown(images, truth)):
        with pytest.raises(ValueError, match="criterion: expected a MultiGridLoss to train or evaluate with"):
            act()


def test_the_config_is_plain_json_and_makes_the_same_detector():
    options = {"neck": "full", "offset_activation": "tanh", "class_activation": "softmax", "objectness_prior": 0.03}
    kinds = {"offset_activation": "tanh", "localization": "mse", "classification": "softmax"}
    criterion = MultiGridLoss(ANCHORS, CLASSES, **kinds, **SCALES)
    one = build(criterion=criterion, **options, name="mine")
    config = one.get_config()
    other = MultiGridDetector.from_config(json.loads(json.dumps(config)))
    for name in ("anchors", "num_classes", "width", "depth", "objectness_prior", "name", *options):
        assert getattr(other, name) == getattr(one, name)
    assert other.criterion.get_config() == one.criterion.get_config()
    assert [v.shape for v in other.weights] == [v.shape for v in one.weights]
    np.testing.assert_allclose(other.initial_bias()[4], np.log(0.03 / 0.97), rtol=1e-6)
    assert MultiGridDetector.from_config(build(criterion=None).get_config()).criterion is None


def test_a_saved_detector_comes_back_whole(detector, tmp_path):
    images, truth = draw()
    detector.save(tmp_path / "detector.keras")
    again = keras.saving.load_model(tmp_path / "detector.keras")
    assert isinstance(again, MultiGridDetector) and again.compiled
    for one, other in zip(detector.predict_on_batch(images), again.predict_on_batch(images), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-6)
    expected = number(detector.loss_breakdown(images, truth).total)
    assert number(again.loss_breakdown(images, truth).total) == pytest.approx(expected, rel=1e-6)
    assert again.evaluate(images, truth, verbose=0, return_dict=True)["loss"] == pytest.approx(expected, rel=1e-5)


def test_a_step_whose_loss_is_not_finite_moves_no_weight_though_gradients_are_left():
    detector = build()
    optimizer = build_optimizer("sgd", 0.1, momentum=0.9, weight_decay=0.1, max_grad_norm=1.0, ema=None)
    detector.compile(optimizer, jit_compile=detector.prefers_xla)
    images = np.random.default_rng(2).integers(0, 256, (2, 64, 96, 3), dtype=np.uint8)
    # the second object's box is no box: no cell claims it, and what the others learn from has a gradient
    boxes = np.array([[[3, 5, 51, 40]], [[20, np.nan, 36, 40]]], "float32")
    before = [variable.numpy().tobytes() for variable in detector.trainable_variables]
    loss = detector.train_on_batch(images, {"boxes": boxes, "classes": np.array([[0], [2]], "int32")})
    assert np.isnan(np.ravel(loss)[0])
    assert [variable.numpy().tobytes() for variable in detector.trainable_variables] == before
