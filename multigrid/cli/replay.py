"""`multigrid replay`: a training step that was not finite, made again."""

from __future__ import annotations

import math

from multigrid import report
from multigrid.cli.options import FAILED, OK, add_parser, emit, start_backend

EXAMPLE = "multigrid replay runs/train-1/nan-epoch-3-step-17"


def add_verb(verbs) -> None:
    """Adds the options of `replay`."""
    parser = add_parser(verbs, "replay", run_replay, EXAMPLE)
    parser.add_argument("bundle", metavar="BUNDLE", help="the folder nan-epoch-E-step-S of a run")


def run_replay(options) -> int:
    """Makes the step of a replay bundle again and shows what is not finite; exit code 1 where something is not."""
    start_backend()
    from multigrid.training.replay import not_finite, replay

    record = replay(options.bundle)
    _show(record, not_finite(record))
    emit(options, {**record, "not_finite": not_finite(record)})
    return FAILED if record["reproduced"] else OK


def _show(record: dict, wrong: list) -> None:
    report.say(
        f"epoch {record['epoch']}, step {record['step']}: {record['images']} images, "
        f"learning rate {record['learning_rate']:g}, loss {record['loss']:.6g}"
    )
    columns = ("component", *(f"stride {stride}" for stride in record["strides"]), "scale", "finite")
    rows = [
        (row["component"], *row["at"], row["coefficient"], "yes" if all(map(math.isfinite, row["at"])) else "NO")
        for row in record["components"]
    ]
    report.table("Loss, each component before its scale", columns, rows)
    norms = [(block, norm, "yes" if math.isfinite(norm) else "NO") for block, norm in record["gradient_norms"].items()]
    report.table("Gradients of each block", ("block", "norm before clipping", "finite"), norms)
    step = record["optimizer_step"]
    report.say(
        f"a step of {step['optimizer']} moves {step['moved']} of {step['weights']} weights "
        f"and leaves {step['not_finite']} that are not finite"
    )
    report.say(f"then: {record['verdict_then']}")
    report.say(f"now:  {record['verdict']}")
    if record["reproduced"]:
        report.say(f"reproduced; not finite: {', '.join(wrong) or record['verdict'].split(' is ')[0]}")
