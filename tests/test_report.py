"""Tables, progress, and files that appear whole or not at all."""

import dataclasses
import io
import json
import os
import pathlib
import stat

import numpy as np
import pytest
from rich.console import Console

from multigrid import report
from multigrid.errors import InputError


@dataclasses.dataclass
class Part:
    name: str
    values: np.ndarray


def test_a_table_shows_every_cell_in_a_log_and_takes_no_text_for_markup():
    log = io.StringIO()
    long = "a" * 90
    report.table("parts", ["part", "value"], [[f"[red]{long}", 0.123456], ["grid", None]], report.new_console(log))
    shown = log.getvalue()
    assert f"[red]{long}" in shown and "0.1235" in shown and "-" in shown and "parts" in shown


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"table 'parts': expected rows of 2 cells, received \[1\]"):
        report.table("parts", ["part", "value"], [[1, 2], [1]], report.new_console(io.StringIO()))


def test_progress_in_a_log_is_one_line_first_and_one_last():
    log = io.StringIO()
    seen = list(report.progress([5, 3, 8], "reading [images]", console=report.new_console(log)))
    first, last = log.getvalue().splitlines()
    assert seen == [5, 3, 8]
    assert first == "reading [images]: 3 ..." and last.startswith("reading [images]: 3 in 0.") and last.endswith(" s")


def test_progress_counts_what_has_no_length_and_promises_no_end_that_did_not_come():
    log = io.StringIO()
    assert len(list(report.progress(iter("ab"), "steps", console=report.new_console(log)))) == 2
    assert log.getvalue().splitlines()[0] == "steps: ? ..."
    broken = io.StringIO()
    items = report.progress(iter("abc"), "steps", total=3, console=report.new_console(broken))
    next(items)
    items.close()
    assert broken.getvalue().splitlines() == ["steps: 3 ..."]


def test_progress_on_a_terminal_is_a_bar():
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=100)
    assert list(report.progress([1, 2], "reading", console=console)) == [1, 2]
    assert "100%" in terminal.getvalue()


def test_json_holds_arrays_dataclasses_paths_and_no_nan(tmp_path):
    value = {
        "part": Part("loss", np.asarray([[1, np.nan], [np.inf, 2.5]], dtype="float32")),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "path": pathlib.Path("a") / "b",
        "shape": (3, 5),
        7: -np.inf,
    }
    report.write_json(tmp_path / "new" / "value.json", value)
    assert json.loads((tmp_path / "new" / "value.json").read_text(), parse_constant=pytest.fail) == {
        "part": {"name": "loss", "values": [[1, None], [None, 2.5]]},
        "count": 3,
        "flag": True,
        "path": str(pathlib.Path("a") / "b"),
        "shape": [3, 5],
        "7": None,
    }


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "value.json"
    report.write_json(path, [1])
    with pytest.raises(TypeError, match="received set"):
        report.write_json(path, {"a": {1, 2}})
    assert json.loads(path.read_text()) == [1] and list(tmp_path.iterdir()) == [path]


def test_csv_keeps_the_columns_in_order_and_whole_numbers_whole(tmp_path):
    rows = [{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": float("nan"), "images": 30}]
    report.write_csv(tmp_path / "results.csv", rows)
    assert (tmp_path / "results.csv").read_text() == "epoch,loss,images\n1,0.5,\n2,,30\n"
    # A float comes back as it was.
    report.write_csv(tmp_path / "third.csv", [{"value": 1 / 3}])
    assert float((tmp_path / "third.csv").read_text().split()[1]) == 1 / 3


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    path, real, seen = tmp_path / "value.txt", os.fsync, []

    def fsync(descriptor):
        """As of Windows, where waiting for a file needs the right to write to it."""
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        seen.append((is_folder, path.exists()))
        assert is_folder or fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_RDWR
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with report.replacing(path) as temporary:
        temporary.write_text("new")
    assert seen == [(False, False), (True, True)]


def test_a_file_that_fails_half_way_leaves_the_old_one_and_no_rest(tmp_path):
    path = tmp_path / "best.weights.h5"
    path.write_text("old")
    with pytest.raises(RuntimeError), report.replacing(path) as temporary:
        assert temporary.parent == tmp_path and temporary.name.endswith(".weights.h5") and temporary != path
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with report.replacing(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_results_lie_apart_from_what_they_are_made_of(tmp_path):
    for name in ("labels/a.xml", "images/a.jpg", "elsewhere/b.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (tmp_path / "images" / "b.jpg").symlink_to(tmp_path / "elsewhere" / "b.jpg")
    (tmp_path / "shortcut").symlink_to(tmp_path / "labels")
    read = [tmp_path / "labels", tmp_path / "images" / "b.jpg"]
    for name in ("labels", "shortcut", "images", "elsewhere", "images/../elsewhere"):
        with pytest.raises(InputError, match=r"^--output-dir: expected a folder other than that of the images"):
            report.check_apart(tmp_path / name, read, "--output-dir")
    for name in (".", "images/below", "new"):
        report.check_apart(tmp_path / name, read, "--output-dir")


def test_what_was_read_is_not_replaced(tmp_path):
    (tmp_path / "train.txt").touch()
    (tmp_path / "link.txt").symlink_to(tmp_path / "train.txt")
    for name in ("train.txt", "link.txt", "below/../train.txt"):
        with pytest.raises(InputError, match=rf"^--output: expected a file of another name, received .*{name}, which"):
            report.check_unread([tmp_path / "new.txt", tmp_path / name], [tmp_path / "train.txt"], "--output")
    report.check_unread([tmp_path / "new.txt"], [tmp_path / "train.txt"], "--output")
