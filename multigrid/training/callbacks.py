"""What watches a training: each callback does one thing, and what it measures goes into Keras' logs."""

from __future__ import annotations

import datetime
import math
import statistics
import time

import keras
import numpy as np

from multigrid import report
from multigrid.training.optimizers import MeasuredGradients, inner_optimizer


class DataEpoch(keras.callbacks.Callback):
    """Tells the training data which epoch it is: order, augmentation and the end of mosaic depend on it.

    Args:
        data: with an attribute `epoch`; data without one is left alone.
    """

    def __init__(self, data):
        super().__init__()
        self.data = data

    def on_epoch_begin(self, epoch, logs=None):
        if hasattr(self.data, "epoch"):
            self.data.epoch = epoch


class SwapEMAWeights(keras.callbacks.SwapEMAWeights):
    """Keras' own, but on JAX all stays on the devices, and no two variables are left with one array.

    A step of the model deletes its arrays when it is done with them, and with them those of the averages.
    """

    REMEMBERED = ("_ema_weights_in_model",)

    def _backend_swap_variables(self, optimizer):
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            kept = keras.ops.copy(variable)
            variable.assign(average)
            average.assign(kept)

    def _backend_finalize_ema_values(self, optimizer):
        averages = optimizer._model_variables_moving_average
        for variable, average in zip(optimizer._trainable_variables, averages, strict=True):
            average.assign(keras.ops.copy(variable))


class OptimizerFigures(keras.callbacks.Callback):
    """Adds learning_rate, grad_norm (mean over the epoch's updates, before clipping) and seconds to the logs.

    With an optimizer that knows the blocks of the network, see `optimizers.MeasuredGradients`, also grad_norm/<block>
    of each, NaN where it is frozen, and learning_rate/<block> of those whose multiplier is not 1. With an optimizer
    that keeps no norms grad_norm is NaN.
    """

    REMEMBERED = ("before",)

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()
        self.before = self._norm_sums()

    def on_epoch_end(self, epoch, logs=None):
        optimizer, rate = self._optimizer(), float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        logs["learning_rate"], logs["grad_norm"] = rate, math.nan
        if isinstance(optimizer, MeasuredGradients):
            multipliers = optimizer.block_multipliers.items()
            logs.update({f"learning_rate/{block}": rate * factor for block, factor in multipliers if factor != 1.0})
            logs.update(self._grad_norms(optimizer))
        logs["seconds"] = time.perf_counter() - self.began

    def _grad_norms(self, optimizer) -> dict:
        updates, *sums = [now - before for now, before in zip(self._norm_sums(), self.before, strict=True)]
        norm, *norms = [total / updates if updates else math.nan for total in sums]
        by_block = {f"grad_norm/{block}": value for block, value in zip(optimizer.blocks, norms, strict=True)}
        frozen = [f"grad_norm/{block}" for block in optimizer.blocks if block not in optimizer.block_of]
        return {"grad_norm": norm} | by_block | dict.fromkeys(frozen, math.nan)

    def _norm_sums(self) -> list[float] | None:
        """The updates so far, the sum of their norms, and that of each block."""
        optimizer = self._optimizer()
        if not isinstance(optimizer, MeasuredGradients):
            return None
        if not optimizer.built:  # before the first step
            return [0.0] * (2 + len(optimizer.blocks))
        kept = (optimizer.measured_updates, optimizer.gradient_norm_sum, optimizer.gradient_norm_sums)
        return [float(number) for values in kept for number in np.ravel(keras.ops.convert_to_numpy(values))]

    def _optimizer(self):
        return inner_optimizer(self.model.optimizer)


class ValidationMetrics(keras.callbacks.Callback):
    """Adds val_mAP50 and val_mAP to the logs.

    Args:
        evaluate: called without arguments, returns the metrics.
        every: epochs from one measurement to the next; the last is always measured.
        first_epoch: the one that measurements begin with.
    """

    def __init__(self, evaluate, every: int = 1, first_epoch: int = 0):
        super().__init__()
        self.evaluate, self.every, self.first_epoch = evaluate, every, first_epoch

    def on_epoch_end(self, epoch, logs=None):
        # the first epoch is due: Keras takes the first value it sees for the best, and nothing is better than NaN
        due = (epoch - self.first_epoch) % self.every == 0 or epoch + 1 == self.params["epochs"]
        metrics = self.evaluate() if due else {}
        for name in ("mAP50", "mAP"):
            logs[f"val_{name}"] = metrics.get(name, math.nan)


class EpochLines(keras.callbacks.Callback):
    """A progress bar an epoch and, when it ends, one line of its figures and how long the epochs to come will take.

    That is at the pace of the present `fit`: in another stage other layers may be frozen.

    Args:
        epochs: of the whole training; those of `fit` if None.
    """

    # the optional parts of the loss stand where there are any
    SHOWN = ("loss", "localization_loss", "objectness_loss", "anchor_loss", "classification_loss")
    SHOWN += ("consensus_loss", "suppression_loss", "val_loss")

    def __init__(self, epochs: int | None = None):
        super().__init__()
        self.epochs = epochs
        self.display = None
        self.began = None
        self.seconds = []  # of each epoch of this `fit`, validation included

    def on_train_begin(self, logs=None):
        self.display = report.StepProgress(self.params["steps"])
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()
        self.display.start(self._title(epoch))

    def on_train_batch_end(self, batch, logs=None):
        self.display.advance(f"loss {logs['loss']:.3f}")

    def on_epoch_end(self, epoch, logs=None):
        figures = [f"{name.removesuffix('_loss')} {_short(logs[name])}" for name in self.SHOWN if name in logs]
        # NaN where this epoch was not measured
        measured = [name for name in ("val_mAP50", "val_mAP") if not math.isnan(logs.get(name, math.nan))]
        figures += [f"{name} {logs[name]:.3f}" for name in measured]
        self.seconds.append(time.perf_counter() - self.began)
        left = self._epochs() - epoch - 1
        if left > 0:
            pace = statistics.mean(self.seconds[1:] or self.seconds)  # the first one builds the graphs too
            figures.append(f"{datetime.timedelta(seconds=round(left * pace))} to go")
        self.display.finish("  ".join([self._title(epoch), *figures]))

    def on_train_end(self, logs=None):
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; Keras ends no training that is interrupted."""
        if self.display is not None:
            self.display.stop()

    def _epochs(self) -> int:
        return self.epochs or self.params["epochs"]

    def _title(self, epoch: int) -> str:
        return f"epoch {epoch + 1}/{self._epochs()}"


def _short(number: float) -> str:
    return f"{number:.3f}" if abs(number) < 1e6 else f"{number:.3g}"
