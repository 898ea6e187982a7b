"""Runs beside one another: what is read, what is told apart, and what is refused."""

import csv
import io
import json
import logging

import cv2
import numpy as np
import pytest

from multigrid.cli import main
from multigrid.config import ConfigLoader
from multigrid.errors import InputError
from multigrid.training.comparison import differences, monitored, read_runs, summarize
from multigrid.training.comparison_picture import draw_runs, legend_texts, panels

NAN = float("nan")
ANCHORS = "5,5 8,9 10,14\n13,17 22,14 18,22\n26,21 25,32 40,38\n"


def write_run(folder, rows, settings=(), classes="disc\nring\n", anchors=ANCHORS):
    """A run folder with results of these rows and the config of a training with these settings."""
    folder.mkdir(parents=True)
    for name, text in {"classes.txt": classes, "anchors.txt": anchors, "base.yaml": "training: {seed: 5}\n"}.items():
        (folder / name).write_text(text, encoding="utf-8")
    own = [f"data.{name}={folder / name}.txt" for name in ("classes", "anchors")]
    overrides = [*own, f"output.dir={folder}", *settings]
    ConfigLoader.load(folder / "base.yaml", overrides).save(folder / "config.yaml")
    names = list(rows[0])
    lines = [",".join(["epoch", *names])] + [
        ",".join([str(number), *(str(row[name]) for name in names)]) for number, row in enumerate(rows)
    ]
    (folder / "results.csv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def epoch(loss, mean_ap=NAN, **more):
    return {"loss": loss, "val_loss": loss + 1, "val_mAP": mean_ap, "seconds": 90.0, **more}


@pytest.fixture
def two(tmp_path):
    """A run of three epochs whose second is best, and one of two of which the last was not measured."""
    first = write_run(tmp_path / "first", [epoch(9.0, 0.1), epoch(7.0, 0.4), epoch(6.0, 0.3)])
    changed = ["training.learning_rate=5e-3", "loss.coord_scale=2", "training.lr_multipliers={stage1: 0.1}"]
    second = write_run(tmp_path / "second", [epoch(8.0, 0.2, grad_norm=4.0), epoch(5.0, grad_norm=3.0)], changed)
    return [first, second]


# --- figures


def test_epochs_count_from_one_and_what_was_not_measured_is_nan(two):
    first, second = read_runs(two)
    assert (first.name, second.name) == ("first", "second")
    assert first.epochs.tolist() == [1, 2, 3] and second.epochs.tolist() == [1, 2]
    np.testing.assert_array_equal(second.figures["val_mAP"], [0.2, NAN])
    np.testing.assert_array_equal(first.figures["val_loss"], [10.0, 8.0, 7.0])
    assert second.has("grad_norm") and not first.has("grad_norm")


def test_the_best_epoch_is_that_of_map_and_the_last_figure_the_last_measured(two):
    one, other = summarize(read_runs(two), ["loss", "val_mAP", "grad_norm"])
    assert one["best_by"] == other["best_by"] == "val_mAP"
    assert (one["best_epoch"], one["best"]) == (2, {"loss": 7.0, "val_mAP": 0.4, "grad_norm": None})
    assert (other["best_epoch"], other["best"]) == (1, {"loss": 8.0, "val_mAP": 0.2, "grad_norm": 4.0})
    # epoch 2 has no mAP of its own
    assert other["last"] == {"loss": 5.0, "val_mAP": 0.2, "grad_norm": 3.0}
    # three and two epochs of 90 seconds
    assert (one["epochs"], one["minutes"], other["last_epoch"], other["minutes"]) == (3, 4.5, 2, 3.0)


def test_runs_are_chosen_by_what_all_of_them_measured(tmp_path, two):
    blind = write_run(tmp_path / "blind", [epoch(9.0), epoch(NAN), epoch(6.0), epoch(8.0)])
    runs = read_runs([*two, blind])
    assert monitored(runs) == "val_loss"
    # the smallest of 10, -, 7, 9
    assert summarize(runs, ["loss"])[2]["best_epoch"] == 3
    bare = write_run(tmp_path / "bare", [{"loss": 3.0}, {"loss": "inf"}])
    assert monitored(read_runs([*two, bare])) == "loss"
    assert summarize(read_runs([bare]), ["loss"])[0]["best_epoch"] == 1
    assert summarize(read_runs([bare]), ["loss"])[0]["minutes"] is None


def test_of_an_epoch_that_was_run_twice_the_later_row_counts(two, caplog):
    with open(two[0] / "results.csv", "a", encoding="utf-8") as file:
        file.write("1,70.0,80.0,0.9,30.0\n")
    with caplog.at_level(logging.WARNING):
        run = read_runs(two)[0]
    assert run.epochs.tolist() == [1, 2, 3] and run.figures["loss"].tolist() == [9.0, 70.0, 6.0]
    assert "1 epochs stand there more than once" in caplog.text


def test_names_are_the_shortest_ends_that_differ(tmp_path):
    folders = [tmp_path / name for name in ("x/run", "y/run", "run-2", "2")]
    for folder in folders:
        write_run(folder, [epoch(1.0)])
    assert [run.name for run in read_runs(folders)] == ["x/run", "y/run", "run-2", "2"]


# --- configs


def test_only_settings_that_differ_are_told_and_none_of_the_runs_own_paths(two):
    assert differences(read_runs(two)) == {
        "loss.coord_scale": [5.0, 2.0],
        "training.learning_rate": [0.002, 0.005],
        "training.lr_multipliers.stage1": [None, 0.1],
    }
    assert differences(read_runs(two[:1])) == {}


def test_where_a_run_was_written_to_does_not_count(two):
    before = differences(read_runs(two))
    config = two[0] / "config.yaml"
    text = config.read_text(encoding="utf-8")
    assert f"output: {{dir: {two[0]}}}" in text
    config.write_text(text.replace(f"{{dir: {two[0]}}}", "{dir: /elsewhere}"), encoding="utf-8")
    assert differences(read_runs(two)) == before


def test_anchors_and_classes_count_by_their_contents_and_a_folder_may_have_moved(tmp_path):
    one = write_run(tmp_path / "one", [epoch(1.0)])
    write_run(tmp_path / "old", [epoch(1.0)], classes="disc\nbar\n").rename(tmp_path / "moved")
    moved = differences(read_runs([one, tmp_path / "moved"]))
    assert moved == {"data.classes": ["disc, ring", "disc, bar"]}
    other = write_run(tmp_path / "other", [epoch(1.0)], anchors=ANCHORS.replace("40,38", "41,38"))
    assert list(differences(read_runs([one, other]))) == ["data.anchors"]


def test_augmentations_are_told_apart_step_by_step(tmp_path):
    steps = ["[{name: Blur, p: 0.5}, {name: HorizontalFlip, p: 0.5}]", "[{name: HorizontalFlip, p: 0.25}]"]
    folders = [
        write_run(tmp_path / str(number), [epoch(1.0)], [f"augmentation.steps={text}"])
        for number, text in enumerate(steps)
    ]
    assert differences(read_runs(folders)) == {
        "augmentation.steps": ["Blur, HorizontalFlip", "HorizontalFlip"],
        "augmentation.steps.Blur.p": [0.5, None],
        "augmentation.steps.HorizontalFlip.p": [0.5, 0.25],
    }


# --- the picture


def test_a_panel_shows_training_and_validation_and_only_what_there_is(two):
    runs = read_runs(two)
    assert panels(runs) == [("loss", "val_loss"), ("val_mAP",), ("grad_norm",)]
    assert panels(runs, ["seconds", "val_loss"]) == [("seconds",), ("val_loss",)]


def test_the_legend_names_runs_and_some_of_what_differs(two):
    assert legend_texts(read_runs(two)) == [
        "first: learning_rate 0.002, lr_multipliers.stage1 -, coord_scale 5.0",
        "second: learning_rate 0.005, lr_multipliers.stage1 0.1, coord_scale 2.0",
    ]
    assert legend_texts(read_runs(two[:1])) == ["first"]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_runs_of_different_length_make_one_picture(tmp_path, count):
    folders = []
    for number in range(count):
        rows = [epoch(100.0 / (1 + step), 0.1 * step if step % 3 == 0 else NAN) for step in range(1 + 2 * number)]
        folders.append(write_run(tmp_path / f"run-{number}", rows))
    draw_runs(read_runs(folders), tmp_path / "new" / "picture.png")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["picture.png"]
    picture = cv2.imread(str(tmp_path / "new" / "picture.png"))
    # two panels of 4.8 inches at 100 dots an inch, on white
    assert picture.shape[1] == 960 and 300 < picture.shape[0] < 800 and 0.5 < np.mean(picture == 255) < 1.0


# --- the command


def test_the_command_writes_a_picture_and_a_table_and_prints_two(two, tmp_path, capsys):
    folder = tmp_path / "seen"
    assert main(["compare", *map(str, two), "--output-dir", str(folder)]) == 0
    assert sorted(file.name for file in folder.iterdir()) == ["comparison.csv", "comparison.png"]
    printed = capsys.readouterr().out
    for word in ("Figures", "best val_mAP", "Config", "loss.coord_scale", "second", "4.5"):
        assert word in printed
    rows = list(csv.DictReader(io.StringIO((folder / "comparison.csv").read_text(encoding="utf-8"))))
    assert [row["run"] for row in rows] == ["first", "second"]
    assert (rows[0]["best val_mAP"], rows[1]["last loss"], rows[1]["training.learning_rate"]) == ("0.4", "5.0", "0.005")


def test_json_is_all_that_is_printed(two, tmp_path, capsys):
    chosen = ["--metric", "grad_norm", "--metric", "seconds"]
    assert main(["compare", *map(str, two), "--output-dir", str(tmp_path / "seen"), "--json", *chosen]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["runs", "differences", "picture", "table"]
    assert [run["best"] for run in printed["runs"]] == [
        {"grad_norm": None, "seconds": 90.0},
        {"grad_norm": 4.0, "seconds": 90.0},
    ]
    assert printed["differences"]["training.lr_multipliers.stage1"] == [None, 0.1]


def test_equal_configs_are_said_to_be_equal(tmp_path, capsys):
    folders = [write_run(tmp_path / name, [epoch(1.0)]) for name in "ab"]
    assert main(["compare", *map(str, folders), "--output-dir", str(tmp_path / "seen")]) == 0
    assert "the configs do not differ" in capsys.readouterr().out


# --- what is refused


def spoil(folder, change):
    path = folder / "results.csv"
    path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")


BAD = {
    "results.csv: expected a line of names and one an epoch, received 0 in all": lambda text: "",
    "results.csv: expected a line of names and one an epoch, received 1 in all": lambda text: (
        text.split("\n")[0] + "\n"
    ),
    "results.csv, line 4: expected 5 cells, received 2": lambda text: text[: text.rindex("2,6.0") + 5] + "\n",
    "results.csv, line 4: expected a whole line, received one that was cut off": lambda text: text[:-2],
    "results.csv, line 1: expected the name \"epoch\" first, received 'step'": lambda text: "step" + text[5:],
    "results.csv, line 3, loss: expected a number, received 'high'": lambda text: text.replace("7.0", "high", 1),
    "results.csv, line 4: expected the number of an epoch, received 1.5": lambda text: text.replace("\n2,", "\n1.5,"),
}


@pytest.mark.parametrize("message", BAD)
def test_results_that_cannot_be_used_are_one_line_and_nothing_is_written(message, two, tmp_path, capsys):
    spoil(two[0], BAD[message])
    assert main(["compare", *map(str, two), "--output-dir", str(tmp_path / "seen")]) == 2
    assert capsys.readouterr().err == f"error: {two[0]}/{message}\n"
    assert not (tmp_path / "seen").exists()


def test_what_is_no_run_folder_is_refused(two, tmp_path):
    (two[1] / "results.csv").unlink()
    with pytest.raises(InputError, match="second: expected a run folder, received one without results.csv"):
        read_runs(two)
    with pytest.raises(InputError, match="nowhere: expected a run folder, received none"):
        read_runs([tmp_path / "nowhere"])
    with pytest.raises(InputError, match="results.csv: expected a run folder, received a file"):
        read_runs([two[0] / "results.csv"])
    with pytest.raises(InputError, match="first: expected different runs, received it 2 times"):
        read_runs([two[0], f"{two[0]}/"])


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [", "expected YAML, received"), ("- 5\n", "expected the sections of a config, received list")],
)
def test_a_config_that_cannot_be_used_is_refused(text, words, two):
    (two[0] / "config.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words) as caught:
        read_runs(two)
    assert "\n" not in str(caught.value)


def test_an_unknown_metric_is_answered_with_the_nearest(two, capsys):
    assert main(["compare", *map(str, two), "--metric", "val_map"]) == 2
    assert "--metric: expected a figure that a run has, such as val_mAP," in capsys.readouterr().err
