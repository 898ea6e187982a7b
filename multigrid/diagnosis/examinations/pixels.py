"""What the images of the batches look like, and what of them reaches the backbone."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

IMAGES = 24  # that the first layers are shown
PLAIN = 1.0  # grey levels of standard deviation, up to which an image shows nothing


@dataclass(frozen=True)
class Pixels:
    """Of the training batches, in grey levels from 0 to 255.

    Attributes:
        means: of each channel.
        deviations: of each channel, over all images.
        plain: share of the images, of those with objects, that are of one colour.
        images: that have objects.
    """

    means: np.ndarray
    deviations: np.ndarray
    plain: float
    images: int


@dataclass(frozen=True)
class Received:
    """What the backbone is given of a batch.

    Attributes:
        low, high: least and greatest value.
        given: greatest value of the images themselves.
        plainly: whether the backbone begins with a convolution, and so wants its values scaled before.
        distance: of the batch from the statistics that the first BatchNorm has learned, in standard deviations; None
            where it has learned none.
        mended: the same after the values were scaled to 0..1.
        reversed: the same with the channels in the other order.
    """

    low: float
    high: float
    given: float
    plainly: bool
    distance: float | None
    mended: float | None
    reversed: float | None


def of_training(case) -> Pixels:
    """The images of the training batches."""
    values = [np.asarray(images, "float32") for images, _ in case.batches]
    labelled = np.concatenate([(np.asarray(truth["classes"]) >= 0).any(1) for _, truth in case.batches])
    moments = np.concatenate([np.stack([one.mean((1, 2)), (one**2).mean((1, 2))], 1) for one in values])
    spread = np.concatenate([one.std((1, 2)).max(-1) for one in values])
    means, squares = moments.mean(0)
    return Pixels(
        means=means,
        deviations=np.sqrt(np.maximum(squares - means**2, 0)),
        plain=float(np.mean(spread[labelled] < PLAIN)) if labelled.any() else 0.0,
        images=int(labelled.sum()),
    )


def received(case) -> Received | None:
    """What the layers before the backbone make of some images; None where the detector has no layers before it."""
    detector, images = case.detector, _some(case.batches)
    if not any(layer is detector.backbone for layer in detector.layers):
        return None
    values = ops.convert_to_tensor(images)
    for layer in detector.layers:
        if layer is detector.backbone:
            break
        if not isinstance(layer, keras.layers.InputLayer):
            values = layer(values)
    values = ops.convert_to_numpy(ops.cast(values, "float32"))
    first, norm = _beginning(detector.backbone)
    spread = float(values.max() - min(0.0, values.min())) or 1.0
    learned = norm is not None and _has_learned(norm)
    distances = [
        _distance(detector.backbone, norm, one) if learned else None
        for one in (values, values / spread * float(np.max(images)) / 255.0, values[..., ::-1])
    ]
    return Received(
        float(values.min()),
        float(values.max()),
        float(np.max(images)),
        isinstance(first, (keras.layers.Conv2D, keras.layers.ZeroPadding2D)),
        *distances,
    )


def _some(batches) -> np.ndarray:
    """Up to `IMAGES` images of one size, from all batches."""
    alike = [images for images, _ in batches if images.shape[1:] == batches[0][0].shape[1:]]
    each = -(-IMAGES // len(alike))
    return np.concatenate([images[:each] for images in alike])


def _beginning(backbone) -> tuple:
    """The first layer of a backbone that is not its input, and its first BatchNorm."""
    layers = [layer for layer in backbone.layers if not isinstance(layer, keras.layers.InputLayer)]
    norms = [layer for layer in layers if isinstance(layer, keras.layers.BatchNormalization)]
    return (layers[0] if layers else None), (norms[0] if norms else None)


def _has_learned(norm) -> bool:
    mean, variance = (ops.convert_to_numpy(value) for value in (norm.moving_mean, norm.moving_variance))
    return bool(np.any(mean != 0.0) and np.any(variance != 1.0))


def _distance(backbone, norm, values) -> float:
    """Mean over channels of how far mean and spread before the first BatchNorm are from what it has learned."""
    before = ops.convert_to_numpy(keras.Model(backbone.input, norm.input)(values)).astype("float64")
    mean, variance = (
        ops.convert_to_numpy(value).astype("float64") for value in (norm.moving_mean, norm.moving_variance)
    )
    deviation = np.sqrt(variance + 1e-6)
    shift = np.abs(before.mean((0, 1, 2)) - mean) / deviation
    spread = np.abs(np.log((before.std((0, 1, 2)) + 1e-4) / deviation))
    return float(np.median(shift + spread))


def detail(case) -> float | None:
    """Detail from pixel to pixel of training images, against validation images; None where there are none of these."""
    if not case.val_batches:
        return None
    return _roughness(case.batches) / max(_roughness(case.val_batches), 1e-6)


def _roughness(batches) -> float:
    """Median over the images of the mean difference between neighbours, in standard deviations of the image."""
    found = []
    for images, _ in batches:
        for image in np.asarray(images, "float32"):
            spread = max(float(image.std()), 1.0)
            found.append((np.abs(np.diff(image, axis=0)).mean() + np.abs(np.diff(image, axis=1)).mean()) / spread)
    return float(np.median(found))
