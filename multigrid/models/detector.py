"""MultiGridDetector: images to raw grids, and the loss that `fit` and `evaluate` share."""

import contextlib
import math

import keras
import numpy as np
from keras import layers, ops

from multigrid.config import LOSS_PARTS, OPTIONAL_LOSS_PARTS, ModelConfig, with_objectness
from multigrid.models.darknet import darknet53
from multigrid.models.head import STRIDES, detection_grids, grid_name
from multigrid.replicas import normalizes_over_replicas, shared_out, sum_over_replicas

DEFAULTS = ModelConfig()
COUNT_NAMES = ("objects", "positives", "ignored")  # an image
PART_NAMES = (*LOSS_PARTS, *OPTIONAL_LOSS_PARTS)


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
        self._synchronize()
        self.drops_non_finite = False  # see `LossParts.update_state`; to be set before the first batch
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
        if keras.backend.backend() != "tensorflow":
            return True
        replicated = getattr(self, "_distribute_strategy", None) is not None  # XLA compiles for one device
        return bool(keras.distribution.list_devices("gpu")) and not replicated

    def call(self, inputs, training=None, mask=None):
        """Raw grids of uint8 images; see the class."""
        dtype = keras.backend.standardize_dtype(inputs.dtype)
        if dtype != "uint8":
            raise TypeError(f"images: expected uint8 in 0..255 (scaling is inside), received {dtype}")
        sides = [side for side in inputs.shape[1:3] if side is not None]
        if any(side % STRIDES[0] for side in sides):
            raise ValueError(f"images: expected sides that are multiples of {STRIDES[0]}, received {inputs.shape}")
        if not training:
            return super().call(inputs, training=training, mask=mask)
        (inputs,) = shared_out([inputs])
        statistics = self._moving_statistics()
        before = [ops.copy(variable) for variable in statistics]
        outputs = super().call(inputs, training=training, mask=mask)
        if statistics:
            after = [ops.copy(variable) for variable in statistics]
            finite = _all_finite([*outputs, ops.concatenate(after)])
            for variable, old, new in zip(statistics, before, after, strict=True):
                variable.assign(ops.where(finite, new, old))
        return outputs

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
        breakdown = self._breakdown(y, shared_out(y_pred), self.losses)
        self.parts_tracker.update_state(breakdown, self.drops_non_finite)
        # a loss that is not finite has no gradient that is: the optimizer, which sees gradients alone, must not step
        fault = ops.where(ops.isfinite(breakdown.total), 1.0, breakdown.total)
        return breakdown.total * ops.stop_gradient(fault)

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
        config["backbone"] = self._backbone_config()
        config["criterion"] = self.criterion and keras.saving.serialize_keras_object(self.criterion)
        return config

    @classmethod
    def from_config(cls, config: dict, custom_objects=None) -> "MultiGridDetector":
        """The inverse of `get_config`."""

        def part(name):
            return config[name] and keras.saving.deserialize_keras_object(config[name], custom_objects=custom_objects)

        with _dtype_policy(config.get("dtype")):  # Keras stores none for a model within
            return cls(**{**config, "backbone": part("backbone"), "criterion": part("criterion")})

    def _normalizations(self) -> list:
        """All BatchNorm layers."""
        layers_within = self._flatten_layers(include_self=False)
        return [layer for layer in layers_within if isinstance(layer, layers.BatchNormalization)]

    def _synchronize(self) -> None:
        """Under a strategy with several replicas BatchNorm looks at the images of all of them."""
        found = self._normalizations() if normalizes_over_replicas() else []
        self._synchronized = [layer for layer in found if not layer.synchronized]
        for layer in self._synchronized:
            layer.synchronized = True

    def _backbone_config(self) -> dict:
        """The backbone's, as it was before `_synchronize`: a saved detector is to load on one device, and on JAX."""
        for layer in self._synchronized:
            layer.synchronized = False
        try:
            return keras.saving.serialize_keras_object(self.backbone)
        finally:
            for layer in self._synchronized:
                layer.synchronized = True

    def _moving_statistics(self) -> list:
        """The variables that a training step moves without a gradient: those of BatchNorm that is not frozen."""
        return [v for layer in self._normalizations() if layer.trainable for v in layer.non_trainable_variables]

    def _breakdown(self, y, y_pred, losses):
        """The criterion's breakdown; with what layers add of their own, such as the regularizers of a backbone."""
        if self.criterion is None:
            raise ValueError("criterion: expected a MultiGridLoss to train or evaluate with, received None")
        breakdown = self.criterion.breakdown(self.criterion.encode(y, y_pred), y_pred)
        if not losses:
            return breakdown
        # of the weights, which all replicas share: the replicas' shares add up to them
        added = sum(ops.cast(loss, "float32") for loss in losses) / breakdown.replicas
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
        shape = (len(PART_NAMES), len(self.strides))
        self.sums = self.add_variable(shape, "zeros", name="sums")
        self.counts = self.add_variable((len(COUNT_NAMES), len(self.strides)), "zeros", name="counts")
        self.images = self.add_variable((), "zeros", name="images")
        self.regularization = self.add_variable((), "zeros", name="regularization")
        self.totals = self.add_variable((), "zeros", name="totals")
        self.dropped = self.add_variable((), "zeros", name="dropped")
        # what of these there is, is known when the model first runs
        self.parts, self.regularized, self.drops, self.replicated = tuple(LOSS_PARTS), False, False, False

    def update_state(self, breakdown, drop_non_finite: bool = False):
        """Adds a batch's `LossBreakdown`.

        Args:
            breakdown: of this replica's images; replicas keep a state each, and Keras adds these up.
            drop_non_finite: leave a batch whose total is not finite out of everything, and count it.
        """
        self.parts = tuple(name for name in PART_NAMES if name in breakdown.parts)
        self.regularized = breakdown.regularization is not None
        self.drops, self.replicated = drop_non_finite, breakdown.replicas > 1
        kept = _all_finite([breakdown.total]) if drop_non_finite else True
        images = breakdown.counts["images"][0]
        nothing = ops.zeros(len(self.strides))
        parts = ops.stack([breakdown.parts.get(name, nothing) for name in PART_NAMES])
        counts = ops.stack([breakdown.counts[name] for name in COUNT_NAMES])
        _add(self.sums, parts * images, kept)
        _add(self.totals, breakdown.total * images, kept)
        if self.regularized:
            _add(self.regularization, breakdown.regularization * images, kept)
        # counts are those of all replicas
        _add(self.counts, counts / breakdown.replicas, kept)
        _add(self.images, images / breakdown.replicas, kept)
        if drop_non_finite:
            self.dropped.assign_add(ops.where(kept, 0.0, 1.0 / breakdown.replicas))

    def result(self) -> dict:
        """{"localization_loss", "object_loss", …, "objectness_loss", "<part>_loss_<stride>", …, "positives"}.

        And "regularization_loss", where layers of the model have losses of their own; "dropped_batches", where some may
        be dropped; and "loss", where Keras' own mean of the totals would be wrong: it keeps what is dropped, and takes
        replicas for equally large. Means of which all was dropped are NaN.
        """
        images = ops.maximum(self.images, 1.0)
        if self.drops:
            images = ops.where((self.images == 0.0) & (self.dropped > 0.0), math.nan, images)
        means, counts = self.sums / images, self.counts / images
        by_scale = {name: means[row] for row, name in enumerate(PART_NAMES) if name in self.parts}
        by_part = with_objectness({name: ops.sum(values) for name, values in by_scale.items()})
        logs = {"loss": self.totals / images} if self.drops or self.replicated else {}
        logs |= {f"{name}_loss": total for name, total in by_part.items()}
        if self.regularized:
            logs["regularization_loss"] = self.regularization / images
        for name, values in by_scale.items():
            logs |= {f"{name}_loss_{stride}": values[column] for column, stride in enumerate(self.strides)}
        logs |= {name: ops.sum(counts[row]) for row, name in enumerate(COUNT_NAMES)}
        if self.drops:
            logs["dropped_batches"] = ops.convert_to_tensor(self.dropped)
        return logs


def _add(variable, value, kept) -> None:
    """Adds to a variable, unless a batch is dropped: what is not finite is left, not multiplied by 0."""
    value = ops.stop_gradient(value)
    variable.assign_add(value if kept is True else ops.where(kept, value, 0.0))


def _all_finite(tensors):
    """Whether all are, on all replicas: a scalar bool."""
    finite = ops.all(ops.stack([ops.all(ops.isfinite(tensor)) for tensor in tensors]))
    (not_finite,) = sum_over_replicas([ops.cast(~finite, "float32")])
    return not_finite == 0.0


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
