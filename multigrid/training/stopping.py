"""Reasons to stop before the last epoch: a signal, and the clock."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import keras

from multigrid import report

STDERR = 2  # the file descriptor


class StopSignals:
    """Turns the first SIGINT or SIGTERM into a wish; the second acts as it would without this.

    Attributes:
        received: the name of the signal, or None.
    """

    def __init__(self):
        self.received = None

    @contextlib.contextmanager
    def listening(self):
        """Listens while the block runs; outside the main thread, where Python lets nobody listen, it does not."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        before = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        self._before = before
        try:
            yield self
        finally:
            self._restore()

    def _receive(self, number, frame):
        self.received = signal.Signals(number).name
        self._restore()
        # rich, and Python's own files, may be in the middle of a write
        os.write(STDERR, f"{self.received}: saving, then stopping; once more to stop at once\n".encode())

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)


class TimeBudget(keras.callbacks.Callback):
    """Lets no further epoch begin after so many minutes.

    Args:
        minutes: from now.
    """

    def __init__(self, minutes: float):
        super().__init__()
        self.minutes = minutes
        self.end = time.monotonic() + 60.0 * minutes
        self.over = False

    def on_epoch_end(self, epoch, logs=None):
        if time.monotonic() >= self.end:
            self.over = self.model.stop_training = True
            report.say(f"the time budget of {self.minutes:g} minutes is over; --resume goes on")
