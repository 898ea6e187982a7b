"""Learning rates by step, and the callback that lets a number rise."""

import keras
import numpy as np
import pytest

from multigrid.errors import InputError
from multigrid.training.optimizers import build_optimizer
from multigrid.training.schedules import SCHEDULES, WarmUp, build_schedule

BY_STEP = [kind for kind in SCHEDULES if kind != "plateau"]


def rates(schedule, steps):
    return np.array([float(schedule(step)) for step in steps])


def schedule(kind, **options):
    return build_schedule(kind, 0.02, **{"steps": 50, "warmup_steps": 10, "final_fraction": 0.1, **options})


# --- by step


@pytest.mark.backend
@pytest.mark.parametrize("kind", BY_STEP)
@pytest.mark.parametrize("reload", [False, True])
def test_every_schedule_rises_from_nothing_in_a_line(kind, reload):
    made = schedule(kind)
    if reload:
        made = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(made))
    np.testing.assert_allclose(rates(made, range(11)), 0.002 * np.arange(11), rtol=1e-6, atol=1e-9)
    assert keras.backend.standardize_dtype(made(3).dtype) == "float32"


@pytest.mark.backend
def test_a_schedule_gives_the_same_inside_a_compiled_step():
    made = schedule("exponential")
    optimizer = build_optimizer("sgd", made, momentum=0.0, weight_decay=0.0, max_grad_norm=None, ema=None)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(optimizer, loss="mse", jit_compile=True)
    for _ in range(13):
        model.train_on_batch(np.array([[0.0]]), np.array([[0.0]]))
    # 0.02 · 0.1 ** (3 / 40)
    assert float(optimizer.learning_rate) == pytest.approx(0.0168279, rel=1e-5)


def test_the_cosine_falls_to_the_share_that_is_left():
    rate = rates(schedule("cosine"), range(52))
    # half way down, at 10 + 40 / 2: (1 + 0.1) / 2 of the highest
    assert rate[30] == pytest.approx(0.02 * 0.55, rel=1e-5)
    # the last step that is made is 49: 0.1 + 0.9 (1 + cos(39 / 40 pi)) / 2 = 0.101387
    assert rate[49] == pytest.approx(0.02 * 0.101387, rel=1e-4)
    assert rate[50] == rate[51] == pytest.approx(0.002, rel=1e-5)
    assert np.all(np.diff(rate[10:51]) < 0)


def test_the_exponential_falls_to_the_share_that_is_left_by_one_factor():
    rate = rates(schedule("exponential"), range(10, 51))
    # 0.1 ** (1 / 40) = 0.944061 a step
    np.testing.assert_allclose(rate[1:] / rate[:-1], 0.944061, rtol=1e-5)
    assert rate[-1] == pytest.approx(0.002, rel=1e-5)


def test_an_exponential_never_ends_at_nothing():
    with pytest.raises(InputError, match="final_learning_rate_fraction: expected more than 0 .*, received 0.0"):
        schedule("exponential", final_fraction=0.0)


def test_steps_drop_after_two_thirds_and_eight_ninths_of_all():
    # of 45 steps after 30 and after 40, the warm-up counted in
    rate = rates(schedule("step", steps=45, step_factor=0.5), [10, 29, 30, 39, 40, 44])
    np.testing.assert_allclose(rate, [0.02, 0.02, 0.01, 0.01, 0.005, 0.005], rtol=1e-6)


def test_steps_drop_where_they_are_told_in_any_order():
    rate = rates(schedule("step", step_boundaries=[33, 21, 25]), [20, 21, 24, 25, 32, 33, 49])
    np.testing.assert_allclose(rate, [2e-2, 2e-3, 2e-3, 2e-4, 2e-4, 2e-5, 2e-5], rtol=1e-5)
    np.testing.assert_allclose(rates(schedule("step", step_boundaries=[]), [10, 49]), 0.02, rtol=1e-6)


def test_a_constant_stays():
    np.testing.assert_allclose(rates(schedule("constant"), [10, 30, 49]), 0.02, rtol=1e-6)


@pytest.mark.parametrize("kind", BY_STEP)
def test_without_a_warm_up_the_first_step_has_the_highest_rate(kind):
    assert float(schedule(kind, warmup_steps=0)(0)) == pytest.approx(0.02)
    assert float(schedule(kind, steps=1, warmup_steps=0)(0)) == pytest.approx(0.02)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="schedule: expected one of cosine, step, .*, received 'linear'"):
        schedule("linear")


# --- a number that callbacks move


class Rates(keras.callbacks.Callback):
    """Notes the learning rate of every batch, after the callbacks before it have had their say."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_begin(self, batch, logs=None):
        self.seen.append(float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)))


def plateau_model(accumulation=1, policy=None):
    """A model that has nothing to learn, so that every epoch is a plateau."""
    keras.config.set_dtype_policy(policy or "float32")
    try:
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        optimizer = build_optimizer(
            "sgd",
            schedule("plateau"),
            momentum=0.0,
            weight_decay=0.0,
            max_grad_norm=None,
            ema=None,
            gradient_accumulation=accumulation,
        )
        model.compile(optimizer, loss="mse", jit_compile=False)
    finally:
        keras.config.set_dtype_policy("float32")
    return model


def fit(model, epochs, steps, *, first=0, patience=2):
    """The learning rate of each of four batches an epoch, with a rise of so many steps and a drop on each plateau."""
    rates = Rates()
    drop = keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=patience)
    data = np.zeros((8, 1)), np.zeros((8, 1))
    callbacks = [WarmUp(0.02, steps), drop, rates]
    model.fit(*data, batch_size=2, epochs=epochs, initial_epoch=first, verbose=0, callbacks=callbacks)
    return np.array(rates.seen)


@pytest.mark.backend
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_a_number_rises_in_the_same_line_and_is_left_to_the_plateau(policy):
    seen = fit(plateau_model(policy=policy), 6, 6)
    np.testing.assert_allclose(seen[:7], 0.02 * np.arange(7) / 6, rtol=1e-6)
    # the first epoch is the best; after the third and the fifth two have passed without a better one
    np.testing.assert_allclose(seen[6:], [0.02] * 6 + [0.01] * 8 + [0.005] * 4, rtol=1e-6)


@pytest.mark.backend
def test_a_drop_during_the_rise_is_kept():
    # a rise of ten batches, in which the second epoch is a plateau: from the ninth batch on all is halved
    seen = fit(plateau_model(), 3, 10, patience=1)
    np.testing.assert_allclose(seen[:8], 0.002 * np.arange(8), rtol=1e-6)
    np.testing.assert_allclose(seen[8:], [0.008, 0.009, 0.01, 0.01], rtol=1e-6)


@pytest.mark.backend
@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_a_rise_goes_on_where_a_resumed_training_is(epochs):
    model = plateau_model()
    seen = np.concatenate([fit(model, epochs, 8, patience=9), fit(model, 4, 8, first=epochs, patience=9)])
    np.testing.assert_allclose(seen, 0.02 * np.minimum(np.arange(16) / 8, 1.0), rtol=1e-6)


def test_a_rate_that_was_lowered_after_the_rise_stays_so_on_resume():
    model = plateau_model()
    fit(model, 3, 4)
    np.testing.assert_allclose(fit(model, 4, 4, first=3), 0.01, rtol=1e-6)


def test_gathered_batches_get_the_rate_of_the_one_that_completes_them():
    seen = fit(plateau_model(accumulation=3), 3, 7, patience=9)
    # updates are made with batches 2, 5, 8 and 11, the third of them after the rise
    np.testing.assert_allclose(seen[[2, 5, 8, 11]], [0.02 * 2 / 7, 0.02 * 5 / 7, 0.02, 0.02], rtol=1e-6)


def test_no_rise_at_all_leaves_the_rate_alone():
    np.testing.assert_allclose(fit(plateau_model(), 1, 0), 0.02, rtol=1e-6)


def test_a_rise_goes_on_amid_gathered_batches():
    model = plateau_model(accumulation=3)
    seen = np.concatenate([fit(model, 1, 10, patience=9), fit(model, 4, 10, first=1, patience=9)])
    # the first epoch's fourth batch is the first of the update that batch 5 completes
    np.testing.assert_allclose(seen[[2, 3, 4, 5, 8, 11, 14]], [0.004, 0.01, 0.01, 0.01, 0.016, 0.02, 0.02], rtol=1e-6)
