"""`multigrid evaluate` on a tiny detector: what it writes, prints and refuses."""

import csv
import json
import pathlib

import numpy as np
import pytest
from small_runs import make_config

from multigrid import assembly
from multigrid.cli import main
from multigrid.cli.evaluate import TEST_TIME_AUGMENTATION, summary
from multigrid.config import ConfigLoader
from multigrid.data.shapes import CLASS_NAMES
from multigrid.evaluation.agnostic import class_agnostic_metrics
from multigrid.evaluation.evaluator import coco_metrics
from multigrid.evaluation.run import evaluate
from multigrid.prediction.predictor import Predictor

FILES = {
    "metrics.json", "per_class.csv", "detections.json", "ground_truth.json", "pr_curves.png", "f1_confidence.png",
    "confusion_matrix.png", "ap_per_class.png", "iou_of_matches.png", "calibration.png",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(draw_scenes, tmp_path_factory):
    """A run folder with a detector that was not trained; 5 scenes to validate on and 3 to test on.

    Its detections score about the same, so the threshold for people is put amid the scores of one scene.
    """
    folder = tmp_path_factory.mktemp("runs") / "small-1"
    (folder / "weights").mkdir(parents=True)
    scenes = draw_scenes(train=3, val=5, test=3)
    config = make_config(scenes, folder)
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    detector.save_weights(folder / "weights" / "best.weights.h5")
    predictor = Predictor.of(config, detector, CLASS_NAMES, evaluating=True)
    (found,) = predictor.stream(sample.path for sample in assembly.read_split(config, "test", CLASS_NAMES)[:1])
    config = make_config(scenes, folder, detection={"predict_threshold": float(np.median(found.scores))})
    config.save(folder / "config.yaml")
    return folder


@pytest.fixture(scope="module")
def written(run_dir, tmp_path_factory):
    """The folder of an evaluation of the test scenes, and the JSON document of the command."""
    folder = tmp_path_factory.mktemp("evaluation") / "test"
    with pytest.MonkeyPatch.context() as patch:
        lines = []
        patch.setattr("multigrid.report.print_document", lambda text, file: lines.append(json.loads(text)))
        words = ["--run", str(run_dir), "--split", "test", "--output-dir", str(folder), "--json"]
        assert main(["evaluate", *words]) == 0
    (document,) = lines
    return folder, document


def threshold_of(run_dir) -> float:
    return ConfigLoader.load(run_dir / "config.yaml").detection.predict_threshold


def load(path: pathlib.Path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_it_writes_figures_detections_and_plots(written):
    folder, document = written
    assert {*FILES, "report.html"} <= {path.name for path in folder.iterdir()} and FILES == set(document["files"])
    assert document["report"] == str(folder / "report.html")
    assert " objects are found at confidence " in document["verdict"]
    assert load(folder / "errors.json")["examples"]["bkg"][0]["image"].endswith((".jpg", ".png"))
    metrics = load(folder / "metrics.json")
    assert metrics["images"] == 3 and metrics["objects"] == len(load(folder / "ground_truth.json")["annotations"]) > 0
    assert metrics["detections"] == len(load(folder / "detections.json")) > 20
    assert document["metrics"] == metrics and document["split"] == "test"
    assert 0 < document["seconds"]["network"] < document["seconds"]["all"]


def test_the_metrics_are_those_of_the_written_detections(run_dir, written):
    folder, _ = written
    metrics, truth, results = (load(folder / f"{name}.json") for name in ("metrics", "ground_truth", "detections"))
    measured = coco_metrics(truth, results)
    per_class = measured.pop("per_class")
    assert {name: metrics[name] for name in measured} == measured
    for name, figures in per_class.items():
        assert {key: metrics["per_class"][name][key] for key in figures} == figures
    counts, threshold = metrics["confusion"]["counts"], metrics["confusion"]["threshold"]
    assert threshold == threshold_of(run_dir)
    assert sum(map(sum, counts[:-1])) == metrics["objects"]
    shown = [result for result in results if result["score"] >= threshold]
    assert sum(sum(row[:-1]) for row in counts) == len(shown) and 0 < len(shown) < len(results)
    assert metrics["voc"].keys() == {"iou", "AP_11point", "AP_every_point"}
    assert metrics["class_agnostic"] == class_agnostic_metrics(truth, results)


def test_the_table_has_a_row_a_class_and_blanks_where_there_is_no_figure(written):
    folder, document = written
    with open(folder / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    per_class = document["metrics"]["per_class"]
    assert [row.pop("class") for row in rows] == list(per_class)
    for row, figures in zip(rows, per_class.values(), strict=True):
        assert row.keys() == figures.keys()
        for name, value in figures.items():
            assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value)


def test_config_and_weights_say_the_same_as_the_run_and_the_lines_say_what_was_measured(
    run_dir, written, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    words = ["--config", str(run_dir / "config.yaml"), "--weights", str(run_dir / "weights" / "best.weights.h5")]
    assert main(["evaluate", *words, "--split", "test"]) == 0
    folder = pathlib.Path("evaluation", "test")
    assert load(folder / "metrics.json") == load(written[0] / "metrics.json")
    shown = capsys.readouterr().out
    assert "test: 3 images" in shown and f"written to {folder}: report.html" in shown
    assert shown.index("mAP50") < shown.index(written[1]["verdict"]) < shown.index("VOC AP at IoU 0.5")
    assert "of it in the network" in shown and "VOC AP at IoU 0.5" in shown
    agnostic = written[1]["metrics"]["class_agnostic"]
    assert f"all classes as one: mAP {agnostic['mAP']:.4g}, mAP50 {agnostic['mAP50']:.4g}\n" in shown
    assert "multigrid doctor" not in shown  # weights alone tell nothing of their training


@pytest.mark.parametrize(("limit", "says"), [(-0.1, False), (1.1, True)])
def test_a_run_that_came_to_little_is_a_case_for_the_doctor(run_dir, tmp_path, capsys, monkeypatch, limit, says):
    monkeypatch.setattr("multigrid.cli.evaluate.LOW", limit)
    assert main(["evaluate", "--run", str(run_dir), "--output-dir", str(tmp_path / "here")]) == 0
    assert (f"multigrid doctor {run_dir}\n" in capsys.readouterr().out) is says


def test_one_class_is_not_told_twice(written):
    metrics, seconds = written[1]["metrics"], {"network": 1.0, "all": 2.0, "command": 3.0}
    lines = summary(metrics, seconds)
    (name, *_), figures = metrics["per_class"], metrics["per_class"].values()
    alone = summary({**metrics, "per_class": {name: next(iter(figures))}}, seconds)
    assert lines[0].startswith("all classes as one") and alone == lines[1:]


def test_test_time_augmentation_looks_six_times(run_dir):
    # 64 x 96 at .83, 1 and 1.17 is 53 x 80, 64 x 96 and 75 x 112, in whole cells of 32 pixels: 64 x 64 (2.5 is rounded
    # to even), 64 x 96 and 64 x 128 (3.51).
    views = Predictor.from_run(run_dir, TEST_TIME_AUGMENTATION).views
    assert [view.size for view in views] == [(64, 64)] * 2 + [(64, 96)] * 2 + [(64, 128)] * 2
    assert [view.flipped for view in views] == [False, True] * 3


def test_a_word_of_the_user_wins_over_test_time_augmentation(run_dir, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "multigrid.evaluation.run.evaluate",
        lambda predictor, *rest, **options: seen.extend(predictor.views) or evaluate(predictor, *rest, **options),
    )
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "--run", str(run_dir), "--tta", "detection.scales=[1.0]"]) == 0
    assert seen == [((64, 96), False), ((64, 96), True)]
    # What a run is worth lies in its folder, so that no other run's evaluation takes its place.
    assert load(run_dir / "evaluation" / "val" / "metrics.json")["images"] == 5 and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected --run or --config, received neither"),
        (["--run", "RUN", "--config", "RUN/config.yaml"], "expected --run or --config and not both"),
        (["--config", "RUN/config.yaml"], "--weights"),
    ],
)
def test_a_run_or_a_config_with_weights_is_required(run_dir, words, message, capsys):
    with pytest.raises(SystemExit) as left:
        main(["evaluate", *(word.replace("RUN", str(run_dir)) for word in words)])
    assert left.value.code == 2 and message in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused_before_anything_is_written(tmp_path, capsys):
    assert main(["evaluate", "--run", str(tmp_path / "none"), "--output-dir", str(tmp_path / "out")]) == 2
    assert "none: expected a run folder" in capsys.readouterr().err and not list(tmp_path.iterdir())


# --- the same in Python


@pytest.fixture(scope="module")
def measured(run_dir):
    """An evaluation of the test scenes with a trace, its predictor and samples."""
    predictor = Predictor.from_run(run_dir, evaluating=True)
    samples = assembly.read_split(ConfigLoader.load(run_dir / "config.yaml"), "test", CLASS_NAMES)
    threshold = threshold_of(run_dir)
    evaluation = evaluate(predictor, samples, CLASS_NAMES, predict_threshold=threshold, trace=True)
    return evaluation, predictor, samples


def test_the_trace_counts_at_both_thresholds_and_its_last_step_is_the_detections(measured):
    evaluation, predictor, _ = measured
    threshold = evaluation.predict_threshold
    assert evaluation.trace.thresholds == (predictor.score_threshold, threshold) and evaluation.trace.images == 3
    last = evaluation.trace.counts[:, -1].sum(axis=(1, 2)).tolist()
    scores = evaluation.records["score"]
    # Scores are rounded to a millionth when they become records.
    assert (scores > threshold + 1e-6).sum() <= last[1] <= (scores > threshold - 1e-6).sum()
    assert last[0] == len(scores) > last[1] > 0
    assert set(evaluation.strides) <= {8, 16, 32} and len(evaluation.strides) == len(evaluation.results)


def test_a_predict_threshold_below_the_pipelines_own_is_counted_at_that(measured):
    _, predictor, samples = measured
    evaluation = evaluate(predictor, samples, CLASS_NAMES, predict_threshold=0.0, trace=True)
    assert evaluation.predict_threshold == predictor.score_threshold
    assert evaluation.trace.thresholds == (predictor.score_threshold,) * 2


def test_an_epochs_measurement_makes_nothing_that_is_not_asked_for(measured):
    evaluation, predictor, samples = measured
    plain = evaluate(predictor, samples, CLASS_NAMES)
    assert plain.trace is None and plain.metrics == evaluation.metrics
    assert not {"matches", "curves", "full_metrics"} & vars(plain).keys()
    assert plain.seconds["network"] < plain.seconds["all"]


def test_no_samples_have_no_figures(measured):
    _, predictor, _ = measured
    nothing = evaluate(predictor, [], CLASS_NAMES)
    metrics = nothing.full_metrics
    assert nothing.results == [] and metrics["mAP"] is None and metrics["f1"] is None
    assert metrics["calibration"]["expected_calibration_error"] is None
