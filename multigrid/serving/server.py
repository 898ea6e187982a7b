"""An application on a port, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn
from fastapi import FastAPI

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


def settings(app: FastAPI) -> uvicorn.Config:
    """How an application of `create_app` is served: by HTTP/1.1, logging what goes wrong and nothing else."""
    return uvicorn.Config(
        app,
        http="h11",
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
