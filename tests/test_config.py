"""Config files, overrides and their mistakes."""

import os
import pathlib
import subprocess
import sys

import pytest
from pydantic import BaseModel, ValidationError

from multigrid.config import Config, ConfigLoader, LossConfig, describe
from multigrid.config import sections as sections_module
from multigrid.config import words as words_module
from multigrid.errors import InputError

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function that writes a file below an empty folder; the working directory is another empty folder beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def to(name: str, text: str) -> pathlib.Path:
        path = tmp_path / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return to


def problems(path, *overrides) -> list[str]:
    """The lines of the error that loading raises, places shortened to file names, the counting line checked and cut."""
    with pytest.raises(InputError) as caught:
        ConfigLoader.load(path, overrides)
    first, *rest = str(caught.value).replace(f"{pathlib.Path(path).parent}{os.sep}", "").split("\n")
    if not rest:
        return [first]
    assert len(rest) > 1
    assert first == f"{len(rest)} problems in the configuration:"
    return rest


def test_a_file_with_one_key_leaves_every_other_default(write):
    config = ConfigLoader.load(write("a.yaml", "training:\n  epochs: 3\n"))
    assert config.training.epochs == 3
    assert config.training.model_copy(update={"epochs": 100}) == Config().training
    assert config.model == Config().model and config.loss == LossConfig()
    assert LossConfig().class_weights is None


def test_every_section_is_built_without_arguments_and_every_default_passes_its_own_check():
    sections = [
        each for each in vars(sections_module).values() if isinstance(each, type) and issubclass(each, BaseModel)
    ]
    sections = [
        each
        for each in sections
        if each.__module__ == "multigrid.config.sections" and not each.__name__.startswith("_")
    ]
    assert len(sections) == 10
    required = {"StageConfig": {"epochs": 1}}  # an item of a list: nobody has one unless they say how long it is
    for section in sections:
        made = section(**required.get(section.__name__, {}))
        assert section.model_validate(made.model_dump()) == made


def test_every_key_has_a_description_and_a_phrase_for_its_values():
    fields = dict(sections_module.fields())
    assert len(fields) == 8 + 5 + 7 + 6 + 31 + 19 + 9 + 1 + 5  # data, shapes, model, … output, top level
    for path, info in fields.items():
        assert info.description and info.description.endswith("."), path
        assert words_module.says(info).text, path


def test_the_config_is_frozen():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.weights = "a.h5"
    with pytest.raises(ValidationError, match="frozen"):
        config.training.epochs = 3


@pytest.mark.parametrize(
    "text, number",
    [
        ("1e-4", 1e-4),
        ("1E+2", 100.0),
        ("3e0", 3.0),
        ("2.5e-3", 2.5e-3),
        (".5", 0.5),
        ("5.", 5.0),
        ("1", 1.0),
        ("010", 10.0),
        ("+3", 3.0),
    ],
)
def test_numbers_are_those_of_yaml_1_2(write, text, number):
    assert ConfigLoader.load(write("a.yaml", f"training: {{learning_rate: {text}}}")).training.learning_rate == number
    assert (
        ConfigLoader.load(write("b.yaml", "data: {}"), [f"training.learning_rate={text}"]).training.learning_rate
        == number
    )


@pytest.mark.parametrize("text, number", [("0x1F", 31), ("0o17", 15), ("017", 17), ("-0", 0)])
def test_integers_are_those_of_yaml_1_2(write, text, number):
    assert ConfigLoader.load(write("a.yaml", f"training: {{seed: {text}}}")).training.seed == number


@pytest.mark.parametrize(
    "key, value",
    [
        ("training.epochs", '"3"'),
        ("training.epochs", "3.0"),
        ("training.epochs", "true"),
        ("training.epochs", "null"),
        ("training.epochs", "0"),
        ("training.epochs", "1_000"),
        ("training.learning_rate", '"1e-4"'),
        ("training.learning_rate", "false"),
        ("training.learning_rate", "0"),
        ("training.learning_rate", ".inf"),
        ("training.learning_rate", ".nan"),
        ("training.learning_rate", "1:30.5"),
        ("training.optimizer", "rmsprop"),
        ("training.ema", "1.0"),
        ("training.max_grad_norm", "0"),
        ("training.early_stopping", "false"),
        ("training.jit_compile", "1"),
        ("training.weight_decay", "-1e-4"),
        ("data.strict", "1"),
        ("data.strict", '"true"'),
        ("data.workers", "-1"),
        ("data.train", "3"),
        ("data.train", '""'),
        ("data.train", "[a, b]"),
        ("data.shapes.folder", "null"),
        ("data.shapes.seed", "[7]"),
        ("model.width", "0"),
        ("model.width", "2.01"),
        ("model.input_size", "416"),
        ("model.input_size", "[416]"),
        ("model.input_size", "[416, 320, 3]"),
        ("model.input_size", "[100, 320]"),
        ("model.input_size", "[320, 32]"),
        ("model.input_size", "[320, 96.0]"),
        ("model.objectness_prior", "1"),
        ("model.precision", "float16"),
        ("augmentation.steps", "null"),
        ("augmentation.steps", "{name: Blur}"),
        ("augmentation.mosaic", "1.5"),
        ("augmentation.multi_scale", "[1.5, 0.5]"),
        ("augmentation.multi_scale", "[0.4, 1]"),
        ("augmentation.multi_scale", "[1, 2.1]"),
        ("augmentation.multi_scale", "1.5"),
        ("loss.coord_scale", "-1"),
        ("loss.label_smoothing", "0.5"),
        ("loss.loss_normalization", "batches"),
        ("loss.loss_normalization", "[]"),
        ("loss.loss_normalization", "[batch, batch]"),
        ("loss.loss_normalization", "[batch, 3]"),
        ("loss.class_weights", "[]"),
        ("loss.class_weights", "[1, -2]"),
        ("loss.class_weights", "[1, true]"),
        ("loss.class_weights", "balance"),
        ("loss.class_weights", "{auto: balance}"),
        ("loss.class_weights", "{auto: balanced, power: 2}"),
        ("loss.class_weights", "3"),
        ("loss.iou_blend", "1.1"),
        ("detection.max_detections", "0"),
        ("detection.nms_threshold", "2"),
        ("output.dir", "7"),
        ("weights", "true"),
        ("training", "5"),
        ("training", "null"),
        ("loss", "[1]"),
    ],
)
def test_a_wrong_value_is_one_line_with_place_key_expectation_and_value(write, key, value):
    *sections, last = key.split(".")
    nested = "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections)) + "  " * len(sections)
    path = write("a.yaml", f"# first line\n{nested}{last}: {value}\n")
    (found,) = problems(path)
    assert found.startswith(f"a.yaml, line {2 + len(sections)}: {key}: expected ") and ", received " in found
    (found,) = problems(write("b.yaml", "data: {}"), f"{key}={value}")
    assert found.startswith(f"command line: {key}: expected ") and ", received " in found


@pytest.mark.parametrize(
    "key, value, expected",
    [
        ("training.epochs", '"3"', 'expected an integer >= 1, received "3"'),
        ("training.ema", "1", "expected a number > 0 and < 1, or null, received 1"),
        ("training.jit_compile", "yess", 'expected "auto" or true or false, received "yess"'),
        ("training.optimizer", "lion", 'expected "adamw", "adam" or "sgd", received "lion"'),
        ("model.input_size", "[100, 320]", "each a multiple of 32 and at least 64, received [100, 320]"),
        ("loss", "3", "expected a mapping of keys, received 3"),
    ],
)
def test_the_expectation_is_said_in_words(write, key, value, expected):
    (found,) = problems(write("a.yaml", "data: {}"), f"{key}={value}")
    assert found.endswith(expected)


@pytest.mark.parametrize(
    "text, place",
    [
        ("augmentation:\n  steps:\n    - name: Blur\n    - {p: 0.5}\n", "a.yaml, line 4: augmentation.steps[1]: "),
        ("augmentation:\n  steps:\n    - name: 3\n", "a.yaml, line 3: augmentation.steps[0]: "),
        ("augmentation:\n  steps:\n    - {name: Blur}\n    -\n      Blur\n", "a.yaml, line 5: augmentation.steps[1]: "),
    ],
)
def test_a_step_without_a_name_is_named_with_its_line(write, text, place):
    (found,) = problems(write("a.yaml", text))
    assert found.startswith(place)


@pytest.mark.parametrize(
    "key, nearest",
    [
        ("trainig", "training"),
        ("training.epoch", "training.epochs"),
        ("training.learning_rte", "training.learning_rate"),
        ("learning_rate", "training.learning_rate"),
        ("learning_rte", "training.learning_rate"),
        ("training.coord_scale", "loss.coord_scale"),
        ("data.shapes.sed", "data.shapes.seed"),
        ("trainig.epoch", "training.epochs"),
        ("modelconfig", "model_config"),
        ("wieghts", "weights"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_known_one(write, key, nearest):
    (found,) = problems(write("a.yaml", "data: {}"), f"{key}=3")
    assert found == f"command line: {key}: unknown key; the nearest known key is {nearest}"


def test_an_unknown_key_of_a_file_is_named_with_its_line(write):
    text = "data:\n  strict: true\n\n  cahce: true\n"
    assert problems(write("a.yaml", text)) == [
        "a.yaml, line 4: data.cahce: unknown key; the nearest known key is data.cache"
    ]


def test_an_unknown_key_that_resembles_nothing_is_still_answered(write):
    (found,) = problems(write("a.yaml", "qqq: 3\n"))
    assert found.startswith("a.yaml, line 1: qqq: unknown key; the nearest known key is ")


def test_all_problems_of_file_model_file_and_overrides_are_reported_together_in_order(write):
    write("models/m.yaml", "depth: -1\nwitdh: 0.5\n")
    text = (
        "data:\n  train: trian.txt\nmodel_config: models/m.yaml\nmodel:\n  neck: fat\n"
        "training:\n  epochs: 2.5\n  seed: 3\n  seed: 4\nlerning: 1\n"
    )
    found = problems(write("a.yaml", text), "training.batch_size=0", "epochs", "weights=none.h5")
    starts = [
        "a.yaml, line 2: data.train: expected an existing file or folder",
        'a.yaml, line 5: model.neck: expected "slim" or "full", received "fat"',
        "a.yaml, line 7: training.epochs: expected an integer >= 1, received 2.5",
        "a.yaml, line 9: training.seed: expected the key once, received twice (line 8)",
        "a.yaml, line 10: lerning: unknown key; the nearest known key is ",
        "models/m.yaml, line 1: model.depth: expected a number > 0 and <= 2, received -1",
        "models/m.yaml, line 2: model.witdh: unknown key; the nearest known key is model.width",
        'command line: expected key.sub=value, received "epochs"',
        "command line: weights: expected an existing file, or null, received",
        "command line: training.batch_size: expected an integer >= 1, received 0",
    ]
    assert len(found) == len(starts)
    for line, start in zip(found, starts, strict=True):
        assert line.startswith(start)


@pytest.mark.parametrize("override", ["epochs", "=3", "training..epochs=3", ".epochs=3", "training.=3", ""])
def test_an_override_without_key_or_value_is_refused(write, override):
    (found,) = problems(write("a.yaml", "data: {}"), override)
    assert found.startswith("command line: expected key.sub=value, received ")


def test_a_value_that_is_no_yaml_is_refused_with_its_key(write):
    (found,) = problems(write("a.yaml", "data: {}"), "model.input_size=[416, 320")
    assert found.startswith("command line: model.input_size: expected YAML")


def test_inline_keys_win_over_the_model_file_and_overrides_over_both(write):
    write("m.yaml", "width: 0.5\ndepth: 0.5\nneck: full\n")
    path = write("a.yaml", "model_config: m.yaml\nmodel:\n  depth: 0.75\n  neck: slim\n")
    model = ConfigLoader.load(path, ["model.neck=full", "model.neck=slim", "model.neck=full"]).model
    assert (model.width, model.depth, model.neck) == (0.5, 0.75, "full")
    assert ConfigLoader.load(path).model.neck == "slim"


def test_a_model_file_may_be_named_by_an_override_and_taken_away_by_one(write, tmp_path):
    write("m.yaml", "width: 0.5\n")
    write("other.yaml", "width: 0.75\n")
    path = write("a.yaml", "model_config: m.yaml\n")
    assert ConfigLoader.load(path, ["model_config=../files/other.yaml"]).model.width == 0.75
    assert ConfigLoader.load(path, ["model_config=null"]).model.width == 0.25


@pytest.mark.parametrize(
    "name, text, expected",
    [
        ("none.yaml", None, "a.yaml, line 1: model_config: expected an existing YAML file"),
        ("m.yaml", "- 1\n", "m.yaml, line 1: expected a mapping of the keys of `model`, received [1]"),
        ("m.yaml", "width: [1\ndepth: 2\n", "m.yaml, line 2: expected YAML"),
        ("m.yaml", "model:\n  width: 1\n", "m.yaml, line 1: model.model: unknown key"),
        ("m.yaml", "width: 0.5\nwidth: 0.5\n", "m.yaml, line 2: model.width: expected the key once"),
    ],
)
def test_a_model_file_that_cannot_be_used_is_named(write, name, text, expected):
    if text is not None:
        write(name, text)
    (found,) = problems(write("a.yaml", f"model_config: {name}\n"))
    assert found.startswith(expected)


def test_a_mapping_as_override_adds_to_its_section(write):
    path = write("a.yaml", "loss: {coord_scale: 2, class_scale: 3}\n")
    loss = ConfigLoader.load(path, ["loss={class_scale: 4, anchor_scale: 5}"]).loss
    assert (loss.coord_scale, loss.class_scale, loss.anchor_scale) == (2, 4, 5)


def test_an_override_does_not_hide_a_section_that_is_no_mapping(write):
    (found,) = problems(write("a.yaml", "training: 5\n"), "training.epochs=3")
    assert found == "a.yaml, line 1: training: expected a mapping of keys, received 5"


def test_overrides_reach_what_is_not_in_the_file_and_null_empties_it(write):
    path = write("a.yaml", "data: {train: labels.txt}\n")
    config = ConfigLoader.load(path, ["data.train=", "training.ema=null", "output.dir=runs/a=b", "data.shapes.seed=3"])
    assert config.data.train is None and config.training.ema is None and config.data.shapes.seed == 3
    assert config.output.dir == os.path.join(os.getcwd(), "runs", "a=b")


def test_paths_are_relative_to_the_file_that_names_them(write, tmp_path, monkeypatch):
    for name in ("labels/train.txt", "labels/two words.txt", "sub/names.txt", "models/m.yaml"):
        write(name, "")
    write("models/m.yaml", "width: 0.5\n")
    (tmp_path / "here" / "val.txt").write_text("")
    text = (
        "data: {train: ../labels/train.txt, classes: names.txt}\nmodel_config: ../models/m.yaml\noutput: {dir: out}\n"
    )
    path = write("sub/a.yaml", text)
    config = ConfigLoader.load(path, ["data.val=val.txt", "data.test=../files/labels/two words.txt"])
    assert config.data.train == str(tmp_path / "files" / "labels" / "train.txt")
    assert config.data.classes == str(tmp_path / "files" / "sub" / "names.txt")
    assert config.data.val == str(tmp_path / "here" / "val.txt")
    assert config.data.test == str(tmp_path / "files" / "labels" / "two words.txt")
    assert config.output.dir == str(tmp_path / "files" / "sub" / "out")
    assert config.model.width == 0.5
    monkeypatch.chdir(tmp_path)
    assert ConfigLoader.load("files/sub/a.yaml").data.train == config.data.train


def test_the_folder_of_drawn_scenes_lies_in_the_working_directory_unless_named(write, tmp_path):
    assert ConfigLoader.load(write("a.yaml", "training: {}")).data.shapes.folder == str(
        tmp_path / "here/datasets/shapes"
    )
    path = write("b.yaml", "data: {shapes: {folder: drawn, val: 2}}")
    assert ConfigLoader.load(path).data.shapes.folder == str(tmp_path / "files/drawn")
    assert ConfigLoader.load(path, ["data.shapes.folder=d"]).data.shapes.folder == str(tmp_path / "here/d")


def test_the_home_directory_may_be_written_as_tilde(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "files"))
    write("names.txt", "a")
    path = write("sub/a.yaml", "data: {classes: ~/names.txt}")
    assert ConfigLoader.load(path).data.classes == str(tmp_path / "files/names.txt")


@pytest.mark.parametrize("key", ["data.classes", "data.anchors", "weights", "backbone_weights", "model_config"])
def test_a_folder_is_not_taken_for_a_file(write, key):
    (found,) = problems(write("a.yaml", "data: {}"), f"{key}=../here")
    assert found.startswith(f"command line: {key}: expected an existing ") and "here" in found


@pytest.mark.parametrize("key", ["data.train", "data.val", "data.test"])
def test_labels_may_be_a_folder_or_the_word_shapes(write, key, tmp_path):
    path, name = write("a.yaml", "training: {}"), key.split(".")[1]
    assert getattr(ConfigLoader.load(path, [f"{key}=../here"]).data, name) == str(tmp_path / "here")
    assert getattr(ConfigLoader.load(path, [f"{key}=shapes"]).data, name) == "shapes"
    (found,) = problems(path, f"{key}=./shapes")
    assert f"looked for {tmp_path / 'here' / 'shapes'}" in found


@pytest.mark.parametrize(
    "content, expected",
    [
        (b"a: b: c\n", "a.yaml, line 1: expected YAML"),
        (b"training:\n\tepochs: 3\n", "a.yaml, line 2: expected YAML"),
        (b"training:\n  epochs: 3\n seed: 4\n", "a.yaml, line 3: expected YAML"),
        (b"training: {seed: *nobody}\n", "a.yaml, line 1: expected YAML"),
        (b"training: {}\n---\ndata: {}\n", "a.yaml, line 2: expected YAML"),
        (b"# one\ndata:\n  train: \xff\n", "a.yaml, line 3: expected UTF-8 text"),
        (b"# one\ndata:\n  train: \x01\n", "a.yaml, line 3: expected YAML"),
        (b"", "a.yaml, line 1: expected a mapping of the sections of a config, received an empty file"),
        (b"# nothing\n", "a.yaml, line 1: expected a mapping of the sections of a config, received an empty file"),
        (b"- training\n", 'a.yaml, line 1: expected a mapping of the sections of a config, received ["training"]'),
        (b"training\n", 'a.yaml, line 1: expected a mapping of the sections of a config, received "training"'),
        (b"data: {}\n? [a, b]\n: 3\n", "a.yaml, line 2: expected words as keys"),
        (b"data: {}\nweights: !file a.h5\n", "a.yaml, line 2: weights: expected plain YAML"),
        (b"data: !!set {strict}\n", "a.yaml, line 1: data: expected plain YAML"),
    ],
)
def test_a_file_that_is_no_config_is_named_with_the_line(write, content, expected):
    path = write("a.yaml", "")
    path.write_bytes(content)
    assert problems(path)[0].startswith(expected)
    assert "\n" not in problems(path)[0]


@pytest.mark.parametrize(
    "text, key", [("seed: !!int word", "seed"), ("ema: !!bool word", "ema"), ("seed: &a [*a]", "seed")]
)
def test_yaml_that_cannot_be_read_as_it_says_is_an_error_and_no_crash(write, text, key):
    found = problems(write("a.yaml", f"training:\n  {text}\n"))
    assert found[0].startswith(f"a.yaml, line 2: training.{key}")


def test_a_missing_file_or_a_folder_is_no_config(write, tmp_path):
    assert problems(tmp_path / "none.yaml") == [
        "none.yaml: expected a YAML file, received none (No such file or directory)"
    ]
    (found,) = problems(tmp_path / "here")
    assert found.startswith("here: expected a YAML file, received none")


def test_an_alias_repeats_a_value(write):
    config = ConfigLoader.load(write("a.yaml", "detection:\n  score_threshold: &t 0.25\n  predict_threshold: *t\n"))
    assert config.detection.score_threshold == config.detection.predict_threshold == 0.25


@pytest.mark.parametrize(
    "value, stored",
    [
        ("balanced", "balanced"),
        ("{auto: sqrt_inverse}", "sqrt_inverse"),
        ("[1, 2.5, 0]", (1.0, 2.5, 0.0)),
        ("null", None),
    ],
)
def test_class_weights_are_a_word_a_list_or_nothing(write, value, stored):
    path = write("a.yaml", f"loss: {{class_weights: {value}}}")
    assert ConfigLoader.load(path).loss.class_weights == stored


def test_an_override_may_reach_into_a_value_that_takes_a_mapping(write):
    assert (
        ConfigLoader.load(write("a.yaml", "data: {}"), ["loss.class_weights.auto=inverse"]).loss.class_weights
        == "inverse"
    )


@pytest.mark.parametrize("value, stored", [("grid", ("grid",)), ("[positives, batch]", ("positives", "batch"))])
def test_one_normalization_may_stand_without_a_list(write, value, stored):
    assert (
        ConfigLoader.load(write("a.yaml", f"loss: {{loss_normalization: {value}}}")).loss.loss_normalization == stored
    )


@pytest.mark.parametrize("value, stored", [("auto", "auto"), ("true", True), ("off", False)])
def test_compilation_is_chosen_or_left_to_the_device(write, value, stored):
    assert ConfigLoader.load(write("a.yaml", f"training: {{jit_compile: {value}}}")).training.jit_compile is stored


def test_a_saved_config_loads_back_equal_from_anywhere(write, tmp_path, monkeypatch):
    write("labels/two words.txt", "")
    write("m.yaml", "width: 1e-2\ninput_size: [96, 64]\n")
    text = """
data: {train: labels/two words.txt, val: shapes}
model_config: m.yaml
training: {ema: null, weight_decay: 1e-5}
augmentation:
  multi_scale: [0.5, 1.25]
  steps:
    - {name: Blur, note: "1e-4", word: "on", number: "0x1F", nothing: null, unicode: "é", lines: "a\\nb"}
    - name: OneOf
      transforms: [{name: ToGray, p: 1e-4}]
loss: {class_weights: {auto: inverse}, loss_normalization: [batch, grid]}
"""
    config = ConfigLoader.load(write("a.yaml", text), ["output.dir=out", "training.jit_compile=false"])
    assert config.augmentation.steps[0]["note"] == "1e-4"
    saved = tmp_path / "run 1" / "config.yaml"
    saved.parent.mkdir()
    config.save(saved)
    monkeypatch.chdir(tmp_path)
    assert ConfigLoader.load(saved) == config
    assert saved.read_text(encoding="utf-8").startswith(f"# multigrid train --config '{saved}' output.dir=null\n")
    assert "model_config" not in saved.read_text(encoding="utf-8")


def test_the_defaults_saved_load_back_with_an_absolute_folder(write, tmp_path):
    Config().save(tmp_path / "c.yaml")
    loaded = ConfigLoader.load(tmp_path / "c.yaml")
    assert loaded.data.shapes.folder == str(tmp_path / "here/datasets/shapes")
    assert loaded == ConfigLoader.load(write("a.yaml", "data: {}"))
    assert loaded.augmentation == Config().augmentation


def test_the_reference_of_all_keys_is_up_to_date():
    page = (CHECKOUT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page.split("<!-- generated -->\n\n")[1] == describe(), "run `make docs`"
    assert "| `model_config` |" in page and page.count("\n| `") == len(dict(sections_module.fields())) + 1


def test_reading_a_config_imports_no_framework():
    code = (
        "import sys, multigrid.config; print(sorted({'keras', 'tensorflow', 'jax', 'numpy', 'cv2'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n"


def test_a_wrong_item_of_a_list_is_named_by_its_place(write):
    text = "training:\n  stages:\n  - {epochs: 5, freeze: backbone}\n  - {epoch: 2}\ncallbacks:\n- 3\n"
    assert [problem.partition(": expected")[0] for problem in problems(write("a.yaml", text))] == [
        "a.yaml, line 4: training.stages[1]",
        "a.yaml, line 6: callbacks[0]",
    ]


def test_stages_multipliers_and_callbacks_come_back_from_a_saved_file(write, tmp_path):
    settings = [
        "training.stages=[{epochs: 5, freeze: [stem, stage1]}, {epochs: 2, learning_rate: 1e-4, gradual: true}]",
        "training.lr_multipliers.stage1=0.5",
        "callbacks=[{name: keras.callbacks.TerminateOnNaN}]",
    ]
    config = ConfigLoader.load(write("a.yaml", "data: {}"), settings)
    first, second = config.training.stages
    assert (first.epochs, first.freeze, first.learning_rate) == (5, ("stem", "stage1"), None)
    assert (second.freeze, second.learning_rate, second.gradual) == ("none", 1e-4, True)
    assert config.training.lr_multipliers == {"stage1": 0.5}
    config.save(tmp_path / "b.yaml")
    assert ConfigLoader.load(tmp_path / "b.yaml") == config
