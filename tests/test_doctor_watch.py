"""The watch: a training is the same with it, a healthy one is not disturbed, and trouble is said."""

import json

import keras
import numpy as np
import pytest
from small_runs import make_config

from multigrid.diagnosis import events, page
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.doctor import diagnose
from multigrid.diagnosis.watch import WINDOW, DoctorWatch
from multigrid.training.bundle import Step, write_bundle
from multigrid.training.trainer import MultiGridTrainer


@pytest.fixture(scope="module")
def files(draw_scenes):
    return draw_scenes(train=24)


def trained(files, folder, watch=None):
    """A trainer after its training, with or without a watch."""
    trainer = MultiGridTrainer(make_config(files, folder, {"epochs": 2, "ema": 0.5}))
    if watch is not None:
        watch.trainer = trainer
        trainer.callbacks.append(watch)
    trainer.train()
    return trainer


def weights(trainer) -> list:
    return [np.array(keras.ops.convert_to_numpy(variable)) for variable in trainer.detector.variables]


@pytest.fixture(scope="module")
def pair(files, tmp_path_factory):
    folder, watch = tmp_path_factory.mktemp("pair"), DoctorWatch()
    return trained(files, folder / "without"), trained(files, folder / "with", watch), watch


def test_a_training_is_the_same_to_the_bit(pair):
    without, watched, _ = pair
    assert all(np.array_equal(one, other) for one, other in zip(weights(without), weights(watched), strict=True))


def test_rows_are_of_their_step_alone(pair):
    _, _, watch = pair
    rows = watch.course.rows
    assert [row["step"] for row in rows] == list(range(1, 13)) and [row["batch"] for row in rows] == [*range(6)] * 2
    assert len({row["loss"] for row in rows}) == 12 and min(row["grad_norm"] for row in rows) > 0
    assert rows[0]["learning_rate"] < rows[4]["learning_rate"]
    assert watch.course.looks[0]["step"] == 0


def test_a_healthy_training_has_nothing_said_and_a_diagnosis_in_its_folder(pair):
    _, watched, watch = pair
    assert watch.findings == [] and watch.course.finite
    written = json.loads((watched.run_dir / "diagnosis.json").read_text())
    assert written["causes"] == [] and written["steps"] == 12


def test_a_training_that_breaks_off_has_its_cause_said(files, tmp_path, capsys):
    """The guard has written the step and raised: Keras tells no callback."""
    trainer, watch = MultiGridTrainer(make_config(files, tmp_path / "run")), DoctorWatch()
    detector = trainer.build_model()
    images, truth = trainer.train_data[4]
    boxes = truth["boxes"].copy()
    boxes[1, 0, 0] = np.nan
    step = Step.of(detector, images, {**truth, "boxes": boxes}, epoch=0, step=4)
    watch.trainer, trainer.own_dir = trainer, tmp_path
    watch.set_model(detector)
    watch.on_train_begin()
    watch.on_epoch_begin(0)
    watch.on_train_batch_begin(4)
    write_bundle(tmp_path / "nan-epoch-1-step-5", step, step.fault())
    watch.conclude()
    assert watch.course.fault.kind == "target"
    assert "MG655" in [one.id for one in watch.findings]
    assert "A batch holds boxes that are not numbers (MG655" in capsys.readouterr().out
    assert "MG655" in json.loads((tmp_path / "diagnosis.json").read_text())["causes"]


def test_a_watch_without_a_trainer_keeps_the_course_and_says_nothing(files, tmp_path):
    watch = DoctorWatch()
    watch.set_model(MultiGridTrainer(make_config(files, tmp_path / "run")).build_model())
    watch.on_train_begin()
    watch.on_epoch_begin(0)
    for batch, mean in enumerate([4.0, 3.0, 5.0]):
        watch.on_train_batch_begin(batch)
        watch.on_train_batch_end(batch, {"loss": mean})
    # the mean of 4 and x is 3, that of 4, 2 and y is 5
    assert [row["loss"] for row in watch.course.rows] == [4.0, 2.0, 9.0]
    watch.conclude()
    assert watch.diagnosis is None


def test_events_of_the_config_are_marked(pair):
    _, watched, watch = pair
    assert watched.config.training.warmup_epochs == 1
    marked = [(event["step"], event["what"]) for event in watch.course.events]
    assert marked == [(0, "training begins"), (6, "warm-up ends")]


def test_stages_drops_and_the_end_of_mosaic_are_events(files, tmp_path):
    stages = [{"epochs": 3, "freeze": "backbone"}, {"epochs": 5}]
    augmentation = {"mosaic": 0.5, "mosaic_off_epochs": 2}
    config = make_config(files, tmp_path / "run", {"stages": stages, "warmup_epochs": 0.5}, augmentation=augmentation)
    case = Case.of(MultiGridTrainer(config))
    assert [(event.epoch, event.what, event.breaks) for event in events.planned(case)] == [
        (0.5, "warm-up ends", False),
        (3, "all layers train", True),
        (3.5, "warm-up ends", False),
        (6, "mosaic and mixup end", True),
    ]
    rates = [2e-3, 1.9e-3, 1.8e-3, 1.8e-4, 1.8e-4]
    case.history = [{"epoch": number, "loss": 9.0, "learning_rate": rate} for number, rate in enumerate(rates, 1)]
    assert events.drops(case, case.history, "epoch") == []  # a cosine may end as steeply
    training = config.training.model_copy(update={"schedule": "step"})
    case.config = config.model_copy(update={"training": training})
    assert events.drops(case, case.history, "epoch") == [{"epoch": 4, "what": "learning rate drops"}]
    assert "Epochs of the run" in page.page_of(diagnose(case, rules=[]))


def test_after_freed_layers_the_past_is_another(files, tmp_path):
    """Twelve epochs of 6 steps with a frozen backbone, then all layers: the higher loss is no trouble."""
    stages = [{"epochs": 12, "freeze": "backbone"}, {"epochs": 12}]
    trainer, watch = MultiGridTrainer(make_config(files, tmp_path / "run", {"stages": stages})), DoctorWatch()
    watch.trainer = trainer
    watch.set_model(trainer.build_model())
    watch._look, troubled = (lambda: None), []
    watch._asked_early = True  # what is asked before the first step is another matter
    watch._ask = lambda *stages: troubled.append(watch.course.steps)
    losses = [*noisy(100.0, 72), *noisy(250.0, 72)]
    for epoch in range(24):
        if epoch in (0, 12):
            watch.on_train_begin()
        watch.on_epoch_begin(epoch)
        for batch in range(6):
            watch.on_train_batch_begin(batch)
            watch._logs = {}
            watch.on_train_batch_end(batch, {"loss": losses[6 * epoch + batch] / (batch + 1)})
    marked = {event["step"]: event["what"] for event in watch.course.events}
    end = {114: "mosaic and mixup end"}
    assert marked == {0: "training begins", 6: "warm-up ends", 72: "all layers train", 78: "warm-up ends"} | end
    assert troubled == [] and watch._past_from == 114


def test_a_training_that_goes_on_says_so(files, tmp_path):
    watch, detector = DoctorWatch(), MultiGridTrainer(make_config(files, tmp_path / "run")).build_model()
    detector.optimizer.iterations.assign(40)
    watch.set_model(detector)
    watch.on_train_begin()
    assert [event["what"] for event in watch.course.events] == ["goes on after 40 updates"]


def observed(losses) -> list:
    """The steps after which a watch that sees these losses takes them for trouble."""
    watch, troubled = DoctorWatch(), []
    watch._new_past("training begins")
    for step, loss in enumerate(losses):
        watch.course.rows.append({"step": step + 1, "loss": loss})
        if watch._trouble():
            troubled.append(step + 1)
    return troubled


def noisy(level: float, steps: int) -> list:
    """Losses of batches that differ by a third."""
    return list(level * np.random.default_rng(1).uniform(0.7, 1.35, steps))


def test_a_loss_that_rises_above_its_own_past_is_trouble_and_is_said_once():
    assert observed([*noisy(100.0, 200), *noisy(250.0, 200)]) == [10 * WINDOW + WINDOW]
    assert observed(noisy(100.0, 400)) == []
    assert observed([*noisy(100.0, 200), *noisy(120.0, 200)]) == []


def test_what_changes_from_without_raises_nothing():
    """With the end of mosaic, or freed layers, a training has another past."""
    watch = DoctorWatch()
    watch._new_past("training begins")
    for step, loss in enumerate([*noisy(100.0, 200), *noisy(250.0, 200)]):
        if step == 200:
            watch._new_past("next stage")
        watch.course.rows.append({"step": step + 1, "loss": loss})
        assert not watch._trouble()
    assert [event["what"] for event in watch.course.events] == ["training begins", "next stage"]


def test_what_needs_no_training_is_asked_before_the_first_step_and_the_report_is_named(files, tmp_path, capsys):
    config = make_config(files, tmp_path / "run", {"epochs": 1}, diagnosis="watch", loss={"no_object_scale": 100.0})
    trainer = MultiGridTrainer(config)
    trainer.train()
    said = capsys.readouterr()
    lines = (said.out + said.err).replace("\n", " ")
    assert "doctor, step 0:" in lines and "MG605" in lines and "diagnosis.html" in lines
    assert "MG605" in (trainer.own_dir / "diagnosis.json").read_text()
