"""The figures of all that was run: how often the doctor names the cause, how soon, and how often it cries wolf.

    python benchmarks/faults/score.py [--detail] [--confusion] [--folds] [--commit abc1234]

A faulty run counts where it did harm, see damage.py, or where nobody has measured that; the rest are left out. Named
right (top 1) is a run whose first finding is a verdict and one of the rules that the fault accepts; top 3 takes
possibilities too. The baselines, see baselines.py, are scored on the same runs in the same way.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import sys

from damage_rules import harmed, repaired
from faults import DOSES, FAULTS, SETS

from multigrid import report
from multigrid.diagnosis.finding import GROUPS, LIKELY
from multigrid.diagnosis.rules import RULES
from runs import ROOT, Run, read_rows

GROUP_OF = {rule.id: rule.group for rule in RULES}
FOLDS = 5
CONFIDENCE = 0.05  # of being wrong about the bound


def main() -> int:
    options = _options()
    rows = list(newest(read_rows(options.root / "results.jsonl"), options.commit).values())
    harm = read_rows(options.root / "damage.jsonl")
    methods = {"doctor": rows, **baselines(read_rows(options.root / "baselines.jsonl"), rows)}
    report.table("faults", SUMMARY, [line for name, own in methods.items() for line in summary(name, own, harm)])
    alarms = [(name, *false_alarms(own)) for name, own in methods.items()]
    report.table("healthy trainings", ("method", "runs", "alarms", "at most, 95 %"), alarms)
    unasked = [row for row in rows if row.get("error") or row.get("failed")]
    report.say(f"{len(unasked)} runs broke, or had rules that could not be asked")
    if options.detail:
        report.table("each run", DETAIL, detail(rows, harm))
    if options.confusion:
        report.table("groups: what it is, and what was said", ("", *GROUPS, "nothing"), confusion(rows))
    if options.folds:
        report.table("five folds", ("fold", "faults", "runs", "top 1"), folds(rows, harm))
    return 0


def newest(rows: list[dict], commit: str | None = None) -> dict:
    """The last row of each run, of this commit if one is given."""
    return {row["id"]: row for row in rows if commit is None or row["commit"].startswith(commit)}


def baselines(rows: list[dict], of: list[dict]) -> dict:
    """{name: rows as the doctor's} of the baselines, for the runs that the doctor has."""
    known, named = {row["id"] for row in of}, {}
    for row in newest(rows).values():
        for name, causes in (row.get("said") or {}).items():
            if row["id"] in known:
                findings = [
                    {"id": one, "group": GROUP_OF.get(one), "confidence": 1.0, "hygiene": False} for one in causes
                ]
                named.setdefault(name, []).append({**row, "findings": findings, "causes": causes, "history": []})
    return named


def verdict(row: dict) -> dict | None:
    """The first finding, where it is a verdict."""
    first = next(iter(row.get("findings") or ()), None)
    return first if first and first["confidence"] >= LIKELY and not first["hygiene"] else None


def top1(row: dict) -> bool:
    """Whether the first verdict names the fault."""
    first = verdict(row)
    return first is not None and first["id"] in FAULTS[row["fault"]].accepted


def top3(row: dict) -> bool:
    """Whether one of the first three findings does."""
    return any(one["id"] in FAULTS[row["fault"]].accepted for one in (row.get("findings") or ())[:3])


def right_group(row: dict) -> bool:
    """Whether the first verdict is of the fault's group, or of the group of a rule that names it."""
    fault, first = FAULTS[row["fault"]], verdict(row)
    groups = {fault.group, *(GROUP_OF.get(one) for one in fault.accepted)}
    return first is not None and first["group"] in groups


def settled_at(row: dict) -> float:
    """Steps after which the right cause was first and stayed so; infinity where it never was."""
    steps = math.inf
    for step, named in reversed(row.get("history") or ()):
        if named not in FAULTS[row["fault"]].accepted:
            break
        steps = step
    return steps


def upper_bound(alarms: int, runs: int) -> float:
    """The highest rate that so few alarms in so many runs leave likely: the one-sided 95 % bound of a binomial."""
    if alarms >= runs:
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(60):
        rate = (low + high) / 2
        tail = sum(math.comb(runs, k) * rate**k * (1 - rate) ** (runs - k) for k in range(alarms + 1))
        low, high = (rate, high) if tail > CONFIDENCE else (low, rate)
    return high


def false_alarms(rows: list[dict]) -> tuple:
    """(healthy runs, those with a verdict, the upper bound of their share)."""
    healthy = [row for row in rows if row["dose"] is None]
    alarms = sum(verdict(row) is not None for row in healthy)
    return len(healthy), alarms, upper_bound(alarms, len(healthy)) if healthy else None


SUMMARY = (
    "method", "faults", "dose", "runs", "harmless", "harm not measured", "top 1", "top 3", "group", "before a step",
    "steps (E)", "mended", "tried", "seconds",
)  # fmt: skip


def summary(method: str, rows: list[dict], harm: list[dict]):
    """The lines of a method: by set and dose, and all doses of a set."""
    for kind in SETS:
        of_set = [row for row in rows if row["dose"] and FAULTS[row["fault"]].set == kind]
        for dose in (*DOSES, None):
            chosen = [row for row in of_set if dose in (None, row["dose"])]
            if chosen and (dose or len({row["dose"] for row in chosen}) > 1):
                yield (method, kind, dose or "all", *_figures(chosen, harm))


def _figures(rows: list[dict], harm: list[dict]) -> list:
    harms = [harmed(row, harm) for row in rows]
    rows = [row for row, does in zip(rows, harms, strict=True) if does is not False]
    early = [row for row in rows if FAULTS[row["fault"]].when in "SB" and row.get("history")]
    late = [settled_at(row) for row in rows if FAULTS[row["fault"]].when == "E" and row.get("history")]
    mends = [one for one in (repaired(row, harm) for row in rows) if one is not None]
    seconds = [row["cpu_seconds"] for row in rows if "cpu_seconds" in row]
    return [
        len(rows),
        harms.count(False),
        harms.count(None),
        *(_share(map(test, rows)) for test in (top1, top3, right_group)),
        _share(settled_at(row) == 0 for row in early),
        statistics.median(late) if late else None,
        _share(mends),
        len(mends),
        statistics.mean(seconds) if seconds else None,
    ]


def _share(truths) -> float | None:
    truths = list(truths)
    return sum(truths) / len(truths) if truths else None


DETAIL = ("fault", "dose", "seed", "data", "code", "when", "harm", "right", "said", "steps", "mended", "seconds")


def detail(rows: list[dict], harm: list[dict]):
    """A line a run: what was said of it, and since which step the right cause was first."""
    for row in sorted(rows, key=lambda one: (one["dose"] is None, one["fault"], str(one["dose"]), one["seed"])):
        said = ", ".join(f"{one['id']} {one['confidence']:.2f}" for one in (row.get("findings") or ())[:3])
        said = said or row.get("error", "nothing").strip().splitlines()[-1][:80]
        start = [row["fault"], row["dose"], row["seed"], row["data"]]
        if row["dose"] is None:
            yield [*start, "", "", None, "alarm" if verdict(row) else "quiet", said, None, None, row.get("cpu_seconds")]
            continue
        fault, steps = FAULTS[row["fault"]], settled_at(row)
        words = "top 1" if top1(row) else "top 3" if top3(row) else "group" if right_group(row) else "no"
        end = [None if math.isinf(steps) else steps, _word(repaired(row, harm)), row.get("cpu_seconds")]
        yield [*start, fault.code, fault.when, _word(harmed(row, harm)), words, said, *end]


def _word(truth: bool | None) -> str | None:
    return None if truth is None else "yes" if truth else "no"


def confusion(rows: list[dict]) -> list:
    """A line a group: how many of its runs were said to be of each group, or of none."""
    columns, lines = (*GROUPS, None), []
    for group in GROUPS:
        said = [
            (verdict(row) or {}).get("group") for row in rows if row["dose"] and FAULTS[row["fault"]].group == group
        ]
        lines.append([group, *(said.count(column) for column in columns)])
    return lines


def folds(rows: list[dict], harm: list[dict]) -> list:
    """The development set in five fixed parts, and the share that is named right in each.

    Whoever sets a threshold by four of them reads the fifth as the figure of faults that were not looked at.
    """
    keys = sorted(key for key, fault in FAULTS.items() if fault.set == "development")
    lines = []
    for fold in range(FOLDS):
        own = keys[fold::FOLDS]
        chosen = [row for row in rows if row["dose"] and row["fault"] in own and harmed(row, harm) is not False]
        lines.append([fold + 1, ", ".join(own), len(chosen), _share(map(top1, chosen))])
    return lines


def run_of(row: dict) -> Run:
    """The run that a row is of."""
    return Run(row["fault"], row["dose"], row["seed"], row["data"])


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--detail", action="store_true", help="a line a run, with what was said")
    parser.add_argument("--confusion", action="store_true", help="the groups that were taken for each other")
    parser.add_argument("--folds", action="store_true", help="the development set in five parts")
    parser.add_argument("--commit", help="only rows of this commit (the newest row of each run)")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="folder of the tables (%(default)s)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
