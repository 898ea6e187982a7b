"""Scores against how often they are right, counted by hand."""

import json

import numpy as np
import pytest

from multigrid.evaluation.calibration import calibration


def test_bins_and_error_are_counted_by_hand():
    # [.0, .5): .1 wrong, .3 right: mean .2, share 1/2, off by .3.
    # [.5, 1]: .5 right, .8 wrong, 1 right: mean 2.3/3, share 2/3, off by .1.
    # Weighed by 2 and 3 of 5: .4 · .3 + .6 · .1 = .18.
    found = calibration([0.8, 0.1, 1.0, 0.3, 0.5], [False, False, True, True, True], bins=2)
    low, high = found["bins"]
    assert low == pytest.approx({"from": 0, "to": 0.5, "detections": 2, "mean_score": 0.2, "share_correct": 0.5})
    assert high == pytest.approx({"from": 0.5, "to": 1, "detections": 3, "mean_score": 2.3 / 3, "share_correct": 2 / 3})
    assert found["expected_calibration_error"] == pytest.approx(0.18)


def test_a_score_on_an_edge_is_in_the_upper_bin_and_one_in_the_last():
    # In binary .3 is a little less than 3 · .1, which must not move it down.
    found = calibration(np.arange(11) / 10, np.ones(11))
    assert [one["detections"] for one in found["bins"]] == [1, 1, 1, 1, 1, 1, 1, 1, 1, 2]


def test_scores_that_say_how_often_they_are_right_have_almost_no_error():
    random = np.random.default_rng(4)
    scores = random.random(200_000)
    found = calibration(scores, random.random(200_000) < scores)
    # A bin of 20,000 coins is off by about sqrt(.25 / 20000) = .0035.
    assert found["expected_calibration_error"] < 0.005
    assert calibration(scores, np.ones(200_000, bool))["expected_calibration_error"] == pytest.approx(0.5, abs=0.005)


def test_empty_bins_and_no_detections_have_no_figures():
    found = calibration([0.95], [True])
    assert found["bins"][0] == {"from": 0, "to": 0.1, "detections": 0, "mean_score": None, "share_correct": None}
    nothing = calibration([], [])
    assert nothing["expected_calibration_error"] is None and len(nothing["bins"]) == 10
    assert json.dumps([found, nothing], allow_nan=False)
