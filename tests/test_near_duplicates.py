"""Near-duplicates: moved, saved again, relit ones are found; other things before one background are not."""

import cv2
import numpy as np
import pytest

from multigrid.data import near_duplicates as module
from multigrid.data.images import read_image
from multigrid.data.near_duplicates import SIDE, near_duplicates, thumbnail
from multigrid.data.samples import read_class_names, read_samples

# The camera sees 480 × 640 pixels of a scene of 960 × 1280.
HEIGHT, WIDTH = 480, 640


def scene(seed: int) -> np.ndarray:
    """A picture with details of several sizes everywhere, uint8 RGB [960, 1280, 3]."""
    random = np.random.default_rng(seed)
    layers = [
        cv2.resize(random.normal(0, 1, (rows, rows * 4 // 3, 3)).astype("float32"), (2 * WIDTH, 2 * HEIGHT))
        for rows in (20, 60, 150)
    ]
    return np.clip(128 + 30 * sum(layers), 0, 255).astype(np.uint8)


def view(picture: np.ndarray, top: int, left: int) -> np.ndarray:
    return picture[top : top + HEIGHT, left : left + WIDTH]


def tray(*places) -> np.ndarray:
    """A plain tray with a bright rim and, at each (x, y), the same dark die of 50 × 40 pixels with a spot."""
    random = np.random.default_rng(3)
    picture = np.full((HEIGHT, WIDTH, 3), 200, np.float32) + random.normal(0, 2, (HEIGHT, WIDTH, 1))
    cv2.rectangle(picture, (20, 15), (610, 455), (250, 250, 250), 8)
    for x, y in places:
        cv2.rectangle(picture, (x, y), (x + 50, y + 40), (40, 60, 90), cv2.FILLED)
        cv2.circle(picture, (x + 18, y + 14), 8, (255, 255, 255), cv2.FILLED)
    return np.clip(picture, 0, 255).astype(np.uint8)


def compare(first, second):
    return near_duplicates([thumbnail(one) for one in first], [thumbnail(one) for one in second])


def test_a_thumbnail_is_the_whole_picture_in_grey():
    picture = np.zeros((90, 320, 3), np.uint8)
    picture[:30, 160:, 0] = 255  # red in the upper third of the right half
    small = thumbnail(picture)
    assert small.shape == (SIDE, SIDE) and small.dtype == np.uint8
    # ITU-R 601: red is 0.299 of the luma: 76. 30 of 90 rows are 53.3 of 160.
    assert small[10, 150] == 76 and small[10, 10] == 0 and small[60, 150] == 0


def test_a_moved_camera_is_found_with_its_shift():
    whole = scene(1)
    # What is at (x, y) of the second view is at (x + 96, y - 48) of the first: 96 / 640 and -48 / 480.
    (match,) = compare([view(whole, 248, 204)], [view(scene(2), 0, 0), view(whole, 200, 300)])
    assert (match.first, match.second) == (0, 1)
    assert match.shift == pytest.approx((0.15, -0.10), abs=1 / SIDE)
    assert match.overlap == pytest.approx(0.85 * 0.90, abs=0.02) and match.agreement > 0.9


@pytest.mark.parametrize("share, found", [(0.55, 1), (0.35, 0)])
def test_views_must_share_enough(share, found):
    whole = scene(4)
    assert len(compare([view(whole, 0, 0)], [view(whole, round(HEIGHT * (1 - share)), 0)])) == found


def saved_again(picture):
    _, data = cv2.imencode(".jpg", cv2.resize(picture, (320, 240), interpolation=cv2.INTER_AREA), [1, 40])
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def relit(picture):
    return np.clip(picture * 0.6 + np.linspace(10, 60, WIDTH)[None, :, None], 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [saved_again, relit])
@pytest.mark.parametrize("make", [lambda: view(scene(5), 100, 60), lambda: tray((100, 90), (420, 300))])
def test_the_same_picture_is_found_when_saved_again_or_relit(make, change):
    (match,) = compare([make()], [change(make())])
    assert match.overlap > 0.97 and match.agreement > 0.9


@pytest.mark.parametrize(
    "places", [((400, 250),), ((150, 320), (500, 120)), ((130, 110),)], ids=["elsewhere", "two", "near by"]
)
def test_other_things_on_one_tray_are_no_duplicates(places):
    assert compare([tray((100, 90))], [tray(*places)]) == []
    assert len(compare([tray(*places)], [tray(*places)])) == 1


@pytest.mark.parametrize("blots, found", [(1, 1), (2, 0)])
def test_one_part_may_differ_and_a_second_one_not(blots, found):
    picture = view(scene(6), 0, 0)
    spoilt = picture.copy()
    # Two of 4 × 4 parts of 120 × 160 pixels: that of row 1, column 2 and that of row 3, column 0.
    for top, left in [(130, 330), (370, 10)][:blots]:
        spoilt[top : top + 100, left : left + 140] = view(scene(7), top, left)[:100, :140]
    assert len(compare([picture], [spoilt])) == found


def test_pictures_without_details_match_nothing_and_divide_by_nothing():
    plain = [np.full((HEIGHT, WIDTH, 3), grey, np.uint8) for grey in (0, 90, 255)]
    with np.errstate(all="raise"):
        assert compare(plain, [*plain, view(scene(8), 0, 0)]) == []
    assert near_duplicates([], [thumbnail(plain[0])]) == near_duplicates([thumbnail(plain[0])], []) == []


def test_positions_are_right_beyond_a_block_and_progress_counts_pairs(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2)
    pictures, done = [thumbnail(view(scene(seed), 0, 0)) for seed in range(5)], []
    found = near_duplicates([pictures[4], pictures[1]], pictures, done.append)
    assert [(match.first, match.second) for match in found] == [(0, 4), (1, 1)]
    # Two first pictures with blocks of two, two and one.
    assert done == [2, 4, 6, 8, 9, 10]


def test_of_the_second_pictures_one_block_is_transformed_at_a_time(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 3)
    pictures, transformed, largest = [thumbnail(view(scene(9), 40 * step, 0)) for step in range(8)], [], []
    monkeypatch.setattr(module, "_spectrum", lambda grey, own=module._spectrum: transformed.append(1) or own(grey))
    monkeypatch.setattr(
        module, "_peaks", lambda one, others, own=module._peaks: largest.append(len(others)) or own(one, others)
    )
    near_duplicates(pictures[:2], pictures)
    assert len(transformed) == 2 + 8 and largest == [3, 3, 3, 3, 2, 2], "each once, by blocks"


# --- real pictures


def real_thumbnails(folder, split):
    samples, _ = read_samples(folder / f"{split}.txt", read_class_names(folder / "classes.txt"))
    names = [sample.path.rsplit("_", 1)[-1].removesuffix(".jpg") for sample in samples]
    return names, [thumbnail(read_image(sample.path, at_least=(SIDE, SIDE))) for sample in samples]


def real_pairs(folder):
    splits = [real_thumbnails(folder, split) for split in ("train", "val", "test")]
    return {
        (names[match.first], others[match.second])
        for index, (names, pictures) in enumerate(splits)
        for others, other_pictures in splits[index + 1 :]
        for match in near_duplicates(pictures, other_pictures)
    }


def test_fields_of_blood_cells_that_two_splits_share_are_found(real_data):
    # Looked at one by one: each pair is one field of view, moved by up to half of it.
    assert real_pairs(real_data("bccd")) == {
        ("00038", "00037"), ("00204", "00277"), ("00247", "00244"), ("00257", "00230"), ("00263", "00223"),
        ("00242", "00249"), ("00248", "00249"), ("00254", "00233"), ("00258", "00229"), ("00276", "00205"),
        ("00236", "00253"), ("00260", "00227"), ("00261", "00226"), ("00386", "00391"),
    }  # fmt: skip


def test_dice_on_one_white_tray_are_no_duplicates(real_data):
    assert real_pairs(real_data("dice")) == set()
