"""Weights in and out of files. A load is whole or an error: nothing is left at random without a word."""

from __future__ import annotations

import contextlib
import pathlib
import tempfile
import warnings
import zipfile

import h5py
import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.report import replacing

_UNREADABLE = (ValueError, KeyError, OSError, RuntimeError, zipfile.BadZipFile)  # by Keras, h5py and zipfile


def save_weights(model: keras.Model, path) -> None:
    """Writes all weights of a model; the file appears whole or not at all.

    Args:
        model: any built `keras.Model`.
        path: "….weights.h5" (Keras 3 weights), "….keras" (the whole model) or another "….h5" (the layout of Keras 2,
            <layer>/<layer>/<variable>:0, which many tools read).

    Raises:
        InputError: another suffix.
    """
    check_weights_name(path)
    path = pathlib.Path(path)
    with replacing(path) as temporary:
        if path.name.endswith(".weights.h5"):
            model.save_weights(temporary)
        elif path.suffix == ".keras":
            model.save(temporary)
        else:
            _write_legacy(model, temporary)


def check_weights_name(path) -> None:
    """Sees that a file's name says a format of weights.

    Raises:
        InputError: another suffix.
    """
    if pathlib.Path(path).suffix not in (".keras", ".h5"):
        raise InputError(f"{path}: expected a name ending in .weights.h5, .keras or .h5")


def load_weights(model: keras.Model, path) -> None:
    """Reads all weights of a model; the format is found from the file's content.

    Args:
        model: a built `keras.Model`; a file of a larger model that holds all its layers will do (`.h5` of Keras 2).
        path: of the file.

    Raises:
        InputError: no such file, a damaged one, an unknown format, or a weight that is missing or has another shape;
            the model is as it was.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path}: expected a weights file, received no file of this name")
    if zipfile.is_zipfile(path):
        _load_with_keras(model, path, ".keras")
    elif not h5py.is_hdf5(path):
        raise InputError(f"{path}: expected an HDF5 (.h5, .weights.h5) or .keras file, received another format")
    elif _is_legacy(path):
        _load_legacy(model, path)
    else:
        _load_with_keras(model, path, ".weights.h5")


def _load_with_keras(model, path, suffix):
    """Keras goes by the suffix: let it see the right one. It assigns what fits before it fails: take that back."""
    before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in _state(model)]
    with tempfile.TemporaryDirectory() as folder:
        link = pathlib.Path(folder) / f"weights{suffix}"
        link.symlink_to(path.resolve())
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                model.load_weights(link)
        except _UNREADABLE as error:  # which says what was said and more
            for variable, value in before:
                variable.assign(value)
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{path}: expected the weights of {model.name!r}, received others: {reason}") from error
    for warning in said:
        warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _state(model) -> list:
    """Everything that Keras may read from a file."""
    optimizer = getattr(model, "optimizer", None)
    return [*model.variables, *model.metrics_variables, *(optimizer.variables if optimizer else ())]


def _is_legacy(path) -> bool:
    with _opened(path) as file:
        return "layer_names" in file.attrs or "model_weights" in file


@contextlib.contextmanager
def _opened(path):
    try:
        with h5py.File(path) as file:
            yield file
    except _UNREADABLE as error:
        raise InputError(f"{path}: expected a whole HDF5 file, received a damaged one: {error}") from error


def _write_legacy(model, path):
    layers = [layer for layer in model._flatten_layers(include_self=False) if _own_variables(layer)]
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = np.array([layer.name.encode() for layer in layers])
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{variable.name}:0" for variable in _own_variables(layer)]
            group.attrs["weight_names"] = np.array([name.encode() for name in names])
            for name, variable in zip(names, _own_variables(layer), strict=True):
                group[name] = keras.ops.convert_to_numpy(variable)


def _load_legacy(model, path):
    stored = _stored_tensors(path)
    wanted = {
        f"{layer.name}/{variable.name}": variable
        for layer in model._flatten_layers(include_self=False)
        for variable in _own_variables(layer)
    }
    missing = [name for name in wanted if name not in stored]
    misshapen = [name for name in wanted if name in stored and stored[name].shape != tuple(wanted[name].shape)]
    if missing or misshapen:
        raise InputError(_mismatch(path, model, wanted, stored, missing, misshapen))
    for name, variable in wanted.items():
        variable.assign(stored[name])


def _stored_tensors(path) -> dict:
    """Every tensor of a Keras 2 file, as "<layer>/<variable>", whatever it is nested in."""
    stored = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            layer, variable = name.split("/")[-2:]
            stored[f"{layer}/{variable.split(':')[0]}"] = np.asarray(item)

    with _opened(path) as file:
        file.get("model_weights", file).visititems(visit)
    return stored


def _mismatch(path, model, wanted, stored, missing, misshapen) -> str:
    found = len(wanted) - len(missing) - len(misshapen)
    text = f"{path}: expected the {len(wanted)} tensors of {model.name!r}, received {found} that fit"
    if missing:
        text += f"; {len(missing)} missing, first {missing[0]}"
    if misshapen:
        name = misshapen[0]
        text += f"; {len(misshapen)} of another shape, first {name}: expected {tuple(wanted[name].shape)}"
        text += f", received {stored[name].shape}"
    return text


def _own_variables(layer) -> list:
    """The variables that a layer owns itself; a nested model owns none."""
    return [] if isinstance(layer, keras.Model) else list(layer.variables)
