"""The libraries of the extra `export`: imported when they are needed, and kept quiet unless they fail."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator

from multigrid.errors import InputError

STREAMS = (1, 2)  # the file descriptors of standard output and standard error: C++ writes there directly


def library(name: str):
    """A module by its dotted name.

    Raises:
        InputError: its package is not installed; says how to get it.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != package:
            raise
        raise InputError(
            f"export: expected the library {package}, received none; "
            "install it with pip install -e '.[export]' in the project's folder"
        ) from None


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Keeps back what converters print and log, and shows it where the block fails."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    terminals = [os.dup(stream) for stream in STREAMS]
    disabled = logging.root.manager.disable
    with tempfile.TemporaryFile() as chatter:
        for stream in STREAMS:
            os.dup2(chatter.fileno(), stream)
        logging.disable(logging.ERROR)  # tf2onnx logs complaints about graphs that it then converts
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except BaseException:
            _flush()
            chatter.seek(0)
            os.write(terminals[1], chatter.read())
            raise
        finally:
            _flush()
            logging.disable(disabled)
            for stream, terminal in zip(STREAMS, terminals, strict=True):
                os.dup2(terminal, stream)
                os.close(terminal)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
