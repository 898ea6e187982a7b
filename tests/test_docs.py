"""What the pages promise is there: links, paths, Python names, and every shipped YAML."""

import ast
import importlib
import pathlib
import re

import pytest

import multigrid
from multigrid.config import ConfigLoader
from multigrid.diagnosis.reference import describe
from multigrid.diagnosis.rules import RULES

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]
RULE_PAGES = sorted((CHECKOUT / "docs" / "doctor").glob("*.md"))
PAGES = [CHECKOUT / "README.md", *sorted((CHECKOUT / "docs").glob("*.md")), *RULE_PAGES]
CONFIGS = sorted((CHECKOUT / "configs").rglob("*.yaml"))
MODEL_CONFIGS = [path for path in CONFIGS if path.parent.name == "models"]
WHOLE_CONFIGS = [path for path in CONFIGS if path not in MODEL_CONFIGS]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
# `configs/models/*.yaml` and `configs/...` name a pattern, not a file.
NAMED_PATH = re.compile(r"(?<![\w/.-])((?:\.\./)?(?:configs|tools)/[\w./*…-]+)")


def text_of(page):
    return page.read_text(encoding="utf-8")


def prose_of(page):
    return FENCE.sub("", text_of(page))


def heading_anchors(page):
    """GitHub's anchors of a page's headings: lower case, punctuation dropped, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def python_blocks():
    """(place, source) of every Python block of every page."""
    found = []
    for page in PAGES:
        sources = [source for language, source in FENCE.findall(text_of(page)) if language == "python"]
        found += [(f"{page.name}, block {number}", source) for number, source in enumerate(sources, 1)]
    return found


def command_of(path):
    """Script and config of the command that the first line of a YAML file tells to run."""
    first = text_of(path).splitlines()[0]
    found = re.match(r"# python (tools/\w+\.py) --config (\S+)", first)
    assert found, f"{path}: expected a first line '# python tools/… --config …', received {first!r}"
    return found.groups()


def test_there_are_nineteen_pages_and_one_a_rule():
    assert [page.name for page in PAGES if page not in RULE_PAGES] == [
        "README.md", "architecture.md", "assignment.md", "command-line.md", "configuration.md", "data-formats.md",
        "detection.md", "devices.md", "doctor.md", "evaluation.md", "export.md", "fine-tuning.md", "long-runs.md",
        "loss.md", "prediction.md", "probe.md", "serving.md", "training.md", "weights.md",
    ]  # fmt: skip


def test_every_rule_of_the_doctor_has_a_page_that_tells_what_to_do():
    assert [page.stem for page in RULE_PAGES] == [rule.id for rule in RULES] and len(RULES) >= 60
    for page, rule in zip(RULE_PAGES, RULES, strict=True):
        headings = re.findall(r"^#+ (.+)$", prose_of(page), re.MULTILINE)
        assert headings[0] == f"{rule.id}: {rule.cause}"
        assert headings[1:6] == ["What you see", "Why", "How the doctor knows", "What to do", "Look-alikes"]


def test_the_table_of_rules_is_up_to_date():
    page = text_of(CHECKOUT / "docs" / "doctor.md")
    assert page.split("<!-- generated -->\n\n")[1] == describe(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    targets = [target for target in LINK.findall(prose_of(page)) if not re.match(r"\w+:", target)]
    for target in targets:
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in heading_anchors(file), f"{page.name}: {target} names no heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_mark_waits_for_its_content(page):
    # What a mark names begins on the next line; `generated` and `end` name no content of their own.
    marks = re.findall(r"^<!-- ([\w ]+) -->\n?(.*)", text_of(page), re.MULTILINE)
    assert [name for name, below in marks if name not in ("generated", "end") and not below.strip()] == []


def test_the_pages_link_to_each_other():
    linked = {target for page in PAGES for target in LINK.findall(prose_of(page)) if not re.match(r"\w+:", target)}
    assert len(linked) >= 10


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_config_and_tool_that_is_named_exists(page):
    for named in NAMED_PATH.findall(text_of(page)):
        path = named.removeprefix("../").rstrip(".")
        if "*" not in path and "…" not in path:
            assert (CHECKOUT / path).exists(), f"{page.name}: {named} does not exist"


def test_the_pages_name_the_tools_and_configs():
    named = {path for page in PAGES for path in NAMED_PATH.findall(text_of(page))}
    assert {"tools/train.py", "tools/anchors.py", "tools/evaluate.py", "tools/predict.py"} <= named
    assert {"tools/weights.py", "tools/compare.py", "tools/replay.py"} <= named
    assert {"configs/train_config.yaml", "configs/quickstart.yaml"} <= named


def test_the_training_page_has_python_blocks():
    assert sum(place.startswith("training.md") for place, _ in python_blocks()) == 6


@pytest.mark.parametrize(("place", "source"), python_blocks(), ids=[place for place, _ in python_blocks()])
def test_every_python_block_compiles_and_imports_names_that_exist(place, source):
    tree = ast.parse(source, place)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        for name in (alias.name for alias in node.names):
            if node.module == "multigrid":
                assert name in multigrid.__all__, f"{place}: multigrid has no public {name}"
                assert getattr(multigrid, name) is not None
            elif node.module.startswith("multigrid."):
                assert hasattr(importlib.import_module(node.module), name), f"{place}: {node.module} has no {name}"


def test_there_are_five_shipped_configs():
    # A test that globs says how many it found: 2 that are run and 3 that are named as model_config.
    assert [path.relative_to(CHECKOUT / "configs").as_posix() for path in WHOLE_CONFIGS] == [
        "quickstart.yaml",
        "train_config.yaml",
    ]
    assert [path.name for path in MODEL_CONFIGS] == ["darknet53.yaml", "quarter.yaml", "small.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_yaml_begins_with_the_command_that_uses_it(path):
    script, config = command_of(path)
    assert (CHECKOUT / script).is_file()
    assert (CHECKOUT / config).is_file()
    # A model file may be used by the config as it stands, or be named in the command.
    used = f"{text_of(path).splitlines()[0]} {text_of(CHECKOUT / config)}"
    assert path.name in used


@pytest.mark.parametrize("path", WHOLE_CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_loads(path):
    config = ConfigLoader.load(path)
    assert config.data.train is not None


MODELS = [("darknet53.yaml", 1.0, 1.0), ("quarter.yaml", 0.25, 1.0), ("small.yaml", 0.25, 0.34)]


@pytest.mark.parametrize(("name", "width", "depth"), MODELS)
def test_every_model_config_loads_through_a_config_that_names_it(tmp_path, name, width, depth):
    user = tmp_path / "user.yaml"
    user.write_text(f"model_config: {CHECKOUT / 'configs' / 'models' / name}\nmodel: {{input_size: [64, 96]}}\n")
    config = ConfigLoader.load(user)
    assert (config.model.width, config.model.depth) == (width, depth)
    assert config.model.input_size == (64, 96)
