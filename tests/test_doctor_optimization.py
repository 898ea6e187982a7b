"""Causes in learning rate, optimizer and precision: read from the live objects, or from the course of some steps."""

import types

import keras
import numpy as np
import pytest
from small_runs import make_config

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import settings
from multigrid.diagnosis.examinations.course import Course
from multigrid.diagnosis.rules import learning_rate, optimization
from multigrid.models.blocks import blocks_of
from multigrid.training.course import begin_stage
from multigrid.training.faults import Fault
from multigrid.training.freezing import freeze
from multigrid.training.optimizers import SGD
from multigrid.training.stages import plan_stages
from multigrid.training.trainer import MultiGridTrainer

STATIC = [value for value in vars(optimization).values() if hasattr(value, "explains")]
IN_TRAINING = [value for value in vars(learning_rate).values() if hasattr(value, "explains")]
EPOCHS = 60  # of 7 steps: 420 in all


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=28), tmp_path_factory.mktemp("run") / "run", {"ema": 0.97}))
    made.build_model()
    return made


@pytest.fixture
def compiled(trainer):
    """A function from settings of `training` to the case of the detector compiled by them."""

    def case(asked=None, **training) -> Case:
        plain = {**trainer.config.training.model_dump(), "epochs": EPOCHS, **training}
        config = trainer.config.model_copy(update={"training": type(trainer.config.training)(**plain)})
        detector = trainer.detector
        begin_stage(detector, config.training, plan_stages(config.training, blocks_of(detector))[0], 7)
        return Case(detector, trainer.train_data, config=asked or config)

    yield case
    freeze(trainer.detector, ())


def named(case, rules=STATIC) -> dict:
    found = {rule.id: rule.function(case) for rule in rules}
    return {name: verdict.confidence for name, verdict in found.items() if verdict is not None}


HEALTHY = (
    {},
    {"optimizer": "adam", "learning_rate": 1e-3},
    {"optimizer": "sgd", "learning_rate": 1e-3},
    {"schedule": "plateau"},
    {"schedule": "step"},
    {"schedule": "constant", "warmup_epochs": 0.0},
    {"gradient_accumulation": 8},
    {"head_lr_multiplier": 3.0, "lr_multipliers": {"stem": 0.1}},
    {"stages": [{"epochs": 6, "freeze": "backbone"}, {"epochs": 60}], "ema": 0.8},
    {"ema": None, "max_grad_norm": None},
)


@pytest.mark.parametrize("training", HEALTHY, ids=str)
def test_a_healthy_optimizer_raises_nothing(compiled, training):
    assert named(compiled(**training)) == {}


FAULTY = (
    ({"warmup_epochs": 50.0}, "MG503"),
    ({"weight_decay": 0.5}, "MG510"),
    ({"optimizer": "sgd", "learning_rate": 1e-3, "momentum": 0.999}, "MG511"),
    ({"ema": 0.9999}, "MG518"),
)


@pytest.mark.parametrize(("training", "cause"), FAULTY, ids=str)
def test_a_value_that_cannot_work_is_named_before_a_step(compiled, training, cause):
    found = named(compiled(**training))
    assert max(found, key=found.get) == cause and found[cause] >= 0.85


def test_a_warm_up_of_few_epochs_is_none_that_is_too_long_in_a_short_run(compiled):
    assert "MG503" not in named(compiled(epochs=4, warmup_epochs=2.0, ema=None))


def test_a_weight_decay_of_other_recipes_with_long_runs_is_only_a_possibility(compiled):
    assert named(compiled(weight_decay=0.05)).get("MG510", 0.0) < 0.5


def test_rates_that_suit_no_optimizer_are_a_possibility(compiled):
    assert named(compiled(learning_rate=0.1))["MG519"] < 0.5
    assert named(compiled(learning_rate=2e-6))["MG519"] < 0.5
    assert named(compiled(head_lr_multiplier=10.0))["MG519"] < 0.5
    assert "MG519" not in named(compiled())


def test_rates_that_are_far_from_all_that_works_are_named_before_a_step(compiled):
    assert named(compiled(learning_rate=0.5))["MG519"] > 0.5
    assert optimization.rate_unusual.function(compiled(learning_rate=0.5)).consequences == ("MG510",)
    assert named(compiled(learning_rate=1e-7))["MG519"] > 0.5


CHANGED = (
    ({"learning_rate": 2e-2}, "training.learning_rate"),
    ({"weight_decay": 1e-2}, "training.weight_decay"),
    ({"ema": 0.8}, "training.ema"),
    ({"momentum": 0.8}, "training.momentum"),
    ({"gradient_accumulation": 2}, "training.gradient_accumulation"),
    ({"head_lr_multiplier": 2.0}, "training.head_lr_multiplier"),
    ({"max_grad_norm": 7.0}, "training.max_grad_norm"),
)


@pytest.mark.parametrize(("training", "key"), CHANGED, ids=str)
def test_a_setting_that_does_not_reach_the_optimizer_is_named_by_its_key(compiled, training, key):
    asked = compiled().config
    case = compiled(asked=asked, **training)
    assert [one.key for one in settings.differences(case)] == [key]
    assert named(case)["MG505"] == 0.75


def test_what_the_loss_and_the_data_use_is_read_back_too(compiled):
    case = compiled()
    criterion = case.criterion
    criterion.coord_scale, kept = 0.5, criterion.coord_scale
    case.train_data.mosaic, mosaic = 0.125, case.train_data.mosaic
    try:
        found = {one.key: (one.asked, one.used) for one in settings.differences(case)}
    finally:
        criterion.coord_scale, case.train_data.mosaic = kept, mosaic
    assert found == {"loss.coord_scale": (5.0, 0.5), "augmentation.mosaic": (mosaic, 0.125)}


def test_who_compiled_by_himself_meant_it(compiled):
    asked = compiled().config
    case = compiled(asked=asked, learning_rate=2e-2)
    case.keeps_compilation = True
    assert optimization.setting_not_reached.function(case).hygiene


def test_who_brought_a_detector_meant_its_loss(compiled):
    case = compiled()
    case.own_detector, criterion = True, case.criterion
    criterion.coord_scale, kept = 0.5, criterion.coord_scale
    try:
        assert optimization.setting_not_reached.function(case).hygiene
        case.own_detector, case.results = False, {}
        assert not optimization.setting_not_reached.function(case).hygiene
    finally:
        criterion.coord_scale = kept


def test_decay_of_normalizations_is_told_from_decay_of_kernels(trainer, compiled):
    plain = compiled()
    assert optimization.decays_norms.function(plain) is None
    trainer.detector.compile(keras.optimizers.AdamW(5e-3, weight_decay=0.1))
    case = Case(trainer.detector, trainer.train_data, config=plain.config)
    # 420 steps at 5e-3 with 0.1 take 1 - exp(-0.21) of every gamma
    verdict = optimization.decays_norms.function(case)
    assert verdict.confidence > 0.8 and not verdict.hygiene
    trainer.detector.compile(keras.optimizers.AdamW(5e-3, weight_decay=1e-3))
    assert optimization.decays_norms.function(Case(trainer.detector, trainer.train_data, config=plain.config)).hygiene


def test_a_batch_of_one_image_is_too_few_for_normalizations_that_learn(trainer, compiled):
    case = compiled()
    images, truth = trainer.train_data[0]
    single = {name: values[:1] for name, values in truth.items()}
    case.batches = [(images[:1], single)]
    assert optimization.batch_too_small.function(case).confidence > 0.8
    case.batches = [(images[:2], {name: values[:2] for name, values in truth.items()})]
    assert optimization.batch_too_small.function(case).confidence < 0.5
    layers = trainer.detector._flatten_layers(include_self=False)
    norms = [layer for layer in layers if hasattr(layer, "moving_mean")]
    try:
        for layer in norms:
            layer.trainable = False
        case.batches = [(images[:1], single)]
        assert optimization.batch_too_small.function(case) is None
    finally:
        for layer in norms:
            layer.trainable = True


def test_statistics_that_are_too_slow_for_the_run(trainer, compiled):
    case = compiled()
    norms = [layer for layer in trainer.detector._flatten_layers() if hasattr(layer, "moving_mean")]
    momentum = norms[0].momentum
    try:
        for layer in norms:
            layer.momentum = 0.999
        assert optimization.norms_too_slow.function(case).confidence > 0.8
        long = compiled(epochs=2000)  # 14000 steps
        assert optimization.norms_too_slow.function(long) is None
    finally:
        for layer in norms:
            layer.momentum = momentum
    assert optimization.norms_too_slow.function(case) is None


def test_an_optimizer_that_begins_anew_under_a_trained_detector(compiled):
    case = compiled()
    case.step = 300
    assert optimization.optimizer_forgot.function(case).confidence > 0.8
    case.optimizer.iterations.assign(300)
    assert optimization.optimizer_forgot.function(case) is None


def test_float16_needs_a_scaled_loss(compiled, monkeypatch):
    case = compiled()
    case.results[settings.compute_dtypes] = {"float16": 40, "float32": 3}
    assert optimization.no_loss_scaling.function(case).confidence > 0.8
    scaled = types.SimpleNamespace(dynamic_scale=np.float32(32768.0))
    monkeypatch.setattr(Case, "optimizer", property(lambda self: scaled))
    assert optimization.no_loss_scaling.function(case) is None


def test_a_few_layers_in_another_precision(compiled):
    case = compiled()
    case.results[settings.compute_dtypes] = {"float16": 2, "float32": 40}
    assert optimization.mixed_contexts.function(case).confidence >= 0.8
    case.results[settings.compute_dtypes] = {"float32": 42}
    assert optimization.mixed_contexts.function(case) is None


# --- the course of some steps -----------------------------------------------------------------------------------------


def a_course(losses, *, ratio=5e-3, head=None, logit=8.0, norms=None, grown=1.0, fault=None, again=None):
    """A course of these losses; the ratios are those of every block, or of the head alone."""
    norms = norms or [20.0] * len(losses)
    rows = [
        {"step": step + 1, "batch": step, "loss": loss, "grad_norm": norm, "updates": step + 1, "learning_rate": 5e-3}
        for step, (loss, norm) in enumerate(zip(losses, norms, strict=True))
    ]
    ratios = {"update_ratio/stage1": ratio, "update_ratio/neck_8": ratio, "update_ratio/grid_8": head or ratio}
    looks = [
        {"step": 0, "loss": 100.0, "max_logit": 5.0, "unmoved": [], **dict.fromkeys(ratios, 0.0)},
        {"step": len(losses), "loss": 100.0 * grown, "max_logit": logit, "unmoved": [], **ratios},
    ]
    return Course(rows=rows, looks=looks, fault=fault, again=again, trial=True)


@pytest.fixture(scope="module")
def read():
    """What was read of optimizers, by the settings they were compiled with: compiling takes long."""
    return {}


@pytest.fixture
def told(compiled, trainer, read):
    """A function from a course, and settings of `training`, to what the rules say of it."""

    def tell(course, **training) -> dict:
        key = repr(training)
        if key not in read:
            case = compiled(**training)
            read[key] = case.config, case.examined(settings.optimization)
        config, live = read[key]
        case = Case(trainer.detector, trainer.train_data, config=config)
        case.course, case.results[settings.optimization] = course, live
        return named(case, IN_TRAINING)

    return tell


def replayed(losses_by_factor, by_rate=None):
    """What the steps would have given with a factor; its key is the factor of a grid and of the stem at step 0.

    Without a factor those at other learning rates, by what they are multiplied by; None if they cannot be had.
    """

    def again(factor, steps, rate=1.0):
        if factor is None:
            return by_rate and a_course([by_rate[float(f"{rate:.3g}")]] * steps)
        key = (round(factor("grid_8/kernel", 0), 3), round(factor("stem_conv/kernel", 0), 3))
        return a_course([losses_by_factor.get(key, 200.0)] * steps)

    return again


CALM = [100.0] * 20
WILD = [100.0] * 10 + [300.0] * 10
NAN = Fault("output", "grid_8")


def test_a_calm_course_raises_nothing(told):
    assert told(a_course(CALM)) == {}


def test_early_steps_of_adam_are_large_and_no_fault(told):
    """A wide kernel moves by 15 % of itself in Adam's first steps; a lower rate does not learn faster."""
    course = a_course(CALM, ratio=0.15, again=replayed({(0.1, 0.1): 104.0, (0.01, 0.01): 110.0}))
    assert told(course) == {}


def test_a_rate_that_is_too_high_is_proved_by_a_lower_one(told):
    course = a_course(WILD, ratio=0.4, grown=3.0, again=replayed({(0.1, 0.1): 90.0}))
    found = told(course, learning_rate=0.5)
    assert found["MG501"] >= 0.85 and "MG506" not in found and "MG502" not in found


def test_a_course_that_a_lower_rate_does_not_mend_is_not_the_rate(told):
    course = a_course(WILD, grown=3.0, again=replayed({(0.1, 0.1): 300.0, (0.01, 0.01): 300.0}))
    assert "MG501" not in told(course)


def test_a_loss_that_is_suddenly_not_finite_is_not_the_rate(told):
    steps = [100.0] * 12 + [float("nan")]
    course = a_course(steps, fault=Fault("component", "localization", 8), again=replayed({(0.1, 0.1): 90.0}))
    assert "MG501" not in told(course)
    grew = a_course(steps, fault=NAN, norms=[20.0] * 6 + [4.0**k * 20 for k in range(7)], again=course.again)
    assert told(grew)["MG501"] >= 0.9


def test_a_head_that_is_too_fast_is_told_from_a_rate_that_is_too_high(told):
    again = replayed({(0.1, 1.0): 90.0, (0.1, 0.1): 92.0})
    found = told(a_course(WILD, head=0.5, grown=3.0, again=again))
    assert found["MG506"] >= 0.85 and "MG501" not in found


def test_no_warm_up_is_told_from_a_rate_that_is_too_high(told):
    """With a rise over 15 of 20 steps the first step is made at a fifteenth of the rate."""
    mended = replayed({(0.067, 0.067): 88.0, (0.1, 0.1): 90.0})
    flat = {"schedule": "constant", "warmup_epochs": 0.0, "learning_rate": 0.05}
    found = told(a_course(WILD, ratio=0.4, grown=3.0, again=mended), **flat)
    assert found["MG502"] >= 0.85
    hardly = replayed({(0.067, 0.067): 280.0, (0.1, 0.1): 90.0})
    found = told(a_course(WILD, ratio=0.4, grown=3.0, again=hardly), **flat)
    assert "MG502" not in found and found["MG501"] >= 0.85
    risen = told(a_course(WILD, ratio=0.4, grown=3.0, again=mended), learning_rate=0.05)
    assert "MG502" not in risen


def test_a_rate_that_is_too_low(told):
    assert told(a_course(CALM, ratio=1e-7), learning_rate=1e-8)["MG504"] >= 0.85
    assert told(a_course(CALM, ratio=2e-4)) == {}


def test_steps_up_the_gradient_are_proved_by_steps_the_other_way(told):
    again = replayed({(-1.0, -1.0): 60.0, (0.1, 0.1): 102.0, (0.01, 0.01): 100.0})
    found = told(a_course(WILD, ratio=0.02, grown=3.0, again=again))
    assert found["MG520"] == 0.9 and "MG501" in learning_rate.steps_go_up.explains
    broken = a_course(WILD, ratio=0.4, grown=3.0, again=replayed({(-1.0, -1.0): 1e6, (0.1, 0.1): 90.0}))
    broken.fault = NAN
    assert "MG520" not in told(broken)
    too_high = replayed({(-1.0, -1.0): 290.0, (0.1, 0.1): 80.0, (0.01, 0.01): 95.0})
    assert "MG520" not in told(a_course(WILD, ratio=0.4, grown=3.0, again=too_high))


def test_the_rate_that_is_advised_is_the_best_of_those_that_were_tried(compiled):
    case = compiled(learning_rate=0.1)
    rates = {0.003: 95.0, 0.01: 80.5, 0.03: 80.0, 0.1: 150.0}
    case.course = a_course(WILD, ratio=0.4, grown=3.0, again=replayed({(0.1, 0.1): 90.0}, rates))
    verdict = learning_rate.rate_too_high.function(case)
    assert verdict.remedy.settings == ("training.learning_rate=0.001",)  # 80.5 is as low as 80
    assert "80.5 at 0.001" in verdict.why[-1]


def test_gathered_gradients_are_no_rate_that_is_too_low(told):
    course = a_course(CALM[:7], ratio=0.0)
    for row in course.rows:
        row |= {"updates": 0, "grad_norm": float("nan")}
    assert told(course, gradient_accumulation=8) == {}


def test_clipping_to_almost_nothing_is_told_from_a_low_rate(told):
    plain = {"optimizer": "sgd", "learning_rate": 1e-3}
    found = told(a_course(CALM, ratio=1e-8), max_grad_norm=1e-3, **plain)
    assert found["MG508"] >= 0.85 and "MG504" not in found
    assert "MG508" not in told(a_course(CALM), max_grad_norm=10.0, **plain)


def test_spikes_without_clipping_are_a_possibility(told):
    norms = [20.0] * 40 + [900.0] + [20.0] * 19
    assert told(a_course([100.0] * 60, norms=norms), max_grad_norm=None)["MG507"] < 0.5
    assert told(a_course([100.0] * 60, norms=norms), max_grad_norm=50.0) == {}


def test_the_optimizer_of_another_kind_is_read_by_what_it_has(trainer):
    trainer.detector.compile(SGD(0.01, momentum=0.9, clipnorm=2.0))
    live = settings.optimization(Case(trainer.detector, trainer.train_data))
    assert (live.momentum, live.adaptive, live.clip, live.clips_each, live.steps) == (0.9, False, 2.0, True, None)
