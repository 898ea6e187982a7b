"""The trainer: real, tiny trainings on drawn scenes, and what they leave behind."""

import csv
import io
import json
import math
import os
import pathlib

import cv2
import keras
import numpy as np
import pytest
from rich.console import Console

from multigrid import assembly, report
from multigrid.config import LOSS_PARTS, Config, ConfigLoader
from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.shapes import CLASS_NAMES
from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.blocks import blocks_of
from multigrid.models.detector import MultiGridDetector
from multigrid.training.guard import NonFiniteLossError
from multigrid.training.trainer import MultiGridTrainer

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]


@pytest.fixture(scope="module")
def files(draw_scenes):
    """Drawn scenes (12 to train, 5 to validate), class names and anchors."""
    return draw_scenes(train=12, val=5)


def make_config(files, output, **sections):
    """Two epochs of batches of 5, 5 and 2 scenes at 64 × 96 pixels; `sections` add to that."""
    plain = {
        "data": {"shapes": {"folder": os.path.abspath("datasets/shapes")}, "workers": 1, **files},
        "model": {"width": 0.0625, "depth": 0.125, "input_size": (64, 96)},
        "augmentation": {"mosaic_off_epochs": 1},
        "training": {"epochs": 2, "batch_size": 5, "warmup_epochs": 0.5, "learning_rate": 5e-3, "optimizer": "sgd"},
        "output": {"dir": None if output is None else str(output)},
    }
    return Config(**{name: {**plain.get(name, {}), **sections.get(name, {})} for name in {**plain, **sections}})


def read_results(run_dir):
    with open(pathlib.Path(run_dir) / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: float(value or "nan") for name, value in row.items()} for row in rows]  # empty: not measured


def bytes_of(model):
    return [weight.tobytes() for weight in model.get_weights()]


def in_file(trainer, name):
    """The weights of a checkpoint of the run."""
    detector = trainer.detector
    kept = detector.get_weights()
    detector.load_weights(trainer.run_dir / "weights" / f"{name}.weights.h5")
    found = bytes_of(detector)
    detector.set_weights(kept)
    return found


def first_kernel(detector):
    return keras.ops.convert_to_numpy(detector.backbone.get_layer("stem_conv").kernel).copy()


class FirstKernels(keras.callbacks.Callback):
    """Keeps the first kernel as it is after every step."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def on_train_batch_end(self, batch, logs=None):
        self.kernels.append(first_kernel(self.model))


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    """A finished training: its trainer and history."""
    config = make_config(files, tmp_path_factory.mktemp("runs") / "one")
    trainer = MultiGridTrainer(config, callbacks=[FirstKernels()])
    return trainer, trainer.train()


# --- what a run leaves


def test_the_run_folder_holds_all_that_is_promised(finished):
    folder = finished[0].run_dir
    promised = {"config.yaml", "results.csv", "weights", "tensorboard", "train_batch.jpg", "predictions.jpg"}
    promised |= {"classes.txt", "anchors.txt", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == promised
    assert {path.name for path in (folder / "weights").iterdir()} == {"best.weights.h5", "last.weights.h5"}
    assert {path.name for path in (folder / "tensorboard").iterdir()} >= {"train", "validation"}
    for name in ("train_batch.jpg", "predictions.jpg"):
        assert min(cv2.imread(str(folder / name)).shape[:2]) >= 64


def test_the_saved_config_loads_back_to_the_same_with_classes_and_anchors_of_the_run(finished):
    trainer = finished[0]
    saved = ConfigLoader.load(trainer.run_dir / "config.yaml")
    copies = {name: str(trainer.run_dir / f"{name}.txt") for name in ("classes", "anchors")}
    assert {name: getattr(saved.data, name) for name in copies} == copies
    data = saved.data.model_copy(update={name: getattr(trainer.config.data, name) for name in copies})
    assert saved.model_copy(update={"data": data}) == trainer.config
    assert assembly.read_vocabulary(saved) == trainer.vocabulary


def test_anchors_that_are_fitted_anew_do_not_change_what_an_old_run_decodes(own, files, tmp_path):
    anchors = tmp_path / "anchors.txt"
    anchors.write_text(pathlib.Path(files["anchors"]).read_text())
    config = make_config({**files, "anchors": str(anchors), "val": None}, tmp_path / "run", training={"epochs": 1})
    trainer = MultiGridTrainer(config, detector=own, train_data=OwnData(1))
    trainer.train()
    anchors.write_text("9,7  13,10  21,15  15,31  41,29  49,45\n")
    saved = ConfigLoader.load(trainer.run_dir / "config.yaml")
    assert assembly.read_vocabulary(saved).anchors.to_list() == ANCHORS


def test_the_results_have_a_row_an_epoch_and_every_figure(finished):
    trainer, history = finished
    rows = read_results(trainer.run_dir)
    assert [row["epoch"] for row in rows] == [0, 1]
    losses = ["loss", "objectness_loss", *(f"{name}_loss" for name in LOSS_PARTS)]
    by_scale = [f"{name}_loss_{stride}" for name in LOSS_PARTS for stride in (32, 16, 8)]
    measured = [*losses, *by_scale, "objects", "positives", "ignored"]
    rest = ["val_mAP50", "val_mAP", "learning_rate", "grad_norm", "seconds"]
    rest += [f"grad_norm/{block}" for block in blocks_of(trainer.detector)]
    assert set(rows[0]) == {"epoch", *measured, *(f"val_{name}" for name in measured), *rest}
    for row in rows:
        assert all(math.isfinite(value) for value in row.values())
        assert row["grad_norm"] > 0 and row["seconds"] > 0 and row["val_positives"] > 0
    assert [row["loss"] for row in rows] == pytest.approx(history.history["loss"])
    loss = trainer.config.loss
    total = sum(getattr(loss, scale) * rows[1][f"val_{name}_loss"] for name, scale in LOSS_PARTS.items())
    assert rows[1]["val_loss"] == pytest.approx(total, rel=1e-4)


def test_the_detector_learns_something(finished):
    rows = read_results(finished[0].run_dir)
    assert rows[1]["loss"] < rows[0]["loss"]


def test_the_learning_rate_ends_where_the_config_says(finished):
    # 2 epochs of 3 steps; 0.05 of 5e-3 is left at the end
    assert read_results(finished[0].run_dir)[1]["learning_rate"] == pytest.approx(0.05 * 5e-3, rel=1e-4)


def test_the_best_weights_are_in_the_detector_and_are_the_averaged_ones(finished):
    trainer = finished[0]
    assert bytes_of(trainer.detector) == in_file(trainer, "best")
    # the last epoch's metrics are those of the weights in last.weights.h5: the average, not the raw ones
    detector = trainer.detector
    detector.load_weights(trainer.run_dir / "weights" / "last.weights.h5")
    logs = detector.evaluate(trainer.val_data, verbose=0, return_dict=True)
    detector.load_weights(trainer.run_dir / "weights" / "best.weights.h5")
    assert logs["loss"] == pytest.approx(read_results(trainer.run_dir)[1]["val_loss"], rel=1e-4)


def test_the_average_runs_over_all_steps_and_does_not_steer_them(finished):
    trainer = finished[0]
    kernels = trainer.callbacks[0].kernels
    assert len(kernels) == 6
    average = kernels[0]
    for kernel in kernels[1:]:
        average = 0.99 * average + 0.01 * kernel
    trainer.detector.load_weights(trainer.run_dir / "weights" / "last.weights.h5")
    found = first_kernel(trainer.detector)
    trainer.detector.load_weights(trainer.run_dir / "weights" / "best.weights.h5")
    np.testing.assert_allclose(found, average, atol=1e-6)
    assert np.abs(found - kernels[-1]).max() > 1e-4


def test_it_evaluates_its_detector_as_it_is(finished):
    trainer = finished[0]
    measured = trainer.evaluate("val")
    rows = read_results(trainer.run_dir)
    assert measured.metrics["mAP"] == pytest.approx(max(row["val_mAP"] for row in rows), abs=1e-6)
    assert (measured.metrics["images"], len(measured.ground_truth["images"])) == (5, 5)
    with pytest.raises(InputError, match=r"data\.test: expected labels, received null"):
        trainer.evaluate("test")


# --- other ways to train


def test_the_same_seed_gives_the_same_curve_and_validation_does_not_disturb_it(finished, files, tmp_path):
    trainer = MultiGridTrainer(make_config({**files, "val": None}, tmp_path / "two"))
    history = trainer.train().history
    assert history["loss"] == pytest.approx(finished[1].history["loss"], rel=1e-3)
    assert history["objects"] == finished[1].history["objects"]
    # without validation the lowest loss is the best, and there is nothing to compare predictions with
    row = read_results(trainer.run_dir)[0]
    assert all(math.isnan(value) for name, value in row.items() if name.startswith("val_"))
    assert not (trainer.run_dir / "predictions.jpg").exists()
    assert bytes_of(trainer.detector) == in_file(trainer, "best")


def test_it_stops_early_and_keeps_the_best_when_it_measures_every_second_epoch(files, tmp_path):
    sections = {
        "training": {"epochs": 9, "batch_size": 5, "validate_every": 2, "early_stopping": 1},
        "detection": {"score_threshold": 0.99},  # nothing is found: every mAP is 0, and the first is the best
    }
    trainer = MultiGridTrainer(make_config(files, tmp_path / "three", **sections))
    trainer.train()
    # epochs 1 and 3 are measured; one measurement that is no better ends it
    mean = [row["val_mAP"] for row in read_results(trainer.run_dir)]
    assert mean == pytest.approx([0.0, math.nan, 0.0], nan_ok=True)
    assert in_file(trainer, "best") != in_file(trainer, "last")
    assert bytes_of(trainer.detector) == in_file(trainer, "best")


class OwnData(keras.utils.PyDataset):
    """Batches of another kind of data: no files, no epochs."""

    def __init__(self, count):
        super().__init__()
        rng = np.random.default_rng(count)
        self.images = rng.integers(0, 256, (count, 2, 64, 96, 3), dtype=np.uint8)
        self.asked = 0

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.asked += 1
        boxes, classes = np.zeros((2, 8, 4), "float32"), np.full((2, 8), -1, "int32")
        boxes[:, 0], classes[:, 0] = (10.0, 12.0, 31.0, 27.0), index % len(CLASS_NAMES)
        return self.images[index], {"boxes": boxes, "classes": classes}


@pytest.fixture(scope="module")
def own():
    """A caller's own compiled detector; its plain optimizer knows no average and no norm."""
    criterion = MultiGridLoss(ANCHORS, len(CLASS_NAMES))
    detector = MultiGridDetector(ANCHORS, len(CLASS_NAMES), width=1 / 16, depth=1 / 8, criterion=criterion)
    detector.compile(keras.optimizers.SGD(0.003), jit_compile=False)
    return detector


def test_the_callers_own_parts_are_used(own, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    callback = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(logs["val_loss"]))
    data, val_data = OwnData(3), OwnData(2)
    config = make_config({**files, "train": None, "val": None}, None)
    trainer = MultiGridTrainer(
        config, name="mine", detector=own, train_data=data, val_data=val_data, callbacks=[callback]
    )
    trainer.train()
    assert trainer.detector is own and trainer.train_data is data and trainer.val_data is val_data
    assert data.asked >= 6 and val_data.asked >= 4 and len(seen) == 2
    assert float(own.optimizer.learning_rate) == pytest.approx(0.003)
    rows = read_results(trainer.run_dir)
    assert [row["val_loss"] for row in rows] == pytest.approx(seen)
    assert all(math.isnan(row["grad_norm"]) for row in rows) and "val_mAP" not in rows[0]
    assert trainer.run_dir == pathlib.Path("runs/mine-1")
    assert (tmp_path / "runs" / "mine-1" / "train_batch.jpg").is_file()


def test_what_is_compiled_stays_as_it_is(own, files, tmp_path):
    optimizer = own.optimizer
    trainer = MultiGridTrainer(make_config(files, tmp_path / "run"), detector=own, train_data=OwnData(1))
    assert trainer.build_model() is own and own.optimizer is optimizer


def test_a_detector_that_is_not_compiled_is_compiled_by_the_config(files, tmp_path):
    criterion = MultiGridLoss(ANCHORS, len(CLASS_NAMES))
    fresh = MultiGridDetector(ANCHORS, len(CLASS_NAMES), width=1 / 16, depth=1 / 8, criterion=criterion)
    trainer = MultiGridTrainer(make_config(files, tmp_path / "run"), detector=fresh, train_data=OwnData(3))
    assert trainer.build_model() is fresh and fresh.compiled
    optimizer = fresh.optimizer
    assert trainer.build_model().optimizer is optimizer


def test_mixed_precision_is_the_detectors_and_not_the_processs(files, tmp_path):
    sections = {"model": {"precision": "mixed_bfloat16", "width": 0.0625, "depth": 0.125, "input_size": (64, 96)}}
    config = make_config(files, tmp_path / "run", **sections)
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    assert detector.dtype_policy.name == "mixed_bfloat16"
    assert detector.backbone.get_layer("stem_conv").compute_dtype == "bfloat16"
    assert keras.config.dtype_policy().name == "float32"


def test_own_data_beside_the_configs_model_and_validation(files, tmp_path):
    trainer = MultiGridTrainer(make_config(files, tmp_path / "five"), train_data=OwnData(3))
    detector = trainer.build_model()
    assert isinstance(trainer.train_data, OwnData) and isinstance(trainer.val_data, MultiGridDataGenerator)
    assert detector.compiled and detector.num_classes == len(CLASS_NAMES)
    assert len(trainer.samples["val"]) == 5 and "train" not in trainer.samples


def test_scenes_without_objects_are_validated_by_their_loss(own, files, tmp_path):
    lines = pathlib.Path(files["val"]).read_text().splitlines()
    folder = pathlib.Path(files["val"]).parent
    empty = tmp_path / "empty.txt"
    empty.write_text("".join(f"{folder / line.split()[0]}\n" for line in lines))
    config = make_config({**files, "val": str(empty)}, tmp_path / "run", training={"epochs": 1})
    trainer = MultiGridTrainer(config, detector=own, train_data=OwnData(3))
    trainer.train()
    (row,) = read_results(trainer.run_dir)
    assert "val_mAP" not in row and row["val_objects"] == 0 and row["val_localization_loss"] == 0
    assert (trainer.run_dir / "predictions.jpg").is_file()
    assert bytes_of(own) == in_file(trainer, "best")


def test_runs_without_a_folder_of_their_own_are_numbered(own, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine-1").mkdir(parents=True)
    config = make_config({**files, "train": None, "val": None}, None, training={"epochs": 1})
    trainer = MultiGridTrainer(config, name="mine", detector=own, train_data=OwnData(1))
    trainer.train()
    assert trainer.run_dir.name == "mine-2"
    assert not list((tmp_path / "runs" / "mine-1").iterdir())


# --- what is refused


def test_a_folder_in_use_is_refused_and_left_as_it_is(own, files, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    config = make_config({**files, "train": None, "val": None}, folder)
    data = OwnData(1)
    before = bytes_of(own)
    with pytest.raises(InputError, match=r"output\.dir: expected a new or empty folder, received .*run, which is in"):
        MultiGridTrainer(config, detector=own, train_data=data).train()
    assert [path.name for path in tmp_path.rglob("*")] == ["run", "notes.txt"]
    assert bytes_of(own) == before and data.asked == 0


def test_bad_labels_are_refused_before_anything_is_written(files, tmp_path):
    labels = tmp_path / "train.txt"
    labels.write_text("none.jpg 1,2,30,40,0\n")
    with pytest.raises(InputError, match=r"none\.jpg"):
        MultiGridTrainer(make_config({**files, "train": str(labels)}, tmp_path / "run")).train()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["train", "classes", "anchors"])
def test_a_config_that_lacks_data_says_what(files, tmp_path, key):
    with pytest.raises(InputError, match=rf"data\.{key}: expected .*, received null"):
        MultiGridTrainer(make_config({**files, key: None}, tmp_path / "run")).train()


def test_a_detector_without_a_criterion_is_refused(files, tmp_path):
    bare = MultiGridDetector(ANCHORS, len(CLASS_NAMES), width=1 / 16, depth=1 / 8)
    config = make_config({**files, "val": None}, tmp_path / "run")
    with pytest.raises(ValueError, match="detector: expected one with a criterion"):
        MultiGridTrainer(config, detector=bare, train_data=OwnData(1)).train()
    assert not (tmp_path / "run").exists()


def test_a_detector_for_other_classes_or_anchors_is_refused_before_there_is_a_folder(files, tmp_path):
    wrong = {
        "classes": (ANCHORS, len(CLASS_NAMES) - 1),
        "anchors": ([[[41.0, 28.0], [48.0, 44.0]], *ANCHORS[1:]], None),
    }
    for word, (anchors, count) in wrong.items():
        detector = MultiGridDetector(anchors, count or len(CLASS_NAMES), width=1 / 16, depth=1 / 8)
        trainer = MultiGridTrainer(make_config(files, tmp_path / "run"), detector=detector, train_data=OwnData(1))
        with pytest.raises(InputError, match=rf"detector: expected .*data\.{word}.*, received"):
            trainer.train()
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [KeyboardInterrupt, NonFiniteLossError])
def test_an_interrupted_training_takes_its_bar_away(error, own, files, tmp_path, monkeypatch):
    made = []

    class Display(report.StepProgress):
        def __init__(self, steps):
            super().__init__(steps, Console(file=io.StringIO(), force_terminal=True))
            made.append(self)

    def interrupt(batch, logs):
        assert made[0].bar is not None
        raise error("stop")

    monkeypatch.setattr(report, "StepProgress", Display)
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=interrupt)
    config = make_config({**files, "val": None}, tmp_path / "run", training={"epochs": 1})
    with pytest.raises(error):
        MultiGridTrainer(config, detector=own, train_data=OwnData(1), callbacks=[callback]).train()
    assert len(made) == 1 and made[0].bar is None


# --- long work


@pytest.fixture
def console(monkeypatch):
    """Where `report` writes in the test: (text file, function that makes it a terminal)."""
    text, kind = io.StringIO(), {"force_terminal": False}
    monkeypatch.setattr(report, "new_console", lambda file=None: Console(file=text, width=200, **kind))
    return text, lambda: kind.update(force_terminal=True)


def test_few_images_leave_no_line_in_a_log(files, tmp_path, console):
    assembly.read_split(make_config(files, tmp_path), "train", CLASS_NAMES)
    assert console[0].getvalue() == ""


def test_many_images_are_one_line_first_and_one_last_in_a_log(files, tmp_path, console, monkeypatch):
    monkeypatch.setattr(assembly, "MANY_IMAGES", 12)
    assembly.read_split(make_config(files, tmp_path), "train", CLASS_NAMES)
    lines = console[0].getvalue().splitlines()
    assert [line.split(" in ")[0] for line in lines] == [
        *("data.train: image sizes: 12 ...", "data.train: image sizes: 12"),
        *("data.train: opening images: 12 ...", "data.train: opening images: 12"),
    ]


def test_a_terminal_shows_a_bar_for_drawing_and_reading(files, tmp_path, console):
    console[1]()
    drawing = {"folder": str(tmp_path / "drawn"), "train": 3, "val": 1, "test": 1}
    config = make_config({**files, "train": "shapes", "shapes": drawing}, tmp_path)
    assembly.read_split(config, "train", CLASS_NAMES)
    shown = console[0].getvalue()
    for words in ("drawing scenes", "data.train: image sizes", "data.train: opening images", "100%"):
        assert words in shown


def test_long_work_that_fails_takes_its_bar_along(console):
    console[1]()
    with pytest.raises(KeyboardInterrupt), report.counting("drawing") as progress:
        progress(1, 3)
        raise KeyboardInterrupt
    assert console[0].getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_the_configs_weights_are_where_training_starts(finished, files, tmp_path):
    weights = finished[0].run_dir / "weights" / "last.weights.h5"
    config = make_config(files, tmp_path / "run").model_copy(update={"weights": str(weights)})
    trainer = MultiGridTrainer(config, train_data=OwnData(1))
    assert bytes_of(trainer.build_model()) == in_file(finished[0], "last")
    assert [ledger.tensor_share for ledger in trainer.ledgers] == [1.0]


def test_a_training_that_begins_with_weights_leaves_their_ledger(finished, files, tmp_path):
    weights = finished[0].run_dir / "weights" / "last.weights.h5"
    config = make_config({**files, "val": None}, tmp_path / "run", training={"epochs": 1})
    trainer = MultiGridTrainer(config.model_copy(update={"backbone_weights": str(weights)}), train_data=OwnData(1))
    trainer.train()
    (ledger,) = json.loads((tmp_path / "run" / "weights.json").read_text())
    assert ledger["tensor_share"] == 1.0 and ledger["path"] == str(weights)
