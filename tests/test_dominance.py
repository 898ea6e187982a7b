"""Which component rules the shared weights."""

import numpy as np
import pytest

from multigrid.diagnosis.dominance import gradient_shares
from multigrid.errors import InputError
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector

ANCHORS = [[[40, 28], [48, 44]], [[20, 14], [14, 30]], [[8, 6], [12, 9]]]
TRUTH = {
    "boxes": np.array([[[10, 8, 33, 25], [50, 20, 59, 27]], [[30, 12, 71, 40], [0, 0, 0, 0]]], "float32"),
    "classes": np.array([[1, 0], [2, -1]], "int32"),
}


@pytest.fixture(scope="module")
def detector():
    criterion = MultiGridLoss(ANCHORS, 3, assignment="paper", iou_power=0.0)
    made = MultiGridDetector(ANCHORS, 3, width=0.0625, depth=0.125, criterion=criterion)
    made.compile("sgd", jit_compile=False)
    return made


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(3).integers(0, 255, (2, 64, 96, 3), dtype="uint8")


def shares_of(detector, images, wanted=None):
    return {row["component"]: row for row in gradient_shares(detector, images, TRUTH, wanted)}


def test_the_pull_of_a_component_grows_with_its_scale_alone(detector, images):
    before = shares_of(detector, images)
    detector.criterion.class_scale = 4.0
    try:
        after = shares_of(detector, images)
    finally:
        detector.criterion.class_scale = 1.0
    assert after["classification"]["norm"] == pytest.approx(4.0 * before["classification"]["norm"], rel=1e-3)
    for name in ("localization", "object", "no_object", "anchor"):
        assert after[name]["norm"] == pytest.approx(before[name]["norm"], rel=1e-3)
    assert sum(row["share"] for row in after.values()) == pytest.approx(1.0)


def test_with_the_suggested_scales_the_shares_are_those_that_were_wanted(detector, images):
    wanted = {"localization": 3.0, "no_object": 0.5}  # the other three have 1: of 6.5 in all
    suggested = shares_of(detector, images, wanted)
    kept = {row["scale"]: row["value"] for row in suggested.values()}
    for row in suggested.values():
        setattr(detector.criterion, row["scale"], row["suggested"])
    try:
        found = shares_of(detector, images)
    finally:
        for scale, value in kept.items():
            setattr(detector.criterion, scale, value)
    assert found["localization"]["share"] == pytest.approx(3.0 / 6.5, rel=1e-2)
    assert found["no_object"]["share"] == pytest.approx(0.5 / 6.5, rel=1e-2)
    assert found["classification"]["share"] == pytest.approx(1.0 / 6.5, rel=1e-2)


def test_the_detector_stays_as_it_is(detector, images):
    weights, optimizer = [np.array(value) for value in detector.get_weights()], detector.optimizer
    shares_of(detector, images)
    assert all(np.array_equal(one, other) for one, other in zip(weights, detector.get_weights(), strict=True))
    assert detector.optimizer is optimizer and detector.criterion.coord_scale == 5.0


@pytest.mark.parametrize("wanted", [{"boxes": 1.0}, {"anchor": 0.0}])
def test_shares_of_nothing_are_refused(detector, images, wanted):
    with pytest.raises(InputError, match="balance: expected shares above 0 of localization"):
        gradient_shares(detector, images, TRUTH, wanted)
