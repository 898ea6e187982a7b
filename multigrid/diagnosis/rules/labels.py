"""Causes in the labels and in how they are read."""

from __future__ import annotations

from multigrid.diagnosis.examinations import funnel
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule

KEPT = 0.5  # share of the parsed objects that batches must at least have; mosaics and crops lose some


@rule("MG101", "Objects of the label files do not reach the batches", group="labels", stage="static")
def missing_labels(case):
    """No or few objects in the batches though the files have them, or none in the files."""
    seen = case.examined(funnel.examine)
    if seen.batched == 0:
        return Verdict(
            1.0,
            (
                Observation("objects an image in the label files", seen.parsed, "more than 0"),
                Observation("objects an image in the batches", seen.batched, "more than 0"),
            ),
            (f"of {seen.images} images all are empty, before any encoding: cells and loss cannot be the cause",),
            Remedy("Look at the label file of data.train and its reader.", part="data", where="data.train"),
        )
    return None
