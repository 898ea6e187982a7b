"""Images in, detections in the images' own pixels out."""

from __future__ import annotations

import collections
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from multigrid.config import DetectionConfig
from multigrid.data.images import Letterbox, image_pixels, image_size, read_image
from multigrid.detection.candidates import Candidates, best_candidates, passing
from multigrid.detection.decode import with_decoder
from multigrid.detection.detections import Detections, Frame
from multigrid.detection.suppression import Suppression, Survivors
from multigrid.detection.trace import Trace
from multigrid.errors import InputError
from multigrid.geometry.boxes import iou
from multigrid.geometry.cells import cell_corners

DEFAULTS = DetectionConfig()
BATCHES_AHEAD = 1  # of the one whose detections are wanted
LEAST_SIDE = 1e-3  # pixels; what files can tell of a side


class View(NamedTuple):
    """One way to look at an image."""

    size: tuple  # (height, width) of the network's input in pixels
    flipped: bool  # left to right


class Loaded(NamedTuple):
    """One image, ready for the network."""

    path: str
    size: tuple  # (height, width) of the upright image
    image: np.ndarray | None  # the upright image, where it came as pixels
    views: list  # uint8 RGB [height, width, 3], one a view
    frame: int | None = None  # of a video
    time: float | None = None  # of that frame, in seconds


class DetectionPipeline:
    """Letterbox, detector, decoding, suppression, and back to the image's own pixels.

    Args:
        detector: a `MultiGridDetector`.
        class_names: one a class.
        input_size: (height, width) in pixels, multiples of 32.
        score_threshold: least objectness × class of a detection.
        rescore: whether the score is also multiplied by the probability of the anchor that the cell prefers.
        suppression: what becomes of boxes that say the same, a word of `suppression.RULES`.
        nms_threshold: overlap above which two boxes of a class say the same.
        soft_sigma: see `Suppression`.
        max_detections: the most an image can have.
        flip: whether to look at every image a second time, mirrored; all views share one suppression.
        scales: multiples of `input_size` at which to look at every image, rounded to whole cells.
        batch_size: images a forward pass.

    Attributes:
        network_seconds: spent in the network and the decoding since the pipeline was made, the compilation included.

    Raises:
        ValueError: an input size or a number of class names that does not suit the detector.
    """

    def __init__(
        self,
        detector,
        class_names,
        input_size: tuple[int, int],
        *,
        score_threshold: float = DEFAULTS.predict_threshold,
        rescore: bool = DEFAULTS.rescore,
        suppression: str = DEFAULTS.suppression,
        nms_threshold: float = DEFAULTS.nms_threshold,
        soft_sigma: float = DEFAULTS.soft_sigma,
        max_detections: int = DEFAULTS.max_detections,
        flip: bool = DEFAULTS.flip,
        scales: tuple[float, ...] = DEFAULTS.scales,
        batch_size: int = 8,
    ):
        coarsest = detector.strides[0]
        if any(side % coarsest for side in input_size):
            raise ValueError(f"input_size: expected multiples of {coarsest}, received {tuple(input_size)}")
        if len(class_names) != detector.num_classes:
            raise ValueError(f"class_names: expected {detector.num_classes} names, received {len(class_names)}")
        self.model = with_decoder(detector, rescore=rescore)
        self.class_names = tuple(class_names)
        self.input_size = tuple(input_size)
        self.score_threshold = score_threshold
        self.suppression = Suppression(suppression, nms_threshold, soft_sigma)
        self.max_detections, self.batch_size = max_detections, batch_size
        self.network_seconds = 0.0
        sizes = [tuple(max(1, round(side * scale / coarsest)) * coarsest for side in input_size) for scale in scales]
        self._strides = detector.strides
        self.look_by([View(size, flipped) for size in dict.fromkeys(sizes) for flipped in (False, True)[: 1 + flip]])

    def look_by(self, views: Sequence[View]) -> None:
        """Has every image be looked at in these views instead."""
        self.views = list(views)
        corners, scale = zip(*(cell_corners(view.size, self._strides) for view in self.views), strict=True)
        self._cell_corners, self._cell_scale = corners, np.concatenate(scale)

    def new_trace(self, thresholds) -> Trace:
        """A `Trace` for this pipeline, counting at these scores."""
        return Trace(len(self.class_names), self._strides, thresholds)

    def stream(
        self,
        sources: Iterable,
        *,
        on_broken: Callable[[InputError], None] | None = None,
        cells: bool = False,
        trace: Trace | None = None,
        batch_size: int | None = None,
    ) -> Iterator[Detections]:
        """Detections of many images, in their order; the next are read and go through the network meanwhile.

        Args:
            sources: paths, uint8 RGB arrays [height, width, 3], Pillow images or `Frame`s. An `InputError` stands for
                an image that could not even be named.
            on_broken: called with what is wrong with an image that cannot be read, which is then left out.
            cells: whether the detections tell the cells that say so.
            trace: counts where detections are lost.
            batch_size: images a forward pass; the pipeline's own if None.

        Yields:
            `Detections`, one an image.

        Raises:
            InputError: an image that cannot be read, by name, where `on_broken` is None.
        """
        batches = _batched(sources, batch_size or self.batch_size)
        first = next(batches, [])
        with ThreadPoolExecutor(max_workers=2) as reading, ThreadPoolExecutor(max_workers=1) as network:
            ahead = collections.deque()
            for batch in itertools.chain([first] if first else [], batches, [None]):
                if batch is not None:
                    loading = reading.submit(self._load, batch, on_broken is None)
                    ahead.append(network.submit(self._look, loading, len(first)))
                while ahead and (len(ahead) > BATCHES_AHEAD or batch is None):
                    broken, images, decoded = ahead.popleft().result()
                    for error in broken:
                        on_broken(error)
                    for row, one in enumerate(images):
                        views = [{name: part[row] for name, part in view.items()} for view in decoded]
                        yield self._detections(views, one, cells, trace)

    def _load(self, batch, strict: bool) -> list:
        return [self._load_one(source, strict) for source in batch]

    def _load_one(self, source, strict: bool) -> Loaded | InputError:
        sizes = list(dict.fromkeys(view.size for view in self.views))
        try:
            path, size, image, kept = _opened(source, sizes)
        except InputError as error:
            if strict:
                raise
            return error
        letterboxed = {target: Letterbox.fit(size, target).apply_image(image) for target in sizes}
        views = [letterboxed[view.size][:, ::-1] if view.flipped else letterboxed[view.size] for view in self.views]
        moment = (source.index, source.time) if isinstance(source, Frame) else ()
        return Loaded(path, size, kept, views, *moment)

    def _look(self, loading: Future, size: int) -> tuple:
        """What could not be read of a batch, what could, and what the network says of that, a dict a view."""
        loaded = loading.result()
        broken = [one for one in loaded if isinstance(one, InputError)]
        images = [one for one in loaded if isinstance(one, Loaded)]
        views = range(len(self.views)) if images else ()
        return broken, images, [self._forward([one.views[index] for one in images], size) for index in views]

    def _forward(self, images, size) -> dict:
        images = np.stack(images)
        missing = size - len(images)
        if missing > 0:  # a batch that is shorter than the first would compile the network a second time
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        start = time.perf_counter()
        decoded = self.model.predict_on_batch(images)  # NumPy arrays: all is computed
        self.network_seconds += time.perf_counter() - start
        return decoded

    def _detections(self, decoded, one: Loaded, cells: bool, trace: Trace | None) -> Detections:
        boxes = np.concatenate([self._undone(view["boxes"], index, one.size) for index, view in enumerate(decoded)])
        scores = decoded[0]["scores"] if len(decoded) == 1 else np.concatenate([view["scores"] for view in decoded])
        candidates = self._candidates(boxes, scores, one.size, trace)
        kept = self.suppression(candidates, self.max_detections if trace is None else None, self.score_threshold)
        if trace is not None:
            trace.add_cells(self._cell_scale, np.concatenate([view["objectness"] for view in decoded]), scores)
            self._count(trace, "suppression", candidates, kept)
            kept = Survivors(*(values[: self.max_detections] for values in kept))
            self._count(trace, "cap", candidates, kept)
        found = candidates.cells[kept.leads]
        return Detections(
            np.clip(kept.boxes, 0, one.size[::-1] * 2).astype("float32"),
            kept.scores.astype("float32"),
            candidates.classes[kept.leads],
            self.class_names,
            one.size,
            one.path,
            np.asarray(self._strides, "int32")[self._cell_scale[found]],
            self._answering_cells(candidates, kept, one.size) if cells else None,
            one.image,
            one.frame,
            one.time,
        )

    def _undone(self, boxes, index: int, size) -> np.ndarray:
        """Boxes of a view in pixels of the image, not clipped."""
        view = self.views[index]
        if view.flipped:
            boxes = boxes[:, [2, 1, 0, 3]] * np.float32([-1, 1, -1, 1]) + np.float32([view.size[1], 0, view.size[1], 0])
        return Letterbox.fit(size, view.size).undo_boxes(boxes, clip=False)

    def _candidates(self, boxes, scores, size, trace: Trace | None) -> Candidates:
        cells, classes = passing(scores, self.score_threshold)
        sees = in_image(boxes, size)[cells]
        seen, seen_classes = cells[sees], classes[sees]
        candidates = best_candidates(boxes, scores, seen, seen_classes)
        if trace is not None:
            trace.add("score", self._cell_scale[cells], classes, scores[cells, classes])
            trace.add("box", self._cell_scale[seen], seen_classes, scores[seen, seen_classes])
            trace.add("candidate", self._cell_scale[candidates.cells], candidates.classes, candidates.scores)
        return candidates

    def _count(self, trace: Trace, step: str, candidates: Candidates, kept: Survivors) -> None:
        scale = self._cell_scale[candidates.cells[kept.leads]]
        trace.add(step, scale, candidates.classes[kept.leads], kept.scores)

    def _answering_cells(self, candidates: Candidates, kept: Survivors, size) -> tuple:
        """For each survivor the corners, in pixels of the image, of the cells whose boxes of its class it covers."""
        corners = [self._undone(corners, index, size) for index, corners in enumerate(self._cell_corners)]
        corners = np.clip(np.concatenate(corners), 0, size[::-1] * 2)
        found = []
        for lead, box in zip(kept.leads, kept.boxes, strict=True):
            agree = (candidates.classes == candidates.classes[lead]) & (
                iou(candidates.boxes, box) > self.suppression.threshold
            )
            agree[lead] = True
            found.append(corners[np.unique(candidates.cells[agree])].astype("float32"))
        return tuple(found)


def _opened(source, sizes) -> tuple:
    """Path, (height, width), pixels, and those to keep, of a source; a JPEG perhaps no larger than the sizes need."""
    if isinstance(source, InputError):
        raise source
    if isinstance(source, Frame):
        return source.path, source.image.shape[:2], source.image, source.image
    if isinstance(source, Image.Image):
        source = image_pixels(source)
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise TypeError(f"image: expected uint8 [height, width, 3], received {source.dtype} {source.shape}")
        return "", source.shape[:2], source, source
    size = image_size(source)
    needed = np.max([Letterbox.fit(size, target).resized_size for target in sizes], axis=0)
    return str(source), size, read_image(source, at_least=tuple(int(side) for side in needed)), None


def in_image(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Which boxes are finite, and have more than a line of them in an image.

    Args:
        boxes: [N, 4] float corners in pixels of the image, not clipped.
        size: (height, width) of the image in pixels.

    Returns:
        [N] bool.
    """
    clipped = np.clip(boxes, 0, size[::-1] * 2)  # what is not a number stays so, and is not larger than anything
    return np.all(clipped[:, 2:] - clipped[:, :2] > LEAST_SIDE, axis=1) & np.all(np.isfinite(boxes), axis=1)


def _batched(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])
