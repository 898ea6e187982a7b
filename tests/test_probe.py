"""The probe shows what training computes: no more, no less."""

import contextlib
import csv
import json
import math
import pathlib

import keras
import numpy as np
import pytest

from multigrid.cli import main
from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS, ConfigLoader
from multigrid.diagnosis.probe import ProbeMismatchError, check_against_evaluate, describe_batch, flat_row, run_probe
from multigrid.models.darknet import darknet53
from multigrid.models.detector import MultiGridDetector
from multigrid.training.trainer import MultiGridTrainer

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
SHIPPED = (
    "configs/quickstart.yaml",
    "configs/train_config.yaml",
    "benchmarks/accuracy/scratch.yaml",
    "benchmarks/faults/stage.yaml",
)
CLASSES, ANCHORS = 6, 3  # of the embedded data set


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Settings that make any shipped config small: narrow, few scenes, little images that are not square."""
    folder = tmp_path_factory.mktemp("probe") / "shapes"
    return [
        "model.width=0.0625",
        "model.depth=0.1",
        "model.input_size=[64,96]",
        "training.batch_size=5",
        f"data.shapes.folder={folder}",
        "data.shapes.train=12",
        "data.shapes.val=4",
        "data.shapes.test=4",
    ]


@pytest.fixture(scope="module")
def trainer(small):
    trainer = MultiGridTrainer(ConfigLoader.load(CHECKOUT / SHIPPED[1], small))
    trainer.build_model()
    return trainer


@pytest.fixture
def batch(trainer):
    return trainer.train_data[0]


def test_every_shipped_training_config_is_probed_here():
    found = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("configs/*.yaml")}
    found |= {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("benchmarks/*/*.yaml")}
    assert found == set(SHIPPED)


OTHER_OPTIONS = ("loss.assignment=paper", "loss.localization=mse", "loss.classification=focal", "loss.anchor=bce")


@pytest.mark.parametrize(("path", "settings"), [*((path, ()) for path in SHIPPED), (SHIPPED[0], OTHER_OPTIONS)])
def test_the_total_is_what_evaluate_reports(path, settings, small):
    trainer = MultiGridTrainer(ConfigLoader.load(CHECKOUT / path, [*small, *settings]))
    records = list(run_probe(trainer, 2))
    assert len(records) == 2
    for index, record in enumerate(records):
        images, truth = trainer.train_data[index]
        logs = trainer.detector.evaluate(images, truth, batch_size=len(images), verbose=0, return_dict=True)
        assert record["loss_components"]["total_loss"] == pytest.approx(logs["loss"], rel=1e-5)
        for name in LOSS_PARTS:
            assert record["loss_components"][f"{name}_loss"] == pytest.approx(logs[f"{name}_loss"], rel=1e-4, abs=1e-6)


def test_in_training_mode_the_total_is_what_fit_reports_before_its_update(small):
    trainer = MultiGridTrainer(ConfigLoader.load(CHECKOUT / SHIPPED[0], small))
    (record,) = run_probe(trainer, 1, training_mode=True)
    (plain,) = run_probe(trainer, 1)
    images, truth = trainer.train_data[0]
    history = trainer.detector.fit(images, truth, batch_size=len(images), epochs=1, shuffle=False, verbose=0)
    assert record["loss_components"]["total_loss"] == pytest.approx(history.history["loss"][0], rel=1e-5)
    assert plain["loss_components"]["total_loss"] != pytest.approx(history.history["loss"][0], rel=1e-3)


def test_probing_changes_no_variable(trainer, batch):
    before = [keras.ops.convert_to_numpy(variable).copy() for variable in trainer.detector.variables]
    describe_batch(trainer.detector, *batch, training_mode=True)
    for variable, value in zip(trainer.detector.variables, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value, err_msg=variable.path)


def test_the_weighted_components_add_up_to_the_total(trainer, batch):
    record = describe_batch(trainer.detector, *batch)
    parts, scales = record["loss_components"], record["scaling_coefficients"]
    total = sum(scales[scale] * parts[f"{name}_loss"] for name, scale in LOSS_PARTS.items())
    assert parts["total_loss"] == pytest.approx(total, rel=1e-6)
    assert sum(record["weighted_components"].values()) == pytest.approx(total, rel=1e-6)
    for name in LOSS_PARTS:
        by_scale = sum(scale[f"{name}_loss"] for scale in record["per_scale_losses"])
        assert by_scale == pytest.approx(parts[f"{name}_loss"], rel=1e-6)


@pytest.mark.parametrize(("part", "scale"), LOSS_PARTS.items())
def test_doubling_a_scale_doubles_exactly_its_part(part, scale, trainer, batch):
    criterion, before = trainer.detector.criterion, describe_batch(trainer.detector, *batch)
    value = getattr(criterion, scale)
    setattr(criterion, scale, 2 * value)
    try:
        after = describe_batch(trainer.detector, *batch)
    finally:
        setattr(criterion, scale, value)
    for name, weighted in before["weighted_components"].items():
        assert after["weighted_components"][name] == pytest.approx((2 if name == part else 1) * weighted, rel=1e-6)
    gained = after["loss_components"]["total_loss"] - before["loss_components"]["total_loss"]
    assert gained == pytest.approx(before["weighted_components"][part], rel=1e-4, abs=1e-5)


def test_objects_are_counted_and_not_cells(trainer, batch):
    images, truth = batch
    stats = describe_batch(trainer.detector, images, truth)["batch_stats"]
    assert stats["batch_size"] == 5 and stats["num_scales"] == 3
    assert stats["total_objects"] == int((truth["classes"] >= 0).sum())
    assert sum(scale["objects"] for scale in stats["per_scale_stats"]) == stats["total_objects"]
    # 64 × 96 at strides 32, 16 and 8
    assert [scale["grid_shape"] for scale in stats["per_scale_stats"]] == [[2, 3], [4, 6], [8, 12]]
    cells = sum(scale["positive_cells"] for scale in stats["per_scale_stats"])
    assert cells > stats["total_objects"]


def test_a_fresh_head_has_the_closed_forms(trainer, batch):
    units = {unit["component"]: unit for unit in describe_batch(trainer.detector, *batch)["per_unit"]}
    # a cell without an object believes in one at 1 %: -ln 0.99; three equal anchors: ln 3
    assert units["no_object"]["at_initialization"] == pytest.approx(-math.log(0.99), rel=1e-4)
    assert units["anchor"]["at_initialization"] == pytest.approx(math.log(ANCHORS), rel=1e-4)
    # binary cross-entropy at p = 1/6 for each class: -ln(1/6) - 5 ln(5/6)
    expected = math.log(CLASSES) - (CLASSES - 1) * math.log(1 - 1 / CLASSES)
    assert units["classification"]["at_initialization"] == pytest.approx(expected, rel=1e-4)


def test_the_best_constant_head_knows_frequencies(trainer):
    images = np.full((2, 64, 96, 3), 90, "uint8")
    # the same shape four times, each centre in a cell of its own: one class, one anchor, one scale
    boxes = np.array([[[4, 6, 24, 26], [50, 8, 70, 28]], [[10, 34, 30, 54], [64, 36, 84, 56]]], "float32")
    truth = {"boxes": boxes, "classes": np.full((2, 2), 4, "int32")}
    units = {unit["component"]: unit for unit in describe_batch(trainer.detector, images, truth)["per_unit"]}
    assert units["classification"]["best_constant"] == pytest.approx(0.0, abs=1e-4)
    assert units["anchor"]["best_constant"] == pytest.approx(0.0, abs=1e-4)
    assert units["classification"]["at_initialization"] > 1.0


def test_an_encoder_that_lets_padding_answer_is_probed_all_the_same(trainer, batch, monkeypatch):
    images, truth = batch
    encode = trainer.detector.criterion.encode
    as_objects = lambda y_true, outputs: encode({**y_true, "classes": np.abs(y_true["classes"])}, outputs)  # noqa: E731

    def padding_answers(y_true, outputs):
        return as_objects(y_true, outputs)._replace(classes=y_true["classes"])

    boxes = np.concatenate([truth["boxes"], [[[30, 12, 50, 32]]] * len(images)], axis=1).astype("float32")
    classes = np.concatenate([truth["classes"], [[-1]] * len(images)], axis=1).astype("int32")
    monkeypatch.setattr(trainer.detector.criterion, "encode", padding_answers)
    record = describe_batch(trainer.detector, images, {"boxes": boxes, "classes": classes})
    assert all(unit["best_constant"] is not None for unit in record["per_unit"])


def test_an_image_without_objects_has_only_objectness(trainer):
    images, classes = np.zeros((1, 64, 96, 3), "uint8"), np.full((1, 8), -1, "int32")
    record = describe_batch(trainer.detector, images, {"boxes": np.zeros((1, 8, 4), "float32"), "classes": classes})
    for name in ("localization", "object", "anchor", "classification"):
        assert record["loss_components"][f"{name}_loss"] == 0.0
    assert record["loss_components"]["no_object_loss"] > 0.0
    assert {unit["component"]: unit["measured"] for unit in record["per_unit"]}["localization"] is None


def test_a_probe_that_measures_something_else_refuses(trainer, batch, monkeypatch):
    true_evaluate = trainer.detector.evaluate
    monkeypatch.setattr(
        type(trainer.detector),
        "evaluate",
        lambda self, *arguments, **options: {"loss": true_evaluate(*arguments, **options)["loss"] * 1.001},
    )
    with pytest.raises(ProbeMismatchError, match="expected .* as evaluate reports it"):
        check_against_evaluate(trainer.detector, *batch)


@pytest.mark.parametrize(("told", "agrees"), [(math.nan, False), (math.inf, False), (3.0, False), (None, True)])
def test_a_total_that_only_one_of_the_two_finds_finite_is_refused(told, agrees, trainer, batch, monkeypatch):
    if told is not None:
        monkeypatch.setattr(type(trainer.detector), "evaluate", lambda self, *arguments, **options: {"loss": told})
    with contextlib.nullcontext() if agrees else pytest.raises(ProbeMismatchError):
        check_against_evaluate(trainer.detector, *batch)


def test_two_totals_of_which_none_is_finite_are_left_to_the_report(trainer, batch, monkeypatch):
    total = trainer.detector.loss_breakdown(*batch)._replace(total=keras.ops.convert_to_tensor(math.nan))
    monkeypatch.setattr(type(trainer.detector), "loss_breakdown", lambda self, *arguments, **options: total)
    monkeypatch.setattr(type(trainer.detector), "evaluate", lambda self, *arguments, **options: {"loss": math.nan})
    assert math.isnan(check_against_evaluate(trainer.detector, *batch))
    monkeypatch.setattr(type(trainer.detector), "evaluate", lambda self, *arguments, **options: {"loss": 3.0})
    with pytest.raises(ProbeMismatchError):
        check_against_evaluate(trainer.detector, *batch)


def test_a_compiled_detector_of_the_callers_is_probed_as_it_is(trainer):
    optimizer = trainer.detector.optimizer
    other = MultiGridTrainer(trainer.config, detector=trainer.detector)
    (record,) = run_probe(other, 1)
    assert record["batch_stats"]["batch_size"] == 5
    assert other.detector is trainer.detector and trainer.detector.optimizer is optimizer


def test_regularizers_are_in_the_probes_total_as_in_evaluates(trainer, batch):
    backbone = darknet53(0.0625, 0.1)
    backbone.get_layer("stem_conv").kernel.regularizer = keras.regularizers.L2(0.5)
    plain = trainer.detector
    criterion = plain.criterion
    detector = MultiGridDetector(plain.anchors, CLASSES, width=0.0625, backbone=backbone, criterion=criterion)
    detector.compile(keras.optimizers.SGD(0.01), jit_compile=False)
    assert check_against_evaluate(detector, *batch) < 1e-5
    record = describe_batch(detector, *batch)
    extra = record["loss_components"]["regularization_loss"]
    assert extra > 0.1
    total = sum(record["weighted_components"].values()) + extra
    assert record["loss_components"]["total_loss"] == pytest.approx(total, rel=1e-6)
    assert flat_row(record)["regularization_loss"] == extra
    assert "regularization_loss" not in describe_batch(plain, *batch)["loss_components"]


def test_the_best_constant_objectness_is_the_mean_of_its_targets(small):
    # one object in one cell of 6, 24 or 96, whose target is 1: the best constant costs the entropy of that share
    settings = [*small, "loss.assignment=single", "loss.iou_power=0", "loss.ignore_threshold=1.0"]
    trainer = MultiGridTrainer(ConfigLoader.load(CHECKOUT / SHIPPED[1], settings))
    detector = trainer.build_model()
    boxes = np.array([[[4, 6, 24, 26]]], "float32")
    truth = {"boxes": boxes, "classes": np.full((1, 1), 2, "int32")}
    record = describe_batch(detector, np.full((1, 64, 96, 3), 90, "uint8"), truth)
    units = {unit["component"]: unit for unit in record["per_unit"]}
    (cells,) = [
        math.prod(scale["grid_shape"])
        for scale in record["batch_stats"]["per_scale_stats"]
        if scale["positive_cells"] == 1
    ]
    assert units["object"]["best_constant"] == pytest.approx(-math.log(1 / cells), rel=1e-4)


def test_the_command_writes_json_and_csv_that_agree(small, tmp_path, capsys):
    output = tmp_path / "probe"
    arguments = ["probe", "--config", str(CHECKOUT / SHIPPED[1]), "--output-dir", str(output), "--verbose", *small]
    assert main([*arguments, "--num-batches", "2"]) == 0
    printed = capsys.readouterr().out
    for word in ("claims lost", "normalization_factor", "coord_scale", "best constant head"):
        assert word in printed
    assert "fewer than --num-batches" not in printed
    records = json.loads((output / "loss_components.json").read_text())
    rows = list(csv.DictReader((output / "loss_components.csv").open()))
    assert len(records) == len(rows) == 2
    keys = {"batch_idx", "batch_stats", "loss_components", "scaling_coefficients", "per_scale_losses"}
    assert keys <= records[0].keys()
    assert list(rows[0])[:13] == [
        *("batch_idx", "batch_size", "total_objects", "total_loss", "localization_loss", "objectness_loss"),
        *("anchor_loss", "classification_loss", "coord_scale", "object_scale", "no_object_scale", "anchor_scale"),
        "class_scale",
    ]
    for record, row in zip(records, rows, strict=True):
        assert float(row["total_loss"]) == pytest.approx(record["loss_components"]["total_loss"])
        assert int(row["total_objects"]) == record["batch_stats"]["total_objects"]


def test_optional_parts_are_in_every_table_and_file(small, tmp_path, capsys):
    settings = ["loss.consensus_scale=0.5", "loss.suppression_scale=2", "loss.ignore_threshold=0.2"]
    arguments = ["probe", "--config", str(CHECKOUT / SHIPPED[0]), "--output-dir", str(tmp_path), "--verbose", *small]
    assert main([*arguments, *settings, "--num-batches", "1"]) == 0
    printed = capsys.readouterr().out
    (record,) = json.loads((tmp_path / "loss_components.json").read_text())
    (row,) = csv.DictReader((tmp_path / "loss_components.csv").open())
    units = {unit["component"]: unit for unit in record["per_unit"]}
    for name, scale in OPTIONAL_LOSS_PARTS.items():
        value = record["loss_components"][f"{name}_loss"]
        assert value > 0.0
        assert float(row[f"{name}_loss"]) == pytest.approx(value)
        assert (
            float(row[scale]) == record["scaling_coefficients"][scale] == {"consensus": 0.5, "suppression": 2.0}[name]
        )
        by_scale = [grid[f"{name}_loss"] for grid in record["per_scale_losses"]]
        assert sum(by_scale) == pytest.approx(value)
        assert [float(row[f"{name}_loss_{stride}"]) for stride in (32, 16, 8)] == pytest.approx(by_scale)
        assert record["weighted_components"][name] == pytest.approx(float(row[scale]) * value)
        # in the tables of the loss, of the scales (as a column) and of the units
        assert len([line for line in printed.splitlines() if f" {name} " in line]) == 2
        assert f"{scale} = {float(row[scale]):g}" in printed and f"{name}_loss" in printed
    assert (units["consensus"]["unit"], units["suppression"]["unit"]) == ("positive cell", "ignored cell")
    parts, scales = record["loss_components"], record["scaling_coefficients"]
    total = sum(scales[scale] * parts[f"{name}_loss"] for name, scale in (LOSS_PARTS | OPTIONAL_LOSS_PARTS).items())
    assert parts["total_loss"] == pytest.approx(total, rel=1e-6)
    ignored = sum(scale["ignored_cells"] for scale in record["batch_stats"]["per_scale_stats"])
    assert units["suppression"]["measured"] * ignored == pytest.approx(5 * parts["suppression_loss"], rel=1e-5)


def test_optional_parts_that_are_off_are_nowhere(small, tmp_path, capsys):
    arguments = ["probe", "--config", str(CHECKOUT / SHIPPED[0]), "--output-dir", str(tmp_path), "--verbose", *small]
    assert main([*arguments, "--num-batches", "1"]) == 0
    files = [(tmp_path / f"loss_components.{kind}").read_text() for kind in ("json", "csv")]
    for text in (capsys.readouterr().out, *files):
        assert "localization" in text and not [name for name in OPTIONAL_LOSS_PARTS if name in text]


def test_the_command_shows_raw_objectness_and_says_when_there_are_fewer_batches(small, tmp_path, capsys):
    arguments = ["probe", "--config", str(CHECKOUT / SHIPPED[0]), "--output-dir", str(tmp_path), *small]
    # 12 scenes by 5 make 3 batches
    assert main([*arguments, "--num-batches", "4", "--format", "json"]) == 0
    printed = capsys.readouterr().out
    assert "the training data has 3 batches, fewer than --num-batches 4" in printed
    records = json.loads((tmp_path / "loss_components.json").read_text())
    assert len(records) == 3
    raw = f"{records[0]['loss_components']['objectness_loss']:.4g}"
    row = next(line for line in printed.splitlines() if "objectness" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")] == ["objectness", raw, "", ""]


def test_a_part_that_is_not_finite_fails_the_command(small, tmp_path, capsys, monkeypatch):
    from multigrid.losses import components

    monkeypatch.setattr(components, "anchor", lambda kind, logits, index: logits[..., 0] * math.nan)
    arguments = ["probe", "--config", str(CHECKOUT / SHIPPED[0]), "--output-dir", str(tmp_path), *small]
    assert main([*arguments, "--num-batches", "1"]) == 1
    assert "anchor_loss is not finite" in capsys.readouterr().err
