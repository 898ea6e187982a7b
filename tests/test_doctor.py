"""The doctor: what it asks, how it ranks, and its three ways in."""

import json
import pathlib
import types

import numpy as np
import pytest
from small_runs import make_config

from multigrid.cli import main
from multigrid.diagnosis import page, subjects
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.doctor import diagnose
from multigrid.diagnosis.finding import LIKELY, Finding, Observation, Remedy, Rule, Verdict, ranked, rule
from multigrid.diagnosis.remedies import fitted
from multigrid.diagnosis.rules import RULES
from multigrid.errors import InputError
from multigrid.training.comparison import Run
from multigrid.training.trainer import MultiGridTrainer

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


def verdict(confidence, **more):
    return Verdict(confidence, (Observation("objects", 3, "5"),), ("because",), Remedy("Mend it.", **more))


def made(name, says, stage="static", explains=()):
    return rule(name, f"Cause {name}", group="loss", stage=stage, explains=explains)(lambda case: says)


def found(name, confidence, explains=(), hygiene=False, consequences=()):
    one = verdict(confidence)
    one = Verdict(one.confidence, one.seen, one.why, one.remedy, hygiene, consequences)
    return Finding(made(name, None, explains=explains), one)


def test_what_was_seen_is_json_whatever_numbers_it_came_in():
    values = (np.float32(0.5), np.arange(2), [np.int64(3), "many"], {1: np.bool_(True)})
    seen = tuple(Observation("a", value, "b") for value in values)
    plain = Finding(made("MG1", None), Verdict(0.6, seen, (), Remedy("Mend it."))).plain()
    assert json.loads(json.dumps(plain))["seen"][0] == {"what": "a", "value": 0.5, "reference": "b"}
    assert [one["value"] for one in plain["seen"][1:]] == [[0, 1], [3, "many"], {"1": True}]


def test_the_surest_comes_first_and_hygiene_last():
    order = ranked([found("MG1", 0.6), found("MG2", 0.9, hygiene=True), found("MG3", 0.7)])
    assert [one.id for one in order] == ["MG3", "MG1", "MG2"]


def test_what_another_cause_explains_comes_after_it_however_sure_it_is():
    order = ranked([found("MG1", 0.95), found("MG2", 0.6, explains=("MG1",)), found("MG3", 0.3)])
    assert [(one.id, one.consequence_of) for one in order] == [("MG2", None), ("MG3", None), ("MG1", "MG2")]


def test_a_mere_possibility_explains_nothing():
    order = ranked([found("MG1", 0.95), found("MG2", LIKELY - 0.01, explains=("MG1",))])
    assert [one.consequence_of for one in order] == [None, None]


def test_a_verdict_explains_more_than_its_rule_unless_it_is_mere_hygiene():
    for hygiene, cause in ((False, "MG2"), (True, None)):
        order = ranked([found("MG1", 0.95), found("MG2", 0.6, hygiene=hygiene, consequences=("MG1",))])
        assert {one.id: one.consequence_of for one in order}["MG1"] == cause


def test_causes_that_explain_each_other_both_stay():
    order = ranked([found("MG1", 0.9, explains=("MG2",)), found("MG2", 0.8, explains=("MG1",))])
    assert [one.consequence_of for one in order] == [None, None]


def fake_case(**more):
    detector = types.SimpleNamespace(num_classes=2, criterion=None)
    return Case(detector, [None], **more)


def test_a_rule_that_raises_is_said_and_the_training_is_not_called_healthy():
    def broken(case):
        raise KeyError("no such thing")

    rules = [rule("MG1", "A", group="loss", stage="batch")(broken), made("MG2", None)]
    diagnosis = diagnose(fake_case(), rules=rules)
    assert diagnosis.failed == {"MG1": "KeyError: 'no such thing'"}
    assert not diagnosis.healthy and not diagnosis.causes


def test_weak_hints_and_hygiene_are_no_causes():
    weak, clean = made("MG1", verdict(0.4)), made("MG2", Verdict(0.9, (), (), Remedy("Tidy up."), hygiene=True))
    diagnosis = diagnose(fake_case(), rules=[weak, clean])
    assert diagnosis.healthy and [one.id for one in diagnosis.findings] == ["MG1", "MG2"]


def test_rules_of_curves_are_asked_only_where_there_are_curves():
    rules = [made("MG1", verdict(0.9), stage="run")]
    assert not diagnose(fake_case(), rules=rules).findings
    assert diagnose(fake_case(history=[{"epoch": 1}]), rules=rules).findings


def test_a_rule_of_an_unknown_group_or_stage_is_refused():
    with pytest.raises(ValueError, match="MG1: expected a group"):
        rule("MG1", "A", group="weather", stage="static")


def test_every_rule_has_an_id_of_its_own():
    assert len({one.id for one in RULES}) == len(RULES) >= 60
    assert all(isinstance(one, Rule) and one.id.startswith("MG") and len(one.id) == 5 for one in RULES)
    known = {one.id for one in RULES}
    assert {name for one in RULES for name in one.explains} <= known


def curves(quality, losses):
    return [
        {"epoch": number, "val_mAP": value, "loss": loss}
        for number, (value, loss) in enumerate(zip(quality, losses, strict=True), 1)
    ]


@pytest.mark.parametrize(
    "quality, losses, expected",
    [
        # the best is .5 after epoch 3; at the end .3, 40 % less, while the loss went from 8 to 4
        ([0.1, 0.3, 0.5, 0.45, 0.4, 0.35, 0.3], [20, 12, 8, 7, 6, 5, 4], {"MG951"}),
        ([0.1, 0.3, 0.5, 0.45, 0.4, 0.35, 0.3], [20, 12, 8, 8, 9, 9, 10], set()),  # the loss rose, too
        ([0.1, 0.2, 0.28, 0.35, 0.42, 0.5, 0.6], [20, 12, 8, 7, 6, 5, 4], {"MG952"}),
        ([0.1, 0.3, 0.4, 0.44, 0.46, 0.47, 0.47], [20, 12, 8, 7, 6, 5, 4], set()),
        ([0.0] * 7, [20, 12, 8, 7, 6, 5, 4], {"MG953"}),
        ([0.0] * 7, [20, 19, 19, 18, 18, 18, 18], set()),  # nothing was learned at all
        ([0.0, 0.0, 0.0], [20, 9, 4], set()),  # too short to tell
    ],
)
def test_curves_tell_what_they_tell(quality, losses, expected):
    case = fake_case(history=curves(quality, losses))
    rules = [one for one in RULES if one.stage == "run"]
    assert {one.id for one in diagnose(case, rules=rules).findings} == expected


@pytest.mark.parametrize(
    ("training", "settings", "kept", "said"),
    [
        ({}, ("training.learning_rate=1.0e-3", "loss.no_object_scale=7"), (0, 1), ""),
        ({}, ("training.learning_rate=5.0e-3", "augmentation.steps=null", "model.input_size=[64, 96]"), (1,), ""),
        ({"stages": [{"epochs": 2}]}, ("training.freeze=none", "training.learning_rate=1.0e-3"), (1,), "freeze"),
        (
            {"stages": [{"epochs": 2, "learning_rate": 0.1}]},
            ("training.learning_rate=1.0e-3",),
            (),
            "learning_rate",
        ),
    ],
)
def test_a_remedy_has_the_settings_alone_that_change_something(config, training, settings, kept, said):
    asked = config.model_copy(update={"training": type(config.training)(**{"learning_rate": 5e-3, **training})})
    remedy = fitted(Remedy("Mend it.", settings=settings), asked)
    assert remedy.settings == tuple(settings[row] for row in kept)
    more = f" training.stages has the word on {said} here: change it there."
    assert remedy.text == "Mend it." + (more if said else "")


@pytest.mark.parametrize(
    ("weights", "monitor", "figures", "expected"),
    [
        (subjects.BEST, "auto", {"val_mAP": [0.0, 0.0, 0.0]}, 2),  # the first, where none is better
        (subjects.BEST, "auto", {"val_mAP": [0.1, np.nan, 0.3]}, 6),
        (subjects.BEST, "val_loss", {"val_loss": [9.0, 4.0, 5.0], "val_mAP": [0.1, 0.2, 0.3]}, 4),
        (subjects.LAST, "auto", {"val_mAP": [0.3, 0.2, 0.1]}, 6),
    ],
)
def test_the_weights_of_a_run_are_those_of_an_epoch(weights, monitor, figures, expected):
    columns = {name: np.array(values) for name, values in figures.items()}
    run = Run("a", pathlib.Path("a"), np.array([2, 4, 6]), columns, {"training.monitor": monitor})
    assert subjects._epoch_of(weights, run) == expected


# --- ways in --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(draw_scenes, tmp_path_factory):
    return make_config(
        draw_scenes(train=14, val=5), tmp_path_factory.mktemp("doctor") / "run", {"epochs": 1, "ema": None}
    )


@pytest.fixture(scope="module")
def run(config):
    trainer = MultiGridTrainer(config)
    trainer.train()
    return trainer.run_dir


@pytest.fixture(scope="module")
def config_file(config, tmp_path_factory):
    path = tmp_path_factory.mktemp("doctor") / "config.yaml"
    config.save(path)
    return path


def test_a_run_folder_is_examined_and_gets_its_page(run, capsys):
    code = main(["doctor", str(run), "--json"])
    found = json.loads(capsys.readouterr().out)
    assert (found["causes"], found["failed"], code) == ([], {}, 0)
    documented = "| `doctor` | " + ", ".join(f"`{key}`" for key in found) + " | "
    assert documented in (CHECKOUT / "docs" / "command-line.md").read_text("utf-8")
    assert "run" in found["stages"] and "training" not in found["stages"]
    html = (run / "diagnosis.html").read_text("utf-8")
    assert (
        "<h1>Diagnosis</h1>" in html and "data:image/jpeg;base64," in html and "http" not in html.split("</style>")[1]
    )
    assert json.loads((run / "diagnosis.json").read_text())["causes"] == found["causes"]


def test_the_command_exits_with_1_where_a_cause_is_certain(config_file, tmp_path, capsys):
    words = ["doctor", "--config", str(config_file), "loss.no_object_scale=100", "--output-dir", str(tmp_path / "out")]
    assert main(words) == 1
    shown = capsys.readouterr().out
    assert "no_object_scale" in shown and "what to do:" in shown
    assert (tmp_path / "out" / "diagnosis.html").is_file()


def test_a_page_says_what_could_not_be_asked(config, tmp_path):
    def broken(case):
        raise ValueError("<b>boxes</b>")

    trainer = MultiGridTrainer(config)
    rules = [rule("MG999", "A", group="loss", stage="batch")(broken), made("MG998", verdict(0.9, where="data.train"))]
    html = page.write(diagnose(trainer, rules=rules), tmp_path).read_text("utf-8")
    assert "&lt;b&gt;boxes&lt;/b&gt;" in html and "Look at data.train." in html and "MG998: Cause MG998" in html


@pytest.mark.parametrize("words", [[], ["a=b"], ["somewhere", "--config", "c.yaml"]])
def test_it_wants_a_run_or_a_config(words):
    with pytest.raises(SystemExit) as stop:
        main(["doctor", *words])
    assert stop.value.code == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(InputError, match="expected a run folder or a replay bundle, received neither"):
        subjects.of_run(tmp_path)


def test_what_a_run_lacks_is_told(run, tmp_path):
    assert subjects.missing_parts(run) == []
    (tmp_path / "weights").mkdir()
    assert subjects.missing_parts(tmp_path) == [
        f"{tmp_path}: no weights of its own; a new network is examined",
        f"{tmp_path}: no results.csv; its epochs are not examined",
    ]
    assert len(subjects.missing_parts(tmp_path, ["weights=w.h5"])) == 1
    (tmp_path / "weights" / "last.weights.h5").touch()
    assert len(subjects.missing_parts(tmp_path)) == 1


def test_a_run_whose_labels_are_gone_is_refused(run, tmp_path):
    (tmp_path / "config.yaml").write_text((run / "config.yaml").read_text().replace("shapes/train", "shapes/gone"))
    with pytest.raises(InputError, match="expected its training labels where they were; say data.train=LABELS"):
        subjects.of_run(tmp_path)
