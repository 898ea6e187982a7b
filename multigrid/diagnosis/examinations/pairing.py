"""Whether images that show nothing of their own boxes show the boxes of some other image.

For each such image all other images' boxes are tried, and the best taken. The best of many fits somewhat by chance
alone: how well, the same boxes upside down tell, which fit nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from multigrid.diagnosis.examinations import evidence, placement, views
from multigrid.diagnosis.examinations.alignment import apply

TRIED = 256  # other images whose boxes are tried
IMAGES = 24  # that are looked at
FEWEST = 4
LEAD = 3.0  # standard errors


@dataclass(frozen=True)
class Search:
    """Evidence of the best boxes of other images, for images that show nothing of their own.

    Attributes:
        best: [images] of the boxes as they are.
        by_chance: [images] of the boxes upside down.
    """

    best: np.ndarray
    by_chance: np.ndarray

    @property
    def lead(self) -> float:
        """By how many standard errors other images' boxes fit better than chance."""
        ahead = self.best - self.by_chance
        return float(ahead.mean() / max(ahead.std() / np.sqrt(len(ahead)), 1e-9))


def of_samples(case) -> Search | None:
    """Searches the samples to train on; None where there are too few images to search for."""
    samples = [one for one in case.samples.get("train", ()) if len(one.boxes)]
    chosen = np.unique(np.linspace(0, len(samples) - 1, min(TRIED, len(samples))).astype(int))
    others = [np.asarray(samples[index].boxes, "float64") for index in chosen]
    stream = views.of_samples(samples)
    return _search(case.examined(placement.of_samples), stream, lambda view: (others, np.tile(view.scale, 2)))


def of_training(case) -> Search | None:
    """Searches the training batches, among their own boxes; None as for `of_samples`."""
    stream = views.of_batches(case.batches, case.train_data)
    others = [view.boxes / np.tile(view.image.shape[1::-1], 2) for view in stream]
    found = case.examined(placement.of_training)
    return _search(found, stream, lambda view: (others, np.tile(view.image.shape[1::-1], 2)))


def _search(found, stream, boxes_for) -> Search | None:
    """Of a stream's images that its placement finds unsupported; `boxes_for(view)` gives sets of boxes and a factor."""
    lost = np.flatnonzero(found.unsupported)[:IMAGES] if found is not None else ()
    if len(lost) < FEWEST:
        return None
    rng, best = np.random.default_rng(0), []
    for view in (stream[index] for index in lost):
        others, factor = boxes_for(view)
        sets = [boxes * factor for boxes in others]
        upside_down = [apply("rot180", boxes, view.image.shape[:2]) for boxes in sets]
        best.append([_best(view.image, sets, rng), _best(view.image, upside_down, rng)])
    return Search(*np.array(best).T)


def finds(search: Search | None) -> str | None:
    """In words, that the boxes of images belong to others; None where that was not found."""
    if search is None or search.lead < LEAD:
        return None
    return (
        f"{len(search.best)} images that show nothing of their own boxes show those of some other image, "
        f"{search.lead:.0f} standard errors better than the same boxes upside down"
    )


def _best(image: np.ndarray, sets: list, rng) -> float:
    """The highest evidence, times the root of their number, that a set of boxes [N, 4] in the image's pixels has."""
    picture, boxes = evidence.Picture(image), np.concatenate(sets)
    usable = evidence.measurable(boxes, picture.size)
    safe = np.where(usable[:, None], boxes, (0, 0, 1, 1))
    chance = evidence.random_places(picture, safe, rng)
    deviation = evidence.deviations(chance)
    scores = evidence.compared(evidence.measures(picture, safe), evidence.known_mean(chance), deviation)
    parts = np.split(np.where(usable, scores, evidence.NOTHING), np.cumsum([len(one) for one in sets])[:-1])
    return max(float(part.sum() / np.sqrt(len(part))) for part in parts)
