"""Several processes that make one training, usually one a host (JAX); the first of them writes and prints.

Everything here but `is_first` is to be called by all processes, in the same order: each waits for the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterator

import keras
import numpy as np

from multigrid import report
from multigrid.errors import InputError

VARIABLES = tuple(f"KERAS_DISTRIBUTION_{name}" for name in ("JOB_ADDRESSES", "NUM_PROCESSES", "PROCESS_ID"))
LONGEST = 65536  # bytes of a value that `agreed` carries


def join_processes() -> bool:
    """Joins the processes that Keras' environment variables name; to be called before anything is computed.

    In all but the first nothing is printed from then on.

    Returns:
        Whether there are such variables.

    Raises:
        InputError: some of the variables without the others, or another backend than JAX.
    """
    named = [name for name in VARIABLES if os.environ.get(name)]
    if not named:
        return False
    missing = [name for name in VARIABLES if name not in named]
    if missing:
        raise InputError(f"environment: expected {', '.join(missing)} beside {', '.join(named)}, received none")
    if keras.backend.backend() != "jax":
        raise InputError(f"{VARIABLES[0]}: expected the backend jax, received {keras.backend.backend()}")
    keras.distribution.initialize()
    if not is_first():
        report.silence()
    return True


def process_count() -> int:
    """How many processes share this training; 1 on TensorFlow."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    if keras.backend.backend() != "jax":
        return True
    import jax

    return jax.process_index() == 0


def agreed(value):
    """The value that the first process gives, on all processes; what the others give is ignored.

    Args:
        value: what JSON can hold, NaN included, in up to `LONGEST` bytes.
    """
    if process_count() == 1:
        return value
    from jax.experimental import multihost_utils

    text = json.dumps(value).encode()
    if len(text) > LONGEST:
        raise ValueError(f"value: expected at most {LONGEST} bytes of JSON, received {len(text)}")
    message = np.zeros(LONGEST, "uint8")
    message[: len(text)] = np.frombuffer(text, "uint8")
    return json.loads(bytes(multihost_utils.broadcast_one_to_all(message)).rstrip(b"\0"))


def by_first(work: Callable):
    """Does something on the first process alone.

    Args:
        work: a function without arguments; what it returns, JSON can hold.

    Returns:
        What it returned, on all processes.

    Raises:
        InputError: it raised one; then all processes raise it.
    """
    if process_count() == 1:
        return work()
    value = problem = None
    if is_first():
        try:
            value = work()
        except InputError as error:
            problem = str(error)
    value, problem = agreed([value, problem])
    if problem is not None:
        raise InputError(problem)
    return value


def gathered(number: int) -> list[int]:
    """The numbers that the processes give, below 2 ** 31, in their order."""
    if process_count() == 1:
        return [int(number)]
    from jax.experimental import multihost_utils

    return np.ravel(multihost_utils.process_allgather(np.array([number], "int32"))).tolist()


@contextlib.contextmanager
def first_process_first() -> Iterator[None]:
    """The first process goes through the block while the others wait: what it leaves on the disk is there for them."""
    if not is_first():
        gathered(0)
    try:
        yield
    finally:
        if is_first():
            gathered(0)


class AgreedFigures(keras.callbacks.Callback):
    """Gives all processes the first one's figures of an epoch, for they decide by them."""

    def on_epoch_end(self, epoch, logs=None):
        logs.update(agreed({name: float(value) for name, value in logs.items()}))


class StopTogether(keras.callbacks.Callback):
    """Ends the training of all processes after an epoch in which one was to stop, by a callback or by a signal.

    Args:
        signals: a `StopSignals`.
    """

    REASONS = (None, "stop", "SIGINT", "SIGTERM")

    def __init__(self, signals):
        super().__init__()
        self.signals = signals

    def on_epoch_end(self, epoch, logs=None):
        own = self.signals.received or ("stop" if self.model.stop_training else None)
        reason = self.REASONS[max(gathered(self.REASONS.index(own)))]
        self.model.stop_training = self.model.stop_training or reason == "stop"
        if reason in ("SIGINT", "SIGTERM"):
            self.signals.received = reason


def check_same_batch(batch) -> None:
    """Sees that all processes make the same batches, of which each then computes its share.

    Args:
        batch: nested arrays.

    Raises:
        InputError: they differ.
    """
    number = 0
    for array in keras.tree.flatten(batch):
        number = zlib.crc32(np.ascontiguousarray(array).tobytes(), number)
    found = gathered(number & 0x7FFFFFFF)
    if len(set(found)) > 1:
        different = [index for index, other in enumerate(found) if other != found[0]]
        raise InputError(
            "training data: expected every process to make the same batches, received another first batch on process "
            f"{', '.join(map(str, different))} than on process 0"
        )
