"""MultiGridDetector: images to raw grids, and the loss that `fit` and `evaluate` share."""

import contextlib
import math

import keras
import numpy as np
from keras import layers, ops

from multigrid.config import LOSS_PARTS, ModelConfig, with_objectness
from multigrid.models.darknet import darknet53
from multigrid.models.head import STRIDES, detection_grids, grid_name

DEFAULTS = ModelConfig()
COUNT_NAMES = ("objects", "positives", "ignored")  # an image


@keras.saving.register_keras_serializable("multigrid")
class MultiGridDetector(keras.Model):
    """A backbone, a top-down neck and three grids of cells.

    Takes uint8 RGB images [B, H, W, 3], sides multiples of 32, and returns a list of raw float32 grids
    [B, H/stride, W/stride, 5 + A + C], strides 32, 16, 8. Scaling to [0, 1] is its first layer.

    Args:
        anchors: [3, A, 2] nested numbers, (width, height) in input pixels, coarse to fine.
        num_classes: C.
        width: multiplies the filters of neck and of the backbone that is made if none is given.
        depth: multiplies the residual blocks of that backbone.
        neck: "slim" or "full", see `models.head.detection_grids`.
        offset_activation: how offset logits are read, "sigmoid" or "tanh", see `geometry.cells.offset`.
        class_activation: how class logits are read, "sigmoid" or "softmax".
        objectness_prior: share of cells believed to hold an object before training, sets that bias.
        backbone: a `keras.Model` from float images in [0, 1] to {"stride_8", "stride_16", "stride_32"}; Darknet53 if
            None.
        criterion: a `MultiGridLoss`; needed to train and to evaluate, not to predict.
        dtype: Keras' dtype policy of the layers that are made here, such as "mixed_bfloat16"; the global one if None.

    Raises:
        ValueError: anchors of another shape, or a criterion that reads the grids in another way.
    """

    def __init__(
        self,
        anchors,
        num_classes: int,
        *,
        width: float = DEFAULTS.width,
        depth: float = DEFAULTS.depth,
        neck: str = DEFAULTS.neck,
        offset_activation: str = DEFAULTS.offset_activation,
        class_activation: str = "sigmoid",
        objectness_prior: float = DEFAULTS.objectness_prior,
        backbone: keras.Model | None = None,
        criterion=None,
        dtype=None,
        name: str = "multigrid_detector",
        **kwargs,
    ):
        anchors = np.asarray(anchors, "float32")
        if anchors.ndim != 3 or anchors.shape[0] != len(STRIDES) or anchors.shape[2] != 2:
            raise ValueError(f"anchors: expected shape [{len(STRIDES)}, A, 2], received {anchors.shape}")
        if criterion is not None:
            _check_criterion(criterion, anchors, num_classes, offset_activation, class_activation)
        with _dtype_policy(dtype):
            backbone = backbone or darknet53(width, depth)
            images = keras.Input((None, None, 3), dtype="uint8", name="images")
            features = backbone(layers.Rescaling(1.0 / 255.0, name="scale_to_unit")(images))
            grids = detection_grids(features, 5 + anchors.shape[1] + num_classes, width=width, neck=neck)
            super().__init__(images, grids, name=name, **kwargs)
        self.anchors = anchors.tolist()
        self.num_classes = num_classes
        self.width, self.depth, self.neck = width, depth, neck
        self.offset_activation, self.class_activation = offset_activation, class_activation
        self.objectness_prior = objectness_prior
        self.backbone = backbone
        self.criterion = criterion
        self.parts_tracker = LossParts(STRIDES)
        for stride in STRIDES:
            self.get_layer(grid_name(stride)).bias.assign(self.initial_bias())

    @property
    def strides(self) -> tuple:
        """Pixels a cell of each output, coarse to fine."""
        return STRIDES

    @property
    def prefers_xla(self) -> bool:
        """Whether XLA pays here: on the CPU it makes the Darknet53 step 2.2 times slower than plain TensorFlow."""
        return keras.backend.backend() != "tensorflow" or bool(keras.distribution.list_devices("gpu"))

    def call(self, inputs, training=None, mask=None):
        """Raw grids of uint8 images; see the class."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype != "uint8":
            raise TypeError(f"images: expected uint8 in 0..255 (scaling is inside), received {dtype}")
        sides = [side for side in inputs.shape[1:3] if side is not None]
        if any(side % STRIDES[0] for side in sides):
            raise ValueError(f"images: expected sides that are multiples of {STRIDES[0]}, received {inputs.shape}")
        return super().call(inputs, training=training, mask=mask)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        """The total loss of a batch; its parts go to the metrics. Keras calls it in `fit` and in `evaluate`.

        Raises:
            ValueError: there are sample weights, which Keras takes for losses of another kind.
        """
        if sample_weight is not None:
            raise ValueError(
                "sample_weight: expected none (class weights belong to the loss: MultiGridLoss(class_weights=...)), "
                "received some"
            )
        breakdown = self._breakdown(y, y_pred, self.losses)
        self.parts_tracker.update_state(breakdown)
        return breakdown.total

    def loss_breakdown(self, images, targets, training: bool = False):
        """Every part of the loss on a batch, without any change to the model.

        Args:
            images: uint8 [B, H, W, 3].
            targets: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.
            training: whether BatchNorm uses the statistics of this batch, as it does in `fit`.

        Returns:
            A `LossBreakdown`.
        """
        state = ([v.value for v in self.trainable_variables], [v.value for v in self.non_trainable_variables])
        outputs, _, losses = self.stateless_call(
            *state, ops.convert_to_tensor(images), training=training, return_losses=True
        )
        return self._breakdown(targets, outputs, losses)

    def get_config(self) -> dict:
        """The constructor's arguments; backbone and criterion are serialized with it."""
        names = ("anchors", "num_classes", "width", "depth", "neck", "offset_activation", "class_activation")
        config = {name: getattr(self, name) for name in (*names, "objectness_prior", "name")}
        config["dtype"] = self.dtype_policy.name
        config["backbone"] = keras.saving.serialize_keras_object(self.backbone)
        config["criterion"] = self.criterion and keras.saving.serialize_keras_object(self.criterion)
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> "MultiGridDetector":
        """The inverse of `get_config`."""

        def part(name):
            return config[name] and keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)

        with _dtype_policy(config.get("dtype")):  # Keras stores none for a model within
            return cls(**{**config, "backbone": part("backbone"), "criterion": part("criterion")})

    def _breakdown(self, y, y_pred, losses):
        """The criterion's breakdown; with what layers add of their own, such as the regularizers of a backbone."""
        if self.criterion is None:
            raise ValueError("criterion: expected a MultiGridLoss to train or evaluate with, received None")
        breakdown = self.criterion.breakdown(self.criterion.encode(y, y_pred), y_pred)
        if not losses:
            return breakdown
        added = sum(ops.cast(loss, "float32") for loss in losses)
        return breakdown._replace(total=breakdown.total + added, regularization=added)

    def initial_bias(self) -> np.ndarray:
        """The bias every grid starts with, [5 + A + C] float32: objects are rare, and all classes equally likely."""
        first_class = 5 + len(self.anchors[0])
        bias = np.zeros(first_class + self.num_classes, "float32")
        bias[4] = _logit(self.objectness_prior)
        bias[first_class:] = _logit(1.0 / max(2, self.num_classes))
        return bias


class LossParts(keras.metrics.Metric):
    """Running means of every part of the loss, weighted by the images of each batch, in all and for each scale.

    Args:
        strides: names the scales, coarse to fine.
    """

    def __init__(self, strides, name: str = "loss_parts"):
        super().__init__(name=name)
        self.strides = tuple(strides)
        shape = (len(LOSS_PARTS), len(self.strides))
        self.sums = self.add_variable(shape, "zeros", name="sums")
        self.counts = self.add_variable((len(COUNT_NAMES), len(self.strides)), "zeros", name="counts")
        self.images = self.add_variable((), "zeros", name="images")
        self.regularization = self.add_variable((), "zeros", name="regularization")
        self.regularized = False  # whether there is any is known when the model first runs

    def update_state(self, breakdown):
        """Adds a batch's `LossBreakdown`."""
        images = breakdown.counts["images"][0]
        parts = ops.stack([breakdown.parts[name] for name in LOSS_PARTS])
        self.sums.assign_add(ops.stop_gradient(parts) * images)
        self.counts.assign_add(ops.stack([breakdown.counts[name] for name in COUNT_NAMES]))
        self.images.assign_add(images)
        self.regularized = breakdown.regularization is not None
        if self.regularized:
            self.regularization.assign_add(ops.stop_gradient(breakdown.regularization) * images)

    def result(self) -> dict:
        """{"localization_loss", "object_loss", …, "objectness_loss", "<part>_loss_<stride>", …, "positives"}.

        And "regularization_loss", where layers of the model have losses of their own.
        """
        images = ops.maximum(self.images, 1.0)
        means, counts = self.sums / images, self.counts / images
        totals = ops.sum(means, axis=-1)
        by_part = with_objectness({name: totals[row] for row, name in enumerate(LOSS_PARTS)})
        logs = {f"{name}_loss": total for name, total in by_part.items()}
        if self.regularized:
            logs["regularization_loss"] = self.regularization / images
        for row, name in enumerate(LOSS_PARTS):
            for column, stride in enumerate(self.strides):
                logs[f"{name}_loss_{stride}"] = means[row, column]
        logs |= {name: ops.sum(counts[row]) for row, name in enumerate(COUNT_NAMES)}
        return logs


def _check_criterion(criterion, anchors, num_classes, offset_activation, class_activation) -> None:
    """Sees that detector and criterion read the grids in one way; a criterion of the caller's own may not say."""
    for key, own in (("num_classes", num_classes), ("offset_activation", offset_activation)):
        if getattr(criterion, key, own) != own:
            raise ValueError(f"criterion: expected its {key} to be {own!r}, received {getattr(criterion, key)!r}")
    theirs = np.asarray(getattr(criterion, "anchors", anchors), "float32")
    if theirs.shape != anchors.shape or not np.allclose(theirs, anchors):
        raise ValueError(f"criterion: expected its anchors to be {anchors.tolist()}, received {theirs.tolist()}")
    kind = getattr(criterion, "classification", class_activation)
    if (kind == "softmax") != (class_activation == "softmax"):
        raise ValueError(
            'criterion: expected classification "softmax" exactly where class_activation is "softmax", '
            f"received classification {kind!r} and class_activation {class_activation!r}"
        )


@contextlib.contextmanager
def _dtype_policy(policy):
    """Makes a dtype policy the global one while the block runs: layers take theirs from there."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(before if policy is None else policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _logit(probability: float) -> float:
    return math.log(probability / (1.0 - probability))
