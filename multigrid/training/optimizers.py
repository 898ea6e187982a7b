"""Keras' optimizers, put together from plain numbers: learning rates by block, measured gradients, safe steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import keras
import numpy as np
from keras import ops

from multigrid.config import TrainingConfig
from multigrid.errors import InputError
from multigrid.models.blocks import head_blocks
from multigrid.replicas import sum_over_replicas
from multigrid.training.schedules import WarmUp, build_schedule

OPTIMIZERS = ("adamw", "adam", "sgd")
SPARED = ["gamma", "beta", "bias"]  # names of variables without weight decay


class MeasuredGradients:
    """Mixin of an optimizer whose steps are measured, by block, and change nothing where a gradient is not finite.

    The gradients of all replicas are summed before anything else, then gathered over `gradient_accumulation_steps`
    batches (a mean over those that were finite), measured, clipped and applied. Weight decay spares BatchNorm and
    biases and is decoupled; it and the update itself go by the learning rate of the variable's block.

    Args:
        block_of: variable path to block name, or the block names of the trainable variables in their order, as a saved
            optimizer has them (paths may change when a model is loaded); None knows no blocks.
        blocks: their names in the order of `gradient_norm_sums`; as they first occur in `block_of` if empty.
        block_multipliers: block name to what multiplies the learning rate there; 1 where there is none.

    Attributes, after `build`:
        block_of: the block of each trainable variable, in their order; empty where none are known.
        gradient_norm_sum: float32, the global norms of the gradients before clipping, summed over all updates.
        gradient_norm_sums: float32 [blocks], likewise of each block alone.
        measured_updates: int, the updates in both; an update without a finite gradient is none.
        non_finite_steps: int, the batches that were dropped.
    """

    def __init__(self, *args, block_of=None, blocks=(), block_multipliers=None, **kwargs):
        super().__init__(*args, **kwargs)
        if self.ema_overwrite_frequency:
            raise ValueError(f"ema_overwrite_frequency: expected None, received {self.ema_overwrite_frequency}")
        block_of = block_of or ()
        self.block_of = dict(block_of) if isinstance(block_of, Mapping) else tuple(block_of)
        self.blocks = tuple(blocks) or _names(block_of)
        self.block_multipliers = dict(block_multipliers or {})
        unknown = {*_names(block_of), *self.block_multipliers} - {*self.blocks}
        if unknown:
            raise ValueError(f"blocks: expected all of {sorted(unknown)}, received {', '.join(self.blocks) or 'none'}")

    def build(self, variables):
        if self.built:
            return
        self.exclude_from_weight_decay(var_names=SPARED)  # Keras does not save this
        super().build(variables)
        rows = self.block_of = self._blocks_in_order(variables)
        self._multipliers = tuple(self.block_multipliers.get(block, 1.0) for block in rows) or (1.0,) * len(variables)
        self._decays = tuple(bool(self.weight_decay) and self._use_weight_decay(variable) for variable in variables)
        self._members = np.zeros((len(self.blocks), len(variables)), "float32")
        for column, block in enumerate(rows):
            self._members[self.blocks.index(block), column] = 1.0
        self.gradient_norm_sum = self.add_variable((), name="gradient_norm_sum", dtype="float32")
        self.gradient_norm_sums = self.add_variable((len(self.blocks),), name="gradient_norm_sums", dtype="float32")
        self.measured_updates = self.add_variable((), name="measured_updates", dtype="int")
        self.non_finite_steps = self.add_variable((), name="non_finite_steps", dtype="int")
        # What `assign` and its kin ask; a variable, because TensorFlow updates each replica's copies in a context where
        # no tensor of the replica's own can be seen.
        self._moves = self.add_variable((), name="moves", dtype="float32")
        if self.gradient_accumulation_steps:
            self._gathered = self.add_variable((), name="gathered", dtype="float32")

    def update_step(self, gradient, variable, learning_rate):
        """Weight decay and update of one variable, with the learning rate of its block."""
        index = self._get_variable_index(variable)
        rate = ops.cast(learning_rate, variable.dtype) * self._multipliers[index]
        if self._decays[index]:
            self.assign_sub(variable, variable * (rate * self.weight_decay))
        super().update_step(gradient, variable, rate)

    def assign(self, variable, value):
        super().assign(variable, ops.where(self._moves > 0.0, value, ops.convert_to_tensor(variable)))

    def assign_add(self, variable, value):
        super().assign_add(variable, self._or_nothing(value))

    def assign_sub(self, variable, value):
        super().assign_sub(variable, self._or_nothing(value))

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "block_of": dict(self.block_of) if isinstance(self.block_of, Mapping) else list(self.block_of),
            "blocks": list(self.blocks),
            "block_multipliers": dict(self.block_multipliers),
        }

    def _backend_apply_gradients(self, grads, trainable_variables):
        """All that a step does, in place of Keras' own, which clips and gathers before it sums over the replicas.

        Nothing here branches on a tensor: `MirroredStrategy` allows no branch around an update.
        """
        grads = sum_over_replicas([ops.convert_to_tensor(grad) for grad in grads])
        squares = _squares(grads)
        moves = ops.isfinite(ops.sum(squares))
        self.non_finite_steps.assign_add(ops.cast(ops.logical_not(moves), self.non_finite_steps.dtype))
        indices = [self._get_variable_index(variable) for variable in trainable_variables]
        if self.gradient_accumulation_steps:
            grads, moves = self._gather(grads, moves, [self._accumulated_gradients[index] for index in indices])
            squares = _squares(grads)
            moves = ops.logical_and(moves, ops.isfinite(ops.sum(squares)))
        self._moves.assign(ops.cast(moves, "float32"))
        norm = ops.sqrt(ops.sum(squares))
        self._measure(norm, ops.sqrt(ops.sum(self._members[:, indices] * squares, axis=1)))
        self._backend_update_step(self._clip(grads, norm), trainable_variables, self.learning_rate)
        if self.use_ema:
            self._update_model_variables_moving_average(self._trainable_variables)

    def _gather(self, grads, finite, accumulators):
        """Adds a batch's gradients to those before it, if they are finite.

        Returns:
            Their mean so far, and whether an update is due that has any.
        """
        batch = self._iterations % self.gradient_accumulation_steps
        last = ops.equal(batch, self.gradient_accumulation_steps - 1)
        before = ops.where(ops.equal(batch, 0), 0.0, ops.convert_to_tensor(self._gathered))
        gathered = before + ops.cast(finite, "float32")
        self._gathered.assign(gathered)
        sums = [total + ops.where(finite, grad, 0.0) for total, grad in zip(accumulators, grads, strict=True)]
        for accumulator, total in zip(accumulators, sums, strict=True):
            accumulator.assign(ops.where(last, 0.0, total))
        return [total / ops.maximum(gathered, 1.0) for total in sums], ops.logical_and(last, gathered > 0.0)

    def _measure(self, norm, norms) -> None:
        self.gradient_norm_sum.assign_add(self._or_nothing(norm))
        self.gradient_norm_sums.assign_add(self._or_nothing(norms))
        self.measured_updates.assign_add(ops.cast(self._moves, self.measured_updates.dtype))

    def _clip(self, grads, norm):
        if not self.global_clipnorm:
            return self._clip_gradients(grads)
        scale = ops.minimum(self.global_clipnorm / norm, 1.0)
        return [grad * ops.cast(scale, grad.dtype) for grad in grads]

    def _or_nothing(self, value):
        return ops.where(self._moves > 0.0, value, 0.0)

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras' sum over the replicas on TensorFlow, which is made before."""
        return grads_and_vars

    def _blocks_in_order(self, variables) -> tuple[str, ...]:
        """The block of each variable; none at all where none are known."""
        if not isinstance(self.block_of, Mapping):
            if self.block_of and len(self.block_of) != len(variables):
                raise ValueError(
                    f"block_of: expected the blocks of {len(variables)} variables, received {len(self.block_of)}"
                )
            return self.block_of
        missing = [variable.path for variable in variables if variable.path not in self.block_of]
        if missing:
            raise ValueError(f"block_of: expected the block of every variable, received none of {', '.join(missing)}")
        return tuple(self.block_of[variable.path] for variable in variables)


@keras.saving.register_keras_serializable("multigrid")
class AdamW(MeasuredGradients, keras.optimizers.AdamW):
    """Keras' AdamW with measured steps."""


@keras.saving.register_keras_serializable("multigrid")
class Adam(MeasuredGradients, keras.optimizers.Adam):
    """Keras' Adam with measured steps."""


@keras.saving.register_keras_serializable("multigrid")
class SGD(MeasuredGradients, keras.optimizers.SGD):
    """Keras' SGD with measured steps."""


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer within a `LossScaleOptimizer`, which Keras puts around it for float16; else itself."""
    return getattr(optimizer, "inner_optimizer", optimizer)


def first_weights_share(momentum: float, steps: int) -> float:
    """The share that the first weights have in a moving average of this momentum after so many steps."""
    return momentum**steps


def average_for(steps: int) -> float:
    """A momentum whose average has left the first weights behind after so many steps."""
    return min(0.99, max(0.5, 1.0 - 10.0 / steps))


def build_optimizer(
    name: str,
    learning_rate,
    *,
    momentum: float,
    weight_decay: float,
    max_grad_norm: float | None,
    ema: float | None,
    gradient_accumulation: int = 1,
    block_of: Mapping[str, str] | None = None,
    blocks: Sequence[str] = (),
    block_multipliers: Mapping[str, float] | None = None,
):
    """An optimizer that spares BatchNorm and biases its weight decay and measures its steps, see `MeasuredGradients`.

    Args:
        name: "adamw", "adam" or "sgd".
        learning_rate: number or Keras schedule.
        momentum: of SGD (Nesterov); beta 1 of Adam and AdamW.
        weight_decay: decoupled, of AdamW and SGD; Adam has none.
        max_grad_norm: gradients are scaled down to this global norm; None leaves them.
        ema: momentum of the moving average of the weights, by batch; None keeps none.
        gradient_accumulation: batches whose mean gradient makes one update.
        block_of: variable path to block name.
        blocks: block names in the order in which norms are reported; as they first occur in `block_of` if empty.
        block_multipliers: block name to what multiplies its learning rate; 1 where there is none.

    Returns:
        A `keras.optimizers.Optimizer` with the attributes of `MeasuredGradients`.

    Raises:
        ValueError: an unknown name, or multipliers of unknown blocks.
    """
    common = {
        "global_clipnorm": max_grad_norm,
        "gradient_accumulation_steps": gradient_accumulation if gradient_accumulation > 1 else None,
        "block_of": block_of,
        "blocks": blocks,
        "block_multipliers": block_multipliers,
    }
    if ema is not None:
        common |= {"use_ema": True, "ema_momentum": ema}
    if name == "adam":
        return Adam(learning_rate, beta_1=momentum, **common)
    if name == "adamw":
        return AdamW(learning_rate, beta_1=momentum, weight_decay=weight_decay, **common)
    if name == "sgd":
        return SGD(learning_rate, momentum=momentum, nesterov=True, weight_decay=weight_decay, **common)
    raise ValueError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, received {name!r}")


def configured_optimizer(
    training: TrainingConfig,
    steps_per_epoch: int,
    *,
    epochs: int | None = None,
    learning_rate: float | None = None,
    block_of: Mapping[str, str] | None = None,
    blocks: Sequence[str] = (),
) -> keras.optimizers.Optimizer:
    """The optimizer of a config with its schedule.

    The schedule counts batches, as `steps_per_epoch` does, and not updates: with `gradient_accumulation` 3 and 7
    batches an epoch it ends with the last batch of the last epoch all the same. Each update is made at the learning
    rate of the last of its batches; batches that are left when the training ends make none.

    Args:
        training: a section of the config.
        steps_per_epoch: batches.
        epochs, learning_rate: of a stage, instead of the config's.
        block_of, blocks: as `build_optimizer`; needed where the config multiplies learning rates.

    Returns:
        As `build_optimizer`. With schedule plateau its learning rate is a number, see `configured_warmup`.

    Raises:
        InputError: learning rates for blocks that there are not, or an exponential schedule that should end at 0.
    """
    steps, warmup_steps = _steps(training, steps_per_epoch, epochs)
    schedule = build_schedule(
        training.schedule,
        training.learning_rate if learning_rate is None else learning_rate,
        steps=steps,
        warmup_steps=warmup_steps,
        final_fraction=training.final_learning_rate_fraction,
        step_boundaries=training.step_epochs and [epoch * steps_per_epoch for epoch in training.step_epochs],
        step_factor=training.step_factor,
    )
    blocks = tuple(blocks) or _names(block_of)
    return build_optimizer(
        training.optimizer,
        schedule,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        max_grad_norm=training.max_grad_norm,
        ema=training.ema,
        gradient_accumulation=training.gradient_accumulation,
        block_of=block_of,
        blocks=blocks,
        block_multipliers=_multipliers(training, blocks),
    )


def configured_warmup(
    training: TrainingConfig, steps_per_epoch: int, *, epochs: int | None = None, learning_rate: float | None = None
) -> WarmUp | None:
    """The callback that schedule plateau rises by; None with the others, which rise by themselves."""
    if training.schedule != "plateau":
        return None
    _, warmup_steps = _steps(training, steps_per_epoch, epochs)
    return WarmUp(training.learning_rate if learning_rate is None else learning_rate, warmup_steps)


def _steps(training: TrainingConfig, steps_per_epoch: int, epochs: int | None) -> tuple[int, int]:
    """Batches of the whole training, and of its warm-up."""
    steps = steps_per_epoch * (training.epochs if epochs is None else epochs)
    return steps, min(round(training.warmup_epochs * steps_per_epoch), steps - 1)


def _multipliers(training: TrainingConfig, blocks: Sequence[str]) -> dict[str, float]:
    """What multiplies the learning rate of each block where it is not 1."""
    unknown = [block for block in training.lr_multipliers if block not in blocks]
    if unknown:
        known = ", ".join(blocks) or "none, the blocks of the network were not handed over"
        raise InputError(f"training.lr_multipliers: expected names of blocks ({known}), received {', '.join(unknown)}")
    if training.head_lr_multiplier != 1.0 and not blocks:
        raise ValueError("block_of: expected the blocks that head_lr_multiplier is for, received none")
    factors = {block: 1.0 for block in blocks}
    factors |= {block: training.head_lr_multiplier for block in head_blocks(list(blocks))}
    factors = {block: factor * training.lr_multipliers.get(block, 1.0) for block, factor in factors.items()}
    return {block: factor for block, factor in factors.items() if factor != 1.0}


def _names(block_of) -> tuple[str, ...]:
    """The block names in a mapping or a sequence, each once."""
    return tuple(dict.fromkeys(block_of.values() if isinstance(block_of, Mapping) else block_of or ()))


def _squares(grads):
    """The sum of squares of each gradient, float32 [gradients]."""
    return ops.stack([ops.sum(ops.square(ops.cast(grad, "float32"))) for grad in grads])
