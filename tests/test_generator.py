"""Batches: the same for the same seed whoever asks, of shapes that Keras can live with, boxes where the objects are."""

import concurrent.futures

import cv2
import keras
import numpy as np
import pytest
from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

from multigrid.data.generator import MultiGridDataGenerator, input_sizes
from multigrid.data.images import BORDER, Letterbox
from multigrid.data.samples import Sample
from multigrid.errors import InputError

SIZE = (64, 96)
STEPS = [
    {"name": "HorizontalFlip", "p": 0.5},
    {"name": "Affine", "scale": [0.8, 1.3], "translate_percent": [-0.1, 0.1], "fill": BORDER, "p": 0.7},
    {"name": "HueSaturationValue", "p": 0.5},
]
MIXED = {"augmentation": STEPS, "mosaic": 0.5, "mixup": 0.3, "shuffle": True}


def write_image(folder, number, boxes, size, suffix="png"):
    """An image with bright rectangles, one colour channel a class, on black; classes follow the boxes' order."""
    image = np.zeros((*size, 3), np.uint8)
    for label, (x1, y1, x2, y2) in enumerate(boxes):
        image[y1:y2, x1:x2, label % 3] = 255
    path = str(folder / f"image {number}.{suffix}")
    cv2.imwrite(path, image[..., ::-1])
    classes = np.arange(len(boxes), dtype=np.int32) % 3
    return Sample(path, np.array(boxes, np.float32).reshape(-1, 4), classes, number + 1, size)


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Eleven images of several sizes with 0 to 3 rectangles apart from each other, PNG and JPEG."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(5)
    made = []
    for number in range(11):
        height, width = int(rng.integers(70, 130)), int(rng.integers(110, 200))
        boxes = []
        for column in range(number % 4):
            left, top = column * width // 3 + int(rng.integers(2, 8)), int(rng.integers(2, height // 3))
            w, h = int(rng.integers(14, width // 3 - 8)), int(rng.integers(14, height // 2))
            boxes.append((left, top, left + w, top + h))
        made.append(write_image(folder, number, boxes, (height, width), "jpg" if number % 2 else "png"))
    return made


def make(samples, **arguments):
    return MultiGridDataGenerator(samples, **{"input_size": SIZE, "batch_size": 4, **arguments})


def assert_same(one, other):
    np.testing.assert_array_equal(one[0], other[0])
    for key in ("boxes", "classes"):
        np.testing.assert_array_equal(one[1][key], other[1][key])


# --- what is in a batch -----------------------------------------------------------------------------------------------


def test_a_batch_is_letterboxed_images_and_their_boxes_padded_with_class_minus_one(samples):
    images, targets = make(samples)[0]
    assert images.shape == (4, *SIZE, 3) and images.dtype == np.uint8
    assert targets["boxes"].dtype == np.float32 and targets["classes"].dtype == np.int32
    assert targets["boxes"].shape == (4, 8, 4) and targets["classes"].shape == (4, 8)
    for row, sample in enumerate(samples[:4]):
        count = len(sample.boxes)
        assert targets["classes"][row].tolist() == [*sample.classes, *[-1] * (8 - count)]
        expected = Letterbox.fit(sample.size, SIZE).apply_boxes(sample.boxes)
        np.testing.assert_allclose(targets["boxes"][row, :count], expected, atol=1e-4)
        assert (targets["boxes"][row, count:] == 0).all()


def test_the_last_short_batch_is_kept_and_an_epoch_shows_every_sample_once(samples):
    generator = make(samples, shuffle=True, seed=3)
    assert len(generator) == generator.num_batches == 3  # 11 images: 4, 4, 3
    assert [len(generator[i][0]) for i in range(3)] == [4, 4, 3]
    orders = []
    for _ in range(2):
        orders.append([one for i in range(3) for (one,) in generator.sample_indices(i)])
        generator.epoch += 1
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11))
    assert orders[0] != orders[1] != list(range(11))
    assert [one for i in range(3) for (one,) in make(samples).sample_indices(i)] == list(range(11))
    with pytest.raises(IndexError):
        generator[3]


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"augmentation": STEPS[:2]},
        {"mosaic": 1.0},
        {"mosaic": 1.0, "augmentation": STEPS[:2]},
        {"mosaic": 0.5, "cache": True},
    ],
    ids=str,
)
def test_bright_pixels_lie_in_boxes_of_their_class_and_boxes_are_full_of_them(samples, arguments):
    generator = make(samples, min_visibility=0.0, **arguments)
    found = 0
    for epoch in range(4):
        generator.epoch = epoch
        for images, targets in generator:
            for image, boxes, classes in zip(images, targets["boxes"], targets["classes"], strict=True):
                for label in range(3):
                    found += check_colour(image[..., label] > 150, boxes[classes == label])
    assert found > 40


def check_colour(bright, boxes):
    """Outside of the boxes, grown by a pixel, is no bright spot of 3 x 3; inside, shrunk by two, is nothing else."""
    outside, inside = np.ones_like(bright), np.zeros_like(bright)
    for box in boxes:
        x1, y1 = np.floor(box[:2]).astype(int)
        x2, y2 = np.ceil(box[2:]).astype(int)
        outside[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = False
        inside[y1 + 3 : max(0, y2 - 3), x1 + 3 : max(0, x2 - 3)] = True
    spots = cv2.erode(bright.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    assert not (spots.astype(bool) & outside).any()
    assert not (~bright & inside).any()
    return len(boxes)


def test_a_set_without_any_object_gives_batches_of_padding(samples):
    empty = [sample for sample in samples if not len(sample.boxes)]
    generator = make(empty, batch_size=2, augmentation=STEPS, mosaic=0.5, mixup=0.5)
    assert len(empty) == 3 and len(generator) == 2
    assert all((targets["classes"] == -1).all() and not targets["boxes"].any() for _, targets in generator)


def test_files_and_indices_name_the_partners_of_mosaic_and_mixup(samples):
    generator = make(samples, mosaic=0.5, mixup=0.5, shuffle=True, batch_size=11)
    shown = generator.sample_indices(0)
    assert sorted({len(one) for one in shown}) == [1, 2, 4, 5, 8]  # 1 or 4, and the blended sums
    assert sorted(one[0] for one in shown) == list(range(11))
    files = generator.files(0)
    assert files == list(dict.fromkeys(samples[k].path for one in shown for k in one))
    plain = make(samples, batch_size=3)
    assert plain.files(1) == [sample.path for sample in samples[3:6]] and plain.sample_indices(1) == [(3,), (4,), (5,)]


def test_mosaic_and_mixup_stop_for_the_last_epochs(samples):
    generator = make(samples, mosaic=1.0, mixup=1.0, epochs=5, mosaic_off_epochs=2)
    lengths = []
    for _ in range(6):
        lengths.append({len(one) for i in range(len(generator)) for one in generator.sample_indices(i)})
        generator.epoch += 1
    assert lengths == [{8}, {8}, {8}, {1}, {1}, {1}]


def test_the_cache_changes_no_plain_batch_and_no_box(samples):
    cached, plain = make(samples, cache=True, augmentation=STEPS), make(samples, augmentation=STEPS)
    for _ in range(2):  # from the files, then from memory
        for i in range(3):
            assert_same(cached[i], plain[i])
    cached, plain = make(samples, cache=True, mosaic=1.0), make(samples, mosaic=1.0)
    for i in range(3):
        np.testing.assert_array_equal(cached[i][1]["boxes"], plain[i][1]["boxes"])
        assert np.abs(cached[i][0].astype(int) - plain[i][0]).mean() < 4


# --- the same seed, the same batch ------------------------------------------------------------------------------------


def test_a_batch_depends_on_seed_epoch_and_index_alone(samples):
    generator, again, other = (make(samples, **MIXED, seed=seed) for seed in (7, 7, 8))
    first = [generator[i] for i in range(3)]
    for i in (2, 0, 1, 0):  # in another order
        assert_same(again[i], first[i])
    assert not np.array_equal(other[0][0], first[0][0])
    generator.on_epoch_begin()
    generator.on_epoch_end()
    assert generator.epoch == 1 and not np.array_equal(generator[0][0], first[0][0])
    again.epoch = 1
    assert_same(again[2], generator[2])
    again.epoch = 0
    assert_same(again[1], first[1])


def test_threads_that_ask_at_once_get_what_one_alone_gets(samples):
    generator = make(samples, **MIXED, batch_size=2, cache=True)
    alone = [make(samples, **MIXED, batch_size=2, cache=True)[i] for i in range(6)]
    asked = [*range(6), *reversed(range(6))] * 3
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        for i, batch in zip(asked, pool.map(generator.__getitem__, asked), strict=True):
            assert_same(batch, alone[i])


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_gives_the_same_epochs(samples, workers):
    expected = make(samples, **MIXED)
    generator = make(samples, **MIXED, workers=workers, max_queue_size=3)
    adapter = PyDatasetAdapter(generator)
    for epoch in range(3):
        adapter.on_epoch_begin()
        batches = list(adapter.get_numpy_iterator())
        expected.epoch = epoch
        assert len(batches) == 3
        for i, batch in enumerate(batches):
            assert_same(batch, expected[i])
        adapter.on_epoch_end()


# --- shapes that Keras can live with ----------------------------------------------------------------------------------


def crowded(folder, counts):
    """Images with these numbers of 3 x 4 boxes."""
    made = []
    for number, count in enumerate(counts):
        boxes = [(2 + 4 * (k % 20), 2 + 5 * (k // 20), 5 + 4 * (k % 20), 6 + 5 * (k // 20)) for k in range(count)]
        made.append(write_image(folder, number, boxes, SIZE))
    return made


def test_boxes_are_padded_to_few_numbers_that_differ_between_even_and_odd_batches(tmp_path):
    counts = [0, 0, 8, 8, 9, 16, 24, 17, 25, 32, 57, 33]
    generator = make(crowded(tmp_path, counts), batch_size=1)
    # even batches: 8, 24, 56, 120; odd batches: 16, 32, 64
    assert [generator[i][1]["classes"].shape[1] for i in range(12)] == [8, 16, 8, 16, 24, 16, 24, 32, 56, 32, 120, 64]
    for i, count in enumerate(counts):
        assert (generator[i][1]["classes"] >= 0).sum() == count


def test_a_single_batch_is_padded_to_what_mosaic_and_mixup_can_gather(tmp_path):
    samples = crowded(tmp_path, [3, 9, 5])
    # 9, 4 * 9 = 36, 2 * 9 = 18 and 8 * 9 = 72, rounded up to eights
    for mosaic, mixup, padded in ((0, 0, 16), (0.5, 0, 40), (0, 0.5, 24), (0.5, 0.5, 72)):
        generator = make(samples, mosaic=mosaic, mixup=mixup)
        for epoch in range(5):
            generator.epoch = epoch
            assert generator[0][1]["boxes"].shape == (3, padded, 4)


def test_multi_scale_shows_the_smallest_and_the_largest_size_first(samples):
    generator = make(samples, batch_size=1, multi_scale=(0.5, 1.5), augmentation=STEPS, mosaic=0.5)
    sizes = [images.shape[1:3] for images, _ in generator]
    # The longer side from 48 -> 64 (1.5 steps of 32, half to even) to 144 -> 128 (4.5 steps), the height 2 / 3 of it.
    assert generator.sizes == [(32, 64), (64, 96), (96, 128)] and sizes[:2] == [(32, 64), (96, 128)]
    assert set(sizes[2:]) == set(generator.sizes)
    assert input_sizes((320, 320), (0.8, 1.2)) == [(256, 256), (288, 288), (320, 320), (352, 352), (384, 384)]
    assert make(samples, batch_size=11, multi_scale=(0.5, 1.5))[0][0].shape == (11, *SIZE, 3)
    for images, targets in generator:
        height, width = images.shape[1:3]
        assert (targets["boxes"] <= [width, height, width, height]).all() and (targets["boxes"] >= 0).all()


class CountingModel(keras.Model):
    """Looks at images and boxes of any shape; notes what it was traced with and which batches came."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(), initializer="ones")
        self.traced = []
        self.seen = keras.metrics.Sum(name="seen")

    def call(self, images):
        return keras.ops.mean(keras.ops.cast(images, "float32"), axis=(1, 2, 3)) * self.scale

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.traced.append((tuple(x.shape), tuple(y["boxes"].shape)))
        self.seen.update_state(keras.ops.sum(keras.ops.cast(y["classes"] >= 0, "float32")))
        return keras.ops.mean(y_pred) * 1e-3 + 0.0 * keras.ops.sum(y["boxes"])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="the signature is TensorFlow's")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_keras_fits_on_every_shape_without_tracing_again(tmp_path, workers, batch_size):
    # With batch size 1 boxes need 8 to 120 places; 12 is a single batch, 5 leaves a short one.
    counts = [1, 2, 30, 3, 60, 40, 9, 0, 17, 25, 33, 5]
    arguments = {"batch_size": batch_size, "multi_scale": (0.5, 1.5), "mosaic": 0.5, "mixup": 0.2, "shuffle": True}
    generator = make(crowded(tmp_path, counts), workers=workers, **arguments)
    model = CountingModel()
    model.compile(optimizer="sgd", jit_compile=False)
    history = model.fit(generator, epochs=3, shuffle=False, verbose=0)
    assert len(model.traced) <= 3
    assert generator.epoch == 3
    expected = []
    for epoch in range(3):
        generator.epoch = epoch
        expected.append(sum(int((targets["classes"] >= 0).sum()) for _, targets in generator))
    assert history.history["seen"] == expected and len(set(expected)) > 1


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": []}, "at least one sample, received 0"),
        ({"input_size": (64, 100)}, r"multiples of 32, received \(64, 100\)"),
        ({"input_size": (0, 64)}, "multiples of 32"),
        ({"batch_size": 0}, "batch size of at least 1, received 0"),
        ({"mosaic": 1.5}, "mosaic between 0 and 1, received 1.5"),
        ({"mixup": -0.1}, "mixup between 0 and 1"),
        ({"min_visibility": 2}, "min_visibility between 0 and 1"),
        ({"seed": -1}, "seed of at least 0, received -1"),
        ({"mosaic_off_epochs": 3}, "epochs beside mosaic_off_epochs"),
        ({"multi_scale": (1.5, 0.5)}, "0 < low <= high"),
        ({"augmentation": [{"name": "Blurr"}]}, "step 1"),
        ({"augmentation": [{"name": "Resize", "height": 64, "width": 96}], "multi_scale": (0.5, 1)}, "to keep 32 x 64"),
    ],
    ids=str,
)
def test_arguments_that_cannot_work_are_refused(samples, arguments, message):
    with pytest.raises(InputError, match=message):
        make(**{"samples": samples, **arguments})


def test_a_broken_image_is_named(samples, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    sample = Sample(str(tmp_path / "broken.jpg"), np.zeros((0, 4), np.float32), np.zeros(0, np.int32), 1, (50, 70))
    with pytest.raises(InputError, match="broken.jpg"):
        make([sample])[0]
