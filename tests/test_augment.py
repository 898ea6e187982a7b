"""Boxes go where their pixels go, in every step and mixture; what cannot work is refused with the step's name."""

import concurrent.futures

import numpy as np
import pytest

from multigrid.data.augment import (
    Augmentation,
    Example,
    blend,
    build_pipeline,
    clip_to_window,
    draw_mosaic,
    join_tiles,
)
from multigrid.data.images import BORDER
from multigrid.data.shapes import draw_scene
from multigrid.errors import InputError

SIZE = (160, 224)  # height, width: a step that swaps them cannot keep the size
NEAREST = 0  # cv2.INTER_NEAREST: no mixed colours on the borders of painted objects

STAY = [
    {"name": "HueSaturationValue", "hue_shift_limit": 20, "sat_shift_limit": 40, "val_shift_limit": 40, "p": 1.0},
    {"name": "RandomBrightnessContrast", "p": 1.0},
    {"name": "ToGray", "p": 1.0},
    {"name": "Blur", "blur_limit": 5, "p": 1.0},
    {"name": "CLAHE", "p": 1.0},
    {"name": "ImageCompression", "quality_range": [30, 60], "p": 1.0},
]
MOVE = [
    {"name": "HorizontalFlip", "p": 1.0},
    {"name": "VerticalFlip", "p": 1.0},
    {"name": "Affine", "scale": [0.6, 1.5], "p": 1.0},
    {"name": "Affine", "translate_percent": {"x": [-0.3, 0.3], "y": [-0.2, 0.2]}, "p": 1.0},
    {"name": "Affine", "scale": [0.7, 1.3], "translate_percent": [-0.1, 0.1], "balanced_scale": True, "p": 1.0},
    {"name": "RandomSizedBBoxSafeCrop", "p": 1.0},
    {"name": "RandomResizedCrop", "scale": [0.3, 1.0], "p": 1.0},
]
TURN = [
    {"name": "Affine", "rotate": [-40, 40], "p": 1.0},
    {"name": "Affine", "shear": {"x": [-20, 20], "y": [-15, 15]}, "p": 1.0},
    {"name": "Perspective", "p": 1.0},
    {"name": "ElasticTransform", "alpha": 60, "sigma": 9, "p": 1.0},
]
HIDE = [
    {"name": "GridDropout", "ratio": 0.4, "random_offset": True, "fill_mask": 0, "p": 1.0},
    {"name": "CoarseDropout", "fill_mask": 0, "p": 1.0},
]


def step_id(step):
    return "-".join([step["name"], *(key for key in step if key not in ("name", "p"))])


def scene_of(seed, size=SIZE):
    """A drawn scene whose "classes" number its objects, so that a box that left can be told whose it is."""
    scene = draw_scene(seed, image_size=size, objects=(3, 6), sizes=(20.0, 90.0))
    return scene._replace(classes=np.arange(len(scene.boxes), dtype=np.int32))


def extent(seen):
    """Corners of the box around the true pixels of a mask."""
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], float)


def assert_encloses(mask, boxes, classes, tolerance=1.0):
    """Every visible pixel of every object that has a box lies in it; how many objects that was."""
    checked = 0
    for box, number in zip(boxes, classes, strict=True):
        seen = mask == number + 1
        if seen.any():
            inside = extent(seen)
            assert (inside[:2] >= box[:2] - tolerance).all(), (number, inside, box)
            assert (inside[2:] <= box[2:] + tolerance).all(), (number, inside, box)
            checked += 1
    return checked


@pytest.mark.parametrize("step", STAY + MOVE + TURN + HIDE, ids=step_id)
def test_every_box_that_leaves_a_step_encloses_what_is_seen_of_its_object(step):
    pipeline = build_pipeline([step], SIZE, min_visibility=0.1)
    changed = checked = 0
    for seed in range(12):
        scene = scene_of(seed)
        pipeline.set_random_seed(seed)
        labelled = np.column_stack([scene.boxes, scene.classes])
        result = pipeline(image=scene.image, mask=scene.mask, bboxes=labelled)
        changed += not np.array_equal(result["image"], scene.image)
        # Dropout cuts boxes down to whole pixels, and a corner that is a rounding error below one loses all of it.
        checked += assert_encloses(result["mask"], result["bboxes"][:, :4], result["bboxes"][:, 4], tolerance=1.001)
    assert changed >= 6 and checked >= 20


@pytest.mark.parametrize("step", MOVE, ids=step_id)
def test_a_box_stays_as_tight_as_it_was_where_nothing_turns(step):
    geometric = {"Affine": {"interpolation": NEAREST}, "RandomResizedCrop": {"interpolation": NEAREST}}
    geometric["RandomSizedBBoxSafeCrop"] = {"interpolation": NEAREST}
    augmentation = Augmentation([{**step, **geometric.get(step["name"], {})}], [SIZE], min_visibility=0.1)
    checked = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        painted, boxes = paint_rectangles(rng, SIZE)
        result = augmentation(Example(painted, boxes, np.arange(len(boxes), dtype=np.int32)), rng)
        assert result.boxes.dtype == np.float32 and result.classes.dtype == np.int32
        for box, number in zip(result.boxes, result.classes, strict=True):
            # A source pixel becomes at most 1.8 wide here (RandomResizedCrop of 0.3: sqrt(1 / 0.3)): half of that.
            np.testing.assert_allclose(box, extent(result.image[..., 0] == number + 1), atol=1.5)
            checked += 1
    assert checked >= 24


def paint_rectangles(rng, size):
    """An image with three rectangles apart from each other in grey values 1, 2, 3, and their exact boxes."""
    height, width = size
    image, boxes = np.zeros((height, width, 3), np.uint8), []
    for number in range(3):
        left, top = int(width * number / 3 + rng.integers(2, 10)), int(rng.integers(2, height // 2))
        w, h = int(rng.integers(20, width // 3 - 12)), int(rng.integers(14, height // 2))
        image[top : top + h, left : left + w] = number + 1
        boxes.append((left, top, left + w, top + h))
    return image, np.array(boxes, np.float32)


@pytest.mark.parametrize(("shift", "kept"), [(67, 1), (75, 0), (-124, 1), (-131, 0)])
def test_a_step_drops_a_box_only_where_it_keeps_less_than_min_visibility(shift, kept):
    # Columns 100..180 of 224. By 67: 167..247, of which 57 of 80 are left (71 %); by 75: 49 (61 %);
    # by -124: -24..56, 56 of 80 (70 %); by -131: 49 (61 %).
    step = {"name": "Affine", "translate_px": {"x": shift, "y": 0}, "p": 1.0}
    boxes = np.array([[100, 40, 180, 90]], np.float32)
    example = Example(np.zeros((*SIZE, 3), np.uint8), boxes, np.array([3], np.int32))
    result = Augmentation([step], [SIZE], min_visibility=0.66)(example, np.random.default_rng(0))
    assert len(result.boxes) == len(result.classes) == kept


def test_a_window_clips_boxes_and_drops_those_below_min_visibility_or_two_pixels():
    boxes = np.array(
        [
            [10, 10, 30, 20],  # inside
            [50, 5, 70, 15],  # 10 of its 20 columns are left of 60, and all rows: half
            [58.5, 5, 61.5, 15],  # half is left, but only 1.5 pixels of it
            [55, 35, 75, 45],  # 5 of 20 columns, 5 of 10 rows: an eighth
            [70, 5, 90, 15],  # outside
        ],
        np.float32,
    )
    classes = np.arange(5, dtype=np.int32)
    seen, labels = clip_to_window(boxes, classes, (0, 0, 60, 40), min_visibility=0.1)
    np.testing.assert_array_equal(seen, [[10, 10, 30, 20], [50, 5, 60, 15], [55, 35, 60, 40]])
    assert labels.tolist() == [0, 1, 3] and seen.dtype == np.float32
    assert clip_to_window(boxes, classes, (0, 0, 60, 40), min_visibility=0.13)[1].tolist() == [0, 1]


def test_an_image_without_objects_passes_through_every_step():
    steps = [{**step, "p": 0.7} for step in STAY + MOVE + TURN + HIDE]
    augmentation = Augmentation(steps, [SIZE], min_visibility=0.1)
    scene = scene_of(4)
    empty = Example(scene.image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    for seed in range(3):
        result = augmentation(empty, np.random.default_rng(seed))
        assert result.image.shape == (*SIZE, 3) and result.boxes.shape == (0, 4) and result.classes.shape == (0,)
        assert result.boxes.dtype == np.float32 and result.classes.dtype == np.int32
    # The same pipeline still knows the classes of an image that has some.
    full = augmentation(Example(scene.image, scene.boxes, scene.classes + 7), np.random.default_rng(1))
    assert set(full.classes.tolist()) <= set((scene.classes + 7).tolist())


def test_the_same_generator_gives_the_same_result_from_any_thread():
    augmentation = Augmentation([{**step, "p": 0.5} for step in STAY + MOVE], [SIZE], min_visibility=0.1)
    scenes = [scene_of(seed) for seed in range(8)]

    def run(seed):
        scene = scenes[seed % 8]
        return augmentation(Example(scene.image, scene.boxes, scene.classes), np.random.default_rng(seed))

    alone = [run(seed) for seed in range(32)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(32)))
    for one, other in zip(alone, together, strict=True):
        for mine, its in zip(one, other, strict=True):
            np.testing.assert_array_equal(mine, its)
    assert not np.array_equal(alone[0].image, alone[8].image)  # the same scene, another seed


def test_steps_are_drawn_independently_of_each_other():
    # With one seed for all steps, as Albumentations' set_random_seed gives, two flips of p 0.5 always come together.
    steps = [{"name": "HorizontalFlip", "p": 0.5}, {"name": "VerticalFlip", "p": 0.5}]
    augmentation = Augmentation(steps, [SIZE], min_visibility=0.1)
    image = np.zeros((*SIZE, 3), np.uint8)
    image[5, 9] = 255
    example = Example(image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
    images = [augmentation(example, np.random.default_rng(seed)).image for seed in range(40)]
    assert len({tuple(extent(image[..., 0] > 0)) for image in images}) == 4


# --- mosaic and mixup -------------------------------------------------------------------------------------------------


def painted_tile(number, size):
    """Three rectangles of grey values 10 * number + 1, 2, 3 on the grey value 200 + number."""
    image, boxes = paint_rectangles(np.random.default_rng(number), size)
    image = np.where(image > 0, image + 10 * number, 200 + number).astype(np.uint8)
    return Example(image, boxes, np.arange(3, dtype=np.int32) + 10 * number + 1)


def test_a_mosaic_box_is_exactly_what_its_quarter_shows_of_its_object():
    tile_sizes = [(100, 180), (150, 130), (90, 120), (160, 224)]
    tiles = [painted_tile(number, size) for number, size in enumerate(tile_sizes)]
    whole = {int(c): (b[2:] - b[:2]).prod() for tile in tiles for b, c in zip(tile.boxes, tile.classes, strict=True)}
    kept = dropped = 0
    for seed in range(25):
        rng = np.random.default_rng(seed)
        centre, _ = draw_mosaic(SIZE, rng)
        result = join_tiles(tiles, centre, SIZE, rng, min_visibility=0.4)
        assert result.image.shape == (*SIZE, 3) and len(set(result.classes.tolist())) == len(result.classes)
        found = dict(zip(result.classes.tolist(), result.boxes, strict=True))
        for value, area in whole.items():
            seen = result.image[..., 0] == value
            enough = seen.sum() >= 0.4 * area
            assert (value in found) == bool(enough), (seed, value)
            if enough:
                np.testing.assert_array_equal(found[value], extent(seen))
            kept, dropped = kept + bool(enough), dropped + (not enough)
    assert kept > 50 and dropped > 50


def test_the_quarters_of_a_mosaic_meet_in_the_centre_and_gaps_are_grey():
    tiles = [
        Example(np.full((h, w, 3), number, np.uint8), np.zeros((0, 4), np.float32), np.zeros(0, np.int32))
        for number, (h, w) in enumerate([(20, 30), (300, 300), (40, 300), (300, 50)])
    ]
    result = join_tiles(tiles, (60, 100), SIZE, np.random.default_rng(0), min_visibility=0.1)
    grey = result.image[..., 0]
    # Upper left: 20 x 30 against the centre, so rows 40..60 and columns 70..100; upper right: 60 x 124, filled;
    # lower left: 40 x 100; lower right: 100 x 50.
    assert (grey[40:60, 70:100] == 0).all() and (grey[:60, 100:] == 1).all()
    assert (grey[60:100, :100] == 2).all() and (grey[60:, 100:150] == 3).all()
    assert (grey == BORDER).sum() == 60 * 100 - 20 * 30 + 60 * 100 + 100 * 74


def test_the_mosaic_centre_keeps_off_the_borders_and_follows_height_and_width():
    draws = [draw_mosaic((64, 320), np.random.default_rng(seed)) for seed in range(200)]
    rows, columns = zip(*(centre for centre, _ in draws), strict=True)
    assert 19 <= min(rows) < 26 and 38 < max(rows) <= 45  # 0.3 and 0.7 of 64: 19.2 and 44.8
    assert 96 <= min(columns) < 110 and 210 < max(columns) <= 224  # of 320: 96 and 224
    scales = np.array([scales for _, scales in draws])
    assert scales.shape == (200, 4) and 0.5 <= scales.min() < 0.51 and 0.99 < scales.max() <= 1


def test_the_boxes_of_a_mosaic_of_drawn_scenes_enclose_what_is_seen():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        scenes = [scene_of(10 * seed + k, (110 + 20 * k, 190 - 15 * k)) for k in range(4)]
        # The mask takes the image's place, numbered through the tiles, so that what is drawn goes the same way.
        masks = [np.where(scene.mask > 0, scene.mask + 20 * k, 0).astype(np.uint8) for k, scene in enumerate(scenes)]
        tiles = [
            Example(np.dstack([mask] * 3), scene.boxes, scene.classes + 20 * k)
            for k, (mask, scene) in enumerate(zip(masks, scenes, strict=True))
        ]
        result = join_tiles(tiles, draw_mosaic(SIZE, rng)[0], SIZE, rng, min_visibility=0.1)
        assert assert_encloses(result.image[..., 0].astype(int), result.boxes, result.classes, tolerance=0.0) >= 3


def test_mixup_blends_the_images_and_keeps_the_objects_of_both():
    rng = np.random.default_rng(3)
    first, second = painted_tile(0, SIZE), painted_tile(5, SIZE)
    result = blend(first, second, rng)
    weight = np.random.default_rng(3).beta(8, 8)
    expected = first.image * weight + second.image * (1 - weight)
    assert 0.1 < weight < 0.9 and np.abs(result.image - expected).max() <= 0.51 and result.image.dtype == np.uint8
    np.testing.assert_array_equal(result.boxes, np.concatenate([first.boxes, second.boxes]))
    assert result.classes.tolist() == [1, 2, 3, 51, 52, 53]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"name": "HorizontalFlp"}, r"step 1 \(HorizontalFlp\): .*nearest name is 'HorizontalFlip'"),
        ({"name": "GridMask"}, "nearest name is '"),
        ({"name": "Compose"}, "nearest name is"),
        ({"nam": "Blur"}, 'step 1: expected a mapping with the key "name"'),
        ("Blur", "step 1: expected a mapping"),
        ({"name": "Blur", "blur_limits": 5}, "'blur_limits'; did you mean 'blur_limit'"),
        ({"name": "Affine", "always_apply": True}, "unknown argument 'always_apply'"),
        ({"name": "Affine", "scale": "big"}, r"step 1 \(Affine\): scale.*'big'"),
        ({"name": "HorizontalFlip", "p": 1.5}, r"HorizontalFlip\): p: .*1.5"),
        ({"name": "Resize", "height": 64, "width": 96}, "expected to keep 160 x 224 x 3 uint8, received 64 x 96 x 3"),
        ({"name": "RandomRotate90"}, "received 224 x 160 x 3"),
        ({"name": "ToFloat"}, "received 160 x 224 x 3 float32"),
        ({"name": "MaskDropout"}, "cannot be applied to an image with boxes"),
        ({"name": "CropNonEmptyMaskIfExists"}, "cannot be applied to an image with boxes"),
        ({"name": "LongestMaxSize"}, r"LongestMaxSize\): Value error, Either max_size"),
        ({"name": "GridElasticDeform", "magnitude": 3}, r"GridElasticDeform\): num_grid_xy: Field required$"),
        ({"name": "PadIfNeeded3D", "min_zyx": [4, 4, 4]}, "moves boxes with the image"),
        ({"name": "RandomGridShuffle"}, "moves boxes with the image"),
        ({"name": "OneOf"}, 'expected a list of steps under "transforms"'),
        ({"name": "OneOf", "transforms": [{"name": "Blur"}, {"name": "Blurr"}]}, r"step 1.2 \(Blurr\)"),
        ({"name": "OneOf", "transforms": [{"name": "Resize", "height": 32, "width": 32}]}, r"step 1.1 \(Resize\)"),
        ({"name": "OneOf", "transforms": [{"name": "Blur"}], "prob": 1}, "unknown argument 'prob'"),
    ],
    ids=str,
)
def test_a_step_that_cannot_work_is_refused_by_its_number_and_name(step, message):
    with pytest.raises(InputError, match=message) as caught:
        build_pipeline([step], SIZE, min_visibility=0.1)
    assert "\n" not in str(caught.value)


def test_nested_steps_run_and_a_crop_takes_the_input_size_where_it_names_none():
    inner = [{"name": "HorizontalFlip", "p": 1.0}, {"name": "RandomCrop", "p": 1.0}]
    pipeline = build_pipeline([{"name": "SomeOf", "n": 1, "transforms": inner, "p": 1.0}], SIZE, min_visibility=0.1)
    result = pipeline(image=np.zeros((*SIZE, 3), np.uint8), bboxes=np.array([[10, 20, 50, 60, 1]], np.float32))
    assert result["image"].shape == (*SIZE, 3) and len(result["bboxes"]) == 1
