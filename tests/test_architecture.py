"""Imports run one way. Every module of the package is read, none is imported."""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).resolve().parents[1] / "multigrid"

# A part of the house may import what stands in the rows above its own, and nothing else but itself.
ROWS = (
    ("errors", "__version__"),
    ("geometry", "config", "report", "replicas"),
    ("pictures",),
    ("data", "models", "losses"),
    ("detection",),
    ("evaluation",),
    ("assembly",),
    ("prediction",),
    ("training", "export", "serving"),
    ("diagnosis",),
    ("cli",),
)
LEVEL = {part: level for level, row in enumerate(ROWS) for part in row}
WHOLE_CONFIG = {"Config", "ConfigLoader"}
# modules that make a TensorFlow artefact or strategy, as "part/module.py"
MAY_IMPORT_TENSORFLOW = {"replicas.py", "training/devices.py", "export/litert.py"}
MAY_PRINT = ("cli/", "report.py")
FEWEST_MODULES = 40


def modules():
    """(path within the package, source) of every module."""
    return [(path.relative_to(PACKAGE).as_posix(), path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))]


def part_of(path: str) -> str:
    return path.split("/")[0].removesuffix(".py")


def imported_names(path: str, source: str):
    """(line, dotted name) of everything that a module imports, wherever the import stands; `.x` is made absolute."""
    folder = ["multigrid", *path.split("/")[:-1]]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            origin = ".".join(filter(None, (origin, node.module)))
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def complaints(path: str, source: str) -> list[str]:
    """What a module does that the architecture forbids, one line each."""
    found = []
    part, is_root = part_of(path), path == "__init__.py"
    if not is_root and part not in LEVEL:
        return [f"{path}: {part!r} stands in no row"]
    for line, name in imported_names(path, source):
        where, (first, *rest) = f"{path}, line {line}", name.split(".")
        if first == "tensorflow" and path not in MAY_IMPORT_TENSORFLOW:
            found.append(f"{where}: imports tensorflow")
        if first != "multigrid":
            continue
        target = rest[0] if rest else "__init__"
        if target not in LEVEL:
            found.append(f"{where}: imports {name}, which stands in no row")
        elif is_root or (target != part and LEVEL[target] >= LEVEL[part]):
            found.append(f"{where}: {part} imports {target}")
        elif target == "config" != part and LEVEL[part] < LEVEL["assembly"]:
            if not rest[1:] or WHOLE_CONFIG & set(rest):
                found.append(f"{where}: {part} sees the whole config")
    for node in ast.walk(ast.parse(source)):
        is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
        if is_print and not path.startswith(MAY_PRINT):
            found.append(f"{path}, line {node.lineno}: prints")
    return found


def test_no_module_breaks_the_architecture():
    looked_at = modules()
    assert len(looked_at) >= FEWEST_MODULES
    assert [complaint for path, source in looked_at for complaint in complaints(path, source)] == []


def test_every_part_that_exists_stands_in_a_row():
    parts = {part_of(path) for path, _ in modules()} - {"__init__"}
    assert parts <= LEVEL.keys() and len(parts) >= 11


@pytest.mark.parametrize(
    "path, source, complaint",
    [
        ("geometry/boxes.py", "from multigrid.losses import targets", "geometry imports losses"),
        ("models/head.py", "import multigrid.losses.targets", "models imports losses"),
        ("losses/targets.py", "def f():\n    from multigrid.data.samples import Sample", "losses imports data"),
        ("geometry/cells.py", "from multigrid.config import LossConfig", "geometry imports config"),
        ("config.py", "from multigrid.geometry import anchors", "config imports geometry"),
        ("errors.py", "from multigrid import report", "errors imports report"),
        ("detection/decode.py", "from multigrid.evaluation.evaluator import coco_metrics", "imports evaluation"),
        ("detection/decode.py", "from ..assembly import build", "detection imports assembly"),
        ("data/images.py", "from .. import cli", "data imports cli"),
        ("training/trainer.py", "from multigrid.diagnosis.probe import run_probe", "training imports diagnosis"),
        ("evaluation/run.py", "from multigrid.config import Config", "sees the whole config"),
        ("models/head.py", "from multigrid import config", "sees the whole config"),
        ("models/head.py", "from multigrid.config.sections import Config", "sees the whole config"),
        ("data/images.py", "from multigrid import InputError", "stands in no row"),
        ("data/images.py", "import multigrid", "stands in no row"),
        ("helpers.py", "import os", "stands in no row"),
        ("__init__.py", "from multigrid.config import Config", "imports config"),
        ("training/trainer.py", "import tensorflow as tf", "imports tensorflow"),
        ("losses/components.py", "from tensorflow.math import log", "imports tensorflow"),
        ("data/samples.py", "print('done')", "prints"),
        ("client.py", "print('done')", "stands in no row"),
    ],
)
def test_an_offence_is_seen_and_located(path, source, complaint):
    (found,) = complaints(path, source)
    assert complaint in found and found.startswith(path)


@pytest.mark.parametrize(
    "path, source",
    [
        ("losses/multigrid_loss.py", "from multigrid.config import LOSS_PARTS, LossConfig"),
        ("losses/multigrid_loss.py", "from multigrid.geometry import boxes\nfrom multigrid.losses import targets"),
        ("geometry/anchors.py", "from multigrid.errors import InputError\nfrom .boxes import iol"),
        ("pictures.py", "from multigrid.report import replacing"),
        ("config/__init__.py", "from multigrid.config.loader import ConfigLoader"),
        ("training/trainer.py", "from multigrid import assembly\nfrom multigrid.config import Config"),
        ("cli/train.py", "from multigrid.training.trainer import MultiGridTrainer\nprint('done')"),
        ("report.py", "console.print('done')"),
    ],
)
def test_what_is_allowed_passes(path, source):
    assert complaints(path, source) == []
