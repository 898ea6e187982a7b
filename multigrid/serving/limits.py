"""What one request may cost, and how many are taken in at once."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import HTTPException

RETRY_AFTER = {"Retry-After": "1"}  # seconds; a full queue is worked off in about that


@dataclass(frozen=True)
class Limits:
    """What a stranger's request may cost.

    Attributes:
        max_upload_bytes: the largest file.
        max_pixels: the largest image, height × width.
        max_queue: requests taken in at once, from the first byte of their image to their answer.
        read_seconds: the longest time in which a request's head, and then an upload, has to arrive.
    """

    max_upload_bytes: int = 20_000_000
    max_pixels: int = 50_000_000
    max_queue: int = 64
    read_seconds: float = 60.0

    def __post_init__(self):
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name}: expected more than 0, received {value}")


class Admission:
    """A limited number of places; whoever finds none is sent away at once, before anything of theirs is kept."""

    def __init__(self, places: int):
        self.places = places
        self.taken = 0

    @contextlib.contextmanager
    def place(self) -> Iterator[None]:
        """A place for as long as the block lasts.

        Raises:
            HTTPException: 503, all places are taken.
        """
        if self.taken >= self.places:
            raise HTTPException(503, f"the queue is full: {self.places} images are being worked on", RETRY_AFTER)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
