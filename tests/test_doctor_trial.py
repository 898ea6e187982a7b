"""A trial of some steps: what it sees, and that everything is as before afterwards."""

import keras
import numpy as np
import pytest
from small_runs import make_config

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations import counterfactual, modes, pace
from multigrid.diagnosis.examinations.course import Course, Trial
from multigrid.training.trainer import MultiGridTrainer

STEPS = 12


def values(case) -> dict:
    """Everything that a step moves, by name."""
    detector, optimizer = case.detector, case.optimizer
    variables = [*detector.variables, *detector.metrics_variables, *optimizer.variables]
    return {f"{index} {v.path}": np.array(keras.ops.convert_to_numpy(v)) for index, v in enumerate(variables)}


@pytest.fixture(scope="module")
def made(draw_scenes, tmp_path_factory):
    """A trainer, its case, what it was before a trial and what the trial saw."""
    config = make_config(draw_scenes(train=28, val=4), tmp_path_factory.mktemp("run") / "run", {"warmup_epochs": 2.0})
    trainer = MultiGridTrainer(config)
    case = Case.of(trainer)
    before = values(case), case.train_data.epoch, case.optimizer.learning_rate, case.detector.train_function
    with Trial(case) as trial:
        case.course = trial.until(5)
        five = case.course.steps
        case.course = trial.until(STEPS)
        slower = counterfactual.undone(case, "still", lambda path, step: 0.0, 6)
        halved = case.course.again(None, 4, 0.1)
        traced = case.detector.train_function
        further = trial.until(STEPS + 1)
    return case, before, five, slower, traced, further, halved


def test_the_course_has_a_row_for_every_step_and_looks_at_some(made):
    case, _, five, *_ = made
    course = case.course
    assert (five, course.steps, course.updates) == (5, STEPS + 1, STEPS + 1) and course.finite
    assert [row["step"] for row in course.rows] == list(range(1, STEPS + 2))
    # 28 scenes in batches of 4: the seventh batch, which could be a shorter one, is left out
    assert [row["batch"] for row in course.rows] == [step % 6 for step in range(STEPS + 1)]
    assert [look["step"] for look in course.looks] == [0, 5, 10]
    assert {"loss", "localization_loss", "grad_norm", "grad_norm/grid_8", "seconds"} <= course.rows[0].keys()


def test_a_row_is_of_its_step_alone(made):
    """Losses are those of the batch under the weights of that moment: the first under the first weights."""
    case, *_ = made
    images, truth = case.train_data[0]
    expected = case.detector.loss_breakdown(images, truth, training=True).total
    assert case.course.rows[0]["loss"] == pytest.approx(float(expected), rel=1e-4)


def test_everything_is_as_before(made):
    case, (before, epoch, rate, function), *_ = made
    after = values(case)
    assert after.keys() == before.keys()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []
    assert case.train_data.epoch == epoch and float(case.optimizer.learning_rate) == float(rate)
    assert case.detector.train_function is function and case.course.again is None


def test_the_highest_rate_comes_after_ten_steps_and_the_rise_of_the_optimizer_is_its_own_again(made):
    case, *_ = made
    rates = [row["learning_rate"] for row in case.course.rows]
    assert rates[:10] == pytest.approx(np.linspace(0.0005, 0.005, 10), rel=1e-3)  # two epochs are 14 steps
    assert max(rates) == pytest.approx(5e-3, rel=1e-3)
    schedule = pace.schedule_of(case.optimizer)
    assert pace.peak_of(schedule, 21) == (14, pytest.approx(5e-3))


def test_steps_are_made_again_with_changes_undone_and_go_on_where_they_were(made):
    case, _, _, still, traced, further, _ = made
    assert still.stable and still.steps == 6
    # nothing moved but the statistics: each loss is that of the untrained network, as the first one was
    assert case.course.rows[0]["loss"] == pytest.approx(case.course.looks[0]["loss"], rel=0.6)
    assert still.after != pytest.approx(still.before, rel=1e-6)
    assert traced is not None and further.rows[-1]["step"] == STEPS + 1


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="a compiled step of JAX has its learning rates in it")
def test_steps_are_made_again_at_another_rate(made):
    case, *_, halved = made
    rates = [[row["learning_rate"] for row in rows] for rows in (case.course.rows[:4], halved.rows)]
    assert rates[1] == pytest.approx([0.1 * rate for rate in rates[0]])
    usual, slow = ([row["loss"] for row in rows] for rows in (case.course.rows[:4], halved.rows))
    assert usual[0] == pytest.approx(slow[0], rel=1e-5) and usual[3] != pytest.approx(slow[3], rel=1e-3)


def test_a_range_test_takes_the_smallest_rate_that_is_as_good_as_any():
    tested = counterfactual.RangeTest((1e-3, 3e-3, 1e-2), (90.0, 70.5, 70.0), 20)
    assert tested.best == 3e-3 and "70.5 at 0.003" in tested.words
    assert counterfactual.RangeTest((1e-3, 3e-3), (float("inf"),) * 2, 20).best is None


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ((366.0, 352.0, 316.0, 275.0), 3e-3),  # still falling at the highest: the one below it
        ((150.6, 150.1, 149.9, 149.2), None),  # all alike
        ((366.0, 352.0, float("inf"), float("inf")), 1e-3),
    ],
)
def test_a_range_test_trusts_neither_its_end_nor_a_flat_course(losses, best):
    assert counterfactual.RangeTest((3e-4, 1e-3, 3e-3, 1e-2), losses, 20).best == best


def test_a_counterfactual_needs_a_trial(made):
    case, *_ = made
    other = Case.__new__(Case)
    other.course = Course()
    assert counterfactual.undone(other, "nothing", lambda path, step: 1.0) is None


def test_a_look_tells_how_much_each_block_moved_and_what_did_not(made):
    case, *_ = made
    first, last = case.course.looks[0], case.course.looks[-1]
    assert first["update_ratio/stem"] == 0.0 and 0.0 < last["update_ratio/stem"] < 0.1
    assert len(first["unmoved"]) == len(case.detector.trainable_variables) and last["unmoved"] == []
    assert last["moved_frozen"] == []
    # the prior of the objectness is 0.01
    assert first["positive_confidence"] == pytest.approx(0.01, rel=0.2)
    assert 0.0 < first["positive_overlap"] < 1.0 and first["parts"]["anchor"]["best_constant"] <= np.log(2) + 1e-3


def test_a_broken_step_ends_the_trial_and_names_what_was_first(made):
    case, *_ = made
    boxes = case.train_data[1][1]["boxes"].copy()
    boxes[0, 0, 2] = np.nan

    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            images, truth = case.train_data[index]
            return images, {**truth, "boxes": boxes} if index == 1 else truth

    broken = Case(case.detector, Data())
    with Trial(broken) as trial:
        course = trial.until(5)
    assert course.steps == 2 and not course.finite and course.fault.kind == "target"
    assert np.isnan(course.broken[1]["boxes"]).any()


def test_modes_put_statistics_and_momenta_back(made):
    case, *_ = made
    before = values(case)
    momenta = [layer.momentum for layer in case.detector._flatten_layers() if hasattr(layer, "momentum")]
    seen = modes.examine(case)
    assert seen.training > 0 and seen.inference > 0 and seen.recalibrated > 0
    after = values(case)
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []
    assert momenta == [layer.momentum for layer in case.detector._flatten_layers() if hasattr(layer, "momentum")]


def test_statistics_that_are_counted_anew_close_the_gap_between_the_modes(made):
    """A moving mean of minus a thousand makes every channel of the head fire."""
    case, *_ = made
    mean = case.detector.get_layer("head_8_bn").moving_mean
    kept = mean.numpy()
    mean.assign(kept - 1000.0)
    seen = modes.examine(case)
    mean.assign(kept)
    assert seen.gap > 1.5 and abs(seen.healed - 1.0) < 0.5 * abs(seen.gap - 1.0)
