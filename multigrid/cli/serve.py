"""`multigrid serve`: a detector behind HTTP, with a page that shows what it finds."""

from __future__ import annotations

import argparse
import math
import pathlib

from multigrid import report
from multigrid.cli.options import (
    OK,
    add_detector,
    add_parser,
    count,
    detector_config,
    emit,
    start_backend,
)


def add_verb(verbs) -> None:
    """Adds the options of `serve`."""
    parser = add_parser(verbs, "serve", run_serve, "multigrid serve --run runs/mine")
    add_detector(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine alone)")
    parser.add_argument("--port", type=_port, default=8000, help="0 for one that is free (%(default)s)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        metavar="NAME",
        help="a name that the server is asked for by, again for each (localhost and --host's; any at --host 0.0.0.0)",
    )
    parser.add_argument("--max-upload-mb", type=_positive, default=20.0, help="largest file, 10^6 bytes (%(default)g)")
    parser.add_argument(
        "--max-pixels", type=_positive, default=50e6, help="largest image, sides multiplied (%(default)g)"
    )
    parser.add_argument("--max-queue", type=count, default=64, help="requests taken in at once (%(default)s)")
    parser.add_argument(
        "--batch-wait-ms", type=_positive, default=5.0, help="how long an image waits for others (%(default)g)"
    )


def run_serve(options) -> int:
    """Answers over HTTP what is found in images, until Ctrl-C."""
    config = detector_config(options)
    from multigrid.serving import server

    bound = server.bind(options.host, options.port)
    with bound:
        start_backend()
        app = _app(options, config)
        server.serve(app, bound, lambda: _say_ready(options, app, server.address(bound)))
    return OK


def _app(options, config):
    from multigrid.prediction.predictor import Predictor
    from multigrid.serving.app import create_app

    name = pathlib.Path(config.weights if options.run_dir is None else options.run_dir).resolve().name
    return create_app(
        Predictor.from_config(config),
        name=name,
        max_upload_bytes=int(options.max_upload_mb * 1e6),
        max_pixels=int(options.max_pixels),
        max_queue=options.max_queue,
        batch_wait_seconds=options.batch_wait_ms / 1000,
        allowed_hosts=_allowed_hosts(options),
    )


def _allowed_hosts(options) -> tuple:
    from multigrid.serving.protection import ANY, LOOPBACK

    if options.allowed_host:
        return (*LOOPBACK, *options.allowed_host)
    return (ANY,) if options.host in ("", "0.0.0.0", "::") else (*LOOPBACK, options.host)


def _say_ready(options, app, url: str) -> None:
    report.say(f"{app.state.model}: listening at {url}, Ctrl-C ends")
    emit(options, {"url": url, "model": app.state.model})


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number above 0, received {text!r}")
    return number


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65_535:
        raise argparse.ArgumentTypeError(f"expected a whole number from 0 to 65535, received {text!r}")
    return int(text)
