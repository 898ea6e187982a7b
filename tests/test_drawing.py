"""The outlines that scenes are drawn from: their sizes, their pixels, and what tells one class from another."""

import cv2
import numpy as np
import pytest

from multigrid.data.drawing import draw_background, draw_outline, rasterize
from multigrid.data.shapes import CLASS_NAMES, OWN_PIXEL


def outlines(name, count, **options):
    rng = np.random.default_rng(5)
    return [draw_outline(name, options.get("size", 60.0), (400, 400), rng) for _ in range(count)]


@pytest.mark.parametrize("name", CLASS_NAMES)
@pytest.mark.parametrize("size", [14.0, 61.0, 160.0])
def test_the_pixels_of_a_shape_span_its_outline_to_one_pixel(name, size):
    for contours in outlines(name, 20, size=size):
        corners = np.concatenate([contours[0].min(axis=0), contours[0].max(axis=0)])
        rows, columns = np.nonzero(rasterize(contours) >= OWN_PIXEL)
        extent = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose(extent, corners, atol=1.0)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_the_pixels_of_a_shape_cover_the_area_of_its_outline(name):
    for contours in outlines(name, 20):
        outer, *holes = (cv2.contourArea(c.astype(np.float32)) for c in contours)
        # Sharp tips wider than one fine pixel and no more: 3 % of shapes of 60 px.
        assert rasterize(contours).sum() / 255 == pytest.approx(outer - sum(holes), rel=0.03)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_the_size_of_an_outline_is_the_root_of_its_boxs_area(name):
    for contours in outlines(name, 20, size=37.0):
        assert np.sqrt(np.ptp(contours[0], axis=0).prod()) == pytest.approx(37.0)


def test_only_a_ring_is_hollow_and_only_a_bar_is_long():
    for name in CLASS_NAMES:
        for contours in outlines(name, 40):
            sides = np.ptp(contours[0], axis=0)
            middle = np.round(contours[0].mean(axis=0)).astype(int)
            assert (rasterize(contours)[middle[1], middle[0]] == 0) == (name == "ring")
            assert (sides.max() / sides.min() > 2.2) == (name == "bar")


def test_bars_lie_and_stand_about_equally_often():
    lying = np.mean([np.ptp(c[0][:, 0]) > np.ptp(c[0][:, 1]) for c in outlines("bar", 200)])
    assert 0.4 < lying < 0.6  # the standard error is sqrt(0.25 / 200) = 0.035


def test_an_outline_is_never_longer_than_allowed():
    rng = np.random.default_rng(3)
    for name in CLASS_NAMES * 5:
        sides = np.ptp(draw_outline(name, 160.0, (90.0, 40.0), rng)[0], axis=0)
        assert sides[0] <= 90.001 and sides[1] <= 40.001


def test_a_background_has_the_size_asked_for_and_is_the_same_for_the_same_draws():
    first, second = (draw_background(70, 131, np.random.default_rng(seed)) for seed in (4, 4))
    assert first.shape == (70, 131, 3) and first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    assert np.mean(first != draw_background(70, 131, np.random.default_rng(5))) > 0.9
