"""`multigrid compare`: runs beside one another."""

from __future__ import annotations

import difflib
import pathlib

from multigrid import report
from multigrid.cli.options import OK, add_parser, emit
from multigrid.errors import InputError

FIGURES = ("val_mAP50", "val_mAP", "val_loss", "loss")  # of the table, as far as there are any
PICTURE, TABLE = "comparison.png", "comparison.csv"


def add_verb(verbs) -> None:
    """Adds the options of `compare`."""
    parser = add_parser(verbs, "compare", run_compare, "multigrid compare runs/quickstart-1 runs/quickstart-2")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument(
        "--output-dir", default="comparison", help=f"where {PICTURE} and {TABLE} go; made if needed (%(default)s)"
    )
    parser.add_argument(
        "--metric",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="columns of results.csv to draw and to list, such as val_anchor_loss_32; loss, its parts and mAP if none",
    )


def run_compare(options) -> int:
    """Draws the curves of runs in one picture and lists their figures and what differs in their configs."""
    from multigrid.training.comparison import differences, read_runs, summarize
    from multigrid.training.comparison_picture import draw_runs

    report.check_folder(options.output_dir, "--output-dir")
    runs = read_runs(options.runs)
    _check_metrics(options.metric, runs)
    figures = [name for name in options.metric or FIGURES if any(run.has(name) for run in runs)]
    summaries, unlike = summarize(runs, figures), differences(runs)
    folder = pathlib.Path(options.output_dir)
    draw_runs(runs, folder / PICTURE, options.metric)
    report.write_csv(folder / TABLE, _rows(summaries, unlike))
    _show_figures(summaries, figures)
    _show_differences(runs, unlike)
    report.say(f"written to {folder}: {PICTURE}, {TABLE}")
    files = {"picture": folder / PICTURE, "table": folder / TABLE}
    emit(options, {"runs": summaries, "differences": unlike, **files})
    return OK


def _check_metrics(names, runs) -> None:
    known = sorted({name for run in runs for name in run.figures if run.has(name)})
    for name in names:
        if name not in known:
            close = ", ".join(difflib.get_close_matches(name, known, n=3, cutoff=0.0))
            raise InputError(f"--metric: expected a figure that a run has, such as {close}, received {name!r}")


def _show_figures(summaries, figures) -> None:
    rows = []
    for one in summaries:
        best = f"best {one['best_by']}"
        rows.append((one["run"], best, one["best_epoch"], *one["best"].values(), one["minutes"]))
        rows.append(("", "last", one["last_epoch"], *one["last"].values(), None))
    report.table("Figures", ("run", "of", "epoch", *figures, "minutes"), rows)


def _show_differences(runs, unlike) -> None:
    from multigrid.training.comparison import text_of

    if not unlike:
        report.say("the configs do not differ")
        return
    rows = [(key, *map(text_of, values)) for key, values in unlike.items()]
    report.table("Config", ("key", *(run.name for run in runs)), rows)


def _rows(summaries, unlike) -> list[dict]:
    """One row a run, for a spreadsheet."""
    from multigrid.training.comparison import text_of

    rows = []
    for index, one in enumerate(summaries):
        row = {key: one[key] for key in ("run", "folder", "epochs", "last_epoch", "minutes", "best_by", "best_epoch")}
        row |= {f"best {name}": value for name, value in one["best"].items()}
        row |= {f"last {name}": value for name, value in one["last"].items()}
        row |= {key: text_of(values[index]) for key, values in unlike.items()}
        rows.append(row)
    return rows
