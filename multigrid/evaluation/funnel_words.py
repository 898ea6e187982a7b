"""What a funnel says: at which step most objects are lost, in words, and all of its numbers as plain values."""

from __future__ import annotations

from multigrid.evaluation.funnel import FUNNEL_STEPS, Funnel

MEANINGS = {
    "cells": "all cells, each once a class",
    "objectness": "objectness reaches the threshold",
    "score": "objectness × class reaches it",
    "box": "the box is finite and lies in the image",
    "candidate": "among the candidates that suppression looks at",
    "suppression": "left by suppression",
    "cap": "among the most detections that an image can have",
    "true": "matched to an object of its class, IoU 0.5",
}


def verdict(funnel: Funnel, row: int = -1) -> str:
    """The step at which most objects are lost, in words, after what is not a number.

    Args:
        funnel: of an evaluation.
        row: which of its thresholds.
    """
    return " ".join([*_not_finite(funnel), _conclusion(funnel, row)])


def funnel_values(funnel: Funnel) -> dict:
    """All of a funnel, by names, for a file."""
    return {
        "verdict": verdict(funnel),
        "images": funnel.images,
        "objects": _by(funnel.class_names, funnel.objects.tolist()),
        "steps": MEANINGS,
        "thresholds": [_at_threshold(funnel, row) for row in range(len(funnel.thresholds))],
        "not_finite": {
            "objectness": _by(funnel.strides, funnel.not_finite[0].tolist()),
            "score": _by(funnel.strides, funnel.not_finite[1].tolist()),
        },
        "objectness_quantiles": _by(funnel.strides, funnel.objectness),
        "score_quantiles": _by(funnel.strides, [_by(funnel.class_names, rows) for rows in funnel.scores]),
        "at_confidence": funnel.confidences,
    }


def _at_threshold(funnel: Funnel, row: int) -> dict:
    counts = funnel.counts[row]  # [steps, S, C]
    by_class = [
        {**_by(FUNNEL_STEPS, counts[:, :, label].sum(axis=1).tolist()), "worst_step": funnel.worst_step(row, label)}
        for label in range(len(funnel.class_names))
    ]
    cells = [
        _by(funnel.class_names, [_by(FUNNEL_STEPS, steps) for steps in counts[:, scale].T.tolist()])
        for scale in range(len(funnel.strides))
    ]
    return {
        "threshold": funnel.thresholds[row],
        "verdict": verdict(funnel, row),
        "worst_step": funnel.worst_step(row),
        "all": _by(FUNNEL_STEPS, counts.sum(axis=(1, 2)).tolist()),
        "by_stride": _by(funnel.strides, [_by(FUNNEL_STEPS, steps) for steps in counts.sum(axis=2).T.tolist()]),
        "by_class": _by(funnel.class_names, by_class),
        "by_stride_and_class": _by(funnel.strides, cells),
    }


def _by(names, values) -> dict:
    return dict(zip(names, values, strict=True))


def _not_finite(funnel: Funnel) -> list[str]:
    """A sentence about each scale that says what is not a number."""
    found, cells = [], funnel.counts[0, 0]
    for scale, stride in enumerate(funnel.strides):
        objectness, scores = funnel.not_finite[:, scale]
        if objectness:
            found.append(
                f"objectness: {objectness} of {cells[scale, 0]} cells of stride {stride} say no finite number."
            )
        elif scores:
            found.append(f"score: {scores} of {cells[scale].sum()} pairs of stride {stride} are no finite number.")
    return found


def _conclusion(funnel: Funnel, row: int) -> str:
    threshold, objects = funnel.thresholds[row], int(funnel.objects.sum())
    detections, found = funnel.counts[row, -2:].sum(axis=(1, 2)).tolist()
    if not funnel.images:
        return "No image was looked at."
    if not objects:
        return f"No object is labelled; {detections} detections reach confidence {threshold:g}, all of them false."
    summary = f"{found} of {objects} objects are found at confidence {threshold:g}"
    step = funnel.worst_step(row)
    return f"{summary}." if step is None else f"{summary}. {_loss(funnel, row, step)}"


def _loss(funnel: Funnel, row: int, step: str) -> str:
    """How many objects of all classes are lost at a step, and what happens there in the class that loses most."""
    index = FUNNEL_STEPS.index(step)
    lost = funnel.in_reach(row)[index - 1] - funnel.in_reach(row)[index]
    label, several = int(lost.argmax()), len(funnel.class_names) > 1
    name = funnel.class_names[label]
    before, after = funnel.counts[row, index - 1 : index + 1, :, label].sum(axis=1).tolist()
    score = _highest(funnel, row, "pair", after, "objectness × class", [rows[label] for rows in funnel.scores])
    happens = {
        "objectness": _highest(funnel, row, "cell", after, "objectness", funnel.objectness),
        "score": score,
        "box": f"{after} of {before} boxes are finite and lie in the image",
        "candidate": f"suppression looks at {after} of {before} boxes",
        "suppression": f"{after} of {before} boxes are left, fewer than there are objects",
        "cap": f"the most detections that an image can have leave {after} of {before}",
        "true": f"{after} of {before} detections lie on an object of their class that no better one found",
    }[step]
    if several and step != "objectness":  # a cell has one objectness for all classes
        happens = f"of class {name}, {happens}"
    low = int(funnel.scored_too_low(row).sum()) if step == "score" else 0
    if low:  # the highest score is news only where none reaches the threshold
        more = f"{low} more object{'s' if low > 1 else ''}{' of all classes' if several else ''}"
        found_lower = f"boxes of a lower score find {more} at {min(funnel.thresholds):g}"
        happens = found_lower if after else f"{happens}; {found_lower}"
    where = f" of all classes ({lost[label]} of class {name})" if several else ""
    return f"Most others are lost at one step, {lost.sum()} objects{where}. {step}: {happens}."


def _highest(funnel: Funnel, row: int, unit: str, reached: int, what: str, quantiles) -> str:
    """How many got past a threshold, and which value is the highest."""
    known = [(of["max"], stride) for of, stride in zip(quantiles, funnel.strides, strict=True) if of["max"] is not None]
    if not known:
        return f"no {unit} has a finite {what}"
    highest, stride = max(known)
    many = f"only {reached} {unit}s reach" if reached else f"no {unit} reaches"
    return f"{many} {funnel.thresholds[row]:g}; the highest {what} is {highest:.3g} (stride {stride})"
