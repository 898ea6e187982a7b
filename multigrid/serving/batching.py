"""One network and one thread for it: images that are asked about one by one are looked at in batches."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from multigrid.data.images import BORDER
from multigrid.detection.detections import Detections
from multigrid.detection.pipeline import DetectionPipeline

logger = logging.getLogger(__name__)

# Fills a batch up: the network is compiled for two sizes of batch and no other. It costs next to nothing before and
# after the network.
BLANK = np.full((1, 1, 3), BORDER, np.uint8)


class Asked(NamedTuple):
    """An image that waits for the network."""

    pixels: np.ndarray  # uint8 RGB [height, width, 3]
    found: asyncio.Future  # of its Detections; cancelled where nobody waits for them any more


class Batcher:
    """Detections of single images.

    All methods are called in the event loop; the network works in a thread of its own.

    Args:
        predictor: looks at the images.
        wait_seconds: how long an image waits for others to fill its batch.
    """

    def __init__(self, predictor: DetectionPipeline, wait_seconds: float):
        self.predictor = predictor
        self.wait_seconds = wait_seconds
        self.waiting: list[Asked] = []
        self.failure: BaseException | None = None
        self.compiled = False
        self._known, self._asked = asyncio.Event(), asyncio.Event()
        self._seconds = {}  # of a batch, by its size

    def start(self) -> None:
        """Begins to compile the network, and to work off what is asked."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._working = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Ends after the batch that the network is at; what still waits gets no answer."""
        self._working.cancel()
        for one in self.waiting:
            one.found.cancel()
        await asyncio.wait([self._working])
        self._thread.shutdown(wait=True, cancel_futures=True)

    async def ready(self) -> None:
        """Returns when the network is compiled, and raises what keeps it from that."""
        await self._known.wait()
        if self.failure is not None:
            raise self.failure

    async def detect(self, pixels: np.ndarray) -> Detections:
        """What is found in an image, uint8 RGB [height, width, 3]; raises what the network raised."""
        asked = Asked(pixels, asyncio.get_running_loop().create_future())
        self.waiting.append(asked)
        self._asked.set()
        return await asked.found

    async def _work(self) -> None:
        await self._compile()
        while self.compiled:
            await self._asked.wait()
            if len(self.waiting) < self.predictor.batch_size > 1:
                await asyncio.sleep(self.wait_seconds)
            batch = self._next_batch()
            if batch:
                await self._answer(batch)

    async def _compile(self) -> None:
        compiling = asyncio.get_running_loop().run_in_executor(self._thread, self._warm_up)
        await asyncio.wait([compiling])
        self.failure = compiling.exception()
        self.compiled = self.failure is None
        self._known.set()
        if self.failure is not None:
            logger.error("the network could not be compiled", exc_info=self.failure)

    def _next_batch(self) -> list[Asked]:
        wanted = [one for one in self.waiting if not one.found.done()]
        batch, self.waiting = wanted[: self.predictor.batch_size], wanted[self.predictor.batch_size :]
        if not self.waiting:
            self._asked.clear()
        return batch

    async def _answer(self, batch: list[Asked]) -> None:
        looking = asyncio.get_running_loop().run_in_executor(self._thread, self._find, [one.pixels for one in batch])
        await asyncio.wait([looking])
        failure = looking.exception()
        for index, one in enumerate(batch):
            if one.found.done():
                continue
            if failure is None:
                one.found.set_result(looking.result()[index])
            else:
                one.found.set_exception(failure)

    def _warm_up(self) -> None:
        for size in sorted({1, self.predictor.batch_size}):
            for _ in range(2):  # the first compiles, the second tells what a batch takes
                start = time.perf_counter()
                self._look([BLANK] * size)
                self._seconds[size] = time.perf_counter() - start

    def _find(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """One Detections an image: by a batch that is filled up, or one by one where that is sooner done."""
        full = self.predictor.batch_size
        if len(images) * self._seconds[1] <= self._seconds[full]:
            return [found for image in images for found in self._look([image])]
        return self._look([*images, *[BLANK] * (full - len(images))])[: len(images)]

    def _look(self, images: Sequence[np.ndarray]) -> list[Detections]:
        return list(self.predictor.stream(images))
