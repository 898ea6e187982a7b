"""Images in, detections in the images' own pixels out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from multigrid.config import DetectionConfig
from multigrid.data.images import Letterbox, image_size, read_image
from multigrid.detection.decode import with_decoder
from multigrid.detection.suppression import candidates, nms

DEFAULTS = DetectionConfig()


@dataclass(frozen=True)
class Detections:
    """What was found in one image, highest score first."""

    boxes: np.ndarray  # [D, 4] float32 corners in pixels of the upright image, clipped to it
    scores: np.ndarray  # [D] float32, objectness × class
    class_ids: np.ndarray  # [D] int32
    class_names: tuple  # all names, so that class_names[class_id] is what was found
    size: tuple  # (height, width) of the upright image
    path: str = ""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def names(self) -> list:
        """The class name of each detection."""
        return [self.class_names[index] for index in self.class_ids]


class Predictor:
    """Letterbox, detector, decoding, suppression, and back to the image's own pixels.

    Args:
        detector: a `MultiGridDetector`.
        class_names: one a class.
        input_size: (height, width) in pixels, multiples of 32.
        score_threshold: least objectness × class of a detection.
        nms_threshold: IoU above which the weaker of two boxes of a class goes.
        max_detections: the most an image can have.
        batch_size: images a forward pass.

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
        nms_threshold: float = DEFAULTS.nms_threshold,
        max_detections: int = DEFAULTS.max_detections,
        batch_size: int = 8,
    ):
        if any(side % detector.strides[0] for side in input_size):
            raise ValueError(f"input_size: expected multiples of {detector.strides[0]}, received {tuple(input_size)}")
        if len(class_names) != detector.num_classes:
            raise ValueError(f"class_names: expected {detector.num_classes} names, received {len(class_names)}")
        self.model = with_decoder(detector)
        self.class_names = tuple(class_names)
        self.input_size = tuple(input_size)
        self.score_threshold, self.nms_threshold = score_threshold, nms_threshold
        self.max_detections, self.batch_size = max_detections, batch_size

    def predict(self, source) -> Detections:
        """Detections of one image: a path, or uint8 RGB [height, width, 3]."""
        return next(self.stream([source]))

    def stream(self, sources: Iterable) -> Iterator[Detections]:
        """Detections of many images, in their order, reading ahead while the network works.

        Args:
            sources: paths or uint8 RGB arrays [height, width, 3].

        Yields:
            `Detections`, one an image.

        Raises:
            InputError: an image that cannot be read, by name.
        """
        with ThreadPoolExecutor(max_workers=2) as pool:
            batches = _batched(sources, self.batch_size)
            ahead = [pool.submit(self._load, batch) for batch in itertools.islice(batches, 2)]
            size = None
            while ahead:
                loaded = ahead.pop(0).result()
                size = size or len(loaded)
                following = next(batches, None)
                if following is not None:
                    ahead.append(pool.submit(self._load, following))
                yield from self._detect(loaded, size)

    def _load(self, batch) -> list:
        return [_letterboxed(source, self.input_size) for source in batch]

    def _detect(self, loaded, size) -> Iterator[Detections]:
        images = np.stack([image for _, image, _ in loaded])
        missing = size - len(images)
        if missing:  # a last batch that is shorter than the first would compile the network a second time
            images = np.concatenate([images, np.repeat(images[-1:], missing, axis=0)])
        decoded = self.model.predict_on_batch(images)
        for row, (path, _, letterbox) in enumerate(loaded):
            yield self._detections(decoded["boxes"][row], decoded["scores"][row], letterbox, path)

    def _detections(self, boxes, scores, letterbox, path) -> Detections:
        boxes, scores, classes = candidates(boxes, scores, self.score_threshold)
        kept = nms(boxes, scores, classes, self.nms_threshold, self.max_detections)
        boxes = letterbox.undo_boxes(boxes[kept], clip=True)
        solid = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)  # a box wholly in the letterbox's border clips to nothing
        return Detections(
            boxes[solid].astype("float32"),
            scores[kept][solid].astype("float32"),
            classes[kept][solid],
            self.class_names,
            letterbox.source_size,
            path,
        )


def _letterboxed(source, input_size):
    """Path, uint8 image at the network's size and the letterbox, of a path or an array."""
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[-1] != 3:
            raise TypeError(f"image: expected uint8 [height, width, 3], received {source.dtype} {source.shape}")
        letterbox = Letterbox.fit(source.shape[:2], input_size)
        return "", letterbox.apply_image(source), letterbox
    letterbox = Letterbox.fit(image_size(source), input_size)
    return str(source), letterbox.apply_image(read_image(source, at_least=letterbox.resized_size)), letterbox


def _batched(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    return iter(lambda: list(itertools.islice(iterator, size)), [])
