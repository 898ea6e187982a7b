"""One page that tells all about an evaluation: report.html, which needs no network and no file beside it."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from multigrid.evaluation import html_parts as parts
from multigrid.evaluation.errors import KINDS, MEANINGS, error_values, find_errors
from multigrid.evaluation.funnel import FUNNEL_STEPS, Funnel, build_funnel
from multigrid.evaluation.funnel_words import MEANINGS as STEP_MEANINGS
from multigrid.evaluation.funnel_words import funnel_values, verdict
from multigrid.evaluation.sheets import worst_examples, write_sheets
from multigrid.report import replacing, write_json

if TYPE_CHECKING:
    from multigrid.evaluation.run import Evaluation

PLOTS = {
    "pr_curves.png": "Precision over recall at IoU 0.5",
    "f1_confidence.png": "F1 over confidence",
    "confusion_matrix.png": "Confusion matrix",
    "ap_per_class.png": "Average precision of each class",
    "iou_of_matches.png": "IoU of detections with the objects that they found",
    "calibration.png": "Calibration: the share of correct detections over their confidence",
}
HEADLINES = (
    ("mAP", "mAP"), ("AP50", "mAP50"), ("AP75", "mAP75"), ("precision at best F1", "precision"),
    ("recall at best F1", "recall"), ("best F1", "f1"), ("confidence of best F1", "best_threshold"),
)  # fmt: skip
CLASS_COLUMNS = ("AP", "AP50", "AP75", "precision", "recall", "f1", "best_threshold", "objects", "detections")
NEAR_NOTHING = 5e-4  # of AP50; what shows as 0.0 points


def write_report(
    folder: str | os.PathLike,
    evaluation: Evaluation,
    samples: Sequence,
    class_names: Sequence[str],
    settings: Mapping | None = None,
) -> pathlib.Path:
    """Writes report.html, and beside it what it says as files.

    Args:
        folder: that of the evaluation; its plots become part of the page where they are there.
        evaluation: what `evaluate` returned; without a trace the page has no funnel.
        samples: the images that it was made on.
        class_names: one a class.
        settings: what the page says about how the figures came about, by name.

    Returns:
        The path of report.html. Beside it lie errors.json, errors_<kind>.jpg and, of a trace, funnel.json.
    """
    folder = pathlib.Path(folder)
    funnel = None
    if evaluation.trace is not None:
        funnel = build_funnel(evaluation.trace, evaluation.matches, class_names)
        write_json(folder / "funnel.json", funnel_values(funnel))
    errors, threshold = find_errors(evaluation.matches), evaluation.predict_threshold
    costs = error_values(errors, evaluation.ground_truth, class_names, threshold)
    examples = worst_examples(errors, threshold, samples, class_names)
    shown = {kind: [one.values() for one in own] for kind, own in examples.items()}
    write_json(folder / "errors.json", {**costs, "examples": shown})
    for kind in KINDS:  # an earlier evaluation may have left some that there are none of now
        (folder / f"errors_{kind}.jpg").unlink(missing_ok=True)
    write_sheets(folder, examples)
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(report_page(folder, evaluation, funnel, costs, examples, settings or {}), "utf-8")
    return path


def report_page(
    folder: pathlib.Path, evaluation: Evaluation, funnel: Funnel | None, costs: dict, examples: dict, settings: Mapping
) -> str:
    """The page as HTML.

    Args:
        folder: where the plots are.
        evaluation: what `evaluate` returned.
        funnel: its funnel; None where nothing was traced.
        costs: of `error_values`.
        examples: of `worst_examples`.
        settings: by name.
    """
    metrics = evaluation.full_metrics
    sections = [_headline(_title(settings), metrics, funnel, costs)]
    if funnel is not None:
        sections += [_funnel(funnel), _confidences(funnel)]
    sections += [_classes(metrics), _plots(folder), _errors(costs, examples), _settings(evaluation, settings)]
    return parts.page(_title(settings), filter(None, sections))


def _title(settings: Mapping) -> str:
    """What was evaluated, as far as the settings say."""
    known = {name: str(settings[name]) for name in ("run", "weights", "split") if settings.get(name)}
    if "weights" in known:
        known["weights"] = os.path.basename(known["weights"])
    said = known.values()
    return ": ".join(["Evaluation", ", ".join(said)]) if said else "Evaluation"


def _headline(title: str, metrics: dict, funnel: Funnel | None, costs: dict) -> str:
    values = [] if funnel is None else [parts.paragraph(verdict(funnel), "verdict")]
    values.append(parts.paragraph(_costliest(costs), "verdict"))
    counts = f"{metrics['images']} images, {metrics['objects']} objects, {len(metrics['per_class'])} classes"
    shown = [(name, metrics.get(key)) for name, key in HEADLINES]
    return "\n".join([f"<h1>{parts.text(title)}</h1>", parts.paragraph(counts, "faint"), parts.tiles(shown), *values])


def _costliest(costs: dict) -> str:
    """Which error costs most, in words."""
    if costs["AP50"] is None:
        return "No object is labelled, so nothing can be said about what errors cost."
    kind = max(KINDS, key=lambda name: costs["cost"][name])
    if costs["cost"][kind] < NEAR_NOTHING:
        return "No kind of error costs average precision."
    number = costs["counts_at_threshold"]["all"][kind]
    return (
        f"Of all errors, {kind} ({MEANINGS[kind]}) costs most: {_points(costs['cost'][kind])} points of AP50. "
        f"At confidence {costs['threshold']:g} there are {number} of them."
    )


def _points(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def _funnel(funnel: Funnel) -> str:
    row = len(funnel.thresholds) - 1
    worst, counts = funnel.worst_step(row), funnel.counts[row]
    totals = counts.sum(axis=(1, 2)).tolist()
    largest = math.log10(max(totals[0], 2))
    bars = [
        (f"{step}: {STEP_MEANINGS[step]}", total, math.log10(max(total, 1)) / largest, step == worst)
        for step, total in zip(FUNNEL_STEPS, totals, strict=True)
    ]
    of_strides = [
        (f"stride {stride}", *counts[:, scale].sum(axis=1).tolist(), None)
        for scale, stride in enumerate(funnel.strides)
    ]
    of_classes = [
        (name, *counts[:, :, label].sum(axis=1).tolist(), funnel.worst_step(row, label))
        for label, name in enumerate(funnel.class_names)
    ]
    said = (
        f"Pairs of a cell and a class that got past each step; {int(funnel.objects.sum())} objects are to be found. "
        "The bars are logarithmic. The step at which most objects get out of reach is marked."
    )
    rows = parts.table(["", *FUNNEL_STEPS, "most lost at"], [*of_strides, *of_classes])
    return parts.section(
        f"The funnel at confidence {funnel.thresholds[row]:g}",
        parts.paragraph(said, "faint"),
        parts.bars(bars),
        parts.details("By stride and by class", rows),
        parts.details("How high the scores are", _quantiles(funnel)),
    )


def _quantiles(funnel: Funnel) -> str:
    names = list(funnel.objectness[0])
    rows = [
        (f"stride {stride}, objectness", *values.values())
        for stride, values in zip(funnel.strides, funnel.objectness, strict=True)
    ]
    for stride, of_classes in zip(funnel.strides, funnel.scores, strict=True):
        for name, values in zip(funnel.class_names, of_classes, strict=True):
            rows.append((f"stride {stride}, {name}", *values.values()))
    said = "Quantiles over all cells: of their objectness, and of objectness × class."
    return parts.paragraph(said, "faint") + parts.table(["", *names], rows)


def _confidences(funnel: Funnel) -> str:
    rows = [
        (f"{row['confidence']:g}", row["detections"], f"{row['per_image'] or 0:.1f}", row["precision"], row["recall"])
        for row in funnel.confidences
    ]
    columns = ("score", "boxes", "an image", "precision", "recall")
    return parts.section("What there would be at another confidence", parts.table(columns, rows))


def _classes(metrics: dict) -> str:
    per_class = metrics["per_class"]
    known = [column for column in CLASS_COLUMNS if any(column in figures for figures in per_class.values())]
    rows = [(name, *(figures.get(column) for column in known)) for name, figures in per_class.items()]
    heads = [{"f1": "best F1", "best_threshold": "at confidence"}.get(column, column) for column in known]
    agnostic, said = metrics["class_agnostic"], []
    if len(per_class) > 1 and agnostic["mAP"] is not None:
        words = f"With all classes as one, mAP is {agnostic['mAP']:.3f} and AP50 {agnostic['mAP50']:.3f}."
        said.append(parts.paragraph(words, "faint"))
    return parts.section("Classes", *said, parts.table(["class", *heads], rows))


def _plots(folder: pathlib.Path) -> str | None:
    found = [(folder / name, caption) for name, caption in PLOTS.items() if (folder / name).is_file()]
    if not found:
        return None
    pictures = [parts.picture(parts.png_uri(path.read_bytes()), caption) for path, caption in found]
    return parts.section("Curves", f'<div class="plots">{"".join(pictures)}</div>')


def _errors(costs: dict, examples: dict) -> str:
    counts, threshold = costs["counts_at_threshold"], costs["threshold"]
    points = {kind: cost or 0.0 for kind, cost in costs["cost"].items()}
    largest = max(points.values())
    bars = [
        (
            f"{kind}: {MEANINGS[kind]}",
            f"{_points(costs['cost'][kind])} points, {counts['all'][kind]} times",
            points[kind] / largest if largest > 0 else 0.0,
            points[kind] == largest >= NEAR_NOTHING,
        )
        for kind in KINDS
    ]
    columns = ("true", *KINDS, "explained")
    by_class = [(name, *(of_class[column] for column in columns)) for name, of_class in counts["by_class"].items()]
    said = (
        f"Points of AP50 ({_points(costs['AP50'])}) that each kind of error costs, over all detections, and how often "
        f"it occurs at confidence {threshold:g}. All false positives cost {_points(costs['false_positives'])} points, "
        f"all objects that were not found {_points(costs['false_negatives'])}. {counts['all']['explained']} more "
        "objects are not found because of a cls or loc error. Kinds as in TIDE (Bolya et al. 2020)."
    )
    return parts.section(
        "Errors",
        parts.paragraph(said, "faint"),
        parts.bars(bars),
        parts.details("By class", parts.table(["class", *columns], by_class)),
        *(_sheet(kind, shown, counts["all"][kind], threshold) for kind, shown in examples.items()),
    )


def _sheet(kind: str, examples: Sequence, number: int, threshold: float) -> str:
    order = "The largest" if kind == "missed" else "Those of highest confidence"
    lower = "" if number else f", for none reaches {threshold:g}"
    pictures = "".join(parts.picture(parts.jpeg_uri(one.picture), one.caption, one.place) for one in examples)
    title = f"<h3>{parts.text(kind)}: {parts.text(MEANINGS[kind])}</h3>"
    said = parts.paragraph(f"{order}{lower}. Solid: detected; dashed: labelled.", "faint")
    return f'{title}{said}<div class="pictures">{pictures}</div>'


def _settings(evaluation: Evaluation, settings: Mapping) -> str:
    known = {"predict_threshold": evaluation.predict_threshold, **settings}
    if evaluation.trace is not None:
        known = {"score_threshold": min(evaluation.trace.thresholds), **known}
    known = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    rows = [(name, f"{value:g}" if isinstance(value, float) else value) for name, value in known.items()]
    rows += [(f"seconds, {name}", f"{value:.1f}") for name, value in evaluation.seconds.items()]
    return parts.section("Settings", parts.settings(rows))
