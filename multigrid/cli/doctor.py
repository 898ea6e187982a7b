"""`multigrid doctor`: the cause, when training goes wrong or before it does."""

from __future__ import annotations

import os
import pathlib

from multigrid import report
from multigrid.cli.options import (
    FAILED,
    OK,
    add_config,
    add_parser,
    add_weights,
    emit,
    load_config,
    start_backend,
    weights_settings,
)

EXAMPLE = "multigrid doctor --config configs/quickstart.yaml --deep, or multigrid doctor runs/quickstart-1"
OUTPUT = "doctor"


def add_verb(verbs) -> None:
    """Adds the options of `doctor`."""
    parser = add_parser(verbs, "doctor", run_doctor, EXAMPLE)
    parser.add_argument(
        "run_dir",
        nargs="?",
        metavar="RUN",
        help="a run folder, or its replay bundle nan-epoch-E-step-S, after a training; else --config, before one",
    )
    add_config(parser, required=False)
    add_weights(parser)
    parser.add_argument(
        "--deep",
        action="store_true",
        help="also train for up to 160 steps and undo suspected causes one by one; nothing of it is kept",
    )
    parser.add_argument(
        "--output-dir", help=f"where diagnosis.html and diagnosis.json go (RUN, or {OUTPUT} in the working directory)"
    )


def run_doctor(options) -> int:
    """Names what is wrong with a training, with evidence and what to do; exit code 1 where something is."""
    _sort_words(options)
    if (options.run_dir is None) == (options.config is None):
        both = ", received neither" if options.config is None else " and not both"
        options.parser.error(f"expected RUN or --config{both}")
    if options.run_dir is not None and os.path.isfile(options.run_dir):
        options.parser.error(f"{options.run_dir}: expected a run folder, received a file (of a config: --config)")
    config = options.config and load_config(options, weights_settings(options))
    folder = pathlib.Path(options.output_dir or options.run_dir or OUTPUT)
    report.check_folder(folder, "--output-dir")
    start_backend()
    from multigrid.diagnosis import page, subjects
    from multigrid.diagnosis.doctor import diagnose

    if config:
        case = subjects.of_config(config)
    elif subjects.is_bundle(options.run_dir):
        if options.overrides or weights_settings(options):
            options.parser.error("a replay bundle has its own settings and weights: expected none beside it")
        case = subjects.of_bundle(options.run_dir)
    else:
        settings = [*options.overrides, *weights_settings(options)]
        case = subjects.of_run(options.run_dir, settings)
        for line in subjects.missing_parts(options.run_dir, settings):
            report.say(line)
    with report.counting("asking rules") as progress:
        diagnosis = diagnose(case, deep=options.deep, progress=progress)
    written = page.write(diagnosis, folder)
    _show(diagnosis, page.headline(diagnosis))
    report.say(f"written: {written}")
    if not options.deep and diagnosis.healthy:
        report.say("no weight was moved; --deep also trains for some steps")
    emit(options, {**diagnosis.plain(), "report": written})
    return OK if diagnosis.healthy else FAILED


def _sort_words(options) -> None:
    """A first word that is a setting is none of a run."""
    word = options.run_dir
    if word is not None and "=" in word and not os.path.isdir(word):
        options.run_dir, options.overrides = None, [word, *options.overrides]


def _show(diagnosis, headline: str) -> None:
    report.say(headline)
    rows = [
        (
            one.id,
            f"{one.confidence:.2f}",
            one.rule.cause,
            "hygiene" if one.verdict.hygiene else one.rule.stage,
            one.consequence_of or "",
        )
        for one in diagnosis.findings
    ]
    if rows:
        report.table("Findings, the likeliest first", ("rule", "confidence", "cause", "seen at", "comes with"), rows)
    for one in diagnosis.causes:
        _show_cause(one)
    for one in diagnosis.findings:
        if not one.is_cause and not one.consequence_of:
            seen, kind = one.verdict.seen[0], "hygiene" if one.verdict.hygiene else "a hint"
            value = f"{seen.value:.4g}" if isinstance(seen.value, float) else seen.value
            report.say(f"{one.id}, {kind}: {seen.what} {value}, when all is well {seen.reference}. {_advice(one)}")
    for rule, error in diagnosis.failed.items():
        report.say(f"{rule} could not be asked: {error}")
    steps = f", {diagnosis.steps} steps of training" if diagnosis.steps else ""
    report.say(f"{diagnosis.seconds:.0f} s{steps}; examined: {', '.join(diagnosis.stages)}")


def _show_cause(one) -> None:
    seen = [(item.what, item.value, item.reference) for item in one.verdict.seen]
    report.table(f"{one.id}: {one.rule.cause}", ("seen", "value", "when all is well"), seen)
    for line in one.verdict.why:
        report.say(f"  why: {line}")
    report.say(f"  what to do: {_advice(one)}")


def _advice(one) -> str:
    remedy = one.verdict.remedy
    settings = f" ({' '.join(remedy.settings)})" if remedy.settings else ""
    where = f" Look at {remedy.where}." if remedy.where else ""
    return f"{remedy.text}{settings}{where} More: {one.rule.page}"
