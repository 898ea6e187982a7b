"""Config to objects: the one place that knows both."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np

from multigrid import report
from multigrid.config import SHAPES, Config
from multigrid.data import shapes
from multigrid.data.defects import describe_defects
from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.images import Letterbox, check_images
from multigrid.data.samples import Sample, read_class_names, read_samples
from multigrid.errors import InputError
from multigrid.geometry.anchor_fit import match_statistics
from multigrid.geometry.anchors import Anchors, read_anchors
from multigrid.losses.components import balance_classes
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.models.detector import MultiGridDetector
from multigrid.models.ledger import Ledger
from multigrid.models.weights import load_weights

MANY_IMAGES = 2000  # fewer are looked at in seconds: no line in a log

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Vocabulary:
    """What a detector is made for: its classes and anchors."""

    class_names: tuple
    anchors: Anchors


def read_vocabulary(config: Config) -> Vocabulary:
    """Class names and anchors of a config.

    Raises:
        InputError: a key that is null, or a file that does not hold what it should.
    """
    for key in ("classes", "anchors"):
        if getattr(config.data, key) is None:
            raise InputError(f"data.{key}: expected a file, received null")
    anchors = read_anchors(config.data.anchors)
    return Vocabulary(tuple(read_class_names(config.data.classes)), anchors)


def read_split(config: Config, split: str, class_names: Sequence[str]) -> list[Sample]:
    """The samples of a split, every image proved readable; what was dropped is said once.

    Args:
        config: names the labels.
        split: "train", "val" or "test".
        class_names: one a class.

    Raises:
        InputError: no labels for this split, unreadable labels or images, or a defect where `data.strict` is set.
    """
    source = getattr(config.data, split)
    if source is None:
        raise InputError(f"data.{split}: expected labels, received null")
    if source == SHAPES:
        _check_drawn_classes(split, class_names)
        source = _drawn(config)[split]
    with report.counting(f"data.{split}: image sizes", MANY_IMAGES) as progress:
        samples, defects = read_samples(source, class_names, split=split, strict=config.data.strict, progress=progress)
    if defects:
        logger.warning("data.%s: %s", split, describe_defects(defects, samples))
    with report.counting(f"data.{split}: opening images", MANY_IMAGES) as progress:
        check_images((sample.path for sample in samples), progress)
    return samples


def network_sizes(samples: Sequence[Sample], input_size) -> np.ndarray:
    """(width, height) of every box as the network sees it: [N, 2] float32 in input pixels."""
    boxes = [Letterbox.fit(sample.size, input_size).apply_boxes(sample.boxes) for sample in samples]
    corners = np.concatenate([np.zeros((0, 4), "float32"), *boxes])
    return corners[:, 2:] - corners[:, :2]


def warn_about_anchors(config: Config, anchors: Anchors, samples: Sequence[Sample]) -> None:
    """Logs, with numbers, that anchors do not fit the boxes, where they do not."""
    sizes = network_sizes(samples, config.model.input_size)
    if len(sizes):
        command = f"multigrid anchors --config YOUR.yaml --output anchors.txt data.train={config.data.train}"
        warning = match_statistics(anchors, sizes).warning(command)
        if warning:
            logger.warning("data.anchors: %s", warning)


def build_generator(config: Config, samples: Sequence[Sample], *, training: bool) -> MultiGridDataGenerator:
    """Batches of samples: shuffled and augmented in training, as they are otherwise."""
    plain = {
        "input_size": config.model.input_size,
        "batch_size": config.training.batch_size,
        "seed": config.training.seed,
        "cache": config.data.cache,
        "workers": config.data.workers,
    }
    if not training:
        return MultiGridDataGenerator(samples, **plain)
    augmentation = config.augmentation
    return MultiGridDataGenerator(
        samples,
        **plain,
        augmentation=augmentation.steps,
        mosaic=augmentation.mosaic,
        mixup=augmentation.mixup,
        mosaic_off_epochs=augmentation.mosaic_off_epochs,
        epochs=config.training.total_epochs,
        multi_scale=augmentation.multi_scale,
        min_visibility=augmentation.min_visibility,
        shuffle=True,
    )


def build_criterion(config: Config, vocabulary: Vocabulary, samples: Sequence[Sample] = ()) -> MultiGridLoss:
    """The loss of a config.

    Args:
        config: names the options.
        vocabulary: classes and anchors.
        samples: what class weights are counted on, where `loss.class_weights` is a rule.

    Raises:
        InputError: class weights that are not one a class, or a rule without samples.
    """
    options = config.loss.model_dump()
    options["class_weights"] = _class_weights(config, vocabulary, samples)
    return MultiGridLoss(
        vocabulary.anchors.to_list(),
        len(vocabulary.class_names),
        offset_activation=config.model.offset_activation,
        **options,
    )


def build_detector(config: Config, vocabulary: Vocabulary, criterion: MultiGridLoss | None = None):
    """The detector of a config with the seed's weights; `load_configured_weights` gives it those of files."""
    model = config.model
    keras.utils.set_random_seed(config.training.seed)
    return MultiGridDetector(
        vocabulary.anchors.to_list(),
        len(vocabulary.class_names),
        width=model.width,
        depth=model.depth,
        neck=model.neck,
        offset_activation=model.offset_activation,
        class_activation="softmax" if config.loss.classification == "softmax" else "sigmoid",
        objectness_prior=model.objectness_prior,
        criterion=criterion,
        dtype=model.precision,
    )


def load_configured_weights(config: Config, detector: MultiGridDetector, *, required: str = "all") -> list[Ledger]:
    """Gives a detector the weights that the config names: first those of the backbone, then those of all of it.

    Args:
        config: names the files, if any.
        detector: of this config.
        required: of `weights`, see `models.weights.load_weights`: "all" to use a detector, "backbone" to train it.

    Returns:
        The ledger of each file.

    Raises:
        InputError: files that do not hold what is required, or only part of it where `allow_partial` is not set.
    """
    ledgers, partial = [], config.allow_partial and required != "all"  # who uses a detector wants all of it
    if config.backbone_weights is not None:
        ledgers.append(load_weights(detector.backbone, config.backbone_weights, allow_partial=partial))
    if config.weights is not None:
        ledgers.append(load_weights(detector, config.weights, required=required, allow_partial=partial))
    return ledgers


def detection_options(config: Config, *, evaluating: bool) -> dict:
    """A pipeline's arguments by the config: with the low threshold to evaluate, else with the one for the eye."""
    options = config.detection.model_dump()
    for_the_eye = options.pop("predict_threshold")
    if not evaluating:
        options["score_threshold"] = for_the_eye
    return {**options, "batch_size": config.training.batch_size}


def _check_drawn_classes(split: str, class_names: Sequence[str]) -> None:
    """Sees that drawn scenes are not taken for somebody's own classes, as where only some splits were replaced."""
    if tuple(class_names) != shapes.CLASS_NAMES:
        raise InputError(
            f"data.{split}: expected labels of {', '.join(class_names)}, received {SHAPES!r}, "
            f"which has {', '.join(shapes.CLASS_NAMES)}; set data.{split}=LABELS, or null to have none"
        )


def _drawn(config: Config) -> dict:
    """The embedded data set, drawn unless it is there already."""
    drawing = config.data.shapes
    counts = {split: getattr(drawing, split) for split in ("train", "val", "test")}
    with report.counting(f"drawing scenes into {drawing.folder}", MANY_IMAGES) as progress:
        return shapes.draw_data_set(drawing.folder, counts=counts, seed=drawing.seed, format="yolo3", progress=progress)


def _class_weights(config, vocabulary, samples):
    weights, names = config.loss.class_weights, vocabulary.class_names
    if isinstance(weights, str):
        if not samples:
            raise InputError(f"loss.class_weights: expected training labels to count for {weights!r}, received none")
        counts = np.bincount(np.concatenate([sample.classes for sample in samples]), minlength=len(names))
        return balance_classes(counts, weights)
    if weights is not None and len(weights) != len(names):
        raise InputError(f"loss.class_weights: expected {len(names)} numbers, one a class, received {len(weights)}")
    return weights
