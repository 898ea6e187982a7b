"""In which order samples come, and whether an epoch shows anything that the one before did not."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import numpy as np

SHUFFLES = 200  # of the samples, that an order is compared with
EPOCHS = 3  # whose samples are counted: those of a single one may be drawn, or a part by intent
BATCHES = 3  # that are made twice


@dataclass(frozen=True)
class Order:
    """Of two epochs of the training data.

    Attributes:
        same: whether the second has the samples of the first in the same order; None where that cannot be told.
        sorted_by: standard deviations by which batches are more uniform than chance would make them, by "class" and
            by "size" of the objects; {} where the samples are not known.
        again: share of the samples of a batch whose images were, pixel by pixel, the same in the other epoch; None
            where none was seen twice.
        seen: images that were compared for that.
    """

    same: bool | None
    sorted_by: dict
    again: float | None
    seen: int


def examine(case) -> Order | None:
    """The order of the training data; None where its epoch cannot be chosen, or there is a single batch."""
    data = case.train_data
    if not has_epochs(data) or len(data) < 2:
        return None
    with epochs(data) as begin:
        begin(0)
        first = _indices(data)
        begin(1)
        second = _indices(data)
        same = first == second if first else _same_images(data, begin)
        again, seen = _made_again(data, begin, first, second)
    samples = getattr(data, "samples", None)
    return Order(same, _uniformity(samples, first) if samples and first else {}, again, seen)


def shown_share(case) -> float | None:
    """Share of the samples that `EPOCHS` epochs show, as the main image of a place in a batch; None where not known."""
    data, samples = case.train_data, case.samples.get("train")
    if not samples or not hasattr(data, "sample_indices"):
        return None
    if not has_epochs(data):
        return len({sample for batch in _indices(data) for sample in batch}) / len(samples)
    shown = set()
    with epochs(data) as begin:
        for later in range(EPOCHS):
            begin(later)
            shown |= {sample for batch in _indices(data) for sample in batch}
    return len(shown) / len(samples)


def has_epochs(data) -> bool:
    """Whether the epoch can be chosen: a plain attribute may be one that nothing follows."""
    return isinstance(getattr(type(data), "epoch", None), property)


@contextlib.contextmanager
def epochs(data):
    """A function that begins the epoch so many after the present one; the present one is put back."""
    before = data.epoch

    def begin(later: int) -> None:
        data.epoch = before + later

    try:
        yield begin
    finally:
        data.epoch = before


def _indices(data) -> list:
    """For every batch the samples of its images, their own first; [] where the data cannot tell."""
    if not hasattr(data, "sample_indices"):
        return []
    return [[shown[0] for shown in data.sample_indices(index)] for index in range(len(data))]


def _same_images(data, begin) -> bool:
    """Whether the first batches of two epochs look alike, image by image, whatever augmentation did to each."""
    begin(0)
    first = [data[index][0] for index in range(min(BATCHES, len(data)))]
    begin(1)
    second = [data[index][0] for index in range(len(first))]
    return all(
        one.shape == other.shape and np.array_equal(one, other) for one, other in zip(first, second, strict=True)
    )


def _made_again(data, begin, first: list, second: list) -> tuple[float | None, int]:
    """Share of images of the first batch that the next epoch shows unchanged, and how many were compared."""
    begin(0)
    images = data[0][0]
    begin(1)
    if not first:
        other = data[0][0]
        same = [np.array_equal(*pair) for pair in zip(images, other, strict=False)]
        return (float(np.mean(same)), len(same)) if same else (None, 0)
    places = {sample: (batch, row) for batch, row_of in enumerate(second) for row, sample in enumerate(row_of)}
    wanted = [(row, *places[sample]) for row, sample in enumerate(first[0]) if sample in places]
    batches = {batch: data[batch][0] for batch in list(dict.fromkeys(batch for _, batch, _ in wanted))[:BATCHES]}
    same = [np.array_equal(images[row], batches[batch][place]) for row, batch, place in wanted if batch in batches]
    return (float(np.mean(same)), len(same)) if same else (None, 0)


def _uniformity(samples, order: list) -> dict:
    """How much more alike the samples of a batch are than those of batches drawn by chance."""
    classes = np.array([_most_frequent(one) for one in samples], float)
    sizes = np.array([_size(one) for one in samples], float)
    flat, ends = np.concatenate(order).astype(int), np.cumsum([len(batch) for batch in order])[:-1]
    kinds = np.eye(int(classes.max()) + 2)[(classes + 1).astype(int)]
    rank = np.argsort(np.argsort(sizes))[:, None] / len(sizes)
    return {"class": _above_chance(kinds[flat], ends), "size": _above_chance(rank[flat], ends)}


def _above_chance(values: np.ndarray, ends) -> float:
    """Variance between batches against that of shuffled ones, in standard deviations of the latter."""
    rng = np.random.default_rng(0)

    def between(some):
        return sum(((part.mean(0) - some.mean(0)) ** 2).sum() * len(part) for part in np.split(some, ends))

    chance = [between(rng.permutation(values)) for _ in range(SHUFFLES)]
    return float((between(values) - np.mean(chance)) / max(np.std(chance), 1e-9))


def _most_frequent(sample) -> int:
    return int(np.bincount(sample.classes).argmax()) if len(sample.classes) else -1


def _size(sample) -> float:
    return float(np.prod(sample.boxes[:, 2:] - sample.boxes[:, :2], axis=1).mean()) if len(sample.boxes) else 0.0
