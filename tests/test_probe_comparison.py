"""Two probes side by side."""

import json

import pytest

from multigrid.cli import main
from multigrid.diagnosis.probe_comparison import compare, read_records
from multigrid.errors import InputError


def record(**measured):
    """A record whose best constant head has 2 everywhere."""
    rows = [
        {"component": name, "unit": "cell", "measured": value, "at_initialization": 1.0, "best_constant": 2.0}
        for name, value in measured.items()
    ]
    return {"per_unit": rows, "loss_components": {}}


def test_figures_are_means_over_the_batches_of_each():
    # localization: (0.4 + 0.8) / 2 = 0.6 against 0.3: half; 0.6 / 2 = 0.3 and 0.3 / 2 = 0.15 of the constant
    (row,) = compare([record(localization=0.4), record(localization=0.8)], [record(localization=0.3)])
    assert row["first"] == pytest.approx(0.6) and row["second"] == 0.3 and row["ratio"] == pytest.approx(0.5)
    assert row["first_of_constant"] == pytest.approx(0.3) and row["second_of_constant"] == pytest.approx(0.15)


def test_a_component_that_one_of_them_lacks_has_no_ratio():
    rows = compare([record(anchor=1.0)], [record(consensus=3.0)])
    assert [(row["component"], row["first"], row["second"], row["ratio"]) for row in rows] == [
        ("anchor", 1.0, None, None),
        ("consensus", None, 3.0, None),
    ]


@pytest.mark.parametrize("text", ["[]", "{", '[{"a": 1}]', "[3]"])
def test_a_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match="a.json: expected the loss_components.json of a probe"):
        read_records(path)


def test_the_command_compares_and_probes_nothing(tmp_path, capsys):
    for name, value in (("a", 0.5), ("b", 0.125)):
        (tmp_path / f"{name}.json").write_text(json.dumps([record(localization=value)]))
    assert main(["probe", "--compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["components"][0]["ratio"] == 0.25
