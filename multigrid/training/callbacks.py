"""What watches a training: each callback does one thing, and what it measures goes into Keras' logs."""

from __future__ import annotations

import math
import time

import keras
import numpy as np

from multigrid import report


class NonFiniteLossError(RuntimeError):
    """The loss is no longer a number; the message names the part, the step and the images."""


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


class StopOnNonFinite(keras.callbacks.Callback):
    """Stops at the first step whose loss is NaN or infinite, and says what it was.

    Args:
        generator: the training data, asked for the image files of the batch.
    """

    def __init__(self, generator):
        super().__init__()
        self.generator = generator
        self.epoch = 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        # logs are means over the epoch so far: the first value that is not finite shows at its own step
        wrong = [name for name, value in (logs or {}).items() if not np.all(np.isfinite(value))]
        if wrong:
            parts = [name for name in wrong if name != "loss"] or wrong
            files = ", ".join(self.generator.files(batch)) if hasattr(self.generator, "files") else "unknown"
            raise NonFiniteLossError(
                f"epoch {self.epoch + 1}, step {batch + 1}: {', '.join(parts)} became {logs[parts[0]]}; "
                f"the batch shows {files}"
            )


class OptimizerFigures(keras.callbacks.Callback):
    """Adds learning_rate, grad_norm (mean over the epoch's steps, before clipping) and seconds to the logs.

    The norm is NaN with an optimizer that does not keep it, see `optimizers.MeasuredGradients`.
    """

    def on_epoch_begin(self, epoch, logs=None):
        self.began = time.perf_counter()
        self.before = self._counters()

    def on_epoch_end(self, epoch, logs=None):
        norm_sum, steps = self._counters()
        logs["learning_rate"] = float(keras.ops.convert_to_numpy(self.model.optimizer.learning_rate))
        logs["grad_norm"] = (norm_sum - self.before[0]) / max(1, steps - self.before[1])
        logs["seconds"] = time.perf_counter() - self.began

    def _counters(self):
        optimizer = getattr(self.model.optimizer, "inner_optimizer", self.model.optimizer)
        if not optimizer.built:  # before the first step
            return 0.0, 0
        total = getattr(optimizer, "gradient_norm_sum", None)
        return (math.nan if total is None else float(total.numpy())), int(optimizer.iterations.numpy())


class ValidationMetrics(keras.callbacks.Callback):
    """Adds val_mAP50 and val_mAP to the logs.

    Args:
        evaluate: called without arguments, returns the metrics.
        every: epochs from one measurement to the next, beginning with the first; the last is always measured.
    """

    def __init__(self, evaluate, every: int = 1):
        super().__init__()
        self.evaluate, self.every = evaluate, every

    def on_epoch_end(self, epoch, logs=None):
        # the first epoch is due: Keras takes the first value it sees for the best, and nothing is better than NaN
        due = epoch % self.every == 0 or epoch + 1 == self.params["epochs"]
        metrics = self.evaluate() if due else {}
        for name in ("mAP50", "mAP"):
            logs[f"val_{name}"] = metrics.get(name, math.nan)


class EpochLines(keras.callbacks.Callback):
    """A progress bar an epoch and, when it ends, one line of its figures."""

    SHOWN = ("loss", "localization_loss", "objectness_loss", "anchor_loss", "classification_loss", "val_loss")

    def __init__(self):
        super().__init__()
        self.display = None

    def on_train_begin(self, logs=None):
        self.display = report.StepProgress(self.params["steps"])

    def on_epoch_begin(self, epoch, logs=None):
        self.display.start(f"epoch {epoch + 1}/{self.params['epochs']}")

    def on_train_batch_end(self, batch, logs=None):
        self.display.advance(f"loss {logs['loss']:.3f}")

    def on_epoch_end(self, epoch, logs=None):
        figures = [f"{name.removesuffix('_loss')} {logs[name]:.3f}" for name in self.SHOWN if name in logs]
        # NaN where this epoch was not measured
        measured = [name for name in ("val_mAP50", "val_mAP") if not math.isnan(logs.get(name, math.nan))]
        figures += [f"{name} {logs[name]:.3f}" for name in measured]
        self.display.finish(f"epoch {epoch + 1}/{self.params['epochs']}  " + "  ".join(figures))

    def on_train_end(self, logs=None):
        self.stop()

    def stop(self) -> None:
        """Takes the bar away; Keras ends no training that is interrupted."""
        if self.display is not None:
            self.display.stop()
