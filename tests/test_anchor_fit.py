"""Anchors fitted to boxes, and the comparison of anchors with boxes."""

import tempfile

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from multigrid.errors import InputError
from multigrid.geometry import anchor_fit
from multigrid.geometry.anchor_fit import fit_anchors, match_statistics
from multigrid.geometry.anchors import Anchors, read_anchors, write_anchors

# YOLOv3's own nine, coarse to fine.
YOLO = [[[116, 90], [156, 198], [373, 326]], [[30, 61], [62, 45], [59, 119]], [[10, 13], [16, 30], [33, 23]]]


def clusters(seed=3):
    """Nine clouds of box sizes, 5 % wide around known centres, of unequal counts; (centres [9, 2], sizes [N, 2])."""
    random = np.random.default_rng(seed)
    centres = np.asarray([[8, 19], [21, 9], [30, 33], [25, 70], [80, 40], [75, 110], [60, 260], [250, 90], [210, 300]])
    counts = [30, 45, 60, 20, 80, 35, 25, 50, 40]
    clouds = [
        centre * np.exp(random.normal(0, 0.05, (count, 2))) for centre, count in zip(centres, counts, strict=True)
    ]
    return centres, random.permutation(np.concatenate(clouds))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fit_finds_the_centres_that_the_boxes_were_drawn_around(seed):
    centres, sizes = clusters()
    fitted = fit_anchors(sizes, seed=seed, deal="area")
    by_area = centres[np.argsort(centres.prod(axis=1))].reshape(3, 3, 2)[::-1]
    # The median of 20 draws with deviation 5 % lies within 1.25 * 5 % / sqrt(20) = 1.4 %; 5 % is over three of those.
    np.testing.assert_allclose(fitted.sizes, by_area, rtol=0.05)


def test_the_same_seed_gives_the_same_anchors_and_the_order_of_boxes_hardly_matters():
    _, sizes = clusters()
    assert fit_anchors(sizes, seed=5) == fit_anchors(sizes, seed=5)
    np.testing.assert_allclose(fit_anchors(sizes[::-1], seed=5).sizes, fit_anchors(sizes, seed=5).sizes, rtol=0.02)


@pytest.mark.parametrize("deal", anchor_fit.DEALS)
def test_the_coarsest_scale_gets_the_largest_anchors_small_to_large(deal):
    areas = fit_anchors(clusters()[1], deal=deal).flat().prod(axis=1).reshape(3, 3)
    assert (np.diff(areas, axis=1) >= 0).all()
    assert areas[0].min() >= areas[1].max() and areas[1].min() >= areas[2].max()


def test_a_fit_matches_better_than_anchors_of_another_data_set():
    _, sizes = clusters()
    assert match_statistics(fit_anchors(sizes), sizes).mean_iol > match_statistics(Anchors(YOLO), sizes).mean_iol + 0.1


def test_as_many_distinct_sizes_as_anchors_become_the_anchors():
    # Nine sizes, the first one a hundred times: eight seeds would fall on it if copies counted as sizes of their own.
    distinct = np.asarray(YOLO, dtype="float32").reshape(-1, 2)
    sizes = np.concatenate([distinct, np.repeat(distinct[:1], 100, axis=0)])
    assert fit_anchors(sizes, deal="area") == Anchors.from_flat(distinct)


def test_sizes_a_rounding_error_apart_are_one():
    sizes = np.asarray(YOLO, dtype="float32").reshape(-1, 2)[:8]
    with pytest.raises(InputError, match="at least 9 distinct box sizes to fit, received 8"):
        fit_anchors(np.concatenate([sizes, sizes + np.float32(1e-4)]), deal="area")


def test_seeds_are_distinct_however_often_one_size_occurs():
    distinct = np.asarray([[5, 6], [7, 9], [40, 12]], dtype="float32")
    seeds = anchor_fit._spread_seeds(distinct, np.asarray([10**12, 1, 1]), 3, np.random.default_rng(0))
    assert sorted(seeds.tolist()) == distinct.tolist()


def test_a_centre_without_boxes_moves_to_the_worst_matched_box():
    sizes = np.asarray([[10, 20], [12, 20], [90, 30]], dtype="float32")
    centres = np.asarray([[11, 20], [500, 900]], dtype="float32")
    # All three boxes are nearest to the first centre (best IoL .91, .92, .08): its median is (12, 20); the second goes
    # to the third box.
    nearest, best = np.asarray([0, 0, 0]), np.asarray([0.91, 0.92, 0.08])
    moved = anchor_fit._moved(sizes, centres, nearest, best)
    assert moved.tolist() == [[12, 20], [90, 30]]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=6, max_size=40), st.integers(0, 99))
def test_any_boxes_give_finite_anchors_or_a_refusal(boxes, seed):
    if len(set(boxes)) < 6:
        with pytest.raises(InputError, match="expected at least 6 distinct box sizes"):
            fit_anchors(boxes, count=6, seed=seed, deal="area")
        return
    fitted = fit_anchors(boxes, count=6, seed=seed, deal="area")
    assert fitted.sizes.shape == (3, 2, 2)
    # A median of boxes lies among them.
    assert fitted.sizes.min() >= np.min(boxes) - 0.01 and fitted.sizes.max() <= np.max(boxes) + 0.01


@pytest.mark.parametrize(
    "sizes, count, message",
    [
        ([[5, 6]] * 20, 9, "expected at least 9 distinct box sizes to fit, received 1"),
        ([[5, 6]] * 20, 8, "a multiple of 3 scales, received 8"),
        ([[5, 6]] * 20, 0, "a multiple of 3 scales, received 0"),
        (np.zeros((0, 2)), 9, "at least one box, received none"),
        ([[5, 6], [4, 0]], 9, r"received \[4.0, 0.0\] for box 2"),
        ([[5, 6], [4, 2], [float("nan"), 3]], 9, r"received \[nan, 3.0\] for box 3"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, count, message):
    with pytest.raises(InputError, match=message):
        fit_anchors(sizes, count=count, deal="area")


def test_more_boxes_than_the_limit_are_sampled(monkeypatch):
    monkeypatch.setattr(anchor_fit, "FIT_LIMIT", 200)
    centres, sizes = clusters()
    assert len(sizes) > 200
    by_area = centres[np.argsort(centres.prod(axis=1))].reshape(3, 3, 2)[::-1]
    np.testing.assert_allclose(fit_anchors(sizes, deal="area").sizes, by_area, rtol=0.08)


# ---------------------------------------------------------------------------------------------------- dealt by stride


def test_a_box_goes_to_the_scale_where_it_is_nearest_to_three_cells():
    # Three cells are 96, 48 and 24 pixels; halfway between, as a ratio, lie 67.9 and 33.9.
    sizes = [[96, 96], [60, 80], [57, 80], [48, 48], [20, 60], [19, 59], [24, 24], [3, 4], [900, 700]]
    # The sides of squares of these areas: 96, 69.3, 67.5, 48, 34.6, 33.5, 24, 3.5, 794.
    assert anchor_fit.suited_scale(sizes).tolist() == [0, 0, 1, 1, 1, 2, 2, 2, 0]


def test_objects_of_nearly_one_size_belong_to_one_scale():
    sizes = np.random.default_rng(4).uniform((40, 44), (62, 66), (300, 2))
    assert match_statistics(fit_anchors(sizes, deal="area"), sizes).scale_shares != (0.0, 1.0, 0.0)
    fit = match_statistics(fit_anchors(sizes), sizes)
    assert fit.scale_shares == (0.0, 1.0, 0.0) and fit.mean_iol > 0.85


def test_a_scale_with_too_few_boxes_gets_sizes_that_suit_it():
    # One size of 25 x 22 for stride 8, none for 32; three anchors of 3 cells · 2^(-1/4, 0, 1/4) would be typical.
    sizes = [[25, 22]] * 5 + [[40, 50], [44, 52], [60, 58]]
    coarse, middle, fine = fit_anchors(sizes).sizes
    np.testing.assert_allclose(coarse, [[80.73, 80.73], [96, 96], [114.16, 114.16]])
    np.testing.assert_allclose(middle, [[40, 50], [44, 52], [60, 58]])
    np.testing.assert_allclose(fine, [[25, 22], [24, 24], [28.54, 28.54]])  # by area: 550, 576, 815


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=1, max_size=40), st.integers(0, 99))
# the median of 35 × 120 and 120 × 35, sides of 65, would be 77.5 × 77.5 and lie above the 70 × 70 of the coarse scale
@example(boxes=[(35, 120), (120, 35)] * 2 + [(70, 70)], seed=0)
def test_any_boxes_give_anchors_that_suit_their_scale_and_survive_their_file(boxes, seed):
    fitted = fit_anchors(boxes, count=3, seed=seed)
    assert fitted.sizes.shape == (3, 1, 2)
    assert anchor_fit.suited_scale(fitted.flat()).tolist() == [0, 1, 2]
    for layout in ("line", "scales"):
        with tempfile.TemporaryDirectory() as folder:
            write_anchors(fitted, f"{folder}/anchors.txt", layout)
            assert read_anchors(f"{folder}/anchors.txt") == fitted


def test_another_way_to_deal_is_refused():
    with pytest.raises(ValueError, match="deal: expected one of stride, area, received 'size'"):
        fit_anchors([[5, 6]], deal="size")


def test_the_statistics_are_those_counted_by_hand():
    anchors = Anchors([[[40, 80]], [[20, 10]], [[4, 5]]])
    # IoL of (w, h) with its best anchor:
    #   (40, 80) = the first                                  1
    #   (40, 20): (20, 10) -> 200 / 800 = .25; (40, 80) -> 800 / 3200 = .25; the first of the two takes it
    #   (16, 10): (20, 10) -> 160 / 200                       .8
    #   (2, 5):   (4, 5)   -> 10 / 20                         .5
    #   (8, 8):   (20, 10) -> 64 / 200 = .32; (4, 5) -> 20 / 64 = .3125
    fit = match_statistics(anchors, [[40, 80], [40, 20], [16, 10], [2, 5], [8, 8]])
    assert fit.boxes == 5
    assert fit.mean_iol == pytest.approx((1 + 0.25 + 0.8 + 0.5 + 0.32) / 5)
    assert fit.share_above_half == pytest.approx(2 / 5)
    assert fit.share_above_quarter == pytest.approx(4 / 5)
    assert np.asarray(fit.shares) == pytest.approx(np.asarray([[0.4], [0.4], [0.2]]))
    assert fit.scale_shares == pytest.approx((0.4, 0.4, 0.2))
    assert fit.worst[:2] == (pytest.approx((40, 20, 0.25)), pytest.approx((8, 8, 0.32)))
    for number in ("5 boxes", "0.574", "40.0%", "80.0%", "40x80", "20x10", "40x20 (0.25)"):
        assert number in fit.describe()
    assert "\n" not in fit.describe()


def test_the_warning_comes_with_numbers_and_the_command_and_only_when_the_anchors_do_not_fit():
    _, sizes = clusters()
    assert match_statistics(fit_anchors(sizes), sizes).warning("multigrid anchors") is None
    # Anchors in cells of stride 8 instead of pixels are off by 64 in area.
    unit_fault = match_statistics(Anchors(fit_anchors(sizes).sizes / 8), sizes)
    text = unit_fault.warning("multigrid anchors --labels train.txt")
    assert not unit_fault.fits and f"{unit_fault.mean_iol:.3f}" in text and text.endswith("--labels train.txt")


def test_a_tenth_of_hopeless_boxes_warns_even_where_the_mean_is_good():
    anchors = Anchors([[[90, 100]], [[30, 40]], [[10, 20]]])
    # 8 of 9 boxes fit exactly and one is 25 times too long: mean (8 + .04) / 9 = .89, but only 89 % above a quarter.
    fit = match_statistics(anchors, [[90, 100]] * 8 + [[2250, 100]])
    assert fit.mean_iol > 0.8 and not fit.fits


def boxes_of_lines(path):
    words = [word.split(",") for line in path.read_text().splitlines() for word in line.split()[1:]]
    return np.asarray([[int(w[2]) - int(w[0]), int(w[3]) - int(w[1])] for w in words], dtype="float32")


@pytest.mark.parametrize("name, count", [("bccd", 2804), ("dice", 1204)])
def test_anchors_fitted_to_real_boxes_need_no_warning(real_data, name, count):
    sizes = boxes_of_lines(real_data(name) / "train.txt")
    assert len(sizes) == count
    fit = match_statistics(fit_anchors(sizes), sizes)
    assert fit.fits and fit.mean_iol > 0.75
