"""Weights in and out of files. Nothing is loaded without a ledger, and nothing left at random without a word."""

from __future__ import annotations

import logging
import pathlib
import zipfile
from collections.abc import Iterator

import h5py
import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.models.darknet_file import is_darknet, read_darknet, write_darknet
from multigrid.models.hdf5_file import ANCHORS, read_archive, read_hdf5, write_keras_2
from multigrid.models.ledger import BatchNorms, Entry, Ledger, parameter_share, percent, tensor_share
from multigrid.models.matching import Match, ModelLayer, best_match, model_layers, without_class_channels
from multigrid.models.stored import StoredFile
from multigrid.report import replacing

REQUIRED = ("all", "backbone")
ENDINGS = (".keras", ".h5", ".weights")

log = logging.getLogger(__name__)


def load_weights(model: keras.Model, path, *, required: str | float = "all", allow_partial: bool = False) -> Ledger:
    """Reads weights into a model, all that is required or none; the format is found from the file's content.

    Args:
        model: a built `keras.Model`.
        path: of a Darknet binary, an HDF5 file of Keras 2 or 3, or a `.keras` archive, of this model, of a larger one
            that holds it, or of its backbone.
        required: "all": every tensor must come from the file; "backbone": every tensor of the backbone; or the share of
            the model's parameters, from 0 to 1.
        allow_partial: whether less will do, as long as one tensor fits.

    Returns:
        The `Ledger`: what came of every tensor.

    Raises:
        InputError: no such file, a damaged one, an unknown format, numbers that are not finite or variances below 0, or
            less than is required; the model is as it was.
        ValueError: another word for `required`.
    """
    if required not in REQUIRED and not (isinstance(required, (int, float)) and 0 <= required <= 1):
        raise ValueError(f"required: expected 'all', 'backbone' or a number from 0 to 1, received {required!r}")
    layers = model_layers(model)
    stored = read_stored(path, layers)
    match = best_match(layers, stored)
    first_class, anchors = _grid_channels(model)
    values, entries = {}, []
    for key, layer, variable in _variables(layers):
        entry, value = _settle(match, key, layer, variable, first_class, stored.anchors in (None, anchors))
        entries.append(entry)
        if value is not None:
            values[key] = value
    entries += [Entry("unexpected", place, "", None, value.shape) for place, value in match.unexpected]
    norms = _batch_norms(layers, values)
    notes = (*stored.notes, *_notes(entries, stored, anchors))
    ledger = Ledger(str(path), model.name, stored.format, match.strategy, tuple(entries), norms, notes)
    _check(ledger, required, allow_partial)
    for key, _, variable in _variables(layers):
        if key in values:
            variable.assign(values[key])
    log.info("%s", ledger.describe())
    return ledger


def read_stored(path, layers: list[ModelLayer] | None = None) -> StoredFile:
    """A weight file as data, every number in it finite.

    Args:
        path: of the file.
        layers: of the model that a Darknet file is read for; no other format needs them.

    Raises:
        InputError: as `load_weights`, or a Darknet file without layers.
    """
    check_weights_file(path)
    path = pathlib.Path(path)
    if zipfile.is_zipfile(path):
        stored = read_archive(path)
    elif h5py.is_hdf5(path):
        stored = read_hdf5(path)
    elif is_darknet(path):
        if layers is None:
            raise InputError(f"{path}: expected a model to read a Darknet file for, received none")
        stored = read_darknet(path, layers)
    else:
        raise InputError(
            f"{path}: expected an HDF5 (.h5, .weights.h5), .keras or Darknet (.weights) file, received another format"
        )
    stored.check_finite(path)
    return stored


def check_weights_file(path) -> None:
    """Sees that there is a file.

    Raises:
        InputError: there is none.
    """
    if not pathlib.Path(path).is_file():
        raise InputError(f"{path}: expected a weights file, received no file of this name")


def _variables(layers: list[ModelLayer]) -> Iterator[tuple]:
    """((index of the layer, role), layer, variable) of every variable, in order."""
    for index, layer in enumerate(layers):
        for role, variable in layer.tensors.items():
            yield (index, role), layer, variable


def _settle(match: Match, key, layer, variable, first_class, same_anchors: bool) -> tuple[Entry, np.ndarray | None]:
    """What becomes of one variable: its entry, and its new value if it gets one."""
    place, value = match.fitting.get(key) or match.misfits.get(key) or (None, None)
    received = None if value is None else value.shape
    name, shape = f"{layer.name}/{key[1]}", tuple(variable.shape)

    def entry(kind: str, parameters: int = 0) -> Entry:
        return Entry(kind, name, layer.block, shape, received, parameters, place)

    if value is None:
        return entry("missing"), None
    is_grid = first_class is not None and layer.block.startswith("grid_")
    if is_grid and not same_anchors:
        return entry("misshapen"), None
    if key in match.fitting:
        return entry("loaded", value.size), value
    merged = without_class_channels(variable, value, first_class) if is_grid else None
    if merged is None:
        return entry("misshapen"), None
    return entry("partial", value.size // value.shape[-1] * first_class), merged


def _grid_channels(model) -> tuple[int | None, int | None]:
    """Where the class channels of the grids begin, and A; (None, None) of a model that is no detector."""
    anchors = getattr(model, "anchors", None)
    return (None, None) if anchors is None else (5 + len(anchors[0]), len(anchors[0]))


def _batch_norms(layers: list[ModelLayer], values: dict) -> BatchNorms:
    by_role = {"moving_mean": [], "moving_variance": []}
    for (_, role), value in values.items():
        if role in by_role:
            by_role[role].append(value)
    return BatchNorms.of(by_role["moving_mean"], by_role["moving_variance"])


def _notes(entries: list[Entry], stored: StoredFile, anchors: int | None) -> list[str]:
    notes = []
    if stored.anchors not in (None, anchors) and anchors is not None:
        notes.append(f"its grids are made for {stored.anchors} anchors a scale, those of the model for {anchors}")
    partial = [entry for entry in entries if entry.kind == "partial"]
    if partial:
        first = 5 + anchors
        theirs, ours = partial[0].received[-1] - first, partial[0].expected[-1] - first
        notes.append(
            f"the file is for {theirs} classes, the model for {ours}: the class channels of its grids do not fit"
        )
    return notes


def _check(ledger: Ledger, required, allow_partial: bool) -> None:
    """Sees that a load brings what is asked for, and statistics that can be.

    Raises:
        InputError: it does not.
    """
    found = [entry for entry in ledger.wanted if entry.kind in ("loaded", "partial")]
    if not found or not (allow_partial or _is_enough(ledger, required)):
        wanted = f"the {len(ledger.wanted)} tensors of {ledger.model!r}"
        if required == "backbone":
            wanted = f"the {len(ledger.backbone)} tensors of the backbone of {ledger.model!r}"
        elif required != "all":
            wanted = f"{100 * required:.4g} % of the parameters of {ledger.model!r}"
        entries = ledger.backbone if required == "backbone" else ledger.wanted
        fitting = sum(entry.kind == "loaded" for entry in entries)
        share = percent(parameter_share(entries))
        raise InputError(
            f"{ledger.path}: expected {wanted}, received {fitting} that fit ({share} of the parameters; "
            f"{ledger.format}, matched {ledger.strategy}); {'; '.join((ledger.complaint(), *ledger.notes))}"
        )
    if ledger.norms.layers and ledger.norms.smallest < 0:
        raise InputError(
            f"{ledger.path}: expected variances of BatchNorm from 0 up, received {ledger.norms.smallest:.4g}: "
            "the file is not what it was read as"
        )


def _is_enough(ledger: Ledger, required) -> bool:
    if required == "all":
        return tensor_share(ledger.wanted) == 1
    if required == "backbone":
        return tensor_share(ledger.backbone) == 1
    return ledger.parameter_share >= required


# --- weights out


def save_weights(model: keras.Model, path) -> None:
    """Writes the weights of a model; the file appears whole or not at all.

    Args:
        model: any built `keras.Model`.
        path: "….weights.h5" (Keras 3 weights), "….keras" (the whole model), another "….h5" (the layout of Keras 2,
            <layer>/<layer>/<variable>:0, which many tools read), or "….weights" (Darknet's, of the backbone alone; what
            is left out is logged).

    Raises:
        InputError: another ending, or a backbone that Darknet's format cannot hold.
    """
    check_weights_name(path)
    path = pathlib.Path(path)
    with replacing(path) as temporary:
        if path.suffix == ".weights":
            _write_backbone(model, temporary, path)
        elif path.suffix == ".keras":
            model.save(temporary)
        else:
            if path.name.endswith(".weights.h5"):
                model.save_weights(temporary)
            else:
                write_keras_2(temporary, model_layers(model))
            _, anchors = _grid_channels(model)
            if anchors is not None:
                with h5py.File(temporary, "a") as file:
                    file.attrs[ANCHORS] = anchors


def check_weights_name(path) -> None:
    """Sees that a file's name says a format of weights.

    Raises:
        InputError: another ending.
    """
    if pathlib.Path(path).suffix not in ENDINGS:
        raise InputError(
            f"{path}: expected a name ending in .weights.h5, .keras or .h5, or in .weights for Darknet's format"
        )


def _write_backbone(model, temporary, path) -> None:
    layers = model_layers(model)
    try:
        write_darknet(temporary, layers)
    except InputError as error:
        raise InputError(str(error).replace(str(temporary), str(path), 1)) from None
    others = [layer for layer in layers if layer.block.startswith(("neck_", "head_", "grid_"))]
    if others:
        count = sum(len(layer.tensors) for layer in others)
        log.warning("%s: Darknet's format takes the backbone; %d tensors of neck and head are not in it", path, count)
