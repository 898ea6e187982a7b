"""Optimizers: what decays, what is clipped, what is measured, how far each block moves, and what moves nothing."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from multigrid.config import TrainingConfig
from multigrid.errors import InputError
from multigrid.training.optimizers import build_optimizer, configured_optimizer, configured_warmup

NAMES = ["adamw", "adam", "sgd"]
BLOCK_OF = {"kernel": "stage1", "gamma": "stage1", "beta": "head_32", "bias": "head_32"}
HOW = ["eager", "graph", "xla"] if keras.backend.backend() == "tensorflow" else ["eager", "graph"]
PLAIN = {"momentum": 0.0, "weight_decay": 0.0, "max_grad_norm": None, "ema": None}


def make(name="sgd", learning_rate=0.1, **options):
    return build_optimizer(name, learning_rate, **{**PLAIN, **options})


def variables():
    """A weight of each name that a detector has."""
    values = {"kernel": [[2.0, -3.0], [1.0, 4.0]], "gamma": [1.5, 0.5], "beta": [0.3, -0.2], "bias": [-4.6, 0.7]}
    return [keras.Variable(np.array(value, "float32"), name=name) for name, value in values.items()]


def apply(optimizer, weights, gradients):
    optimizer.apply([keras.ops.convert_to_tensor(np.asarray(g, "float32")) for g in gradients], weights)


def stepper(optimizer, weights, how):
    """A function that applies gradients: at once, or compiled as training does it."""
    optimizer.build(weights)
    if how == "eager":
        return lambda gradients: apply(optimizer, weights, gradients)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        step = tf.function(lambda gradients: optimizer.apply(gradients, weights), jit_compile=how == "xla")
        return lambda gradients: step([tf.constant(np.asarray(gradient, "float32")) for gradient in gradients])
    import jax

    step = jax.jit(optimizer.stateless_apply)

    def run(gradients):
        arrays = [np.asarray(gradient, "float32") for gradient in gradients]
        state = [variable.value for variable in optimizer.variables], arrays, [weight.value for weight in weights]
        for variables, new in zip((weights, optimizer.variables), step(*state), strict=True):
            for variable, value in zip(variables, new, strict=True):
                variable.assign(value)

    return run


def values(weights):
    return [keras.ops.convert_to_numpy(weight).copy() for weight in weights]


def zeros(weights):
    return [np.zeros(weight.shape) for weight in weights]


def again(optimizer):
    """The optimizer as it comes back from a saved model."""
    return keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))


# --- weight decay


@pytest.mark.backend
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
    # with a momentum of 0 no velocity either
    assert optimizer.use_ema is False and all(variable.shape in ((), (0,)) for variable in optimizer.variables)


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


@pytest.mark.backend
def test_the_norm_in_half_precision_is_that_of_the_unscaled_gradient(half):
    model, optimizer = half
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    # y = 0.03 + 0.04 = 0.07 towards 0: the gradient of y² is 2 · 0.07 · (0.03, 0.04), of norm 0.007. Half of it is
    # allowed, and a tenth of that is the step: (0.00021, 0.00028).
    model.train_on_batch(np.array([[0.03, 0.04]]), np.array([[0.0]]))
    assert float(optimizer.gradient_norm_sum) == pytest.approx(0.007, rel=3e-3)
    np.testing.assert_allclose(1.0 - model.get_weights()[0][:, 0], [0.00021, 0.00028], rtol=5e-3)


@pytest.mark.backend
def test_a_step_that_overflows_in_half_precision_is_skipped_and_not_counted(half):
    model, optimizer = half
    before = (int(optimizer.iterations), float(optimizer.gradient_norm_sum), model.get_weights()[0])
    scale = float(model.optimizer.dynamic_scale)
    assert before[0] > 0
    model.train_on_batch(np.array([[6.0e4, 1.0]]), np.array([[0.0]]))
    assert (int(optimizer.iterations), float(optimizer.gradient_norm_sum)) == before[:2]
    assert int(optimizer.non_finite_steps) == 0 and float(model.optimizer.dynamic_scale) == scale / 2
    np.testing.assert_array_equal(model.get_weights()[0], before[2])


# --- blocks


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_a_multiplier_of_ten_moves_a_block_ten_times_as_far(name, decay):
    moved = []
    for multipliers in ({}, {"stage1": 10.0}):
        weights = variables()
        before = values(weights)
        optimizer = make(name, 1e-3, momentum=0.5, weight_decay=decay, block_of=BLOCK_OF, block_multipliers=multipliers)
        apply(optimizer, weights, [0.1 * value - 0.25 for value in before])
        moved.append([one - other for one, other in zip(values(weights), before, strict=True)])
    # what float32 loses where weights are some units and steps thousandths
    np.testing.assert_allclose(moved[1][0], 10.0 * moved[0][0], atol=4e-6)
    np.testing.assert_allclose(moved[1][1], 10.0 * moved[0][1], atol=4e-6)
    assert np.abs(moved[0][0]).min() > 1e-5
    for one, other in zip(moved[1][2:], moved[0][2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_decay_alone_goes_by_the_multiplied_learning_rate():
    weights = variables()
    before = values(weights)
    optimizer = make("adamw", weight_decay=0.5, block_of=BLOCK_OF, block_multipliers={"stage1": 3.0})
    apply(optimizer, weights, zeros(weights))
    # 1 - 3 · 0.1 · 0.5
    np.testing.assert_allclose(values(weights)[0], 0.85 * before[0], rtol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("how", ["eager", "graph"])
def test_the_norms_of_the_blocks_are_summed_each_for_itself(how):
    weights = variables()
    optimizer = make(max_grad_norm=1.0, block_of=BLOCK_OF, blocks=("stem", "head_32", "stage1"))
    step = stepper(optimizer, weights, how)
    step([[[1.0, 2.0], [0.0, 2.0]], [0.0, 4.0], [6.0, 0.0], [0.0, -8.0]])
    step([[[0.0, 0.0], [0.0, 3.0]], [4.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    # stem has no weights; head: sqrt(36 + 64) = 10, then 1; stage1: sqrt(9 + 16) = 5, then 5
    np.testing.assert_allclose(keras.ops.convert_to_numpy(optimizer.gradient_norm_sums), [0.0, 11.0, 10.0], rtol=1e-6)
    assert float(optimizer.gradient_norm_sum) == pytest.approx(np.sqrt(125.0) + np.sqrt(26.0), rel=1e-6)
    assert int(optimizer.measured_updates) == 2


def test_blocks_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match=r"blocks: expected all of \['stage9'\], received stage1, head_32"):
        make(block_of=BLOCK_OF, block_multipliers={"stage9": 2.0})
    with pytest.raises(ValueError, match="block_of: expected the block of every variable, received none of bias"):
        make(block_of={"kernel": "stem", "gamma": "stem", "beta": "stem"}).build(variables())
    with pytest.raises(ValueError, match="block_of: expected the blocks of 4 variables, received 2"):
        make(block_of=["stem", "stage1"]).build(variables())


# --- gradients that are not finite


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30])  # the square of the last is infinite
def test_a_gradient_that_is_not_finite_moves_no_weight_and_no_slot(name, how, bad):
    optimizer = make(name, momentum=0.5, weight_decay=0.3, max_grad_norm=2.0, ema=0.75, block_of=BLOCK_OF)
    weights = variables()
    step = stepper(optimizer, weights, how)
    good = [0.1 * value + 0.3 for value in values(weights)]
    step(good)
    before, slots = values(weights), values(optimizer.variables)
    names = [variable.name for variable in optimizer.variables]
    step([*good[:3], [good[3][0], bad]])
    for one, other in zip(values(weights), before, strict=True):
        np.testing.assert_array_equal(one, other)
    pairs = list(zip(names, values(optimizer.variables), slots, strict=True))
    moved = {name for name, one, other in pairs if not np.array_equal(one, other) and not name.endswith("average")}
    assert moved == {"iteration", "non_finite_steps", "moves"}
    # the average began with the weights of the first step, and they are the weights still
    averages = [(one, other) for name, one, other in pairs if name.endswith("average")]
    assert len(averages) == 4
    for one, other in averages:
        np.testing.assert_allclose(one, other, rtol=1e-6)
    assert int(optimizer.non_finite_steps) == 1 and int(optimizer.measured_updates) == 1
    step(good)
    assert int(optimizer.measured_updates) == 2 and not np.array_equal(values(weights)[0], before[0])
    assert all(np.all(np.isfinite(value)) for value in values(optimizer.variables) + values(weights))


# --- gradients of several batches


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", HOW)
def test_three_batches_make_one_update_with_their_mean(name, how):
    options = {"momentum": 0.5, "weight_decay": 0.3, "max_grad_norm": 2.0, "block_of": BLOCK_OF}
    weights, expected = variables(), variables()
    gathering = make(name, gradient_accumulation=3, **options)
    at_once = make(name, **options)
    step = stepper(gathering, weights, how)
    random = np.random.default_rng(5)
    for update in range(2):
        before = values(weights)
        batches = [[random.normal(size=weight.shape) for weight in weights] for _ in range(3)]
        for gradients in batches[:2]:
            step(gradients)
            np.testing.assert_array_equal(values(weights)[0], before[0])
        step(batches[2])
        apply(at_once, expected, [np.mean(gradients, axis=0) for gradients in zip(*batches, strict=True)])
        for one, other in zip(values(weights), values(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=2e-6)
        assert int(gathering.iterations) == int(gathering.measured_updates) == update + 1
    assert float(gathering.gradient_norm_sum) == pytest.approx(float(at_once.gradient_norm_sum), rel=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("how", ["eager", "graph"])
@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_batch_that_is_not_finite_is_left_out_of_the_mean(how, bad):
    weight = keras.Variable([1.0, 5.0], name="kernel")
    optimizer = make(gradient_accumulation=3)
    step = stepper(optimizer, [weight], how)
    batches = [[[2.0, 4.0]], [[4.0, 0.0]]]
    batches.insert(bad, [[np.nan, 1.0]])
    for gradients in batches:
        step(gradients)
    # the mean of the two others is (3, 2), a tenth of it is the step
    np.testing.assert_allclose(values([weight])[0], [0.7, 4.8], rtol=1e-6)
    assert int(optimizer.non_finite_steps) == 1
    for gradients in ([[1.0, 1.0]], [[1.0, 1.0]], [[4.0, 1.0]]):
        step(gradients)
    np.testing.assert_allclose(values([weight])[0], [0.5, 4.7], rtol=1e-6)


@pytest.mark.backend
def test_no_finite_batch_at_all_makes_no_update():
    weight = keras.Variable([1.0, 5.0], name="kernel")
    optimizer = make(momentum=0.5, weight_decay=0.2, gradient_accumulation=2)
    step = stepper(optimizer, [weight], "graph")
    for gradients in ([[2.0, 4.0]], [[4.0, 0.0]]):
        step(gradients)
    before = values([weight])[0]
    for gradients in ([[np.nan, 4.0]], [[4.0, np.inf]]):
        step(gradients)
    np.testing.assert_array_equal(values([weight])[0], before)
    assert int(optimizer.non_finite_steps) == 2 and int(optimizer.measured_updates) == 1


# --- a saved model


def small_model(optimizer):
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="stage1_conv"), keras.layers.Dense(2, name="head_32_conv")]
    model = keras.Sequential(layers, name="small")
    model.compile(optimizer, loss="mse", jit_compile=False)
    return model


@pytest.mark.backend
@pytest.mark.parametrize("name", NAMES)
def test_a_reloaded_file_trains_as_the_model_would_have_gone_on(tmp_path, name):
    keras.utils.set_random_seed(3)
    block_of = {f"small/{layer}_conv/{part}": layer for layer in ("stage1", "head_32") for part in ("kernel", "bias")}
    multipliers = {"head_32": 7.0}
    optimizer = make(
        name,
        momentum=0.5,
        weight_decay=0.3,
        max_grad_norm=0.4,
        ema=0.8,
        gradient_accumulation=2,
        block_of=block_of,
        blocks=["head_32", "stage1"],
        block_multipliers=multipliers,
    )
    model = small_model(optimizer)
    random = np.random.default_rng(1)
    batches = [(random.normal(size=(5, 3)), random.normal(size=(5, 2))) for _ in range(7)]
    for images, targets in batches[:3]:  # one update and a half
        model.train_on_batch(images, targets)
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras")
    assert again.optimizer.block_multipliers == multipliers
    assert again.optimizer.blocks == ("head_32", "stage1")
    for images, targets in batches[3:]:
        model.train_on_batch(images, targets)
        again.train_on_batch(images, targets)
    pairs = zip(model.variables + optimizer.variables, again.variables + again.optimizer.variables, strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(*values([one, other]), rtol=1e-6, err_msg=one.path)


# --- two devices


def test_two_replicas_do_what_one_does_with_the_sum_of_their_gradients():
    script = pathlib.Path(__file__).with_name("two_replicas.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parents[1]), "KERAS_BACKEND": "tensorflow"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["sgd", "1", "sgd", "3", "adamw", "1", "adamw", "3"]


# --- as a config has it


def test_the_learning_rate_ends_where_the_config_says_also_with_gathered_gradients():
    training = TrainingConfig(
        epochs=2, learning_rate=0.2, warmup_epochs=0.5, final_learning_rate_fraction=0.25, gradient_accumulation=3
    )
    optimizer, weights = configured_optimizer(training, 7), variables()
    rates = []
    for _ in range(2 * 7):
        rates.append(float(optimizer.learning_rate))
        apply(optimizer, weights, zeros(weights))
    # a rise of round(3.5) = 4 batches, then a cosine of 10: half way down at 9 it is (1 + 0.25) / 2 of 0.2
    np.testing.assert_allclose(rates[:5], [0.0, 0.05, 0.1, 0.15, 0.2], atol=1e-7)
    assert rates[9] == pytest.approx(0.125, rel=1e-6)
    assert float(optimizer.learning_rate) == pytest.approx(0.05, rel=1e-6)
    assert int(optimizer.iterations) == 4  # fourteen batches: the last two make no update


def test_a_stage_has_its_own_epochs_and_learning_rate():
    training = TrainingConfig(epochs=9, learning_rate=0.2, warmup_epochs=1, schedule="step", step_epochs=(2, 3))
    optimizer = configured_optimizer(training, 5, epochs=4, learning_rate=0.04)
    schedule = keras.optimizers.schedules.deserialize(optimizer.get_config()["learning_rate"])
    rates = [float(schedule(step)) for step in (4, 5, 9, 10, 14, 15, 19)]
    np.testing.assert_allclose(rates, [0.032, 0.04, 0.04, 0.004, 0.004, 0.0004, 0.0004], rtol=1e-5)


def test_multipliers_of_head_and_blocks_multiply():
    blocks = ("stem", "stage1", "neck_16", "head_16", "grid_16")
    training = TrainingConfig(head_lr_multiplier=10.0, lr_multipliers={"stem": 0.1, "grid_16": 0.5})
    block_of = {f"{block}_conv/kernel": block for block in blocks}
    optimizer = configured_optimizer(training, 5, block_of=block_of, blocks=blocks)
    assert optimizer.block_multipliers == {"stem": 0.1, "head_16": 10.0, "grid_16": 5.0}
    assert optimizer.blocks == blocks


def test_a_multiplier_of_an_unknown_block_names_those_there_are():
    training = TrainingConfig(lr_multipliers={"stage8": 0.1})
    message = r"training.lr_multipliers: expected names of blocks \(stage1, head_32\), received stage8"
    with pytest.raises(InputError, match=message):
        configured_optimizer(training, 5, block_of=BLOCK_OF)
    with pytest.raises(ValueError, match="block_of: expected the blocks that head_lr_multiplier is for"):
        configured_optimizer(TrainingConfig(head_lr_multiplier=2.0), 5)


def test_a_plateau_has_a_number_and_a_callback_to_rise_by():
    training = TrainingConfig(schedule="plateau", learning_rate=0.2, warmup_epochs=1.5)
    optimizer, warmup = configured_optimizer(training, 4), configured_warmup(training, 4, learning_rate=0.3)
    optimizer.learning_rate = 0.1
    assert float(optimizer.learning_rate) == pytest.approx(0.1)
    assert (warmup.learning_rate, warmup.steps) == (0.3, 6)
    assert configured_warmup(TrainingConfig(), 4) is None
