"""From samples to padded batches: the same seed gives the same batch, whoever asks for it and in whatever order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import keras
import numpy as np

from multigrid.config import AugmentationConfig
from multigrid.data.augment import Augmentation, Example, blend, draw_mosaic, join_tiles
from multigrid.data.images import Letterbox, read_image
from multigrid.data.samples import Sample
from multigrid.errors import InputError
from multigrid.geometry.cells import STRIDES

STRIDE = max(STRIDES)  # every input size is a multiple of the coarsest grid's
BOXES_STEP = 8

# NumPy fills short seeds up with zeros, so that (seed, epoch) would draw as (seed, epoch, 0) does: say what it is for.
_ORDER, _SIZE, _IMAGE = 1, 2, 3


class MultiGridDataGenerator(keras.utils.PyDataset):
    """Batches for the detector: `(images, {"boxes": …, "classes": …})`.

    images: uint8 [B, height, width, 3] RGB, letterboxed; boxes: float32 [B, M, 4] corners (x1, y1, x2, y2) in input
    pixels; classes: int32 [B, M], -1 where a row is padding. The last batch may be shorter.

    Batch i of an epoch depends on the samples, the arguments, the epoch and i alone. Every epoch of `fit` and every
    `evaluate` ends with `epoch` one higher; set `epoch` to resume, or to be sure of it, before an epoch begins. Pass
    `shuffle=False` to `fit`: the order is this object's business, and Keras' own shuffling knows no seed.

    Args:
        samples: what to show.
        input_size: (height, width) of the images, multiples of 32.
        batch_size: images in a batch.
        augmentation: steps of `augment.build_pipeline`; None for none.
        mosaic: share of the images that show four samples in one.
        mixup: share of the images that are blended with another one.
        mosaic_off_epochs: how many last epochs go without mosaic and mixup; needs `epochs`.
        epochs: the number of epochs of the training.
        multi_scale: (low, high) factors of `input_size`; every batch then has a size between, a multiple of 32.
        min_visibility: share of its area that a box must keep in a mosaic or an augmentation step to stay.
        shuffle: whether to draw a new order every epoch.
        seed: a non-negative integer.
        cache: keep every letterboxed image in memory as uint8. Mosaic's tiles, and images of smaller sizes, are then
            scaled down from it instead of from the file, which may change a pixel by a few grey levels, and no box.
        workers, max_queue_size: of keras.utils.PyDataset; workers are threads.

    Raises:
        InputError: no samples, or an argument out of its range.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        *,
        input_size: tuple[int, int],
        batch_size: int,
        augmentation: Sequence[Mapping[str, Any]] | None = None,
        mosaic: float = 0.0,
        mixup: float = 0.0,
        mosaic_off_epochs: int = 0,
        epochs: int | None = None,
        multi_scale: tuple[float, float] | None = None,
        min_visibility: float = AugmentationConfig().min_visibility,
        shuffle: bool = False,
        seed: int = 0,
        cache: bool = False,
        workers: int = 1,
        max_queue_size: int = 8,
    ):
        super().__init__(workers=workers, max_queue_size=max_queue_size)
        self.samples = list(samples)
        self.input_size = tuple(input_size)
        self.batch_size = batch_size
        self.mosaic, self.mixup, self.min_visibility = mosaic, mixup, min_visibility
        self.mosaic_off_epochs, self.epochs = mosaic_off_epochs, epochs
        self.multi_scale = multi_scale
        self.shuffle, self.seed = shuffle, seed
        self._check_arguments()
        self.sizes = input_sizes(self.input_size, multi_scale)
        tried = dict.fromkeys([self.sizes[0], self.sizes[-1], self.input_size])
        self._augmentation = Augmentation(augmentation, tried, min_visibility=min_visibility) if augmentation else None
        self._cache: dict[int, np.ndarray] | None = {} if cache else None
        self.epoch = 0

    def _check_arguments(self) -> None:
        _expect(self.samples, "at least one sample", f"{len(self.samples)} samples")
        _expect(
            len(self.input_size) == 2 and all(side > 0 and side % STRIDE == 0 for side in self.input_size),
            f"an input size (height, width) of multiples of {STRIDE}",
            self.input_size,
        )
        _expect(self.batch_size >= 1, "a batch size of at least 1", self.batch_size)
        for name in ("mosaic", "mixup", "min_visibility"):
            _expect(0 <= getattr(self, name) <= 1, f"{name} between 0 and 1", getattr(self, name))
        _expect(self.seed >= 0, "a seed of at least 0", self.seed)
        _expect(self.mosaic_off_epochs >= 0, "mosaic_off_epochs of at least 0", self.mosaic_off_epochs)
        _expect(not self.mosaic_off_epochs or self.epochs is not None, "epochs beside mosaic_off_epochs", "none")
        if self.multi_scale is not None:
            _expect(
                len(self.multi_scale) == 2 and 0 < self.multi_scale[0] <= self.multi_scale[1],
                "multi_scale factors (low, high) with 0 < low <= high",
                self.multi_scale,
            )

    # --- what Keras asks for ------------------------------------------------------------------------------------------

    @property
    def num_batches(self) -> int:
        """How many batches an epoch has, the short last one included."""
        return math.ceil(len(self.samples) / self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, index: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Batch `index` of the current epoch; the class says what is in it."""
        epoch, order = self._now
        size = self._size(epoch, index)
        examples = [self._example(epoch, order, position, size) for position in self._positions(index)]
        images = np.stack([example.image for example in examples])
        return images, _pad(examples, self._padded_count(index, max(len(example.boxes) for example in examples)))

    def on_epoch_begin(self) -> None:
        """Keras' word that an epoch has begun."""
        self._begun = True

    def on_epoch_end(self) -> None:
        """Go on to the next epoch if one has begun: Keras says this once more before the first epoch."""
        if self._begun:
            self.epoch += 1

    # --- what is in a batch -------------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch, from 0, that batches are of."""
        return self._now[0]

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        order = np.arange(len(self.samples))
        if self.shuffle:
            order = self._rng(epoch, _ORDER).permutation(order)
        self._now = (epoch, order)  # at once, for the threads that read it
        self._begun = False

    def sample_indices(self, index: int) -> list[tuple[int, ...]]:
        """For every image of batch `index` of the current epoch the samples it shows, its own first."""
        epoch, order = self._now
        return [sum(self._recipe(epoch, order, position)[0], ()) for position in self._positions(index)]

    def files(self, index: int) -> list[str]:
        """The image files of batch `index` of the current epoch, partners in mosaic and mixup included, each once."""
        indices = [one for image in self.sample_indices(index) for one in image]
        return list(dict.fromkeys(self.samples[one].path for one in indices))

    def _positions(self, index: int) -> range:
        if not 0 <= index < self.num_batches:
            raise IndexError(f"expected a batch from 0 to {self.num_batches - 1}, received {index}")
        return range(index * self.batch_size, min((index + 1) * self.batch_size, len(self.samples)))

    def _rng(self, epoch: int, purpose: int, index: int = 0) -> np.random.Generator:
        return np.random.default_rng((self.seed, epoch, purpose, index))

    def _recipe(self, epoch: int, order: np.ndarray, position: int):
        """The samples of the image at a position of the epoch, and the generator that its further draws come from.

        Returns:
            a list of one tuple of sample indices, or of two to be blended; a tuple of four is a mosaic.
        """
        rng = self._rng(epoch, _IMAGE, position)
        mixing = self.epochs is None or epoch < self.epochs - self.mosaic_off_epochs
        blended = mixing and rng.random() < self.mixup
        parts = []
        for first in (order[position], rng.integers(len(order)))[: 1 + blended]:
            partners = rng.integers(len(order), size=3) if mixing and rng.random() < self.mosaic else ()
            parts.append((int(first), *map(int, partners)))
        return parts, rng

    # --- sizes that Keras can live with -------------------------------------------------------------------------------
    #
    # Keras' TensorFlow trainer takes the first two batches for its input signature, and fixes every dimension in which
    # they agree. So these two differ in whatever may differ later. A set of a single batch cannot show that: there the
    # dimensions are ones that no epoch exceeds.

    def _size(self, epoch: int, index: int) -> tuple[int, int]:
        """(height, width) of a batch: with multi_scale first the smallest, then the largest, then any."""
        if self.num_batches == 1:
            return self.input_size
        if index < 2:
            return self.sizes[-index]
        return self.sizes[int(self._rng(epoch, _SIZE, index).integers(len(self.sizes)))]

    def _padded_count(self, index: int, count: int) -> int:
        """M for a batch with up to `count` boxes an image: 8, 24, 56, 120, … in even, 16, 32, 64, … in odd batches.

        The two series share no number, and are short, so that a backend that compiles for each shape does so rarely.
        """
        if self.num_batches == 1:
            largest = max(len(sample.boxes) for sample in self.samples)
            most = largest * (4 if self.mosaic > 0 else 1) * (2 if self.mixup > 0 else 1)
            return BOXES_STEP * max(1, math.ceil(most / BOXES_STEP))
        padded = 2 * BOXES_STEP
        while padded - (BOXES_STEP if index % 2 == 0 else 0) < count:
            padded *= 2
        return padded - (BOXES_STEP if index % 2 == 0 else 0)

    # --- images -------------------------------------------------------------------------------------------------------

    def _example(self, epoch: int, order: np.ndarray, position: int, size: tuple[int, int]) -> Example:
        parts, rng = self._recipe(epoch, order, position)
        examples = [self._augmented(indices, size, rng) for indices in parts]
        return blend(*examples, rng) if len(examples) == 2 else examples[0]

    def _augmented(self, indices: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator) -> Example:
        example = self._mosaic(indices, size, rng) if len(indices) == 4 else self._load(indices[0], size)
        return self._augmentation(example, rng) if self._augmentation else example

    def _mosaic(self, indices: tuple[int, ...], size: tuple[int, int], rng: np.random.Generator) -> Example:
        centre, scales = draw_mosaic(size, rng)
        tiles = []
        for index, scale in zip(indices, scales, strict=True):
            tile_size = (round(size[0] * scale), round(size[1] * scale))
            tiles.append(self._load_tile(index, tile_size))
        return join_tiles(tiles, centre, size, rng, min_visibility=self.min_visibility)

    def _load(self, index: int, size: tuple[int, int]) -> Example:
        """A sample letterboxed to (height, width)."""
        sample = self.samples[index]
        letterbox = Letterbox.fit(sample.size, size)
        image = letterbox.apply_image(self._pixels(index, letterbox))
        return Example(image, letterbox.apply_boxes(sample.boxes), sample.classes)

    def _load_tile(self, index: int, size: tuple[int, int]) -> Example:
        """A sample scaled as a letterbox of (height, width) does it, without the border."""
        sample = self.samples[index]
        letterbox = Letterbox.fit(sample.size, size)
        height, width = letterbox.resized_size
        pixels = self._pixels(index, letterbox)
        # Down to half the size bilinear is about as good as averaging, in a sixth of the time; JPEG is mostly read at
        # less than twice the tile's size.
        interpolation = cv2.INTER_LINEAR if pixels.shape[0] <= 2 * height else cv2.INTER_AREA
        image = cv2.resize(pixels, (width, height), interpolation=interpolation)
        border = np.array(letterbox.pad * 2, np.float32)
        return Example(image, letterbox.apply_boxes(sample.boxes) - border, sample.classes)

    def _pixels(self, index: int, letterbox: Letterbox) -> np.ndarray:
        """A sample's image in at least the size that the letterbox scales it to."""
        path = self.samples[index].path
        if self._cache is None:
            return read_image(path, at_least=letterbox.resized_size)
        if index not in self._cache:  # two threads may read the same image at once: no harm, they read the same
            largest = Letterbox.fit(letterbox.source_size, max(self.sizes[-1], self.input_size))
            image = largest.apply_image(read_image(path, at_least=largest.resized_size))
            (left, top), (height, width) = largest.pad, largest.resized_size
            self._cache[index] = image[top : top + height, left : left + width].copy()
        return self._cache[index]


def _pad(examples: Sequence[Example], count: int) -> dict[str, np.ndarray]:
    """boxes float32 [B, count, 4] and classes int32 [B, count], zeros and -1 after each image's own."""
    boxes = np.zeros((len(examples), count, 4), np.float32)
    classes = np.full((len(examples), count), -1, np.int32)
    for row, example in enumerate(examples):
        boxes[row, : len(example.boxes)] = example.boxes
        classes[row, : len(example.classes)] = example.classes
    return {"boxes": boxes, "classes": classes}


def input_sizes(input_size: tuple[int, int], multi_scale: tuple[float, float] | None) -> list[tuple[int, int]]:
    """Every (height, width) of multi-scale training, small to large: multiples of 32, proportions about those given."""
    if multi_scale is None:
        return [tuple(input_size)]
    longest = max(input_size)
    low, high = (max(1, round(factor * longest / STRIDE)) for factor in multi_scale)
    factors = [steps * STRIDE / longest for steps in range(low, high + 1)]
    return [tuple(max(1, round(factor * side / STRIDE)) * STRIDE for side in input_size) for factor in factors]


def _expect(condition, expected: str, received) -> None:
    if not condition:
        raise InputError(f"data: expected {expected}, received {received}")
