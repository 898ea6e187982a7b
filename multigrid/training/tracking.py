"""What TensorBoard shows of a training: figures in groups, and pictures of predictions."""

from __future__ import annotations

import os
import pathlib
import re
import time

import cv2
import keras
import numpy as np

from multigrid.training import snapshots

_BY_STRIDE = re.compile(r"(.+)_(\d+)")
_NOT_ALWAYS_MEASURED = re.compile(r"val_mAP|grad_norm|learning_rate")
PICTURE_TAG = "predictions"
LONGEST_SIDE = 480  # of an image in TensorBoard, in pixels


class GroupedTensorBoard(keras.callbacks.TensorBoard):
    """Keras' TensorBoard with figures that belong together in one group, and validation in the chart of training.

    TensorBoard groups by what stands before a slash: localization_loss_32 becomes localization_loss/stride_32. A figure
    that an epoch did not measure (NaN) leaves a gap.

    Args:
        log_dir: the folder; runs "train" and "validation" go into it.
    """

    def __init__(self, log_dir: str | os.PathLike):
        super().__init__(log_dir, write_graph=False)

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, grouped(logs or {}))

    def on_test_end(self, logs=None):
        # Keras would write validation once more, each figure over steps and in a group of its own.
        super().on_test_end({})


def grouped(logs: dict) -> dict:
    """The figures of an epoch under names that TensorBoard groups, without those that were not measured.

    Args:
        logs: name -> number, as callbacks receive it.

    Returns:
        name -> number; <part>_loss_<stride> is <part>_loss/stride_<stride>, other names stay.
    """
    measured = {
        name: value for name, value in logs.items() if not (_NOT_ALWAYS_MEASURED.match(name) and np.isnan(value))
    }
    return {_BY_STRIDE.sub(r"\1/stride_\2", name) if "_loss_" in name else name: measured[name] for name in measured}


class PredictionPictures(keras.callbacks.Callback):
    """Pictures for TensorBoard of truth beside predictions, on the same images each time.

    Stands in the list after `SwapEMAWeights`, to show the averaged weights, and after all that may end the training, to
    see that an epoch is the last.

    Args:
        predictor: a `Predictor` with the model's weights.
        samples: labelled images; a few spread over them are shown.
        every: epochs from one picture to the next, beginning with the first; the last always has one.
        log_dir: the folder of TensorBoard; a run "pictures" goes into it.
        epochs: of the whole training, where `fit` runs only a stage of it.
    """

    def __init__(self, predictor, samples, every: int, log_dir: str | os.PathLike, epochs: int | None = None):
        super().__init__()
        self.predictor, self.samples = predictor, snapshots.spread(samples)
        self.every, self.epochs = every, epochs
        self.folder = pathlib.Path(log_dir) / "pictures"

    def on_epoch_end(self, epoch, logs=None):
        last = epoch + 1 == (self.epochs or self.params["epochs"]) or self.model.stop_training
        if epoch % self.every == 0 or last:
            sheet = snapshots.prediction_sheet(self.predictor, self.samples, LONGEST_SIDE)
            write_picture(self.folder, PICTURE_TAG, sheet, epoch)


def write_picture(folder: str | os.PathLike, tag: str, image: np.ndarray, step: int) -> None:
    """Adds a picture to the events of a TensorBoard run.

    Each is a file of its own: it is whole when this returns, whatever becomes of the process.

    Args:
        folder: of the run; it is made.
        tag: the name of the series.
        image: uint8 RGB [height, width, 3].
        step: its place in the series.
    """
    # Loaded here because it costs as much as all the rest of the module.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    written, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    if not written:
        raise OSError(f"{folder}: the picture {tag!r} could not be encoded")
    height, width, channels = image.shape
    picture = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=data.tobytes())
    summary = Summary(value=[Summary.Value(tag=tag, image=picture)])
    writer = EventFileWriter(os.fspath(folder))
    try:
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    finally:
        writer.close()
