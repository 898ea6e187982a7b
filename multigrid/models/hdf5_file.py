"""Tensors of Keras' HDF5 files, read as data: nothing in them is run, and nothing outside of them is opened.

Two layouts are known. Keras 2 (tf.keras and multi-backend Keras): <layer>/<any groups>/<variable>:0, at the root or
under "model_weights", where the attributes "layer_names" and "weight_names" give the order. Keras 3: <layers, by class
and number>/vars/<number>, where an attribute gives the layer's name.
"""

from __future__ import annotations

import io
import json
import math
import re
import zipfile
from collections.abc import Iterable

import h5py
import keras
import numpy as np

from multigrid.errors import InputError
from multigrid.models.stored import BATCH_NORM, CONVOLUTION, StoredFile, StoredLayer, by_role

UNREADABLE = (ValueError, KeyError, OSError, RuntimeError, EOFError, zipfile.BadZipFile)  # by h5py and zipfile
LARGEST = 2**33  # bytes of tensors; more is no detector, but may be a file that unpacks without end
ATTRIBUTE_LIMIT = 64512  # bytes: HDF5's own limit, less what the header takes; Keras has the same number
ANCHORS = "multigrid_anchors"  # the attribute that says what the grids of a detector were made for
_KERAS_3 = re.compile(r"(?:(.*)/)?vars/(\d+)")
_LAYERS = ("layers", "_layer_checkpoint_dependencies")  # Keras 3, and tf.keras 2.12 on its way there
_WEIGHTS_IN_ARCHIVE = "model.weights.h5"


def read_hdf5(path) -> StoredFile:
    """Every tensor of an HDF5 file.

    Raises:
        InputError: a damaged file, or one that holds links, references or more than tensors can need.
    """
    try:
        with h5py.File(path, "r") as file:
            return _read(file, path)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: expected a whole HDF5 file, received a damaged one: {_line(error)}") from error


def read_archive(path) -> StoredFile:
    """The tensors of a `.keras` archive; its `config.json` is looked at for the number of anchors and no more.

    Raises:
        InputError: as `read_hdf5`, or an archive without weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if _WEIGHTS_IN_ARCHIVE not in archive.namelist():
                raise InputError(f"{path}: expected a .keras archive with {_WEIGHTS_IN_ARCHIVE}, received one without")
            if archive.getinfo(_WEIGHTS_IN_ARCHIVE).file_size > LARGEST:
                raise InputError(f"{path}: expected at most {LARGEST:,} bytes of tensors, received more")
            content = io.BytesIO(archive.read(_WEIGHTS_IN_ARCHIVE))
            anchors = _anchors_of(archive)
        with h5py.File(content, "r") as file:
            stored = _read(file, path)
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path}: expected a whole .keras archive, received a damaged one: {_line(error)}") from error
    return StoredFile("Keras 3 archive (.keras)", stored.layers, anchors=anchors, notes=stored.notes)


def _anchors_of(archive) -> int | None:
    if "config.json" not in archive.namelist():
        return None
    described = json.loads(archive.read("config.json"))
    config = described.get("config") if isinstance(described, dict) else None
    anchors = config.get("anchors") if isinstance(config, dict) else None
    return len(anchors[0]) if isinstance(anchors, list) and anchors and isinstance(anchors[0], list) else None


def _read(file: h5py.File, path) -> StoredFile:
    datasets = dict(_datasets(file, path))
    if sum(dataset.nbytes for dataset in datasets.values()) > LARGEST:
        raise InputError(f"{path}: expected at most {LARGEST:,} bytes of tensors, received more")
    if not datasets:
        raise InputError(f"{path}: expected an HDF5 file with tensors, received one without")
    anchors = file.attrs.get(ANCHORS)
    anchors = int(anchors) if isinstance(anchors, np.integer) else None
    if any(_KERAS_3.fullmatch(name) for name in datasets):
        layers, others = _keras_3_layers(file, datasets)
        notes = (f"{others} tensors of optimizer, metrics and random state are no weights and were left",)
        return StoredFile("Keras 3 weights (.weights.h5)", layers, anchors=anchors, notes=notes if others else ())
    whole = isinstance(file.get("model_weights"), h5py.Group)
    root = "model_weights" if whole else ""
    layers = _keras_2_layers(file[root] if whole else file, root, datasets)
    return StoredFile("Keras 2 HDF5, whole model" if whole else "Keras 2 HDF5, weights", layers, anchors=anchors)


def _datasets(group: h5py.Group, path):
    """(name from the root on, dataset) of every dataset below a group.

    Raises:
        InputError: a link, data that lies in another file, or anything but numbers.
    """
    for name in group:
        link = group.get(name, getlink=True)
        if not isinstance(link, h5py.HardLink):
            raise InputError(f"{path}: expected tensors, received a link to elsewhere at {group.name}/{name}")
        item = group[name]
        if isinstance(item, h5py.Group):
            yield from _datasets(item, path)
        elif isinstance(item, h5py.Dataset) and item.name.split("/")[1] != "optimizer_weights":
            if item.external or item.is_virtual or not _holds_numbers(item):
                raise InputError(
                    f"{path}: expected numbers, received {item.dtype} data, references or another file's at {item.name}"
                )
            yield item.name.lstrip("/"), item


def _holds_numbers(item) -> bool:
    return item.dtype.kind in "fiub" or _is_bfloat16(item)


def _is_bfloat16(item) -> bool:
    return item.dtype.itemsize == 2 and _text(item.attrs.get("dtype", "")) == "bfloat16"


def _value(item) -> np.ndarray:
    """A dataset's numbers; bfloat16, which HDF5 has no word for, as the float32 that it is the upper half of."""
    value = np.asarray(item[()])
    if item.dtype.kind != "f" and _is_bfloat16(item):
        return (value.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return value


# --- the layout of Keras 3


def _keras_3_layers(file, datasets) -> tuple[tuple[StoredLayer, ...], int]:
    """The layers, by class and then by number as Keras counts them, and the number of tensors that are no layer's."""
    found: dict[str, list] = {}
    for name, item in datasets.items():
        match = _KERAS_3.fullmatch(name)
        if match:
            found.setdefault(match[1] or "", []).append((int(match[2]), item))
    tops = {place.split("/")[0] for place in found}
    mine = {
        place: items
        for place, items in found.items()
        if (not tops & set(_LAYERS) or place.split("/")[0] in _LAYERS)
        and place.split("/")[0] != "optimizer"
        and not place.endswith("seed_generator")
    }
    layers = []
    for place in sorted(mine, key=_place_key):
        values = [_value(item) for _, item in sorted(mine[place], key=lambda pair: pair[0])]
        name = _text(file[f"{place}/vars"].attrs.get("name", "")) or place.split("/")[-1]
        layers.append(StoredLayer(name, by_role(values), place))
    return tuple(layers), len(datasets) - sum(len(items) for items in mine.values())


def _place_key(place: str) -> tuple:
    """Sorts layers of one container by class and number, and a model within before what its container adds to it."""
    return (-place.count("/"), *map(_natural, place.split("/")))


# --- the layout of Keras 2


def _keras_2_layers(group, root: str, datasets) -> tuple[StoredLayer, ...]:
    layers = []
    for layer in _in_order(_names(group, "layer_names"), group.keys()):
        if not isinstance(group[layer], h5py.Group):
            layers.append(StoredLayer(layer, by_role([_value(group[layer])]), layer))
            continue
        start = f"{root}/{layer}/".lstrip("/")
        inside = [name.removeprefix(start) for name in datasets if name.startswith(start)]
        ordered = _in_order(_names(group[layer], "weight_names"), inside)
        layers += _split(layer, [(name, datasets[start + name]) for name in ordered])
    return tuple(layers)


def _split(layer: str, tensors: list) -> list[StoredLayer]:
    """The layers within one group, of which a nested model has many: tensors side by side belong together."""
    parts: dict[str, dict] = {}
    for name, item in tensors:
        prefix, _, role = name.rpartition("/")
        parts.setdefault(prefix, {})[role.split(":")[0]] = _value(item)
    layers = []
    for prefix, values in parts.items():
        name = prefix.split("/")[-1] if prefix and len(parts) > 1 else layer
        layers.append(StoredLayer(name, _known_roles(values), f"{layer}/{prefix}".rstrip("/")))
    return layers


def _known_roles(values: dict) -> dict:
    """The tensors by their own names, or, where those are nobody's, by their order."""
    if set(values) <= {*CONVOLUTION, *BATCH_NORM}:
        return values
    guessed = by_role(list(values.values()))
    return values if "0" in guessed else guessed


def _names(group, attribute: str) -> list[str]:
    """A list of names in an attribute, which Keras splits over several where it is long: "layer_names0", …"""
    if attribute in group.attrs:
        return [_text(name) for name in np.atleast_1d(group.attrs[attribute])]
    names, part = [], 0
    while f"{attribute}{part}" in group.attrs:
        names += [_text(name) for name in np.atleast_1d(group.attrs[f"{attribute}{part}"])]
        part += 1
    return names


def _in_order(first: list[str], there) -> list[str]:
    """What is there: in the order that the file gives, then by name and number."""
    rest = dict.fromkeys(there)
    known = [name for name in dict.fromkeys(first) if name in rest]
    for name in known:
        del rest[name]
    return [*known, *sorted(rest, key=_natural)]


def _natural(text: str) -> tuple:
    """conv2d, conv2d_2, conv2d_10: numbers by their size."""
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text))


def write_keras_2(path, layers: Iterable) -> None:
    """Writes the layout of Keras 2.

    Args:
        path: of the file.
        layers: what has a name and `tensors`, {role: variable}.
    """
    layers = list(layers)
    with h5py.File(path, "w") as file:
        _write_names(file, "layer_names", [layer.name for layer in layers])
        for layer in layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{role}:0" for role in layer.tensors]
            _write_names(group, "weight_names", names)
            for name, variable in zip(names, layer.tensors.values(), strict=True):
                group[name] = keras.ops.convert_to_numpy(variable)


def _write_names(group, attribute: str, names: list[str]) -> None:
    """In several attributes where they are too long for one, as `_names` reads them."""
    values = np.array([name.encode() for name in names])
    if values.nbytes <= ATTRIBUTE_LIMIT:
        group.attrs[attribute] = values
        return
    for number, part in enumerate(np.array_split(values, math.ceil(values.nbytes / ATTRIBUTE_LIMIT) + 1)):
        group.attrs[f"{attribute}{number}"] = part


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _line(error) -> str:
    return " ".join(str(error).split())[:300]
