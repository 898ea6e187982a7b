"""Where boxes lie: which hypothesis of what was done to them the images speak for, in each of three streams.

The level of a hypothesis is the mean evidence of its boxes. It is compared, image by image, with the boxes as they are
and with those of other images, which no hypothesis can make right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from multigrid.diagnosis.examinations import evidence, labels_read, views
from multigrid.diagnosis.examinations.alignment import HYPOTHESES, IDENTITY, MOVES, SIZES, UNITS, apply

BOXES = 384  # of a stream
FEWEST = 3  # of an image
OTHERS, PREVIOUS, NEXT = "others", "previous", "next"  # boxes of far images, and of the neighbours
BORDER, HALF_BORDER, LETTERBOX = "border", "half the border", "letterbox"  # what a letterbox does to boxes
NOT_MIXED = (
    IDENTITY,
    OTHERS,
    BORDER,
    HALF_BORDER,
    LETTERBOX,
    *SIZES,
)  # many objects have a rim or a kernel of their own
SAME_SIZE = (IDENTITY, "hflip", "vflip", "rot180", "xywh from cxcywh", "cxcywh from xywh", BORDER, HALF_BORDER, *MOVES)

SHOWN = 0.35  # evidence a box that images must show of a hypothesis: of what lies outside they show less than nothing
RIM = 0.5  # of the evidence for boxes of another size, that speaks for the boxes as they are
CLEAR = 0.3  # evidence a box by which a hypothesis must beat another
SURE = 4.5  # and standard errors, over images; of few images more, see `_needed`
TELLS = 1.0  # evidence · root of the boxes by which it beats another in a single image
CHANCE = 0.7  # the same, which chance often gives
GAIN = 0.15  # mean of what is beyond it, from which some of the images are another's case
GAIN_RATIO = 2.5  # times that of the next hypothesis
FEWEST_IMAGES = 12  # of which some can be told from others


@dataclass(frozen=True)
class Placement:
    """Evidence of every hypothesis in a stream of images.

    Attributes:
        names: of the hypotheses, beside those of `alignment` the ones above.
        sums: [images, hypotheses] evidence, summed over the boxes of an image; a box outside of it counts against.
        mild: the same, where a box outside counts nothing: that it is outside says nothing for another hypothesis.
        boxes: [images] how many were measured.
        kinds: [images] how many samples an image shows; 0 where not known.
    """

    names: tuple
    sums: np.ndarray
    mild: np.ndarray
    boxes: np.ndarray
    kinds: np.ndarray

    def level(self, name: str, chosen=slice(None)) -> float:
        """Mean evidence a box, of all or of the chosen images."""
        return float(self._of(name)[chosen].sum() / max(1, self.boxes[chosen].sum()))

    def lead(self, name: str, over: str = IDENTITY) -> float:
        """By how many standard errors, over the images, a hypothesis is ahead of another."""
        ahead = self._of(name) - self._of(over)
        mean = ahead.sum() / self.boxes.sum()
        error = np.sqrt(((ahead - mean * self.boxes) ** 2).sum()) / self.boxes.sum()
        return float(mean / max(error, 1e-9))

    def beats(self, name: str, over: str = IDENTITY, clear: float = CLEAR) -> bool:
        """Whether a hypothesis is clearly ahead of another."""
        return self.level(name) - self.level(over) > clear and self.lead(name, over) > self.needed

    @property
    def needed(self) -> float:
        """Standard errors from which a lead counts: those of few images are themselves uncertain."""
        return SURE + 20.0 / max(1, len(self.boxes) - 1)

    @property
    def best(self) -> str:
        """The hypothesis with the highest level, other images' boxes left out."""
        return max((name for name in self.names if name != OTHERS), key=self.level)

    @property
    def winner(self) -> str | None:
        """The hypothesis that is clearly ahead of the boxes as they are and of other images' boxes; None where none."""
        best = self.best
        if best == IDENTITY or self.level(best) < SHOWN:
            return None
        if best in SIZES and self.level(IDENTITY) > RIM * self.level(best):
            return None  # the boxes end where something does: at the rim of an object with a kernel, or the reverse
        return best if self.beats(best) and self.beats(best, OTHERS) else None

    @property
    def lies_well(self) -> bool:
        """Whether the boxes as they are do clearly better than those of other images, and nothing does better still."""
        return self.winner is None and self.lead(IDENTITY, OTHERS) > self.needed

    def share(self, name: str) -> float:
        """Share of the images in which a hypothesis does clearly better than the boxes as they are."""
        return float((self._ahead(name) > TELLS).mean())

    def gain(self, name: str) -> float:
        """Mean, over all images, of what a hypothesis is ahead of the boxes as they are where it is."""
        return float(np.maximum(self._ahead(name) - CHANCE, 0.0).mean())

    @property
    def mixed(self) -> str | None:
        """The hypothesis that is right for some of the images where the boxes as they are fit others; None if none.

        It gains far more than any other does: those show what chance gives.
        """
        gains = sorted(((self.gain(name), name) for name in self.names if name not in NOT_MIXED), reverse=True)
        (most, name), (second, _) = gains[:2]
        clear = most > GAIN and most > GAIN_RATIO * second and len(self.boxes) >= FEWEST_IMAGES
        return name if clear and self.level(name, self._ahead(name) > TELLS) > SHOWN else None

    @property
    def unsupported(self) -> np.ndarray:
        """Which images show less of their own boxes than the middle one of them shows of another's: [images] bool."""
        own, other = self._of(IDENTITY) / np.sqrt(self.boxes), self._of(OTHERS) / np.sqrt(self.boxes)
        return own < np.median(other)

    def _ahead(self, name: str) -> np.ndarray:
        mild = self.mild[:, self.names.index(name)] - self.mild[:, self.names.index(IDENTITY)]
        return mild / np.sqrt(self.boxes)

    def _of(self, name: str) -> np.ndarray:
        return self.sums[:, self.names.index(name)]


def of_samples(case) -> Placement | None:
    """Of the samples to train on, in the pixels of their files; None where there are none with boxes."""
    return place(views.of_samples(case.samples.get("train", ())))


def of_file(case) -> Placement | None:
    """Of the boxes as the label file has them, those included that a reader leaves out; None without such a file."""
    file = case.examined(labels_read.examine)
    return None if file is None else place(views.of_samples(file.samples()))


def of_training(case) -> Placement | None:
    """Of the training batches."""
    return place(views.of_batches(case.batches, case.train_data))


def of_validation(case) -> Placement | None:
    """Of the validation batches."""
    return place(views.of_batches(case.val_batches, case.val_data))


def place(stream: Sequence[views.View]) -> Placement | None:
    """Measures every hypothesis in every image; None without an image.

    Args:
        stream: images with boxes.
    """
    if not stream:
        return None
    rng, most = np.random.default_rng(0), max(FEWEST, BOXES // len(stream))
    chosen = [_some(view.boxes, most, rng) for view in stream]
    measured = [_measure(view.image, _candidates(stream, chosen, index), rng) for index, view in enumerate(stream)]
    deviation = evidence.deviations(np.concatenate([chance for _, chance in measured]))
    sums = np.array(
        [
            [_sums(scores, len(boxes)) for scores in _scores(by_name, deviation)]
            for (by_name, _), boxes in zip(measured, chosen, strict=True)
        ]
    )
    return Placement(
        tuple(measured[0][0]),
        sums[..., 0],
        sums[..., 1],
        np.array([len(boxes) for boxes in chosen]),
        np.array([len(view.samples) for view in stream]),
    )


def is_lost(found: Placement) -> bool:
    """Whether boxes lie no better than those of other images, by any explanation, and images enough say so."""
    enough = found.boxes.sum() >= 60 and len(found.boxes) >= FEWEST_IMAGES
    explained = found.winner is not None or found.mixed is not None or found.beats(found.best, OTHERS)
    shown = found.level(IDENTITY) - found.level(OTHERS) > CLEAR  # though it is not certain
    return enough and not found.lies_well and not explained and not shown


def _some(boxes: np.ndarray, most: int, rng: np.random.Generator) -> np.ndarray:
    return boxes if len(boxes) <= most else boxes[np.sort(rng.choice(len(boxes), most, replace=False))]


def _candidates(stream, chosen: list, index: int) -> dict[str, np.ndarray]:
    """The boxes of an image by every hypothesis, [N, 4] each."""
    view, boxes, size = stream[index], chosen[index], stream[index].image.shape[:2]
    found, count = {name: apply(name, boxes, size) for name in HYPOTHESES}, len(stream)
    for name in UNITS:  # of the pixels that the boxes were measured in
        own = np.tile(view.scale, 2)
        found[name] = apply(name, boxes / own, np.array(size) / view.scale[::-1]) * own
    for name, step in ((PREVIOUS, -1), (NEXT, 1), (OTHERS, count // 2), (OTHERS, count // 3)):
        other = (index + step) % count
        moved = chosen[other] * np.tile(np.array(view.scale) / stream[other].scale, 2)
        found[name] = np.concatenate([found[name], moved]) if name in found else moved
    box = view.letterbox
    pad = np.array(box.pad * 2 if box else (0, 0, 0, 0), "float64")
    found[BORDER], found[HALF_BORDER] = boxes + pad, boxes + pad / 2
    found[LETTERBOX] = boxes * np.tile(box.scale, 2) + pad if box else boxes
    return found


def _measure(image: np.ndarray, candidates: dict, rng: np.random.Generator) -> tuple[dict, np.ndarray]:
    """{name: (measures, expected ones, which could be measured)}, and measures at random places, [K, 5]."""
    picture = evidence.Picture(image)
    counted = {name: evidence.measurable(boxes, picture.size) for name, boxes in candidates.items()}
    safe = {name: np.where(counted[name][:, None], boxes, (0, 0, 1, 1)) for name, boxes in candidates.items()}
    ends = np.cumsum([len(boxes) for boxes in safe.values()])[:-1]
    found = np.split(evidence.measures(picture, np.concatenate(list(safe.values()))), ends)
    sized = {name: boxes for name, boxes in safe.items() if name not in SAME_SIZE or name == IDENTITY}
    chance = evidence.random_places(picture, np.concatenate(list(sized.values())), rng)
    ends = np.cumsum([len(boxes) for boxes in sized.values()])[:-1]
    expected = dict(zip(sized, np.split(evidence.known_mean(chance), ends), strict=True))
    by_name = {
        name: (one, expected.get(name, expected[IDENTITY]), counted[name])
        for name, one in zip(safe, found, strict=True)
    }  # fmt: skip
    known = np.concatenate([counted[name] for name in sized])
    return by_name, chance[:, known].reshape(-1, chance.shape[-1])


def _scores(by_name: dict, deviation: np.ndarray) -> list[np.ndarray]:
    """Evidence of the boxes by every hypothesis, NaN of those that cannot be measured."""
    return [
        np.where(counted, evidence.compared(found, expected, deviation), np.nan)
        for found, expected, counted in by_name.values()
    ]


def _sums(scores: np.ndarray, count: int) -> tuple[float, float]:
    """Evidence of an image for so many boxes, with what cannot be measured counted against it, and not counted."""
    return tuple(float(np.nan_to_num(scores, nan=missing).mean() * count) for missing in (evidence.NOTHING, 0.0))
