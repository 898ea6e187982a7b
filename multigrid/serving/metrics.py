"""What the server tells Prometheus about itself."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from multigrid.detection.detections import Detections

PATHS = frozenset(("/", "/predict", "/health", "/metrics"))
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Metrics:
    """Counters of one server.

    Args:
        in_work: tells how many requests are being worked on.
        waiting: tells how many images wait for the network.
    """

    def __init__(self, in_work: Callable[[], int], waiting: Callable[[], int]):
        self.registry = CollectorRegistry()  # of its own: a process may hold several servers
        ProcessCollector(registry=self.registry)
        own = {"namespace": "multigrid", "registry": self.registry}
        self.requests = Counter("requests", "Requests by path and code", ("path", "code"), **own)
        self.seconds = Histogram("predict_seconds", "From request to detections", buckets=SECONDS, **own)
        self.images = Counter("images", "Images that the network has looked at", **own)
        self.detections = Counter("detections", "Detections by class", ("class",), **own)
        Gauge("in_work", "Requests being read, decoded or looked at", **own).set_function(in_work)
        Gauge("queue_length", "Images that wait for the network", **own).set_function(waiting)

    def count(self, found: Detections) -> None:
        """Counts an image and what was found in it."""
        self.images.inc()
        for name in found.names:
            self.detections.labels(name).inc()

    def text(self) -> bytes:
        """All counters in Prometheus' text format."""
        return generate_latest(self.registry)


class Measured:
    """An ASGI application whose requests are counted."""

    def __init__(self, app, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        # Paths that strangers make up would be a counter each.
        path = scope["path"] if scope["path"] in PATHS else "other"
        code, start = 500, time.perf_counter()

        async def noted(message):
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            self.metrics.requests.labels(path, str(code)).inc()
            if path == "/predict" and code == 200:
                self.metrics.seconds.observe(time.perf_counter() - start)
