"""Two probes beside one another, such as of random and of pretrained weights."""

from __future__ import annotations

import json
import os

from multigrid.errors import InputError


def read_records(path: str | os.PathLike) -> list[dict]:
    """The records of a loss_components.json.

    Raises:
        InputError: no such file, or one that no probe has written.
    """
    try:
        with open(path, encoding="utf-8") as file:
            records = json.load(file)
        if not records or not all({"per_unit", "loss_components"} <= record.keys() for record in records):
            raise ValueError("no records of a probe")
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: expected the loss_components.json of a probe, received {error}") from None
    return records


def compare(one: list[dict], other: list[dict]) -> list[dict]:
    """Each component per unit in both probes, means over their batches.

    Args:
        one, other: records of probes, with the same components or not.

    Returns:
        {"component", "unit", "first", "second", "ratio": second / first, "first_of_constant", "second_of_constant"} a
        row, the last two as shares of what the best constant head has; None where a probe does not have it, and where
        it would be divided by 0.
    """
    first, second = _per_unit(one), _per_unit(other)
    rows = []
    for name in dict.fromkeys([*first, *second]):
        (unit, a, best_a), (_, b, best_b) = (side.get(name, ("", None, None)) for side in (first, second))
        rows.append(
            {
                "component": name,
                "unit": unit or second[name][0],
                "first": a,
                "second": b,
                "ratio": _quotient(b, a),
                "first_of_constant": _quotient(a, best_a),
                "second_of_constant": _quotient(b, best_b),
            }
        )
    return rows


def _per_unit(records) -> dict:
    """Component to (unit, mean measured, mean of the best constant head)."""
    found = {}
    for record in records:
        for row in record["per_unit"]:
            found.setdefault(row["component"], []).append(row)
    return {
        name: (rows[0]["unit"], _mean(rows, "measured"), _mean(rows, "best_constant")) for name, rows in found.items()
    }


def _mean(rows, key: str) -> float | None:
    values = [row[key] for row in rows if row[key] is not None]
    return sum(values) / len(values) if values else None


def _quotient(value, by) -> float | None:
    return value / by if value is not None and by else None
