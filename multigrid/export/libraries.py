"""The libraries of the extra `export`, imported when they are needed."""

from __future__ import annotations

import importlib

from multigrid.errors import InputError


def library(name: str):
    """A module by its dotted name.

    Raises:
        InputError: its package is not installed; says how to.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != name.split(".")[0]:
            raise
        package = name.split(".")[0]
        raise InputError(
            f"export: expected the library {package}, received none; install it with pip install 'multigrid-detector[export]'"
        ) from None
