"""The devices that share a training: replicas of TensorFlow's MirroredStrategy, or Keras' distribution on JAX."""

from __future__ import annotations

import contextlib

import keras

from multigrid import report
from multigrid.errors import InputError
from multigrid.replicas import SharedBatches


def building(strategy: str) -> contextlib.AbstractContextManager:
    """Where a detector has to be made so that all devices train it.

    On JAX with more than one device, of this process or of several, it sets Keras' distribution, for good, unless
    there is one. On TensorFlow the block is the scope of a strategy, which the detector remembers.

    Args:
        strategy: "none", or "mirrored": TensorFlow's copies on all GPUs, or on all logical CPUs where there is no GPU.

    Returns:
        A context manager, for the lines that make the detector.

    Raises:
        InputError: "mirrored" on another backend.
    """
    backend = keras.backend.backend()
    if strategy == "mirrored" and backend != "tensorflow":
        raise InputError(
            f"training.strategy: expected none on the backend {backend}, which shares batches among all devices by "
            "itself (JAX) or not at all, received mirrored"
        )
    if backend == "jax":
        _share_batches()
    return _mirrored() if strategy == "mirrored" else contextlib.nullcontext()


def scope_of(detector: keras.Model) -> contextlib.AbstractContextManager:
    """Where the optimizer of a detector has to be made and built: the scope of the strategy it was made in."""
    strategy = getattr(detector, "_distribute_strategy", None)
    return contextlib.nullcontext() if strategy is None else strategy.scope()


def _mirrored() -> contextlib.AbstractContextManager:
    import tensorflow as tf

    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(devices) == 1:
        report.say(f"training.strategy: mirrored, but {devices[0].name} is the only device; as with none")
        return contextlib.nullcontext()
    report.say(f"each batch is shared among {len(devices)} devices: {', '.join(device.name for device in devices)}")
    return tf.distribute.MirroredStrategy([device.name for device in devices]).scope()


def _share_batches() -> None:
    devices = keras.distribution.list_devices()
    if len(devices) > 1 and keras.distribution.distribution() is None:
        keras.distribution.set_distribution(SharedBatches())
        report.say(f"each batch is shared among {len(devices)} devices: {', '.join(devices)}")
