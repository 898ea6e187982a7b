"""Optimizers and the schedule: what decays, what is clipped, what is measured, in single and in half precision."""

import keras
import numpy as np
import pytest

from multigrid.training.optimizers import build_optimizer, warmup_cosine

PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None, "ema": None}


def make(name="sgd", learning_rate=0.1, **options):
    return build_optimizer(name, learning_rate, **{**PLAIN, **options})


def variables():
    """A weight of each name that a detector has."""
    values = {"kernel": [[2.0, -3.0], [1.0, 4.0]], "gamma": [1.5, 0.5], "beta": [0.3, -0.2], "bias": [-4.6, 0.7]}
    return [keras.Variable(np.array(value, "float32"), name=name) for name, value in values.items()]


def apply(optimizer, weights, gradients):
    optimizer.apply([keras.ops.convert_to_tensor(np.asarray(g, "float32")) for g in gradients], weights)


def values(weights):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in weights]


def zeros(weights):
    return [np.zeros(weight.shape) for weight in weights]


def again(optimizer):
    """The optimizer as it comes back from a saved model."""
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))


# --- weight decay


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("reload", [False, True])
def test_weight_decay_shrinks_kernels_and_spares_the_rest(name, reload):
    optimizer = make(name, weight_decay=0.5)
    optimizer = again(optimizer) if reload else optimizer
    weights = variables()
    before = values(weights)
    apply(optimizer, weights, zeros(weights))
    # 1 - learning rate · decay = 1 - 0.1 · 0.5
    np.testing.assert_allclose(values(weights)[0], 0.95 * before[0], rtol=1e-6)
    for one, other in zip(values(weights)[1:], before[1:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_adam_has_no_weight_decay():
    weights = variables()
    before = values(weights)
    apply(make("adam", weight_decay=0.5), weights, zeros(weights))
    np.testing.assert_array_equal(values(weights)[0], before[0])


# --- what the numbers of the config reach


def test_momentum_is_that_of_sgd_and_the_first_beta_of_adam():
    sgd = make("sgd", momentum=0.8)
    assert (sgd.momentum, sgd.nesterov) == (0.8, True)
    assert [make(name, momentum=0.8).beta_1 for name in ("adam", "adamw")] == [0.8, 0.8]


def test_a_constant_gradient_gains_speed_by_nesterovs_momentum():
    optimizer, weight = make("sgd", momentum=0.5), keras.Variable([1.0], name="kernel")
    # v1 = -0.1 · 2 = -0.2, step 0.5 v1 - 0.2 = -0.3; v2 = 0.5 v1 - 0.2 = -0.3, step 0.5 v2 - 0.2 = -0.35
    for expected in (0.7, 0.35):
        apply(optimizer, [weight], [[2.0]])
        np.testing.assert_allclose(values([weight])[0], [expected], rtol=1e-6)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="optimizer: expected one of adamw, adam, sgd, received 'lion'"):
        make("lion")


# --- the norm


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_the_norm_is_summed_over_all_weights_and_steps_before_clipping(name):
    optimizer, weights = make(name, max_grad_norm=1.0), variables()
    gradients = [np.full(weight.shape, 2.0) for weight in weights]
    apply(optimizer, weights, gradients)
    apply(optimizer, weights, [0.5 * gradient for gradient in gradients])
    # ten numbers of 2: sqrt(10 · 4) = 6.3246, then half of it
    assert float(optimizer.gradient_norm_sum) == pytest.approx(1.5 * np.sqrt(40.0), rel=1e-6)
    assert int(optimizer.iterations) == 2


def test_gradients_are_scaled_to_the_global_norm_that_is_allowed():
    weights = [keras.Variable([5.0, 5.0], name="kernel"), keras.Variable([5.0], name="bias")]
    # norm of (2, 3, 6) is 7: with 3.5 allowed half of each arrives, times the learning rate of 0.1
    apply(make(max_grad_norm=3.5), weights, [[2.0, 3.0], [6.0]])
    np.testing.assert_allclose(np.concatenate(values(weights)), [4.9, 4.85, 4.7], rtol=1e-6)
    apply(make(max_grad_norm=8.0), weights, [[2.0, 3.0], [6.0]])
    np.testing.assert_allclose(np.concatenate(values(weights)), [4.7, 4.55, 4.1], rtol=1e-6)


def test_weights_without_a_gradient_count_for_nothing():
    optimizer, weights = make(), [keras.Variable([1.0, 1.0], name="kernel"), keras.Variable([1.0], name="bias")]
    optimizer.build(weights)
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        optimizer.apply([keras.ops.convert_to_tensor([3.0, 4.0]), None], weights)
    assert float(optimizer.gradient_norm_sum) == pytest.approx(5.0)


def test_building_twice_keeps_the_norm():
    optimizer, weights = make(), variables()
    optimizer.build(weights)
    count = len(optimizer.variables)
    apply(optimizer, weights, zeros(weights))
    optimizer.build(weights)
    assert len(optimizer.variables) == count


# --- the moving average


def test_the_moving_average_begins_with_the_first_weights_and_follows():
    optimizer, weight = make(ema=0.75), keras.Variable([1.0], name="kernel")
    apply(optimizer, [weight], [[2.0]])  # 1 - 0.2 = 0.8: the average's beginning
    apply(optimizer, [weight], [[-4.0]])  # 0.8 + 0.4 = 1.2: 0.75 · 0.8 + 0.25 · 1.2 = 0.9
    np.testing.assert_allclose(values([weight])[0], [1.2], rtol=1e-6)
    optimizer.finalize_variable_values([weight])
    np.testing.assert_allclose(values([weight])[0], [0.9], rtol=1e-6)


def test_without_ema_there_is_no_average():
    optimizer, weights = make(), variables()
    optimizer.build(weights)
    # iterations, learning rate, norm; no average and, with a momentum of 0, no velocity
    assert optimizer.use_ema is False and len(optimizer.variables) == 3


# --- half precision


@pytest.fixture(scope="module")
def half():
    """A linear model in mixed_float16, whose optimizer Keras wraps to scale the loss."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
        optimizer = make("sgd", max_grad_norm=0.0035, ema=0.9)
        model.compile(optimizer, loss="mse", jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    return model, optimizer


def test_the_norm_in_half_precision_is_that_of_the_unscaled_gradient(half):
    model, optimizer = half
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    # y = 0.03 + 0.04 = 0.07 towards 0: the gradient of y² is 2 · 0.07 · (0.03, 0.04), of norm 0.007. Half of it is
    # allowed, and a tenth of that is the step: (0.00021, 0.00028).
    model.train_on_batch(np.array([[0.03, 0.04]]), np.array([[0.0]]))
    assert float(optimizer.gradient_norm_sum) == pytest.approx(0.007, rel=3e-3)
    np.testing.assert_allclose(1.0 - model.get_weights()[0][:, 0], [0.00021, 0.00028], rtol=5e-3)


def test_a_step_that_overflows_in_half_precision_is_skipped_and_not_counted(half):
    model, optimizer = half
    before = (int(optimizer.iterations), float(optimizer.gradient_norm_sum), model.get_weights()[0])
    assert before[0] > 0
    model.train_on_batch(np.array([[6.0e4, 1.0]]), np.array([[0.0]]))
    assert (int(optimizer.iterations), float(optimizer.gradient_norm_sum)) == before[:2]
    np.testing.assert_array_equal(model.get_weights()[0], before[2])


# --- the schedule


def test_the_rate_rises_in_a_line_and_falls_by_a_cosine():
    schedule = warmup_cosine(0.02, steps=50, warmup_steps=10, final_fraction=0.1)
    rate = [float(schedule(step)) for step in range(52)]
    # a line from 0 to 0.02 in ten steps
    np.testing.assert_allclose(rate[:11], 0.002 * np.arange(11), atol=1e-8)
    assert max(rate) == rate[10]
    # half way down, at 10 + 40 / 2: (1 + 0.1) / 2 of the highest
    assert rate[30] == pytest.approx(0.02 * 0.55, rel=1e-5)
    # the last step that is made is 49: 0.1 + 0.9 (1 + cos(39 / 40 pi)) / 2 = 0.101387
    assert rate[49] == pytest.approx(0.02 * 0.101387, rel=1e-4)
    assert rate[50] == rate[51] == pytest.approx(0.002, rel=1e-5)
    assert np.all(np.diff(rate[10:51]) < 0)


def test_without_a_warm_up_the_first_step_has_the_highest_rate():
    schedule = warmup_cosine(0.02, steps=8, warmup_steps=0, final_fraction=0.0)
    assert float(schedule(0)) == pytest.approx(0.02)
    assert float(schedule(8)) == pytest.approx(0.0, abs=1e-9)


def test_a_training_of_one_step_has_a_rate():
    assert float(warmup_cosine(0.02, steps=1, warmup_steps=0, final_fraction=0.5)(0)) == pytest.approx(0.02)
