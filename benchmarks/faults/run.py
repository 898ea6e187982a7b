"""Puts faults into a small healthy training, asks the doctor, and appends what it says to a table.

    python benchmarks/faults/run.py                          # gross dose of the development set, and the controls
    python benchmarks/faults/run.py --tier full --jobs 2     # three doses, three seeds
    python benchmarks/faults/run.py --faults boxes_xy_swapped --doses subtle --again
    python benchmarks/faults/run.py --data my-data-set       # a folder with train.txt, val.txt and classes.txt
    python benchmarks/faults/score.py                        # the table of all that was run

Tiers: smoke is the gross dose of the development set with one seed, and the controls; development, further and blind
are all doses of one set and seed; full is all sets with three seeds. A run that the table has for the same commit is
skipped, so that a benchmark that was stopped goes on. What the doctor gets is a trainer with the objects that would
train; it is told nothing else. The scenes are drawn, and the backbone that all begin with is trained, at the first call
(minutes).
"""

import argparse
import pathlib
import subprocess
import sys
import time
import traceback

from controls import CONTROLS
from faults import DOSES, FAULTS
from spread import spread
from stage import DRAWN, open_stage

from multigrid import report
from runs import ROOT, Run, append_row, making_of, planned, read_rows

TIERS = {
    "smoke": {"sets": ("development",), "doses": ("gross",), "seeds": (1,)},
    "development": {"sets": ("development",), "doses": DOSES, "seeds": (1,)},
    "further": {"sets": ("further",), "doses": DOSES, "seeds": (1,)},
    "blind": {"sets": ("blind",), "doses": DOSES, "seeds": (1,)},
    "full": {"sets": ("development", "further", "blind"), "doses": DOSES, "seeds": (1, 2, 3)},
}
EXAMINERS = {"doctor": "results.jsonl", "baselines": "baselines.jsonl"}  # and their tables


def main(examiner: str = "doctor") -> int:
    """Examines what the command line asks for; the examiner is a word of `EXAMINERS`."""
    options = _options()
    options.table = options.table or options.root / EXAMINERS[examiner]
    data = options.data.name if options.data else DRAWN
    open_stage(options.root, options.data)  # made once, before processes want it
    wanted = list(planned(options.faults, options.doses, options.controls, options.seeds, data))
    done = _done(options) if not options.again else set()
    left = [run for run in wanted if run.id not in done]
    report.say(f"{len(wanted)} runs, {len(wanted) - len(left)} of them in {options.table}; commit {commit()}")
    tasks = [(examiner, run, options.root, options.data) for run in left]
    for row in report.progress(spread(one, tasks, options.jobs), "diagnoses", len(tasks)):
        append_row(options.table, row)
        report.say(_line(row))
    return 0


def one(task) -> dict:
    """The row of one run."""
    examiner, run, root, data = task
    import keras

    if examiner == "doctor":
        from examine import examine
    else:
        from baselines import examine

    keras.backend.clear_session()
    began = time.perf_counter()
    row = {"id": run.id, "commit": commit(), "fault": run.fault, "dose": run.dose, "seed": run.seed, "data": run.data}
    try:
        trainer = making_of(run, open_stage(root, data)).trainer()
        row |= {"built": round(time.perf_counter() - began, 1), **examine(trainer)}
    except Exception:  # one run that breaks must not end the others: the row says so, and the score counts it
        row["error"] = traceback.format_exc()
    return row


def commit() -> str:
    """The commit of the checkout; "+" where the doctor has changes that are not committed."""
    here = str(pathlib.Path(__file__).parent)
    words = ["git", "-C", here, "rev-parse", "--short", "HEAD"]
    name = subprocess.run(words, capture_output=True, text=True).stdout.strip() or "unknown"
    changes = ["git", "-C", here, "status", "--porcelain", "../../multigrid"]
    return name + ("+" if subprocess.run(changes, capture_output=True, text=True).stdout.strip() else "")


def _done(options) -> set:
    now = commit()
    return {row["id"] for row in read_rows(options.table) if row["commit"] == now and "error" not in row}


def _line(row: dict) -> str:
    run = Run(row["fault"], row["dose"], row["seed"], row["data"])
    if "error" in row:
        return f"{run.words}: {row['error'].strip().splitlines()[-1]}"
    if "said" in row:
        words = [f"{name} {', '.join(said) or 'nothing'}" for name, said in row["said"].items()]
        return f"{run.words}: {'; '.join(words)}"
    said = ", ".join(f"{one['id']} {one['confidence']:.2f}" for one in row["findings"][:3]) or "nothing"
    broken = f"; could not ask {', '.join(row['failed'])}" if row["failed"] else ""
    return f"{run.words}: {said}; {row['steps']} steps, {row['cpu_seconds']:.0f} s{broken}"


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tier", choices=tuple(TIERS), default="smoke", help="(%(default)s)")
    parser.add_argument("--faults", nargs="*", metavar="KEY", help=f"instead of the tier's: {', '.join(FAULTS)}")
    parser.add_argument("--controls", nargs="*", metavar="KEY", help=f"instead of all: {', '.join(CONTROLS)}")
    parser.add_argument("--doses", nargs="*", choices=DOSES, help="instead of the tier's")
    parser.add_argument("--seeds", nargs="*", type=int, help="instead of the tier's")
    parser.add_argument("--data", type=pathlib.Path, help="folder of train.txt, val.txt and classes.txt (drawn scenes)")
    parser.add_argument("--jobs", type=int, default=2, help="processes, one core each (%(default)s)")
    parser.add_argument("--again", action="store_true", help="also what the table has for this commit")
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="folder of what is kept (%(default)s)")
    parser.add_argument("--table", type=pathlib.Path, help="the table (in ROOT)")
    options = parser.parse_args()
    tier = TIERS[options.tier]
    for name, known in (("faults", FAULTS), ("controls", CONTROLS)):
        unknown = sorted(set(getattr(options, name) or ()) - set(known))
        if unknown:
            parser.error(f"--{name}: expected some of {', '.join(known)}, received {', '.join(unknown)}")
    if options.controls is None:
        options.controls = () if options.faults else tuple(CONTROLS)
    if options.faults is None:
        options.faults = [key for key, fault in FAULTS.items() if fault.set in tier["sets"]]
    options.doses, options.seeds = options.doses or tier["doses"], options.seeds or tier["seeds"]
    return options


if __name__ == "__main__":
    sys.exit(main())
