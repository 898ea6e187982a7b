"""The anchors value, its files in both layouts, the fit, and the comparison with a data set."""

import hashlib
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multigrid.errors import InputError
from multigrid.geometry import anchors as anchors_module
from multigrid.geometry.anchors import Anchors, draw_anchors, fit_anchors, match_statistics, read_anchors, write_anchors

# YOLOv3's own nine, coarse to fine.
YOLO = [[[116, 90], [156, 198], [373, 326]], [[30, 61], [62, 45], [59, 119]], [[10, 13], [16, 30], [33, 23]]]


def written(tmp_path, text):
    path = tmp_path / "anchors.txt"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "10,13, 16,30, 33,23, 30,61, 62,45, 59,119, 116,90, 156,198, 373,326\n",
        "10,13 16,30 33,23 30,61 62,45 59,119 116,90 156,198 373,326",
        "10,13,16,30,33,23,30,61,62,45,59,119,116,90,156,198,373,326",
        "10, 13, 16, 30, 33, 23, 30, 61, 62, 45, 59, 119, 116, 90, 156, 198, 373, 326,\n\n",
        "10,13 16,30 33,23\n30,61 62,45 59,119\n116,90 156,198 373,326\n",
        "# coarse first\n116,90, 156,198, 373,326\n\n30,61, 62,45, 59,119 # middle\n10,13, 16,30, 33,23\n",
    ],
)
def test_both_layouts_read_as_the_same_anchors(tmp_path, text):
    assert read_anchors(written(tmp_path, text)) == Anchors(YOLO)


def test_one_line_is_dealt_to_the_scales_by_area(tmp_path):
    # Areas 400, 6, 150 for three scales: the coarsest gets 400, then 150, then 6.
    assert read_anchors(written(tmp_path, "10,40 2,3 15,10")).to_list() == [[[10, 40]], [[15, 10]], [[2, 3]]]


def test_the_order_within_a_line_of_one_scale_stays(tmp_path):
    read = read_anchors(written(tmp_path, "9,8 2,3\n50,40 20,30\n200,100 90,300"))
    assert read.to_list() == [[[200, 100], [90, 300]], [[50, 40], [20, 30]], [[9, 8], [2, 3]]]


def test_two_scales_are_read_where_the_network_has_two(tmp_path):
    read = read_anchors(written(tmp_path, "10,14, 23,27, 37,58, 81,82, 135,169, 344,319"), scales=2)
    assert read.to_list() == [[[81, 82], [135, 169], [344, 319]], [[10, 14], [23, 27], [37, 58]]]
    assert read.strides == (16, 8)


@pytest.mark.parametrize(
    "text, place, received",
    [
        ("10,13 16,30\n12;30 5,6\n7,8 9,10", "line 2", '"12;30"'),
        ("10,13 16,30\n12,30,4 5,6\n7,8 9,10", "line 2", '"12,30,4"'),
        ("\n10,13,16,30,33\n", "line 2", '"5 numbers"'),
        ("10,13 16,30\n3,4 5,0\n7,8 9,10", "line 2", '"5,0"'),
        ("10,13 16,30 nan,4", "line 1", '"nan,4"'),
        ("10,13 16,inf 3,4", "line 1", '"16,inf"'),
        ("10,13 -16,30 3,4", "line 1", '"-16,30"'),
        ("10,13 16,30\n1,2 3,4\n7,8 9,10 11,12", "line 3", "3"),
        ("10,13 16,30 3,4 5,6", "line 1", "4"),
        ("10,13 16,30\n1,2 3,4", "3, one a scale", "2 lines"),
        (" , ,", "line 1", '", ,"'),
        ("10,13 16,,30 3,4", "line 1", '"16,,30"'),
        ("width,height\n", "line 1", '"width,height"'),
        (" \n# nothing\n", "anchors.txt", "an empty file"),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_place(tmp_path, text, place, received):
    with pytest.raises(InputError) as error:
        read_anchors(written(tmp_path, text))
    message = str(error.value)
    assert message.startswith(str(tmp_path / "anchors.txt"))
    assert place in message and "expected" in message and f"received {received}" in message
    assert "\n" not in message


def test_a_missing_folder_or_binary_file_is_named(tmp_path):
    binary = tmp_path / "binary.txt"
    binary.write_bytes(b"\xff\xfe\x00\x81")
    for path in (tmp_path / "nowhere.txt", tmp_path, binary):
        with pytest.raises(InputError, match=r"expected a text file of anchors, received"):
            read_anchors(path)


@pytest.mark.parametrize("layout, lines", [("line", 1), ("scales", 3)])
def test_what_is_written_is_read_back_exactly(tmp_path, layout, lines):
    # Thirds have no short decimal; the second scale's anchors are not in the order of their areas (scale 2 of YOLO).
    fitted = Anchors(np.asarray(YOLO) / 3)
    write_anchors(fitted, tmp_path / "new" / "anchors.txt", layout)
    text = (tmp_path / "new" / "anchors.txt").read_text()
    assert len(text.splitlines()) == lines
    # 10 / 3 in float32: the finest anchor comes first in both layouts.
    assert text.startswith("3.3333333,")
    assert read_anchors(tmp_path / "new" / "anchors.txt") == fitted


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match='expected layout "line" or "scales", received \'rows\''):
        write_anchors(Anchors(YOLO), tmp_path / "a.txt", "rows")


def test_anchors_are_a_value():
    first, second = Anchors(YOLO), Anchors(np.asarray(YOLO, dtype="float64"))
    other = Anchors(np.asarray(YOLO) + [1, 0])
    assert first == second and hash(first) == hash(second) and len({first, second, other}) == 2
    assert first != other and first != "anchors"
    # The same 12 numbers in another shape are other anchors.
    assert Anchors(np.ones((3, 2, 2))) != Anchors(np.ones((2, 3, 2)))
    assert Anchors(first.to_list()) == first and pickle.loads(pickle.dumps(first)) == first
    assert (first.num_scales, first.per_scale, first.strides) == (3, 3, (32, 16, 8))


def test_anchors_cannot_be_changed_through_the_array_they_came_from():
    source = np.asarray(YOLO, dtype="float32")
    value = Anchors(source)
    source[0, 0, 0] = 7
    assert value.sizes[0, 0, 0] == 116
    with pytest.raises(ValueError, match="read-only"):
        value.sizes[0, 0, 0] = 7


def test_the_flat_index_is_scale_times_anchors_plus_anchor():
    anchors = Anchors([[[50, 40], [20, 90]], [[9, 8], [2, 3]]])
    assert anchors.flat().tolist() == [[50, 40], [20, 90], [9, 8], [2, 3]]


@pytest.mark.parametrize(
    "sizes", [[[1, 2]], [[[1, 2, 3]]], [[[1, 0]]], [[[1, float("nan")]]], [], [[[1, 2]], [[3]]], "nine"]
)
def test_sizes_that_are_no_anchors_are_refused(sizes):
    with pytest.raises(InputError, match="anchors: expected"):
        Anchors(sizes)


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
    fitted = fit_anchors(sizes, seed=seed)
    by_area = centres[np.argsort(centres.prod(axis=1))].reshape(3, 3, 2)[::-1]
    # The median of 20 draws with deviation 5 % lies within 1.25 * 5 % / sqrt(20) = 1.4 %; 5 % is over three of those.
    np.testing.assert_allclose(fitted.sizes, by_area, rtol=0.05)


def test_the_same_seed_gives_the_same_anchors_and_the_order_of_boxes_hardly_matters():
    _, sizes = clusters()
    assert fit_anchors(sizes, seed=5) == fit_anchors(sizes, seed=5)
    np.testing.assert_allclose(fit_anchors(sizes[::-1], seed=5).sizes, fit_anchors(sizes, seed=5).sizes, rtol=0.02)


def test_the_coarsest_scale_gets_the_largest_anchors_small_to_large():
    areas = fit_anchors(clusters()[1]).flat().prod(axis=1).reshape(3, 3)
    assert (np.diff(areas, axis=1) >= 0).all()
    assert areas[0].min() >= areas[1].max() and areas[1].min() >= areas[2].max()


def test_a_fit_matches_better_than_anchors_of_another_data_set():
    _, sizes = clusters()
    assert match_statistics(fit_anchors(sizes), sizes).mean_iol > match_statistics(Anchors(YOLO), sizes).mean_iol + 0.1


def test_as_many_distinct_sizes_as_anchors_become_the_anchors():
    # Nine sizes, the first one a hundred times: eight seeds would fall on it if copies counted as sizes of their own.
    distinct = np.asarray(YOLO, dtype="float32").reshape(-1, 2)
    sizes = np.concatenate([distinct, np.repeat(distinct[:1], 100, axis=0)])
    assert fit_anchors(sizes) == Anchors.from_flat(distinct)


def test_seeds_are_distinct_however_often_one_size_occurs():
    distinct = np.asarray([[5, 6], [7, 9], [40, 12]], dtype="float32")
    seeds = anchors_module._spread_seeds(distinct, np.asarray([10**12, 1, 1]), 3, np.random.default_rng(0))
    assert sorted(seeds.tolist()) == distinct.tolist()


def test_a_centre_without_boxes_moves_to_the_worst_matched_box():
    sizes = np.asarray([[10, 20], [12, 20], [90, 30]], dtype="float32")
    centres = np.asarray([[11, 20], [500, 900]], dtype="float32")
    # All three boxes are nearest to the first centre (best IoL .91, .92, .08): its median is (12, 20); the second goes
    # to the third box.
    nearest, best = np.asarray([0, 0, 0]), np.asarray([0.91, 0.92, 0.08])
    moved = anchors_module._moved(sizes, centres, nearest, best)
    assert moved.tolist() == [[12, 20], [90, 30]]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 400), st.integers(1, 400)), min_size=6, max_size=40), st.integers(0, 99))
def test_any_boxes_give_finite_anchors_or_a_refusal(boxes, seed):
    if len(set(boxes)) < 6:
        with pytest.raises(InputError, match="expected at least 6 distinct box sizes"):
            fit_anchors(boxes, count=6, seed=seed)
        return
    fitted = fit_anchors(boxes, count=6, seed=seed)
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
        fit_anchors(sizes, count=count)


def test_more_boxes_than_the_limit_are_sampled(monkeypatch):
    monkeypatch.setattr(anchors_module, "FIT_LIMIT", 200)
    centres, sizes = clusters()
    assert len(sizes) > 200
    by_area = centres[np.argsort(centres.prod(axis=1))].reshape(3, 3, 2)[::-1]
    np.testing.assert_allclose(fit_anchors(sizes).sizes, by_area, rtol=0.08)


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


def test_the_picture_is_written_and_shows_the_boxes(tmp_path):
    _, sizes = clusters()
    anchors = fit_anchors(sizes)
    draw_anchors(anchors, sizes, tmp_path / "new" / "anchors.png")
    draw_anchors(anchors, sizes[:20], tmp_path / "few.png")
    pictures = [(tmp_path / "new" / "anchors.png").read_bytes(), (tmp_path / "few.png").read_bytes()]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert len({hashlib.sha256(picture).hexdigest() for picture in pictures}) == 2


def boxes_of_lines(path):
    words = [word.split(",") for line in path.read_text().splitlines() for word in line.split()[1:]]
    return np.asarray([[int(w[2]) - int(w[0]), int(w[3]) - int(w[1])] for w in words], dtype="float32")


@pytest.mark.parametrize("name, count", [("bccd", 2804), ("dice", 1204)])
def test_anchors_fitted_to_real_boxes_need_no_warning(real_data, name, count):
    sizes = boxes_of_lines(real_data(name) / "train.txt")
    assert len(sizes) == count
    fit = match_statistics(fit_anchors(sizes), sizes)
    assert fit.fits and fit.mean_iol > 0.75
