"""An application on a port, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from multigrid.errors import InputError

CONNECTIONS = 1_000  # open at once; each is a file of the process
# Longer than clients and proxies keep a connection for their next request: one that comes while the server is closing
# is lost.
SECONDS_KEPT_OPEN = 75
SECONDS_TO_END = 10  # for the requests that are being answered when the server is to end
ENDING = (signal.SIGINT, signal.SIGTERM)


def bind(host: str, port: int) -> socket.socket:
    """A socket that nobody else gets, not yet open to connections.

    Args:
        host: a name or an address of this machine.
        port: 0 for any that is free.

    Raises:
        InputError: the host is none of this machine's, or the port is taken or not allowed.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (socket.gaierror, UnicodeError) as error:
        raise InputError(f"--host: expected a name or an address of this machine, received {host}") from error
    bound = socket.socket(family, kind, protocol)
    if os.name == "posix":  # elsewhere it would let two servers share a port
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise InputError(
            f"--host and --port: expected a free port of this machine, received {host}:{port}: {error.strerror}"
        ) from error
    return bound


def address(bound: socket.socket) -> str:
    """The URL that a socket of `bind` is reached by."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class DeadlineProtocol(H11Protocol):
    """HTTP/1.1 that closes connections whose next request does not arrive: silent ones would use up all there are.

    Args:
        head_seconds: from the connection, or from the first byte after an answer, to the end of a request's head.
    """

    def __init__(self, *arguments, head_seconds: float, **options):
        super().__init__(*arguments, **options)
        self.head_seconds, self._deadline = head_seconds, None

    def connection_made(self, transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._end_watch()

    def _watch(self) -> None:
        """Lets the time run while nothing is being answered; bytes of half a head do not set it back."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._end_watch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(self.head_seconds, self.timeout_keep_alive_handler)

    def _end_watch(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def settings(app: FastAPI) -> uvicorn.Config:
    """How an application of `create_app` is served: by HTTP/1.1, logging what goes wrong and nothing else."""
    return uvicorn.Config(
        app,
        http=functools.partial(DeadlineProtocol, head_seconds=app.state.read_seconds),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=SECONDS_KEPT_OPEN,
        timeout_graceful_shutdown=SECONDS_TO_END,
    )


def serve(app: FastAPI, bound: socket.socket, on_ready: Callable[[], None]) -> None:
    """Serves an application of `create_app` until SIGINT or SIGTERM, then lets what is being answered end.

    Args:
        app: the application.
        bound: a socket of `bind`.
        on_ready: called once the network is compiled.

    Raises:
        Exception: what kept the network from being compiled.
    """
    with _signals_that_end_well():
        asyncio.run(_serve(uvicorn.Server(settings(app)), app, bound, on_ready))


async def _serve(server: uvicorn.Server, app: FastAPI, bound: socket.socket, on_ready) -> None:
    serving = asyncio.ensure_future(server.serve(sockets=[bound]))
    compiling = asyncio.ensure_future(app.state.batcher.ready())
    await asyncio.wait([serving, compiling], return_when=asyncio.FIRST_COMPLETED)
    if not compiling.done():  # a signal came first
        compiling.cancel()
    elif compiling.exception() is None:
        on_ready()
    else:
        server.should_exit = True
    await serving
    if not compiling.cancelled() and compiling.done():
        compiling.result()


@contextlib.contextmanager
def _signals_that_end_well() -> Iterator[None]:
    """Uvicorn ends at these signals, and then raises them once more: here that does nothing."""
    before = {one: signal.signal(one, lambda *_: None) for one in ENDING}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)
