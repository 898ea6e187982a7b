"""A small detector that finds the same six boxes in every image, and a server for it."""

import contextlib
import threading
import time

import httpx
import numpy as np
import uvicorn

from multigrid.models.detector import MultiGridDetector
from multigrid.prediction.predictor import Predictor
from multigrid.serving import server

ANCHORS = [[[40.0, 28.0], [48.0, 44.0]], [[20.0, 14.0], [14.0, 30.0]], [[8.0, 6.0], [12.0, 9.0]]]
NAMES = ("red", "<b>green</b> & co", "blue")
SIZE = (64, 96)
FOUND = 1  # the class id of all six
# In a 64 × 96 image: cells of 32 pixels; a raw offset of 0 is the middle of its cell; the first anchor is 40 × 28.
# The middles are (16, 48, 80) × (16, 48), so the boxes reach 4 pixels out of the image left and right.
BOXES = [
    [max(x - 20, 0), y - 14, min(x + 20, 96), y + 14] for y in (16, 48) for x in (16, 48, 80)
]  # fmt: skip
# sigmoid(4) for the object times sigmoid(3) for its class
SCORE = 0.982 * 0.9526


def six_boxes() -> MultiGridDetector:
    """A detector whose kernels are 0: its biases speak, those of the coarsest grid alone."""
    made = MultiGridDetector(ANCHORS, len(NAMES), width=1 / 16, depth=1 / 8)
    for stride in made.strides:
        layer = made.get_layer(f"grid_{stride}")
        layer.kernel.assign(np.zeros(layer.kernel.shape))
        bias = np.zeros(layer.bias.shape)
        bias[4] = 4.0 if stride == 32 else -20.0
        bias[5] = 1.0  # the first anchor
        bias[-3:] = (-9.0, 3.0, -9.0)
        layer.bias.assign(bias)
    return made


class Watched(Predictor):
    """A predictor that notes the sizes of its batches, and stops before one while `open` is not set."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.open, self.entered, self.sizes = threading.Event(), threading.Event(), []
        self.open.set()

    def stream(self, sources, **options):
        sources = list(sources)
        self.sizes.append(len(sources))
        self.entered.set()
        assert self.open.wait(20)
        return super().stream(sources, **options)

    def hold(self):
        """Lets nothing through from now on."""
        self.open.clear()
        self.entered.clear()


@contextlib.contextmanager
def served(app, ready=True):
    """The address of an application that a thread serves."""
    bound = server.bind("127.0.0.1", 0)
    running = uvicorn.Server(server.settings(app))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
    thread.start()
    url = server.address(bound)
    try:
        wait_until(lambda: running.started)
        if ready:
            wait_until(lambda: httpx.get(f"{url}/health").status_code == 200)
        yield url
    finally:
        running.should_exit = True
        thread.join(20)
        bound.close()
        assert not thread.is_alive()


def wait_until(done, seconds=120):
    """Returns when `done()` is true."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
