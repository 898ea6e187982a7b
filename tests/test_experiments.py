"""The experiments of the accuracy benchmark: each is a part of a config that loads over scratch.yaml."""

import importlib.util
import pathlib
import sys

import pytest

from multigrid.config import ConfigLoader
from multigrid.losses.targets import ASSIGNMENTS

ACCURACY = pathlib.Path(__file__).resolve().parents[1] / "benchmarks" / "accuracy"
EXPERIMENTS = sorted((ACCURACY / "experiments").glob("*.yaml"))


@pytest.fixture(scope="module")
def benchmark():
    """run.py as a module."""
    spec = importlib.util.spec_from_file_location("accuracy_run", ACCURACY / "run.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_an_experiment_for_every_assignment():
    assert [path.stem for path in EXPERIMENTS] == sorted(ASSIGNMENTS)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_an_experiment_loads_over_the_benchmarks_config_and_names_its_command(benchmark, path):
    assert ConfigLoader.load(ACCURACY / "scratch.yaml", benchmark.settings_of(path)).loss.assignment == path.stem
    assert f"run.py --experiment benchmarks/accuracy/experiments/{path.name} " in path.read_text().splitlines()[0]
    folder = benchmark.run_folder("cells", 3, path)
    assert folder == pathlib.Path(f"runs/accuracy-cells-{path.stem}-3")


def test_settings_keep_the_kinds_of_their_values(benchmark, tmp_path):
    path = tmp_path / "one.yaml"
    path.write_text("training: {learning_rate: 2e-3, ema: null}\nmodel:\n  input_size: [64, 96]\n")
    assert benchmark.settings_of(path) == [
        "training.learning_rate=0.002", "training.ema=null", "model.input_size=[64, 96]"
    ]  # fmt: skip
    path.write_text("# nothing\n")
    assert benchmark.settings_of(path) == []


def test_a_table_of_other_columns_stays_as_it_is(benchmark, tmp_path):
    table = tmp_path / "accuracy.csv"
    benchmark._append(table, {"data": "cells", "seed": 1})
    benchmark._append(table, {"data": "cells", "seed": 2})
    with pytest.raises(SystemExit, match="expected the columns data, mAP, received data, seed"):
        benchmark._append(table, {"data": "cells", "mAP": 0.5})
    assert table.read_text().split() == ["data,seed", "cells,1", "cells,2"]


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """compare.py as a module, in an empty folder; what it imports from beside it goes with the test."""
    monkeypatch.syspath_prepend(ACCURACY)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("compare")
    yield module
    for name in ("compare", "run", "suppression"):
        sys.modules.pop(name, None)


def begun_run(name):
    """A run folder whose training was cut short."""
    (pathlib.Path("runs") / name / "weights").mkdir(parents=True)


def test_a_comparison_names_every_half_finished_run_before_it_trains(compare, monkeypatch):
    monkeypatch.setattr(compare.subprocess, "run", lambda *words, **more: pytest.fail(f"{words} was started"))
    monkeypatch.setattr(sys, "argv", ["compare.py", "--data", "cells", "--seeds", "1", "2"])
    begun_run("accuracy-cells-single-2")
    begun_run("accuracy-cells-across-1")
    expected = r"without test.metrics\.json: runs.accuracy-cells-single-2, runs.accuracy-cells-across-1; .*remove"
    with pytest.raises(SystemExit, match=expected):
        compare.main()


def test_a_comparison_says_which_run_failed(compare, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compare.py", "--data", "nowhere", "--seeds", "4"])
    # the folder holds no train.txt: run.py says so itself, and is through within seconds
    with pytest.raises(SystemExit, match=r"runs.accuracy-nowhere-single-4: run\.py ended with [12]; "):
        compare.main()


def test_drawn_scenes_are_learnt_once_and_alone_without_data(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ACCURACY)
    transfer = importlib.import_module("transfer")
    sys.modules.pop("transfer")
    learnt, run = [], pathlib.Path("runs/transfer-shapes-3")

    def pretrain(folder, options):
        learnt.append((folder, options.pretraining_epochs))
        folder.mkdir(parents=True)
        (folder / "predictions.jpg").touch()

    monkeypatch.setattr(transfer, "_pretrain", pretrain)
    monkeypatch.setattr(transfer.subprocess, "run", lambda *words, **more: pytest.fail(f"{words} was started"))
    monkeypatch.setattr(sys, "argv", ["transfer.py", "--seed", "3", "--pretraining-epochs", "7"])
    assert transfer.main() == 0 and capsys.readouterr().out == ""
    assert transfer.main() == 0 and learnt == [(run, 7)]
    assert capsys.readouterr().out == f"{run}: there from an earlier call, and not trained again\n"
