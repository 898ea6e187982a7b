"""Whether the predictor's network says of an image the same whatever stands beside it, and the same as the detector."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import oracle
from multigrid.diagnosis.examinations.outputs import as_array

CROP = (64, 96)  # (height, width) in pixels: it is about the mode of the layers, not about what is seen
DARK = 40  # a neighbour of another brightness


@dataclass(frozen=True)
class Steadiness:
    """What the network behind the predictor did.

    Attributes:
        company: largest change of the scores or boxes (over their size) of an image when its neighbour in the batch is
            another.
        moved: names of variables that predicting changed; they were put back.
        difference: largest difference of its boxes, over the image's size, or scores from the detector's own outputs
            through the same decoder; None where that cannot be told.
    """

    company: float
    moved: tuple[str, ...]
    difference: float | None


def examine(case) -> Steadiness | None:
    """How steady the predictor of a `Case` is; None where it has no network that can be asked."""
    model = getattr(case.predictor, "model", None)
    if not hasattr(model, "predict_on_batch"):
        return None
    one, other = _crops(case)
    kept = [as_array(variable).copy() for variable in case.detector.non_trainable_variables]
    beside, dark = np.stack([one, other]), np.stack([one, other // 3 + DARK])
    first, second = (model.predict_on_batch(pair) for pair in (beside, dark))
    moved = []
    for variable, value in zip(case.detector.non_trainable_variables, kept, strict=True):
        if not np.array_equal(as_array(variable), value, equal_nan=True):
            moved.append(variable.path)
            variable.assign(value)
    return Steadiness(_difference(first, second, 1), tuple(moved), _against_detector(case, beside, first))


def _crops(case) -> tuple:
    images = case.batch[0]
    height, width = (min(side, largest) for side, largest in zip(CROP, images.shape[1:3], strict=True))
    return images[0, :height, :width], images[-1, -height:, -width:][:, ::-1]


def _difference(first: dict, second: dict, count: int) -> float:
    """Of boxes, over the crop's size, and of scores; of the first images."""
    boxes, scores = (np.abs(first[name][:count] - second[name][:count]).max() for name in ("boxes", "scores"))
    return float(max(boxes / max(CROP), scores))


def _against_detector(case, images, said) -> float | None:
    tail = oracle.tail_of(case)
    if tail is None:
        return None
    grids = case.detector(ops.convert_to_tensor(images), training=False)
    decoded = {name: as_array(value) for name, value in tail(grids, training=False).items()}
    return _difference(said, decoded, len(images))
