"""Whether a fault does harm, and whether the advice mends it: by short trainings, kept in a table of their own.

    python benchmarks/faults/damage.py                # gross dose of the development set, and three healthy seeds
    python benchmarks/faults/damage.py --mend         # also trains with the first advice of each row of results
    python benchmarks/faults/damage.py --faults anchors_do_not_fit --doses subtle

A training is the stage's own, 240 steps. It is measured on the true validation labels with the predictor that the
faulty training has: mAP50, the same with all classes as one, and the parts of a healthy loss an image. A fault does
harm where the loss is not a number, one of the two falls by a fifth of what the paired healthy training reaches, or a
part is more than two standard deviations of the healthy seeds above their mean. Advice mends where 90 % of the paired
healthy mAP is reached. What is in the table is not trained again unless --again is given.
"""

import argparse
import pathlib
import sys
import time
import traceback

from apply import applicable, mended
from damage_rules import healthy_key, mended_key
from faults import DOSES, FAULTS
from spread import spread
from stage import DRAWN, open_stage

from multigrid import report
from runs import ROOT, Run, append_row, base_of, making_of, planned, read_rows

HEALTHY_SEEDS = (1, 2, 3)
UNTRAINED = {"batches_come_slowly"}  # whose harm is the time


def main() -> int:
    options = _options()
    stage = open_stage(options.root, options.data)
    data = options.data.name if options.data else DRAWN
    runs = [
        run for run in planned(options.faults, options.doses, (), options.seeds, data) if run.fault not in UNTRAINED
    ]
    tasks = _tasks(runs, options)
    done = set() if options.again else {row["key"] for row in read_rows(options.table)}
    left = [(*task, options.root, options.data) for task in tasks if task[1] not in done]
    report.say(f"{len(tasks)} trainings, {len(tasks) - len(left)} of them in {options.table}; {stage.name}")
    for row in report.progress(spread(one, left, options.jobs), "trainings", len(left)):
        append_row(options.table, row)
        report.say(_line(row))
    return 0


def _tasks(runs, options) -> list:
    healthy = {healthy_key(run.fault, seed, run.data): ("healthy", run, seed) for run in runs for seed in HEALTHY_SEEDS}
    tasks = [
        ("healthy", key, Run(run.fault, run.dose, seed, run.data), None) for key, (_, run, seed) in healthy.items()
    ]
    tasks += [("faulty", run.id, run, None) for run in runs]
    tasks.sort(key=lambda task: (task[0] == "healthy" and task[2].seed not in options.seeds, task[0] != "healthy"))
    if options.mend:
        rows = {row["id"]: row for row in read_rows(options.root / "results.jsonl") if row.get("findings")}
        for run in runs:
            first = rows[run.id]["findings"][0] if run.id in rows else None
            if first and applicable(first):
                tasks.append(("mended", mended_key(run.id, first), run, first))
    return tasks


def one(task) -> dict:
    """The row of one training."""
    kind, key, run, finding, root, data = task
    import keras
    from short import train_and_measure

    keras.backend.clear_session()
    began = time.process_time()
    row = {"key": key, "kind": kind, "fault": run.fault, "dose": run.dose, "seed": run.seed, "data": run.data}
    try:
        stage = open_stage(root, data)
        making = base_of(run, stage) if kind == "healthy" else making_of(run, stage)
        making = mended(making, finding) if kind == "mended" else making
        row |= train_and_measure(making, base_of(run, stage))
    except Exception:  # a training that cannot even begin is harmed: the row says how
        row["error"] = traceback.format_exc()
    return row | {"cpu_seconds": round(time.process_time() - began, 1)}


def _line(row: dict) -> str:
    words = f"{row['kind']} {row['fault']} {row['dose']} seed {row['seed']}"
    if "error" in row:
        return f"{words}: {row['error'].strip().splitlines()[-1]}"
    finite = "" if row["finite"] else "; not a number"
    return f"{words}: mAP50 {row['mAP50']:.3f}, as one class {row['agnostic']:.3f}{finite}; {row['cpu_seconds']:.0f} s"


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", nargs="*", choices=tuple(FAULTS), metavar="KEY", help="(the development set)")
    parser.add_argument("--doses", nargs="*", choices=DOSES, default=("gross",), help="(gross)")
    parser.add_argument("--seeds", nargs="*", type=int, default=(1,), help="of the faulty trainings (1)")
    parser.add_argument("--data", type=pathlib.Path, help="folder of train.txt, val.txt and classes.txt (drawn scenes)")
    parser.add_argument("--mend", action="store_true", help="also train with the first advice of each row of results")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what the table has")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="folder of what is kept (%(default)s)")
    parser.add_argument("--table", type=pathlib.Path, help="the table (ROOT/damage.jsonl)")
    options = parser.parse_args()
    options.faults = options.faults or [key for key, fault in FAULTS.items() if fault.set == "development"]
    options.table = options.table or options.root / "damage.jsonl"
    return options


if __name__ == "__main__":
    sys.exit(main())
