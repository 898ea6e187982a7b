"""Keras' optimizers and schedules, put together from plain numbers."""

from __future__ import annotations

import keras
from keras import ops

from multigrid.config import TrainingConfig

OPTIMIZERS = ("adamw", "adam", "sgd")


class MeasuredGradients:
    """Mixin of an optimizer whose weight decay spares BatchNorm and biases, before and after a reload.

    It keeps the sum of the global gradient norms that it was given, before clipping.
    """

    def build(self, variables):
        if self.built:
            return
        self.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])  # Keras does not save this
        super().build(variables)
        self.gradient_norm_sum = self.add_variable((), name="gradient_norm_sum")

    def apply(self, grads, trainable_variables=None):
        norm = ops.sqrt(sum(ops.sum(ops.square(ops.cast(grad, "float32"))) for grad in grads if grad is not None))
        if not self.built:
            self.build(trainable_variables)
        self.gradient_norm_sum.assign_add(norm)
        return super().apply(grads, trainable_variables)


@keras.saving.register_keras_serializable("multigrid")
class AdamW(MeasuredGradients, keras.optimizers.AdamW):
    """Keras' AdamW, with the norm of its gradients."""


@keras.saving.register_keras_serializable("multigrid")
class Adam(MeasuredGradients, keras.optimizers.Adam):
    """Keras' Adam, with the norm of its gradients."""


@keras.saving.register_keras_serializable("multigrid")
class SGD(MeasuredGradients, keras.optimizers.SGD):
    """Keras' SGD, with the norm of its gradients."""


def build_optimizer(
    name: str,
    learning_rate,
    *,
    momentum: float,
    weight_decay: float,
    max_grad_norm: float | None,
    ema: float | None,
):
    """An optimizer whose weight decay spares BatchNorm and biases.

    Args:
        name: "adamw", "adam" or "sgd".
        learning_rate: number or Keras schedule.
        momentum: of SGD (Nesterov); beta 1 of Adam and AdamW.
        weight_decay: decoupled, of AdamW and SGD; Adam has none.
        max_grad_norm: gradients are scaled down to this global norm; None leaves them.
        ema: momentum of the moving average of the weights; None keeps none.

    Returns:
        A `keras.optimizers.Optimizer` with `gradient_norm_sum`.

    Raises:
        ValueError: an unknown name.
    """
    common = {"global_clipnorm": max_grad_norm}
    if ema is not None:
        common |= {"use_ema": True, "ema_momentum": ema}
    if name == "adam":
        return Adam(learning_rate, beta_1=momentum, **common)
    if name == "adamw":
        return AdamW(learning_rate, beta_1=momentum, weight_decay=weight_decay, **common)
    if name == "sgd":
        return SGD(learning_rate, momentum=momentum, nesterov=True, weight_decay=weight_decay, **common)
    raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, received {name!r}")


def warmup_cosine(learning_rate: float, *, steps: int, warmup_steps: int, final_fraction: float):
    """A schedule by step: up from 0 in a line, then down by a cosine.

    Args:
        learning_rate: the highest.
        steps: of the whole training.
        warmup_steps: of the rise, fewer than `steps`.
        final_fraction: share of the highest that is left at the end.

    Returns:
        Keras' `CosineDecay`.
    """
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup_steps else learning_rate,
        decay_steps=max(1, steps - warmup_steps),
        alpha=final_fraction,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )


def configured_optimizer(training: TrainingConfig, steps_per_epoch: int) -> keras.optimizers.Optimizer:
    """The optimizer of a config with its schedule: `training.warmup_epochs` up, then down to the last epoch."""
    steps = steps_per_epoch * training.epochs
    schedule = warmup_cosine(
        training.learning_rate,
        steps=steps,
        warmup_steps=min(round(training.warmup_epochs * steps_per_epoch), steps - 1),
        final_fraction=training.final_learning_rate_fraction,
    )
    return build_optimizer(
        training.optimizer,
        schedule,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        ema=training.ema,
    )
