"""diagnosis.html: the verdict first, then the evidence with pictures; needs no network and no file beside it."""

from __future__ import annotations

import os
import pathlib
import re
import tempfile

import numpy as np

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS
from multigrid.diagnosis import events
from multigrid.diagnosis.doctor import Diagnosis
from multigrid.diagnosis.examinations import funnel
from multigrid.diagnosis.finding import Finding
from multigrid.diagnosis.rules import RULES
from multigrid.evaluation import html_parts as parts
from multigrid.evaluation.figures import figure_file, write_plain_powers
from multigrid.report import replacing, write_json
from multigrid.training.snapshots import batch_sheet

NAME = "diagnosis.html"
PROJECT = pathlib.Path(__file__).resolve().parents[2]
CURVES = tuple(f"{name}_loss" for name in (*LOSS_PARTS, *OPTIONAL_LOSS_PARTS))
LABELS = {"grad_norm": "norm of the gradients", "learning_rate": "learning rate"}
STAGE_WORDS = {
    "static": "labels, settings and weights",
    "batch": "first batches through the network and the loss",
    "evaluation": "the truth through decoding, suppression and metric",
    "training": "steps of training",
    "run": "the curves of the run, and its weights",
}


def write(diagnosis: Diagnosis, folder: str | os.PathLike) -> pathlib.Path:
    """Writes diagnosis.html and diagnosis.json.

    Args:
        diagnosis: what `diagnose` returned.
        folder: is made where it is not there.

    Returns:
        The path of diagnosis.html.
    """
    folder = pathlib.Path(folder)
    write_json(folder / "diagnosis.json", diagnosis.plain())
    path = folder / NAME
    with replacing(path) as temporary:
        temporary.write_text(page_of(diagnosis), encoding="utf-8")
    return path


def page_of(diagnosis: Diagnosis) -> str:
    """The page as HTML."""
    sections = [_headline(diagnosis), *(_finding(number, one) for number, one in enumerate(diagnosis.findings, 1))]
    sections += [
        _unasked(diagnosis),
        _pictures(diagnosis),
        _funnel(diagnosis),
        _course(diagnosis),
        _history(diagnosis),
        _looked_at(diagnosis),
    ]
    return parts.page("Diagnosis", filter(None, sections))


def headline(diagnosis: Diagnosis) -> str:
    """The verdict in one sentence."""
    causes = diagnosis.causes
    if causes:
        more = f", and {len(causes) - 1} more" if len(causes) > 1 else ""
        return f"{causes[0].id}: {causes[0].rule.cause} (confidence {causes[0].confidence:.2f}){more}."
    if diagnosis.failed:
        return f"No cause was found, but {len(diagnosis.failed)} rules could not be asked: a part of it raises errors."
    hints = sum(not one.verdict.hygiene for one in diagnosis.findings)
    return "Nothing is wrong as far as was examined" + (f"; {_counted(hints, 'weak hint')} below." if hints else ".")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _headline(diagnosis: Diagnosis) -> str:
    asked = [rule for rule in RULES if rule.stage in diagnosis.stages]
    figures = [
        ("cause" if len(diagnosis.causes) == 1 else "causes", len(diagnosis.causes)),
        ("rules asked", len(asked)),
        ("steps of trial", diagnosis.steps),
        ("seconds", f"{diagnosis.seconds:.0f}"),
    ]
    kind = "verdict" if diagnosis.causes or diagnosis.failed else ""
    return "\n".join(["<h1>Diagnosis</h1>", parts.paragraph(headline(diagnosis), kind), parts.tiles(figures)])


def _finding(number: int, finding: Finding) -> str:
    verdict, remedy = finding.verdict, finding.verdict.remedy
    kind = "hygiene: it may do no harm" if verdict.hygiene else f"seen at the stage “{finding.rule.stage}”"
    kind += f", after {finding.step} steps" if finding.step else ""
    if finding.consequence_of:
        kind += f"; comes with {finding.consequence_of}"
    pieces = [
        parts.bars([(kind, f"confidence {finding.confidence:.2f}", finding.confidence, finding.is_cause)]),
        parts.table(
            ("what was seen", "value", "when all is well"),
            [(one.what, _value(one.value), one.reference) for one in verdict.seen],
        ),
        "<h3>Why this, and not something alike</h3>",
        *(parts.paragraph(line) for line in verdict.why),
        "<h3>What to do</h3>",
    ]
    if finding.consequence_of:  # two commands for one cause would contradict each other
        pieces.append(parts.paragraph(f"Mend {finding.consequence_of} first: this comes with it."))
    else:
        pieces.append(parts.paragraph(remedy.text))
        if remedy.settings:
            pieces.append(f"<pre>{parts.text(' '.join(remedy.settings))}</pre>")
        if remedy.where:
            pieces.append(parts.paragraph(f"Look at {remedy.where}.", "faint"))
    pieces.append(_rule_page(finding.rule))
    return parts.section(f"{number}. {finding.id}: {finding.rule.cause}", *pieces)


def _rule_page(rule) -> str:
    """The page of a rule, to be unfolded; where the project's documentation is not at hand, its name."""
    path = PROJECT / rule.page
    if not path.is_file():
        return parts.paragraph(f"More: {rule.page}", "faint")
    told = path.read_text(encoding="utf-8").partition("\n")[2].strip()  # the heading stands above
    told = re.sub(r"\[(\w+)\]\(\w+\.md\)", r"\1", told)  # pages that are not here
    return parts.details(f"more about {rule.id}", f'<div class="prose">{parts.text(told)}</div>')


def _value(value) -> str:
    return f"{value:.4g}" if isinstance(value, (float, np.floating)) else str(value)


def _unasked(diagnosis: Diagnosis) -> str:
    if not diagnosis.failed:
        return ""
    lines = parts.table(("rule", "error"), sorted(diagnosis.failed.items()))
    return parts.section("Could not be asked", parts.paragraph("What these rules look at raised an error."), lines)


def _pictures(diagnosis: Diagnosis) -> str:
    """The images that train, with their boxes and the cells that answer; what cannot be drawn is said."""
    case = diagnosis.case
    said = "The first training images as the network sees them: boxes of the labels, and tinted the cells that answer."
    try:
        images, truth = case.batches[0]
        sheet = batch_sheet(np.asarray(images).clip(0, 255).astype("uint8"), truth, case.detector, case.class_names)
    except Exception as error:  # a picture of a broken training may fail for any reason; the verdict is above
        return parts.section("Training images", parts.paragraph(f"Could not be drawn: {type(error).__name__}: {error}"))
    return parts.section("Training images", parts.picture(parts.jpeg_uri(sheet), said))


def _funnel(diagnosis: Diagnosis) -> str:
    seen = diagnosis.case.results.get(funnel.examine)
    if seen is None:
        return ""
    steps = (
        ("in the labels that were read", seen.parsed),
        ("in the batches", seen.batched),
        ("with a box that can be used", seen.usable),
        ("that cells answer for", seen.encoded),
    )
    known = [(name, value) for name, value in steps if value is not None]
    most = max((value for _, value in known), default=0.0) or 1.0
    rows = [(name, f"{value:.2f}", value / most, value < known[0][1] / 2) for name, value in known]
    grown = seen.parsed is not None and seen.batched > seen.parsed
    text = "Mosaics show the objects of several images. " if grown else ""
    text += f"{seen.positive_cells:.2f} cells answer for an object; {seen.empty_images:.0%} of the images are empty."
    return parts.section("Objects an image, from file to cell", parts.bars(rows), parts.paragraph(text, "faint"))


def _course(diagnosis: Diagnosis) -> str:
    course = diagnosis.case.course
    if course is None or len(course.rows) < 2:
        return ""
    marks = [*course.events, *events.drops(diagnosis.case, course.rows, "step")]
    picture = _curves(course.rows, "step", marks, ("grad_norm", "learning_rate"))
    said = "Each part of the loss, and the norm of the gradients, by step; events are marked."
    return parts.section("Steps that were seen", parts.picture(picture, said))


def _history(diagnosis: Diagnosis) -> str:
    case = diagnosis.case
    if len(case.history) < 2:
        return ""
    marks = [{"epoch": event.epoch, "what": event.what} for event in events.planned(case)]
    marks += events.drops(case, case.history, "epoch")
    picture = _curves(case.history, "epoch", marks, ("val_mAP", "val_mAP50", "learning_rate"))
    said = "Each part of the loss, and validation, by epoch; events are marked."
    return parts.section("Epochs of the run", parts.picture(picture, said))


def _curves(rows, position: str, marks, others) -> str:
    """Parts of the loss on the left, other figures on the right, dotted lines with a word where something changed."""
    seen = rows[0][position], rows[-1][position]
    marks = [mark for mark in marks if seen[0] <= mark[position] <= seen[1]]
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "curves.png"
        with figure_file(path, 9.0, 3.6, 110) as figure:
            for axes, names in zip(figure.subplots(1, 2), (CURVES, others), strict=True):
                for name in names:
                    _plot(axes, rows, position, name)
                axes.set(xlabel=position, yscale="log")
                write_plain_powers(axes.yaxis)
                axes.spines[["top", "right"]].set_visible(False)
                for mark in marks:
                    axes.axvline(mark[position], color="0.6", linestyle=":", linewidth=1)
                    place = {"xy": (mark[position], 0.98), "xycoords": ("data", "axes fraction")}
                    axes.annotate(f" {mark['what']}", rotation=90, va="top", fontsize=7, color="0.4", **place)
                if axes.get_legend_handles_labels()[0]:
                    axes.legend(frameon=False, fontsize=8)
        return parts.png_uri(path.read_bytes())


def _plot(axes, rows, position: str, name: str) -> None:
    points = [(row[position], row[name]) for row in rows if np.isfinite(row.get(name, np.nan)) and row[name] > 0]
    if points:
        label = LABELS.get(name, name.removesuffix("_loss"))
        axes.plot(*zip(*points, strict=True), label=label, linewidth=1.2)


def _looked_at(diagnosis: Diagnosis) -> str:
    asked = [(STAGE_WORDS.get(stage, stage), sum(rule.stage == stage for rule in RULES)) for stage in diagnosis.stages]
    found = {one.id for one in diagnosis.findings}
    rows = [
        (rule.id, rule.cause, rule.group, "found" if rule.id in found else "not found")
        for rule in RULES
        if rule.stage in diagnosis.stages and rule.id not in diagnosis.failed
    ]
    return parts.section(
        "What was examined",
        parts.table(("stage", "rules"), asked),
        parts.details("every rule", parts.table(("rule", "cause", "group", "result"), rows)),
    )
