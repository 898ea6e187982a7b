"""One style for the command: --json, examples, key=value, exit codes, and a script a verb."""

import contextlib
import io
import json
import pathlib
import re
import shlex

import pytest
import yaml
from PIL import Image

import multigrid
from multigrid import cli, report
from multigrid.cli import main, train
from multigrid.cli.options import Document, emit
from multigrid.config import TrainingConfig

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
PARSERS = next(action for action in cli._parser()._actions if action.choices).choices
SCRIPTS = {verb: CHECKOUT / "tools" / f"{verb}.py" for verb in PARSERS}
SCRIPTS["probe"] = CHECKOUT / "tests" / "probe_multigrid_loss.py"
WITHOUT_CONFIG = {"compare", "replay"}  # these read run folders, which have their own


def printed_by(*words) -> tuple[int, dict, str]:
    """The exit code of a command with --json, its document and what went to standard error."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([*words, "--json"])
        except SystemExit as left:
            code = left.code
    return code, json.loads(out.getvalue(), parse_constant=pytest.fail), err.getvalue()


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0 and capsys.readouterr().out == f"multigrid {multigrid.__version__}\n"


def test_a_code_page_without_a_sign_is_no_error(monkeypatch):
    def run_compare(options):
        """Says something."""
        print("small, < 32²")

    page = io.TextIOWrapper(io.BytesIO(), encoding="cp1251")
    monkeypatch.setattr("sys.stdout", page)
    monkeypatch.setattr("multigrid.cli.compare.run_compare", run_compare)
    main(["compare", "a", "b"])
    page.flush()
    assert page.buffer.getvalue().decode("cp1251").strip() == "small, < 32?"


def test_there_are_twelve_verbs():
    assert set(PARSERS) == {
        "train", "evaluate", "predict", "export", "serve", "probe", "anchors", "data", "weights", "compare", "replay",
        "doctor",
    }  # fmt: skip
    assert len(cli.VERBS) == 12


@pytest.mark.parametrize("verb", PARSERS)
def test_the_example_of_every_verb_parses(verb):
    for example in PARSERS[verb].epilog.removeprefix("example: ").split(", or "):
        command = shlex.split(example)
        assert command[:2] == ["multigrid", verb]
        options = cli._parse(command[1:])
        assert options.run.__name__ == f"run_{verb}" and options.json is False


def test_train_says_when_the_average_is_too_slow_for_the_steps(capsys):
    for epochs, ema, told in ((2, 0.99, True), (2, None, False), (60, 0.99, False), (2, 0.8, False)):
        training = TrainingConfig(epochs=epochs, ema=ema)
        train._tell_of_a_slow_average(training, batches=21)
        said = capsys.readouterr().out
        assert ("66% the first ones; training.ema=0.762" in said) == told and bool(said) == told


@pytest.mark.parametrize("verb", PARSERS)
def test_every_verb_speaks_json_and_takes_settings_where_it_has_a_config(verb):
    parser = PARSERS[verb]
    known = {action.dest: action for action in parser._actions}
    assert "--json" in known["json"].option_strings
    assert ("config" in known) == ("overrides" in known) == (verb not in WITHOUT_CONFIG)
    assert all(action.help for action in parser._actions)


@pytest.mark.parametrize("verb", PARSERS)
def test_every_verb_has_a_script_that_only_calls_it(verb):
    text = SCRIPTS[verb].read_text(encoding="utf-8")
    assert f'sys.exit(main(["{verb}", *sys.argv[1:]]))' in text and len(text.splitlines()) <= 10


def test_every_script_is_one_of_a_verb():
    scripts = sorted((CHECKOUT / "tools").glob("*.py"))
    assert len(scripts) >= 8 and {path.stem for path in scripts} <= set(PARSERS)


def test_help_tells_the_exit_codes(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Exit codes: 0 done; 1 the work failed or part of it did; 2 the input is not usable" in shown


# --- one document


def test_a_document_is_plain_json_and_there_is_only_one():
    file = io.StringIO()
    document = Document(file)
    document.write({"loss": float("nan"), "path": pathlib.Path("runs") / "a", "sizes": (1, 2.5)})
    assert json.loads(file.getvalue()) == {"loss": None, "path": str(pathlib.Path("runs/a")), "sizes": [1, 2.5]}
    before = file.getvalue()
    document.fail("too late")
    with pytest.raises(ValueError, match="expected one document a command"):
        document.write({})
    assert file.getvalue() == before


def test_a_document_that_cannot_be_said_leaves_room_for_the_error():
    file = io.StringIO()
    document = Document(file)
    with pytest.raises(TypeError):
        document.write({"a": {1, 2}})
    document.fail("TypeError")
    assert json.loads(file.getvalue()) == {"error": "TypeError"}


def test_without_json_nothing_is_emitted(capsys):
    options = cli._parse(["compare", "a"])
    emit(options, {"runs": []})
    emit(options, {"runs": []})
    assert capsys.readouterr().out == ""


def test_a_process_that_is_silenced_prints_no_document(monkeypatch):
    monkeypatch.setattr(report, "_silent", True)
    file = io.StringIO()
    Document(file).write({"a": 1})
    assert file.getvalue() == ""


def test_what_a_library_prints_goes_to_standard_error(monkeypatch, capsys):
    def run_compare(options):
        print("a library speaks")
        report.say("a line")
        report.table("a table", ["head"], [["cell"]])
        assert list(report.progress([1], "counting")) == [1]
        emit(options, {"done": True})
        return 0

    monkeypatch.setattr(cli.compare, "run_compare", run_compare)
    run_compare.__doc__ = "Does nothing."
    assert main(["compare", "a", "--json"]) == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out) == {"done": True}
    for words in ("a library speaks", "a line", "a table", "cell", "counting: 1 ..."):
        assert words in shown.err
    assert main(["compare", "a"]) == 0
    assert "a library speaks" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, said",
    [
        (["compare", "nowhere"], "nowhere: expected a run folder"),
        ([], "expected a verb, one of train, evaluate, predict"),
        (["train"], "expected --config or --resume, received neither"),
        (["train", "--config", "a.yaml", "--resume", "b"], "expected --config or --resume and not both"),
        (["train", "my.yaml", "training.epochs=3"], "received neither; did you mean --config my.yaml?"),
        (["train", "training.epochs=3", "runs"], "received neither; did you mean --resume runs?"),
        (["evaluate", "a.png"], "expected --run or --config, received neither"),
        (["export", "runs", "--format", "onnx"], "received neither; did you mean --run runs?"),
        (["doctor", "my.yaml"], "my.yaml: expected a run folder, received a file (of a config: --config)"),
        (["train", "--config", "nowhere.yaml"], "nowhere.yaml: expected"),
        (["compare", "nowhere", "--metrics"], "unrecognized argument: --metrics"),
        (["replay"], "the following arguments are required: BUNDLE"),
        (["anchors", "--config", "a.yaml", "--count", "7"], "--count: expected a multiple of 3"),
    ],
)
def test_an_error_is_a_document_too_and_the_text_stays_on_standard_error(words, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.yaml").write_text("data: {}\n")
    (tmp_path / "runs").mkdir()
    code, document, err = printed_by(*words)
    assert code == 2 and list(document) == ["error"]
    assert said in document["error"] and document["error"] in err


def test_an_interruption_is_told_and_is_a_failure(monkeypatch):
    def run_compare(options):
        """Is interrupted."""
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.compare, "run_compare", run_compare)
    assert printed_by("compare", "a") == (1, {"error": "interrupted"}, "interrupted\n")


@pytest.mark.parametrize(
    ("error", "message"),
    [(OSError(28, "No space left"), "[Errno 28] No space left"), (KeyError("a"), "KeyError: 'a'")],
)
def test_what_nobody_foresaw_is_a_document_too(monkeypatch, capsys, error, message):
    def run_compare(options):
        """Fails."""
        raise error

    monkeypatch.setattr(cli.compare, "run_compare", run_compare)
    if isinstance(error, OSError):
        assert main(["compare", "a", "--json"]) == 1
    else:
        with pytest.raises(KeyError):
            main(["compare", "a", "--json"])
    assert json.loads(capsys.readouterr().out) == {"error": message}


def test_options_are_not_abbreviated():
    code, document, _ = printed_by("compare", "a", "--output", "b")
    assert code == 2 and document["error"].startswith("unrecognized argument: --output")


# --- what it holds


@pytest.fixture(scope="module")
def folder(draw_scenes, tmp_path_factory):
    """A working directory with a config."""
    folder = tmp_path_factory.mktemp("commands")
    config = {
        "data": {**draw_scenes(train=6, val=3), "workers": 1},
        "model": {"width": 0.0625, "depth": 0.125, "input_size": [64, 96]},
        "training": {"epochs": 1, "batch_size": 3, "pictures_every": None},
        "output": {"dir": str(folder / "run")},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    code, document, err = printed_by(
        "train", "--config", str(folder / "c.yaml"), "--save-weights", str(folder / "saved.h5")
    )
    assert code == 0, err
    return document


def documented(command) -> list[str]:
    """The keys of a command's document, in the order in which the page lists them."""
    page = (CHECKOUT / "docs" / "command-line.md").read_text(encoding="utf-8")
    (keys,) = re.findall(rf"^\| `{command}` \| (`\w+`(?:, `\w+`)+) \| ", page, re.MULTILINE)
    return re.findall(r"`(\w+)`", keys)


@pytest.mark.parametrize("verb", PARSERS)
def test_the_page_lists_the_keys_of_every_verb(verb):
    assert len(documented(verb)) >= 2


def test_train_tells_the_run_its_epochs_and_its_metrics(trained, folder):
    assert list(trained) == documented("train")
    assert trained["run_dir"] == str(folder / "run") and trained["epochs"] == 1 and trained["stopped_by"] is None
    assert trained["best_weights"] == str(folder / "run" / "weights" / "best.weights.h5")
    assert pathlib.Path(trained["saved_weights"]).is_file() and pathlib.Path(trained["best_weights"]).is_file()
    assert 0 <= trained["metrics"]["mAP50"] <= 1 and trained["last_epoch"]["loss"] > 0


def test_probe_anchors_weights_and_compare_tell_what_they_found(trained, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, found, _ = printed_by("probe", "--config", "c.yaml", "--output-dir", "probed", "--num-batches", "1")
    assert code == 0 and list(found) == documented("probe") and found["not_finite"] == []
    assert found["batches"] == json.loads((folder / "probed" / "loss_components.json").read_text())

    code, found, _ = printed_by("anchors", "--config", "c.yaml", "--output", "new.txt", "--count", "3")
    assert code == 0 and list(found) == documented("anchors")
    assert [len(scale) for scale in found["anchors"]] == [1, 1, 1] and pathlib.Path(found["picture"]).is_file()
    # three anchors do not fit better than the nine that were there, but both are measured on the same boxes
    figures = ["boxes", "mean_iol", "share_above_half", "share_above_quarter", "shares"]
    assert list(found["fitted"]) == list(found["before"]) == figures
    assert found["fitted"]["boxes"] == found["before"]["boxes"] and 0 < found["fitted"]["mean_iol"] <= 1

    code, found, _ = printed_by("weights", "saved.h5")
    assert code == 0 and list(found) == documented("weights")
    assert list(found["layers"][0]) == ["place", "name", "tensors"]

    code, found, _ = printed_by("weights", "saved.h5", "--config", "c.yaml", "--convert", "other.weights.h5")
    assert code == 0 and list(found) == documented("weights --config")
    assert found["tensor_share"] == 1 and found["converted"] == "other.weights.h5"

    code, found, _ = printed_by("compare", "run", "--output-dir", "compared")
    assert code == 0 and list(found) == documented("compare")


def test_data_evaluate_and_predict_tell_what_they_found(trained, folder, monkeypatch):
    monkeypatch.chdir(folder)
    code, found, err = printed_by("data", "--config", "c.yaml")
    assert code == 0 and list(found) == documented("data"), err

    code, found, err = printed_by("evaluate", "--run", "run", "--output-dir", "evaluated")
    assert code == 0 and list(found) == documented("evaluate"), err

    (folder / "shots").mkdir()
    Image.new("RGB", (96, 64)).save(folder / "shots" / "x.png")
    code, found, err = printed_by("predict", "--run", "run", "--source", "shots")
    assert code == 0 and list(found) == documented("predict"), err


# --- tables


def test_no_line_of_a_table_ends_with_blanks():
    log = io.StringIO()
    report.table("a title", ["one head", "another"], [["a", 1.5], ["b", None]], report.new_console(log))
    lines = log.getvalue().splitlines()
    assert lines[0] == "a title" and all(line == line.rstrip() for line in lines) and len(lines) == 7


def test_counting_shows_long_work_and_leaves_no_line_of_short_work(capsys):
    for total in (4, 5):
        with report.counting("looking", many=5) as show:
            for done in (2, total):
                show(done, total)
    shown = capsys.readouterr().out
    assert re.fullmatch(r"looking: 5 \.\.\.\nlooking: 5 in \d\.\d s\n", shown)
