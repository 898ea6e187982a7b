"""Causes that the course of a training shows: each is named from its course, and its look-alikes are not."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from small_runs import make_config

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import settings
from multigrid.diagnosis.examinations.course import Course
from multigrid.diagnosis.examinations.looks import Watcher
from multigrid.diagnosis.rules import dynamics
from multigrid.training.faults import Fault
from multigrid.training.trainer import MultiGridTrainer

RULES = [value for value in vars(dynamics).values() if hasattr(value, "explains") and value.stage == "training"]
PARTS = {"localization": 0.6, "objectness": 0.13, "anchor": 0.9, "classification": 2.5}


@pytest.fixture(scope="module")
def trainer(draw_scenes, tmp_path_factory):
    made = MultiGridTrainer(make_config(draw_scenes(train=8), tmp_path_factory.mktemp("run") / "run"))
    made.build_model()
    return made


@pytest.fixture
def told(trainer):
    """A function from a course, and coefficients of the loss, to what the rules say."""
    criterion = trainer.detector.criterion
    kept = {name: getattr(criterion, name) for name in ("object_scale", "no_object_scale")}

    def tell(course, **coefficients) -> dict:
        for name, value in coefficients.items():
            setattr(criterion, name, value)
        case = Case.of(trainer)
        case.course = course
        found = {rule.id: rule.function(case) for rule in RULES}
        return {name: verdict.confidence for name, verdict in found.items() if verdict is not None}

    yield tell
    for name, value in kept.items():
        setattr(criterion, name, value)


def a_course(steps=20, fault=None, broken=None, norms=None, **series) -> Course:
    """A course whose looks, spread evenly, have these series of figures; else those of a healthy one."""
    healthy = {
        "positive_confidence": [0.010, 0.012, 0.020, 0.060],
        "negative_confidence": [0.010, 0.011, 0.012, 0.015],
        "object_share": [0.033] * 4,
        "objectness_target": [0.40, 0.41, 0.43, 0.50],
        "positive_overlap": [0.40, 0.41, 0.43, 0.50],
        "across_images": [0.02, 0.03, 0.07, 0.20],
        "within_image": [0.03, 0.05, 0.12, 0.40],
        "max_log_size": [0.2, 0.4, 0.6, 0.5],
        "parts": [{name: {"measured": best, "best_constant": best} for name, best in PARTS.items()}] * 4,
        "update_ratio/grid_8": [0.0, 0.004, 0.004, 0.003],
    } | series
    at = np.linspace(0, steps, 4).astype(int)
    looks = [
        {"step": int(at[index]), **{name: values[index] for name, values in healthy.items()}} for index in range(4)
    ]
    losses = [100.0 - 0.1 * step for step in range(steps)]
    norms = norms or [20.0] * steps
    if fault is not None:
        losses[-1] = math.nan
    rows = [
        {"step": step + 1, "batch": step, "loss": losses[step], "grad_norm": norms[step], "updates": step + 1}
        for step in range(steps)
    ]
    return Course(rows=rows, looks=looks, fault=fault, broken=broken)


SINKING = {
    "positive_confidence": [0.010, 0.0093, 0.0080, 0.0061],
    "negative_confidence": [0.010, 0.0093, 0.0078, 0.0049],
}


@pytest.mark.parametrize("steps", [5, 10, 20, 160])
def test_a_healthy_course_raises_nothing(told, steps):
    assert told(a_course(steps)) == {}


def test_negative_cells_that_drown_the_positive_ones(told):
    found = told(a_course(**SINKING), no_object_scale=100.0)
    assert found["MG650"] >= 0.85 and "MG651" not in found and "MG652" not in found


def test_confidence_that_sinks_to_the_share_of_objects_is_how_a_training_begins(told):
    """A head that starts at one half has to come down, to about the share of cells that hold an object."""
    sinking = {"positive_confidence": [0.50, 0.30, 0.12, 0.05]}
    assert told(a_course(**sinking)) == {}
    assert told(a_course(**sinking), no_object_scale=100.0) == {}


def test_positive_cells_that_are_divided_by_too_much(told):
    found = told(a_course(**SINKING | {"positive_confidence": [0.010, 0.009, 0.007, 0.004]}))
    assert found["MG651"] >= 0.5 and "MG650" not in found and "MG652" not in found


def test_a_target_that_collapses_is_told_from_anchors_that_do_not_fit(told):
    collapsed = SINKING | {"objectness_target": [0.016, 0.017, 0.018, 0.03], "object_share": [0.0013] * 4}
    found = told(a_course(**collapsed))
    assert found["MG652"] >= 0.8 and "MG651" not in found and "MG650" not in found
    assert "MG652" not in told(a_course(**collapsed, positive_overlap=[0.02, 0.02, 0.02, 0.04]))


def test_boxes_that_are_no_numbers(told, trainer):
    images, truth = trainer.train_data[0]
    truth = {name: values.copy() for name, values in truth.items()}
    truth["boxes"][0, 0, 2] = np.nan
    fault = Fault("target", "boxes", images=(0,))
    found = told(a_course(fault=fault, broken=(images, truth)))
    assert found["MG655"] > 0.9 and "MG656" not in found and "MG657" not in found


def test_a_part_of_the_loss_that_is_not_finite_for_finite_outputs(told, trainer):
    fault = Fault("component", "localization", stride=8)
    found = told(a_course(fault=fault, broken=trainer.train_data[0]))
    assert found["MG656"] >= 0.8 and "MG655" not in found
    growing = told(
        a_course(fault=fault, broken=trainer.train_data[0], norms=[20.0] * 12 + [2.0**k * 20 for k in range(8)])
    )
    assert growing["MG656"] < 0.8  # it may be the steps that grew


def test_a_gradient_that_alone_is_not_finite(told, trainer):
    found = told(a_course(fault=Fault("gradient", "grid_8/bias"), broken=trainer.train_data[0]))
    assert found["MG657"] >= 0.8 and "MG656" not in found


def parts(**shares) -> list:
    """Parts by their best constants, the same at every look."""
    return [
        {name: {"measured": best * shares.get(name, 1.0), "best_constant": best} for name, best in PARTS.items()}
    ] * 4


def test_classes_alone_that_are_not_learnt(told):
    learnt = parts(localization=0.5, objectness=0.6, anchor=0.5)
    assert told(a_course(400, parts=learnt))["MG658"] >= 0.5
    assert told(a_course(160, parts=learnt)) == {}  # too early
    assert told(a_course(400, parts=parts(localization=0.5, objectness=0.6, anchor=0.5, classification=0.7))) == {}


def test_nothing_is_expected_while_the_learning_rate_rises(told, trainer, monkeypatch):
    live = settings.optimization(Case.of(trainer))
    monkeypatch.setattr(settings, "optimization", lambda case: dataclasses.replace(live, peak_step=1000))
    assert told(a_course(400)) == {}


def test_nothing_that_is_learnt(told):
    found = told(a_course(400))
    assert found["MG659"] >= 0.5 and "MG658" not in found
    assert told(a_course(400, parts=parts(localization=0.9))) == {}


def test_outputs_that_do_not_depend_on_the_image(told):
    assert told(a_course(across_images=[1e-4] * 4))["MG750"] >= 0.5
    assert told(a_course(across_images=[1e-4, 1e-4, 0.07, 0.2])) == {}


def test_sizes_that_grow_without_bound_are_a_possibility(told):
    assert told(a_course(max_log_size=[0.2, 4.5, 6.0, 12.0]))["MG752"] < 0.5
    assert told(a_course(max_log_size=[0.2, 4.5, 12.0, 3.0])) == {}


def test_a_look_measures_the_confidence_and_the_target_of_the_cells_that_answer(trainer):
    case = Case.of(trainer)
    watcher = Watcher(case)
    before = watcher.look(0)
    assert before["objectness_target"] == pytest.approx(before["positive_overlap"], rel=1e-4)  # IoU to the power of 1
    for stride in case.detector.strides:
        bias = case.detector.get_layer(f"grid_{stride}").bias
        bias.assign(bias + keras.ops.one_hot(4, bias.shape[0]) * 4.6)
    after = watcher.look(2)
    for stride in case.detector.strides:
        bias = case.detector.get_layer(f"grid_{stride}").bias
        bias.assign(bias - keras.ops.one_hot(4, bias.shape[0]) * 4.6)
    # the logit of 0.01 is -4.595; with 4.6 more it is about 0
    assert before["positive_confidence"] == pytest.approx(0.01, rel=0.2)
    assert after["positive_confidence"] == pytest.approx(0.5, abs=0.05)
    changed = [name for name, value in after.items() if name.startswith("update_ratio") and value > 0]
    assert set(changed) == {"update_ratio/grid_8", "update_ratio/grid_16", "update_ratio/grid_32"}
