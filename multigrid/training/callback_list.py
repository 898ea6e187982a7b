"""Callbacks by import path: what `callbacks` in a config names becomes objects."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Iterable, Mapping

import keras

from multigrid.errors import InputError

RUN_DIR = "{run_dir}"
EXPECTED = "the import path of a Keras callback, such as keras.callbacks.TerminateOnNaN"


def check_callbacks(items: Iterable[Mapping]) -> None:
    """Sees, before a training begins, that its callbacks can be imported and take their arguments; builds none.

    Args:
        items: {"name": import path of a class, **arguments} each.

    Raises:
        InputError: no such module or class, a class that is no `keras.callbacks.Callback`, or arguments that it does
            not take.
    """
    for place, item in _places(items):
        _check_arguments(_find(item["name"], place), _arguments(item), place)


def build_callbacks(items: Iterable[Mapping], run_dir: str | os.PathLike) -> list[keras.callbacks.Callback]:
    """The callbacks of a config.

    Args:
        items: as for `check_callbacks`.
        run_dir: what stands for "{run_dir}" in texts among the arguments.

    Returns:
        One callback an item, in their order.

    Raises:
        InputError: as `check_callbacks`, or a callback that refuses the value of an argument.
    """
    built = []
    for place, item in _places(items):
        found, arguments = _find(item["name"], place), _filled(_arguments(item), os.fspath(run_dir))
        _check_arguments(found, arguments, place)
        try:
            built.append(found(**arguments))
        except (TypeError, ValueError) as error:
            raise InputError(f"{place}: expected arguments that it accepts, received {_first_line(error)}") from error
    return built


def _places(items):
    for index, item in enumerate(items):
        yield f"callbacks[{index}] ({item['name']})", item


def _arguments(item: Mapping) -> dict:
    return {name: value for name, value in item.items() if name != "name"}


def _filled(value, run_dir: str):
    """The value with the run folder in its texts, however deep they lie."""
    if isinstance(value, str):
        return value.replace(RUN_DIR, run_dir)
    if isinstance(value, Mapping):
        return {key: _filled(part, run_dir) for key, part in value.items()}
    return [_filled(part, run_dir) for part in value] if isinstance(value, (list, tuple)) else value


def _find(name: str, place: str) -> type:
    """The class of an import path; modules of the working directory can be imported, as in `python -m`."""
    module_name, _, class_name = name.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"{place}: expected {EXPECTED}, received {name!r}")
    module = _import(module_name, place)
    found = getattr(module, class_name, None)
    if found is None:
        raise InputError(f"{place}: expected {EXPECTED}, received no {class_name!r} in {module_name}")
    if not (inspect.isclass(found) and issubclass(found, keras.callbacks.Callback)):
        raise InputError(f"{place}: expected a subclass of keras.callbacks.Callback, received {_kind(found)}")
    return found


def _import(name: str, place: str):
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last: nothing there hides an installed package
    try:
        return importlib.import_module(name)
    except (ImportError, SyntaxError) as error:
        raise InputError(f"{place}: expected {EXPECTED}, received {_first_line(error)}") from error


def _check_arguments(found: type, arguments: dict, place: str) -> None:
    signature = inspect.signature(found)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        known = ", ".join(signature.parameters) or "none"
        raise InputError(f"{place}: expected arguments of ({known}), received {_first_line(error)}") from None


def _kind(found) -> str:
    return f"the class {found.__qualname__}" if inspect.isclass(found) else f"an object of type {type(found).__name__}"


def _first_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
