"""The perfect answer through the live predictor: its decoder, its way back to the image, suppression and metric.

For the time of a question the predictor's network is replaced by one that says what it is told; all else is the
predictor's own.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.data.images import Letterbox, read_image
from multigrid.detection.candidates import Candidates
from multigrid.detection.pipeline import View
from multigrid.diagnosis.examinations import outputs
from multigrid.diagnosis.examinations.outputs import as_array
from multigrid.evaluation.evaluator import coco_metrics, to_coco_ground_truth, to_coco_results
from multigrid.geometry import cells as cell_geometry
from multigrid.geometry.boxes import iou

FAINT = 0.1  # objectness that a metric has to see
CROWD = 30  # objects of the image that asks how many detections there can be
PAIRS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97)  # overlaps of two boxes that may be one object
HALVES = (0.9, 0.8)  # objectness and class probability whose product a score should be
APART = 0.3  # overlap of two objects of a class that no suppression takes for one
FOUND = 0.85  # overlap of a detection with its object, where the perfect answer was given


@dataclass(frozen=True)
class Decoding:
    """The live decoder on the perfect answer to the designed scene, K claims.

    Attributes:
        overlap: median IoU of the decoded boxes of cells with their object.
        shift: [2] median distance of the centres in cells, (x, y).
        shift_spread: spread of that.
        log_size: [2] median of ln(decoded side / true side).
        log_size_spread: spread of that over claims and sides.
        magnified: median factor by which centres are further from the origin.
        magnified_spread: spread of its logarithm.
        crossed: whether width and height come back exchanged.
        class_shift: whether one and the same number added to all class logits changes the scores.
        loss_class_shift: whether it changes the criterion's classification.
        score: of an objectness and a class of the probabilities `HALVES`.
        scores_without: {"objectness", "class": score where that probability alone is 0.1}.
        wrong_class: share of the claims whose highest score is not the true class's.
    """

    overlap: float
    shift: np.ndarray
    shift_spread: np.ndarray
    log_size: np.ndarray
    log_size_spread: float
    magnified: float
    magnified_spread: float
    crossed: bool
    class_shift: bool
    loss_class_shift: bool
    score: float
    scores_without: dict
    wrong_class: float


@dataclass(frozen=True)
class Findings:
    """What the whole predictor finds of the objects that the perfect answer tells it of.

    Attributes:
        found: share of the objects found in an image of the network's own size.
        found_padded: share of those of an image of other proportions, mapped back by its letterbox.
        shift_padded: [2] median shift of the latter, (x, y) in pixels of the image.
        pad: [2] border of that letterbox in pixels of the image, (left, top).
        found_faint: share where every objectness is `FAINT`.
        crowd: detections in an image with `CROWD` objects apart from each other, or as many as there is room for.
        crowd_objects: how many these are.
        twice: [len(PAIRS)] whether two boxes of one class with that overlap stay two detections of good score; None
            where the predictor's suppression cannot be asked.
        score_threshold: least score, as the predictor has it.
    """

    found: float
    found_padded: float
    shift_padded: np.ndarray
    pad: np.ndarray
    found_faint: float
    crowd: int
    crowd_objects: int
    twice: np.ndarray | None
    score_threshold: float


@dataclass(frozen=True)
class Metric:
    """The perfect answer to the validation batches, measured against the validation labels.

    Attributes:
        ap50: mean average precision at IoU 0.5.
        overlap: median best IoU of a label with a detection of its image.
        apart: median distance of an object of the batches from the nearest label, corner by corner, over the longer
            side of its image.
        size: median of ln(side of a label / side of the object in the batch, in the image's pixels).
        images: that were looked at.
    """

    ap50: float
    overlap: float
    apart: float
    size: float
    images: int


def examine_decoding(case) -> Decoding | None:
    """The decoder alone; None where there is no predictor or its decoder cannot be told apart."""
    scene, decode = _scene(case), case.examined(_decoder)
    if scene is None or decode is None:
        return None
    boxes = decode(scene.cells)["boxes"]
    image, row, claim = np.nonzero(as_array(scene.targets.positive))
    cell = as_array(scene.targets.cell)[image, row, claim]
    said, true = boxes[image, cell].astype("float64"), scene.boxes[image, row].astype("float64")
    centre, true_centre = (said[:, :2] + said[:, 2:]) / 2, (true[:, :2] + true[:, 2:]) / 2
    log_size = np.log(np.maximum(said[:, 2:] - said[:, :2], 1e-6) / (true[:, 2:] - true[:, :2]))
    shift = (centre - true_centre) / as_array(scene.layout.stride)[cell][:, None]
    farther = np.log(np.maximum(centre, 1e-3) / np.maximum(true_centre, 1e-3)).reshape(-1)
    aspect = np.log((true[:, 2] - true[:, 0]) / (true[:, 3] - true[:, 1]))
    return Decoding(
        overlap=float(np.median(iou(said, true))),
        shift=np.median(shift, axis=0),
        shift_spread=np.ptp(np.percentile(shift, (10, 90), axis=0), axis=0),
        log_size=np.median(log_size, axis=0),
        log_size_spread=float(np.ptp(np.percentile(log_size, (10, 90)))),
        magnified=float(np.exp(np.median(farther))),
        magnified_spread=float(np.ptp(np.percentile(farther, (10, 90)))),
        crossed=bool(np.abs(log_size[:, 0] + aspect).max() < 0.02 and np.abs(aspect).max() > 0.05),
        **_scores(case, scene, decode, (image, cell), scene.classes[image, row]),
    )


def examine_findings(case) -> Findings | None:
    """The whole predictor; None as for `examine_decoding`."""
    scene, decode = _scene(case), case.examined(_decoder)
    if scene is None or decode is None:
        return None
    faint = scene.cells.copy()
    faint[..., 4] = np.where(scene.positive, np.log(FAINT / (1.0 - FAINT)), faint[..., 4])
    height, width = scene.size
    narrow = (height, max(32, width // 2)) if width >= 64 else (max(32, height // 2), width)
    letterbox = Letterbox.fit(narrow, scene.size)
    native = [np.zeros((*scene.size, 3), "uint8")] * len(scene.boxes)
    padded = [np.zeros((*narrow, 3), "uint8")] * len(scene.boxes)
    found = _matched(scene, _detect(case, decode, scene.cells, native), None)
    mapped = _matched(scene, _detect(case, decode, scene.cells, padded), letterbox)
    dim = _matched(scene, _detect(case, decode, faint, native), None)
    crowd, objects = _crowd(case, decode, scene.size)
    return Findings(
        found=_share(found),
        found_padded=_share(mapped),
        shift_padded=np.median([shift for _, shift in mapped], axis=0) if mapped else np.zeros(2),
        pad=np.array(letterbox.pad) * narrow[0] / letterbox.resized_size[0],
        found_faint=_share(dim),
        crowd=crowd,
        crowd_objects=objects,
        twice=_pairs(case),
        score_threshold=float(getattr(case.predictor, "score_threshold", 0.0)),
    )


def examine_metric(case) -> Metric | None:
    """The first validation batch's truth as the answer to the first validation images.

    None where it is not known, and where labels have class numbers that no metric takes.
    """
    samples, decode = case.samples.get("val"), case.examined(_decoder)
    if not samples or not case.val_batches or decode is None:
        return None
    images, truth = case.val_batches[0]
    asked = getattr(case.val_data, "sample_indices", lambda _: [[row] for row in range(len(images))])
    samples = [samples[indices[0]] for indices in asked(0)]
    if any((one.classes >= case.detector.num_classes).any() for one in samples):  # classes beyond the last have no AP
        return None
    if images.shape[1:3] != tuple(case.predictor.input_size) or not any(len(one.boxes) for one in samples):
        return None
    if any(one.classes.max(initial=0) >= len(case.class_names) for one in samples):
        return None
    boxes, classes = np.asarray(truth["boxes"], "float32"), np.asarray(truth["classes"])
    scene = outputs.encoded_scene(case, boxes, classes, images.shape[1:3])
    if scene is None or not scene.positive.any():
        return None
    found = _detect(case, decode, scene.cells, [read_image(sample.path) for sample in samples])
    results = [
        line
        for sample, one in zip(samples, found, strict=True)
        for line in to_coco_results(sample.image_id, one.boxes, one.scores, one.class_ids)
    ]
    metrics = coco_metrics(to_coco_ground_truth(samples, case.class_names), results)
    best, sizes, apart = [], [], []
    for sample, one, own, kinds in zip(samples, found, boxes, classes, strict=True):
        if len(sample.boxes):
            best.extend(iou(sample.boxes[:, None], one.boxes[None]).max(axis=1, initial=0.0))
        letterbox = Letterbox.fit(sample.size, images.shape[1:3])
        mine = letterbox.undo_boxes(own[kinds >= 0])
        if len(mine) and len(sample.boxes):
            sizes.append(np.log(_side(sample.boxes) / _side(mine)))
            distance = np.abs(mine[:, None] - sample.boxes[None]).max(axis=-1).min(axis=1)
            apart.extend(distance / max(sample.size))
    size, far = (float(np.median(values)) if values else 0.0 for values in (sizes, apart))
    return Metric(metrics["mAP50"] or 0.0, float(np.median(best)), far, size, len(samples))


def _side(boxes) -> float:
    return float(np.median(np.sqrt(np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-6))))


def _scene(case):
    return case.examined(_predictors_scene)


def _predictors_scene(case):
    """The designed scene at the predictor's input size."""
    if case.predictor is None:
        return None
    size = tuple(case.predictor.input_size)
    scene = case.examined(outputs.examine)
    return scene if scene is None or scene.size == size else outputs.scene_of(case, size)


def tail_of(case) -> keras.Model | None:
    """What stands behind the grids in the predictor's own model; None where that cannot be told apart."""
    model, channels = getattr(case.predictor, "model", None), 5 + case.anchors.shape[1] + case.detector.num_classes
    for layer in reversed(getattr(model, "layers", ())):
        inputs = layer.input if isinstance(layer.input, (list, tuple)) else [layer.input]
        shapes = [tuple(tensor.shape) for tensor in inputs]
        if len(inputs) == len(case.detector.strides) and all(len(s) == 4 and s[-1] == channels for s in shapes):
            return keras.Model(list(inputs), model.output)
    return None


def _decoder(case):
    """A function from cells [B, N, 5 + A + C] to what the live predictor makes of them; None if it cannot be had."""
    tail = tail_of(case)
    return None if tail is None else lambda cells: _decoded(case, tail, cells)


def _decoded(case, tail, cells) -> dict:
    size = case.predictor.input_size
    layout = cell_geometry.layout_of(outputs.empty_outputs(case, 1, size), case.detector.strides)
    said = tail(cell_geometry.unflatten(ops.convert_to_tensor(cells, "float32"), layout), training=False)
    return {name: as_array(value) for name, value in said.items()}


class _Says:
    """Stands in for the predictor's network."""

    def __init__(self, decoded: dict):
        self.decoded, self.given = decoded, 0

    def predict_on_batch(self, images) -> dict:
        count = len(next(iter(self.decoded.values())))
        rows = np.minimum(np.arange(self.given, self.given + len(images)), count - 1)
        self.given += len(images)
        return {name: values[rows] for name, values in self.decoded.items()}

    def __call__(self, images, training=None) -> dict:
        return self.predict_on_batch(images)


@contextlib.contextmanager
def _told(predictor, decoded: dict):
    """The predictor with that for its network, and one view of every image."""
    kept, views = {name: getattr(predictor, name) for name in ("model", "network_seconds")}, predictor.views
    predictor.model = _Says(decoded)
    predictor.look_by([View(tuple(predictor.input_size), False)])
    try:
        yield predictor
    finally:
        predictor.look_by(views)
        for name, value in kept.items():
            setattr(predictor, name, value)


def _detect(case, decode, cells, images) -> list:
    with _told(case.predictor, decode(cells)) as predictor:
        return list(predictor.stream(images, batch_size=len(images)))


def _matched(scene, found, letterbox) -> list:
    """For every object that should be seen by itself: the best IoU of a detection of its class, and its shift."""
    rows = []
    for boxes, classes, one in zip(scene.boxes, scene.classes, found, strict=True):
        mine = classes >= 0
        boxes, classes = boxes[mine], classes[mine]
        if letterbox is not None:
            boxes = letterbox.undo_boxes(boxes, clip=False)
        clipped = np.clip(boxes, 0, (*one.size[::-1], *one.size[::-1])).astype("float64")
        seen = (clipped[:, 2:] - clipped[:, :2]).min(axis=1) > 0.5 * (boxes[:, 2:] - boxes[:, :2]).min(axis=1)
        for index in np.flatnonzero(seen & _alone(clipped, classes)):
            own = one.boxes[one.class_ids == classes[index]].astype("float64")
            overlaps = iou(own, clipped[index][None]) if len(own) else np.zeros(1)
            best = int(overlaps.argmax())
            shift = (own[best] - clipped[index])[:2] if len(own) else np.full(2, np.nan)
            rows.append((float(overlaps[best]), shift))
    return rows


def _alone(boxes, classes) -> np.ndarray:
    """Which objects overlap no other one of their class much."""
    same = (classes[:, None] == classes[None]) & ~np.eye(len(classes), dtype=bool)
    return ~(same & (iou(boxes[:, None], boxes[None]) > APART)).any(axis=1)


def _share(rows) -> float:
    return float(np.mean([overlap >= FOUND for overlap, _ in rows])) if rows else 1.0


def _scores(case, scene, decode, claims, classes) -> dict:
    """How scores follow from objectness and class."""
    image, cell = claims

    def own(cells) -> np.ndarray:
        return decode(cells)["scores"][image, cell, classes]

    logits = {p: np.log(p / (1.0 - p)) for p in (0.1, *HALVES)}
    softmax = getattr(case.criterion, "classification", case.detector.class_activation) == "softmax"

    def said(objectness: float, chosen: float) -> np.ndarray:
        cells = scene.cells.copy()
        right = cells[..., scene.first_class :] > 0.0
        others = -np.log(max(case.detector.num_classes - 1, 1)) if softmax else -outputs.CONFIDENCE
        cells[..., 4] = np.where(scene.positive, logits[objectness], cells[..., 4])
        cells[..., scene.first_class :] = np.where(right, logits[chosen], others)
        return own(cells)

    lifted = scene.cells.copy()
    lifted[..., scene.first_class :] = 0.0
    base, base_loss = own(lifted), outputs.measure_as_it_is(case, scene, lifted).sum("classification")
    lifted[..., scene.first_class :] = 2.0
    raised, raised_loss = own(lifted), outputs.measure_as_it_is(case, scene, lifted).sum("classification")
    best = decode(scene.cells)["scores"][image, cell].argmax(axis=-1)
    return {
        "class_shift": bool(np.abs(raised - base).max() > 0.01),
        "loss_class_shift": bool(abs(raised_loss - base_loss) > 0.01 * max(base_loss, 1e-9)),
        "score": float(np.median(said(*HALVES))),
        "scores_without": {
            "objectness": float(np.median(said(0.1, HALVES[1]))),
            "class": float(np.median(said(HALVES[0], 0.1))),
        },
        "wrong_class": float(np.mean(best != classes)),
    }


def _crowd(case, decode, size) -> tuple[int, int]:
    """Detections of one image full of small objects, and how many these are."""
    side = 2.0 * case.detector.strides[-1]
    columns, rows = int(size[1] // (2 * side)), int(size[0] // (2 * side))
    spots = [(column, row) for row in range(rows) for column in range(columns)][:CROWD]
    centres = (np.array(spots) + 0.5) * 2.0 * side + 0.21 * side
    boxes = np.concatenate([centres - side / 2.0, centres + side / 2.0], axis=1).astype("float32")[None]
    classes = (np.arange(len(spots)) % case.detector.num_classes).astype("int32")[None]
    scene = outputs.encoded_scene(case, boxes, classes, size)
    owning = as_array(scene.targets.positive)[0].any(axis=-1)
    (found,) = _detect(case, decode, scene.cells, [np.zeros((*size, 3), "uint8")])
    return len(found), int(owning.sum())


def _pairs(case) -> np.ndarray | None:
    """Two boxes of one class, the second slightly less sure, at growing overlaps: whether both are left."""
    suppression = getattr(case.predictor, "suppression", None)
    if not callable(suppression):
        return None
    kept = []
    for overlap in PAIRS:
        step = 100.0 * (1.0 - overlap) / (1.0 + overlap)
        boxes = np.array([[0, 0, 100, 100], [step, 0, 100 + step, 100]], "float32")
        two = Candidates(boxes, np.array([0.9, 0.8], "float32"), np.zeros(2, "int32"), np.arange(2))
        left = suppression(two, None, 0.3)
        kept.append(len(left.scores) > 1)
    return np.array(kept)
