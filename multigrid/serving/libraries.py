"""The libraries of the extra `serve`."""

from __future__ import annotations

import importlib

from multigrid.errors import InputError

# By the names that they are imported by; `python_multipart` is what Starlette reads forms with.
LIBRARIES = ("fastapi", "uvicorn", "python_multipart", "prometheus_client")


def check_libraries() -> None:
    """Sees that they are all installed.

    Raises:
        InputError: one is not; says how to.
    """
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise InputError(
                f"serving: expected the library {name}, received none; "
                "install it with pip install -e '.[serve]' in the project's folder"
            ) from None
