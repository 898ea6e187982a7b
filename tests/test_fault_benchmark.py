"""The benchmark of the doctor: every fault changes what it should, nothing tells which, and the figures add up."""

import importlib
import math
import pathlib
import sys

import keras
import numpy as np
import pytest
from keras import ops

from multigrid import assembly
from multigrid.diagnosis.finding import GROUPS, PARTS
from multigrid.diagnosis.rules import RULES
from multigrid.losses.multigrid_loss import MultiGridLoss

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "faults"
MODULES = (
    "one_core",
    "stage",
    "making",
    "faults",
    "controls",
    "runs",
    "damage_rules",
    "score",
    "apply",
    "examine",
    "spread",
)
SMALL = ("model.width=0.0625", "model.input_size=[64, 96]", "training.batch_size=4", "data.cache=false")


@pytest.fixture(scope="module")
def bench():
    """A function from a name to a module of the benchmark; what was imported goes with the tests."""
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module
    sys.path.remove(str(FOLDER))
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in MODULES:
            del sys.modules[name]


@pytest.fixture(scope="module")
def stage(bench, draw_scenes, tmp_path_factory):
    """A small stage: nine scenes at 64 × 96 pixels, with a random backbone for the file of the pretrained one."""
    folder = tmp_path_factory.mktemp("stage")
    files = draw_scenes(train=9, val=5)
    settings = (*(f"data.{name}={path}" for name, path in files.items()), *SMALL)
    made = bench("stage").Stage("drawn", folder / "drawn", settings)
    config = bench("stage").ConfigLoader.load(bench("stage").CONFIG, list(settings))
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    bench("stage").save_weights(detector.backbone, made.backbone)
    return made


@pytest.fixture(scope="module")
def faulty(bench, stage, tmp_path_factory):
    """A function from a fault to (the healthy making, the making with the gross fault)."""

    def pair(fault):
        making = bench("making").Making
        healthy, other = (making(stage, 1, fault.settings, tmp_path_factory.mktemp("files")) for _ in range(2))
        fault.put_into(other, "gross")
        return healthy, other

    return pair


def changed_parts(making) -> set:
    return {part for part, changes in making._changes.items() if changes}


def test_the_development_set_is_whole_and_the_further_set_large(bench):
    faults = bench("faults").FAULTS.values()
    development = [fault for fault in faults if fault.set == "development"]
    assert len(development) == len({fault.code for fault in development}) == 30
    assert sum(fault.set == "further" for fault in faults) >= 20 and sum(fault.set == "blind" for fault in faults) >= 30
    assert {fault.group for fault in faults} == set(GROUPS)
    for fault in faults:
        assert "gross" in fault.doses and fault.when in bench("faults").WHEN, fault
        assert list(fault.doses) == list(bench("faults").DOSES)[: len(fault.doses)], fault
    known = {rule.id for rule in RULES}
    assert {one for fault in faults for one in fault.accepted} <= known
    assert all(fault.accepted for fault in faults)


def test_every_fault_changes_a_part_or_the_config(bench, faulty):
    unchanged = []
    for fault in bench("faults").FAULTS.values():
        healthy, other = faulty(fault)
        if not changed_parts(other) and healthy.checked() == other.checked():
            unchanged.append(fault.key)
    assert unchanged == []


def test_faults_of_the_data_change_its_batches(bench, faulty):
    unchanged, tried = [], 0
    for fault in bench("faults").FAULTS.values():
        healthy, other = faulty(fault)
        if not changed_parts(other) & {"samples", "generator", "batches"} or fault.key == "batches_come_slowly":
            continue
        tried += 1
        data, plain = other.data(), healthy.data()
        for one in (data, plain):
            one.epoch = 1  # the draws of an epoch that repeats the first differ from here on
        batches = [(one[index], two[index]) for index in range(2) for one, two in [(data, plain)]]
        if fault.key == "epoch_too_short":
            assert len(data) < len(plain)
            continue
        if not any(_differ(first, second) for first, second in batches):
            unchanged.append(fault.key)
        assert len(data) == len(plain) and data.epoch == 1
        assert type(data).__name__ in ("Data", "MultiGridDataGenerator")
    assert unchanged == [] and tried >= 20


def _differ(first, second) -> bool:
    pairs = [(first[0], second[0]), *((first[1][name], second[1][name]) for name in ("boxes", "classes"))]
    return any(one.shape != two.shape or not np.array_equal(one, two, equal_nan=True) for one, two in pairs)


def test_faults_of_the_loss_change_what_it_says_of_the_same_outputs(bench, faulty):
    """Of random outputs; some parts need positive cells, padding and an image without objects.

    The gradient that a part has lost is none of the numbers that are compared.
    """
    rng = np.random.default_rng(5)
    grids = [rng.normal(0, 2, (2, rows, columns, 14)).astype("float32") for rows, columns in [(2, 3), (4, 6), (8, 12)]]
    outputs = [ops.convert_to_tensor(grid) for grid in grids]
    boxes = np.zeros((2, 3, 4), "float32")
    boxes[0, :2] = [[11, 5, 39, 30], [50, 20, 62, 41]]
    truth = {"boxes": boxes, "classes": np.array([[1, 4, -1], [-1, -1, -1]], "int32")}
    anchors = [[[40, 28], [48, 44], [60, 60]], [[20, 14], [14, 30], [22, 22]], [[8, 6], [12, 9], [9, 12]]]
    unchanged, tried = [], 0
    for fault in bench("faults").FAULTS.values():
        _, other = faulty(fault)
        if "criterion" not in changed_parts(other):
            continue
        tried += 1
        options = other.checked().loss.model_dump()
        plain = MultiGridLoss(anchors, 6, **{**options, "class_weights": None})
        changed = other._through("criterion", MultiGridLoss(anchors, 6, **{**options, "class_weights": None}))
        assert type(changed).__name__ == "MultiGridLoss"
        totals = [float(one(truth, outputs)) for one in (plain, changed)]
        if totals[0] == pytest.approx(totals[1], rel=1e-6):
            unchanged.append(fault.key)
    assert unchanged == ["part_without_gradient"] and tried >= 12


def test_faults_of_the_detector_change_its_state(bench, faulty):
    """On one detector, whose state is put back after each."""
    trainer, unchanged, tried = None, [], 0
    for fault in bench("faults").FAULTS.values():
        _, other = faulty(fault)
        if "detector" not in changed_parts(other):
            continue
        tried += 1
        if trainer is None:
            trainer = other._with_data()
            trainer.detector = assembly.build_detector(trainer.config, trainer.vocabulary)
            for variable in trainer.detector.variables:  # as a training has left them: no longer those of the seed
                variable.assign(variable + 0.5)
            before = _state(trainer.detector)
        for change in other._changes["detector"]:
            change(trainer)
        if _plain(before) == _plain(_state(trainer.detector)):
            unchanged.append(fault.key)
        _put_back(trainer.detector, before)
    assert unchanged == [] and tried >= 12


def _state(detector) -> tuple:
    """What a surgeon could have touched: what layers say of themselves, and weights."""
    names = ("trainable", "momentum", "negative_slope", "scale", "call", "activation")
    layers = [layer for layer in detector._flatten_layers(include_self=False) if not isinstance(layer, keras.Model)]
    settings = [(layer, {name: vars(layer)[name] for name in names if name in vars(layer)}) for layer in layers]
    weights = [(variable, ops.convert_to_numpy(variable).copy(), variable.trainable) for variable in detector.variables]
    return settings, weights


def _plain(state) -> list:
    settings, weights = state
    return [repr([own for _, own in settings]), *((values.tobytes(), trainable) for _, values, trainable in weights)]


def _put_back(detector, state) -> None:
    settings, weights = state
    detector.trainable = True
    for layer, own in settings:
        layer.trainable = True
        vars(layer).pop("call", None)
        vars(layer).update(own)
    for variable, values, _ in weights:
        variable.assign(values)
        if "moving" not in variable.path:
            variable.trainable = True


def test_faults_of_optimizer_and_predictor_are_made_on_live_objects(bench, faulty):
    faults = bench("faults").FAULTS
    parts = {key: changed_parts(faulty(fault)[1]) for key, fault in faults.items()}
    compiled = [key for key, own in parts.items() if "compiled" in own]
    predictors = [key for key, own in parts.items() if "predictor" in own]
    assert len(compiled) == 5 and len(predictors) == 8
    trainer = faulty(faults["setting_does_not_arrive"])[1].trainer()
    rate = float(trainer.detector.optimizer.learning_rate)
    assert rate < 1e-6 < trainer.config.training.learning_rate
    for change in faulty(faults["predictor_has_other_anchors"])[1]._changes["predictor"]:
        change(trainer.predictor(evaluating=True))
    theirs = np.array(trainer.predictor(evaluating=True).model.get_layer("decode").anchors)
    np.testing.assert_allclose(theirs, 3.0 * np.array(trainer.detector.anchors), rtol=1e-6)


def test_a_remedy_makes_its_part_anew_and_leaves_the_others(bench, faulty):
    assert {part for own in bench("making").PARTS.values() for part in own} <= {*PARTS, "anchors"}
    _, making = faulty(bench("faults").FAULTS["boxes_xy_swapped"])
    assert changed_parts(making.mended("criterion")) == {"samples"}
    assert changed_parts(making.mended("data")) == set()
    finding = {"group": "labels", "remedy": {"settings": [], "part": "data", "boxes": "swap_xy"}}
    mended = bench("apply").mended(making, finding)
    healthy, _ = faulty(bench("faults").FAULTS["boxes_xy_swapped"])
    assert not _differ(mended.data()[0], healthy.data()[0])


def test_no_file_and_no_run_is_named_after_its_fault(bench, stage):
    run = bench("runs").Run("anchors_in_wrong_unit", "gross", 1)
    making = bench("runs").making_of(run, stage)
    assert not any(word in str(making.folder.name) for word in ("anchor", "gross", "wrong", "T01"))
    assert run.id != bench("runs").Run("anchors_in_wrong_unit", "medium", 1).id


def made_up(fault, said, *, dose="gross", history=(), confidence=0.9, **more):
    """A row of results: said is a list of (id, group)."""
    findings = [
        {"id": one, "group": group, "confidence": confidence, "hygiene": False,
         "remedy": {"settings": [], "part": "data", "boxes": None}} for one, group in said
    ]  # fmt: skip
    row = {"id": f"{fault}-{dose}", "fault": fault, "dose": dose, "seed": 1, "data": "drawn", "commit": "a"}
    return row | {"findings": findings, "history": list(history), "cpu_seconds": 10.0} | more


def test_a_run_is_scored_by_what_is_said_first(bench):
    score = bench("score")
    right = made_up("boxes_xy_swapped", [("MG104", "labels"), ("MG106", "labels")], history=[[0, "MG104"]])
    third = made_up("boxes_xy_swapped", [("MG106", "labels"), ("MG109", "labels"), ("MG104", "labels")])
    unsure = made_up("boxes_xy_swapped", [("MG104", "labels")], confidence=0.4)
    wrong = made_up("boxes_xy_swapped", [("MG612", "loss")])
    silent = made_up("boxes_xy_swapped", [])
    rows = [right, third, unsure, wrong, silent]
    assert [score.top1(row) for row in rows] == [True, False, False, False, False]
    assert [score.top3(row) for row in rows] == [True, True, True, False, False]
    assert [score.right_group(row) for row in rows] == [True, True, False, False, False]
    line = dict(zip(score.SUMMARY, next(iter(score.summary("doctor", rows, []))), strict=True))
    assert line["runs"] == line["harm not measured"] == 5 and line["top 1"] == 0.2 and line["top 3"] == 0.6
    matrix = score.confusion(rows)
    # of the five: two verdicts of labels, one of loss, and twice nothing that is sure
    assert matrix[0] == ["labels", 2, 0, 0, 0, 0, 1, 0, 0, 0, 2]


def test_the_step_counts_from_which_on_the_right_cause_stayed_first(bench):
    settled = bench("score").settled_at
    history = [[0, None], [5, "MG501"], [10, "MG504"], [20, "MG501"], [40, "MG501"]]
    assert settled(made_up("learning_rate_too_high", [], history=history)) == 20
    assert settled(made_up("learning_rate_too_high", [], history=history[:3])) == math.inf
    assert settled(made_up("boxes_xy_swapped", [], history=[[0, "MG104"]])) == 0


def test_the_bound_of_no_alarms_is_the_closed_form(bench):
    bound = bench("score").upper_bound
    for runs in (10, 36, 100):
        assert bound(0, runs) == pytest.approx(1 - 0.05 ** (1 / runs), abs=1e-9)
    assert bound(0, 36) < bound(1, 36) < bound(36, 36) == 1.0
    rows = [made_up("from_scratch", [], dose=None), made_up("single_class", [("MG601", "loss")], dose=None)]
    assert bench("score").false_alarms(rows)[:2] == (2, 1)


def test_harm_is_a_fall_by_a_fifth_or_a_worse_part(bench):
    rules, run = bench("damage_rules"), bench("runs").Run("boxes_xy_swapped", "gross", 1)
    parts = {"localization": 3.0, "object": 2.0}
    healthy = [
        {"key": rules.healthy_key(run.fault, seed, "drawn"), "kind": "healthy", "seed": seed, "finite": True,
         "mAP50": 0.4, "agnostic": 0.7, "parts": {**parts, "object": 2.0 + 0.1 * seed}} for seed in (1, 2, 3)
    ]  # fmt: skip
    row = made_up("boxes_xy_swapped", [("MG104", "labels")]) | {"id": run.id}

    def harmed(**own):
        faulty = {"key": run.id, "kind": "faulty", "seed": 1, "finite": True, "mAP50": 0.4, "agnostic": 0.7}
        return rules.harmed(row, [*healthy, faulty | {"parts": parts} | own])

    assert rules.harmed(row, healthy) is None and rules.harmed(row, []) is None
    assert harmed() is False
    assert harmed(mAP50=0.31) is True and harmed(agnostic=0.5) is True and harmed(finite=False) is True
    # 2.2 on average, standard deviation 0.1, but at least 5 % of the mean: 2.2 + 2 · 0.11 = 2.42
    assert harmed(parts={**parts, "object": 2.4}) is False and harmed(parts={**parts, "object": 2.45}) is True
    mended = {"key": rules.mended_key(run.id, row["findings"][0]), "kind": "mended", "seed": 1, "finite": True}
    assert rules.repaired(row, healthy) is None
    assert rules.repaired(row, [*healthy, mended | {"mAP50": 0.37}]) is True
    assert rules.repaired(row, [*healthy, mended | {"mAP50": 0.35}]) is False


def test_folds_share_out_the_development_set(bench):
    lines = bench("score").folds([made_up("boxes_xy_swapped", [("MG104", "labels")])], [])
    keys = [key for line in lines for key in line[1].split(", ")]
    assert len(lines) == 5 and len(keys) == len(set(keys)) == 30 and sum(line[2] for line in lines) == 1
