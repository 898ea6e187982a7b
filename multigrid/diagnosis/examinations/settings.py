"""Settings read back from the live objects, beside what the config asks for."""

from __future__ import annotations

import collections
import math
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.diagnosis.examinations.coverage import layers_with_weights
from multigrid.diagnosis.examinations.pace import peak_of, rates_of, schedule_of
from multigrid.models.blocks import blocks_of, head_blocks
from multigrid.training.optimizers import inner_optimizer
from multigrid.training.stages import plan_stages

SAME = 1e-4  # relative; float32 rounds


@dataclass(frozen=True)
class Difference:
    """A key of the config whose value is another one in the object that works with it."""

    key: str
    asked: object
    used: object


@dataclass(frozen=True)
class Optimization:
    """What the live optimizer does.

    Attributes:
        steps: batches of the whole run, or of its first stage; None where nobody planned one.
        peak: highest learning rate.
        peak_step: the first step that has it.
        first: learning rate of step 0.
        sum: of the learning rates of all steps; None where their number is not known.
        momentum: of SGD, or beta 1 of the Adam family; None where there is neither.
        adaptive: whether steps are divided by the size of the gradients.
        weight_decay: a number, 0 without.
        decayed: paths of decayed variables of normalizations and biases.
        clip: norm of all gradients that is clipped to, or of each, None without.
        clips_each: whether each variable is clipped by itself.
        ema: momentum of the average of weights; None without.
        accumulation: batches an update.
        multipliers: block name to multiplier, where it is not 1.
        epoch_steps: batches an epoch.
    """

    steps: int | None
    peak: float
    peak_step: int
    first: float
    sum: float | None
    momentum: float | None
    adaptive: bool
    weight_decay: float
    decayed: tuple[str, ...]
    clip: float | None
    clips_each: bool
    ema: float | None
    accumulation: int
    multipliers: dict
    epoch_steps: int


def optimization(case) -> Optimization:
    """The live optimizer of a `Case`, by its own attributes."""
    optimizer, detector = inner_optimizer(case.optimizer), case.detector
    if not case.optimizer.built:  # it knows what it spares only then
        case.optimizer.build(detector.trainable_variables)
    steps, schedule = planned_steps(case), schedule_of(optimizer)
    if schedule is None:
        peak = first = float(np.asarray(ops.convert_to_numpy(optimizer.learning_rate)))
        peak_step, total = 0, peak * steps if steps else None
    else:
        (peak_step, peak), (_, rates) = peak_of(schedule, steps), rates_of(schedule, steps)
        first, total = float(rates[0]), float(_mean(*rates_of(schedule, steps)) * steps) if steps else None
    each = getattr(optimizer, "clipnorm", None) or getattr(optimizer, "clipvalue", None)
    decay = float(optimizer.weight_decay or 0.0)
    return Optimization(
        steps=steps,
        peak=peak,
        peak_step=peak_step,
        first=first,
        sum=total,
        momentum=_first(optimizer, "beta_1", "momentum"),
        adaptive=hasattr(optimizer, "beta_2") or hasattr(optimizer, "rho"),
        weight_decay=decay,
        decayed=_decayed(optimizer, detector) if decay else (),
        clip=_plain(optimizer.global_clipnorm or each),
        clips_each=not optimizer.global_clipnorm and bool(each),
        ema=float(optimizer.ema_momentum) if optimizer.use_ema else None,
        accumulation=int(optimizer.gradient_accumulation_steps or 1),
        multipliers=dict(getattr(optimizer, "block_multipliers", {})),
        epoch_steps=len(case.train_data),
    )


def planned_steps(case) -> int | None:
    """Batches that the learning rate's schedule is for; None where no config says."""
    if case.config is None:
        return None
    stage = plan_stages(case.config.training, blocks_of(case.detector))[0]
    return len(case.train_data) * (stage.phase_end - stage.phase_first)


def differences(case) -> tuple[Difference, ...]:
    """The settings of a `Case` that do not reach the objects they are for; () where no config says what was asked."""
    if case.config is None:
        return ()
    return (*_of_optimizer(case), *_of_criterion(case), *_of_data(case), *_of_detector(case))


def _of_optimizer(case):
    training, live = case.config.training, case.examined(optimization)
    stage = plan_stages(training, blocks_of(case.detector))[0]
    asked = training.learning_rate if stage.learning_rate is None else stage.learning_rate
    yield from _compared("training.learning_rate", asked, live.peak, tolerance=0.05)  # a rise may end between two steps
    if live.momentum is not None:
        yield from _compared("training.momentum", training.momentum, live.momentum)
    if live.adaptive != (training.optimizer != "sgd"):
        yield Difference("training.optimizer", training.optimizer, "adaptive" if live.adaptive else "not adaptive")
    decay = 0.0 if training.optimizer == "adam" else training.weight_decay
    yield from _compared("training.weight_decay", decay, live.weight_decay)
    yield from _compared("training.max_grad_norm", training.max_grad_norm, live.clip)
    yield from _compared("training.ema", training.ema, live.ema)
    yield from _compared("training.gradient_accumulation", training.gradient_accumulation, live.accumulation)
    if live.multipliers or hasattr(inner_optimizer(case.optimizer), "block_multipliers"):
        yield from _of_multipliers(training, blocks_of(case.detector), live.multipliers)


def _of_multipliers(training, blocks, live):
    for block in blocks:
        asked = training.lr_multipliers.get(block, 1.0)
        in_head = block in head_blocks(blocks)
        asked *= training.head_lr_multiplier if in_head else 1.0
        key = "training.head_lr_multiplier" if in_head else "training.lr_multipliers"
        found = list(_compared(key, asked, live.get(block, 1.0)))
        if found:
            yield found[0]
            return


def _of_criterion(case):
    for key, asked in case.config.loss.model_dump().items():
        if key == "class_weights" and isinstance(asked, str):
            continue  # a rule, which is counted out
        if hasattr(case.criterion, key):
            yield from _compared(f"loss.{key}", asked, getattr(case.criterion, key))


def _of_data(case):
    config, data, images = case.config, case.train_data, case.batches[0][0]
    augmentation = config.augmentation
    if len(data) > 1:
        yield from _compared("training.batch_size", config.training.batch_size, len(images))
    if augmentation.multi_scale is None:
        yield from _compared("model.input_size", tuple(config.model.input_size), tuple(images.shape[1:3]))
    for key in ("mosaic", "mixup", "mosaic_off_epochs", "multi_scale", "min_visibility"):
        if hasattr(data, key):
            yield from _compared(f"augmentation.{key}", getattr(augmentation, key), getattr(data, key))


def _of_detector(case):
    model, detector = case.config.model, case.detector
    for key in ("offset_activation", "objectness_prior"):
        if hasattr(detector, key):
            yield from _compared(f"model.{key}", getattr(model, key), getattr(detector, key))
    asked, used = keras.DTypePolicy(model.precision).compute_dtype, case.examined(compute_dtypes)
    if asked not in used:
        yield Difference("model.precision", model.precision, ", ".join(used))


def compute_dtypes(case) -> dict:
    """How many layers with weights of a `Case`'s detector compute in each dtype."""
    return dict(collections.Counter(layer.compute_dtype for layer in layers_with_weights(case.detector)))


def _compared(key: str, asked, used, tolerance: float = SAME):
    asked, used = _plain(asked), _plain(used)
    if isinstance(asked, float) and isinstance(used, float):
        same = math.isclose(asked, used, rel_tol=tolerance, abs_tol=1e-12)
    else:
        same = asked == used
    if not same:
        yield Difference(key, asked, used)


def _plain(value):
    """Numbers as float, sequences as tuples of such."""
    if isinstance(value, (list, tuple)):
        return tuple(_plain(one) for one in value)
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return value
    return float(value)


def _first(holder, *names):
    return next((float(getattr(holder, name)) for name in names if hasattr(holder, name)), None)


def _decayed(optimizer, detector) -> tuple[str, ...]:
    """Paths of trainable vectors, which are biases and what normalizations learn, that the optimizer decays."""
    decays = getattr(optimizer, "_decays", None)
    found = []
    for index, variable in enumerate(detector.trainable_variables):
        decayed = decays[index] if decays and index < len(decays) else optimizer._use_weight_decay(variable)
        if decayed and len(variable.shape) < 2:
            found.append(variable.path)
    return tuple(found)


def _mean(at, rates) -> float:
    """The mean rate over the steps between the first and the last."""
    return float(np.trapezoid(rates, at) / max(1, at[-1] - at[0])) if len(at) > 1 else float(rates[0])
