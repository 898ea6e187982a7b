"""Whether a score says how often a detection is right: of those that score 0.8, do 80 % find an object?"""

from __future__ import annotations

import numpy as np

BINS = 10


def calibration(scores, correct, bins: int = BINS) -> dict:
    """Scores against the share of detections that found an object, in bins of equal width.

    Args:
        scores: [D] float in [0, 1].
        correct: [D] bool, see `matching`.
        bins: how many parts [0, 1] has; each holds its lower edge, the last one both.

    Returns:
        {"bins": [{"from", "to", "detections", "mean_score", "share_correct"}], "expected_calibration_error"}; the two
        figures of an empty bin are None. The error is the mean of |mean score - share correct| over the bins, each
        weighed by its detections, or None where there are none.

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks, equation 5.
    """
    scores, correct = np.asarray(scores, "float64"), np.asarray(correct, bool)
    edges = np.arange(bins + 1) / bins
    place = np.minimum((scores * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    score_sums = np.bincount(place, weights=scores, minlength=bins)
    found = np.bincount(place, weights=correct, minlength=bins)
    described = [
        {
            "from": float(edges[index]),
            "to": float(edges[index + 1]),
            "detections": int(count),
            "mean_score": float(score_sums[index] / count) if count else None,
            "share_correct": float(found[index] / count) if count else None,
        }
        for index, count in enumerate(counts)
    ]
    error = float(np.abs(score_sums - found).sum() / len(scores)) if len(scores) else None
    return {"bins": described, "expected_calibration_error": error}
