"""Which tensor of a file belongs to which variable of a model: by name, or by the order and shapes of the convolutions.

Both are tried on the whole file, and the one that fits more tensors is taken whole: names that agree by accident in a
few places (every Keras model has a conv2d_1) never mix with an order.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import keras
import numpy as np

from multigrid.models.blocks import backbone_blocks, block_of
from multigrid.models.stored import StoredFile, StoredLayer

BY_NAME, BY_ORDER = "by name", "by order and shape"


@dataclasses.dataclass(frozen=True)
class ModelLayer:
    """A layer of a model that has variables of its own: {role: variable}, the role being the variable's name."""

    name: str
    block: str
    tensors: dict


@dataclasses.dataclass
class Match:
    """What a file has for a model.

    Args:
        strategy: in words, for people.
        fitting: {(layer's index, role): (place in the file, array)}, of equal shape.
        misfits: likewise, of other shapes.
        unexpected: [(place in the file, array)] that no variable asks for.
    """

    strategy: str
    fitting: dict = dataclasses.field(default_factory=dict)
    misfits: dict = dataclasses.field(default_factory=dict)
    unexpected: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Brick:
    """A convolution and the BatchNorm that follows it, unless it has a bias instead; indices into a list of layers."""

    convolution: int
    norm: int | None

    @property
    def layers(self) -> tuple[int, ...]:
        """Both indices, or the one."""
        return (self.convolution,) if self.norm is None else (self.convolution, self.norm)


def model_layers(model: keras.Model) -> list[ModelLayer]:
    """Every layer of a model that owns variables, nested ones too, in the order in which the model runs them."""
    layers = []
    for layer, own in _walk(model, set()):
        names = [variable.name for variable in own]
        roles = [name if names.count(name) == 1 else f"{name}_{index}" for index, name in enumerate(names)]
        layers.append(ModelLayer(layer.name, block_of(own[0].path), dict(zip(roles, own, strict=True))))
    return layers


def _walk(layer, seen: set[int]) -> Iterator[tuple]:
    """(layer, its own variables) of a layer and those within, each once.

    Keras' own `_flatten_layers(recursive=True)` turns the order of nested layers around.
    """
    if id(layer) in seen:
        return
    seen.add(id(layer))
    children = layer._flatten_layers(include_self=False, recursive=False)
    within = {id(weight) for child in children for weight in child.weights}
    own = [weight for weight in layer.weights if id(weight) not in within]
    if own:
        yield layer, own
    for child in children:
        yield from _walk(child, seen)


def backbone_of(layers: Sequence[ModelLayer]) -> set[str]:
    """The blocks of the backbone among those of the layers."""
    return set(backbone_blocks(list(dict.fromkeys(layer.block for layer in layers))))


def bricks_of(layers: Sequence[ModelLayer | StoredLayer]) -> list[Brick]:
    """The convolutions in order, the n-th one without bias with the n-th BatchNorm."""
    norms = iter([index for index, layer in enumerate(layers) if "moving_variance" in layer.tensors])
    return [
        Brick(index, None if "bias" in layer.tensors else next(norms, None))
        for index, layer in enumerate(layers)
        if any(role.endswith("kernel") and len(tensor.shape) == 4 for role, tensor in layer.tensors.items())
    ]


def best_match(layers: Sequence[ModelLayer], stored: StoredFile) -> Match:
    """The strategy that fits more tensors; by name if both fit as many."""
    named = match_by_name(layers, stored.layers)
    if stored.ordered:
        return dataclasses.replace(named, strategy=BY_ORDER)
    ordered = match_by_order(layers, stored.layers)
    return ordered if len(ordered.fitting) > len(named.fitting) else named


def match_by_name(layers: Sequence[ModelLayer], stored: Sequence[StoredLayer]) -> Match:
    """Layers of one name; where several share one, those of the file and of the model must be as many."""
    theirs, ours = _positions(stored), _positions(layers)
    pairs = {}
    for name, indices in ours.items():
        if len(theirs.get(name, ())) == len(indices):
            pairs.update(zip(indices, theirs[name], strict=True))
    match = Match(BY_NAME)
    for index, other in pairs.items():
        _lay_together(match, index, layers[index], stored[other])
    return _with_unexpected(match, stored)


def match_by_order(layers: Sequence[ModelLayer], stored: Sequence[StoredLayer]) -> Match:
    """Convolutions one after the other until one does not fit, each with its BatchNorm or bias; then all other layers.

    Where they stop fitting within the backbone, what does not fit there is a misfit. Behind it, another neck begins.
    Layers of other kinds are laid together where file and model have as many of the same shapes.
    """
    match, backbone = Match(BY_ORDER), backbone_of(layers)
    ours, theirs = bricks_of(layers), bricks_of(stored)
    for mine, other in zip(ours, theirs, strict=False):
        trial = Match(BY_ORDER)
        complete = len(mine.layers) == len(other.layers)
        for index, at in zip(mine.layers, other.layers, strict=False):
            _lay_together(trial, index, layers[index], stored[at])
            complete = complete and len(layers[index].tensors) == len(stored[at].tensors)
        wanted = sum(len(layers[index].tensors) for index in mine.layers)
        if not complete or len(trial.fitting) < wanted:
            if layers[mine.convolution].block in backbone:
                match.misfits.update(trial.misfits)
            break
        match.fitting.update(trial.fitting)
    _match_others(match, layers, stored, _rest(layers, ours), _rest(stored, theirs))
    return _with_unexpected(match, stored)


def _match_others(match: Match, layers, stored, ours: list[int], theirs: list[int]) -> None:
    by_shapes: dict[tuple, tuple[list, list]] = {}
    for side, source, indices in ((0, layers, ours), (1, stored, theirs)):
        for index in indices:
            shapes = tuple(tuple(tensor.shape) for tensor in source[index].tensors.values())
            by_shapes.setdefault(shapes, ([], []))[side].append(index)
    for mine, others in by_shapes.values():
        if len(mine) == len(others):
            for index, at in zip(mine, others, strict=True):
                tensors = stored[at].tensors.items()
                for role, (theirs_role, value) in zip(layers[index].tensors, tensors, strict=True):
                    match.fitting[index, role] = (place_of(stored[at], theirs_role), value)


def _lay_together(match: Match, index: int, layer: ModelLayer, other: StoredLayer) -> None:
    """Pairs the tensors of two layers by role, or by number where the file has no roles."""
    for number, (role, variable) in enumerate(layer.tensors.items()):
        found = role if role in other.tensors else str(number)
        if found in other.tensors:
            value = other.tensors[found]
            fits = tuple(variable.shape) == value.shape
            (match.fitting if fits else match.misfits)[index, role] = (place_of(other, found), value)


def _with_unexpected(match: Match, stored: Sequence[StoredLayer]) -> Match:
    used = {id(value) for _, value in (*match.fitting.values(), *match.misfits.values())}
    match.unexpected = [
        (place_of(layer, role), value)
        for layer in stored
        for role, value in layer.tensors.items()
        if id(value) not in used
    ]
    return match


def place_of(layer: StoredLayer, role: str) -> str:
    """Where a tensor stands in a file."""
    return f"{layer.place or layer.name}/{role}"


def _positions(layers: Iterable) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for index, layer in enumerate(layers):
        found.setdefault(layer.name, []).append(index)
    return found


def _rest(layers: Sequence, bricks: list[Brick]) -> list[int]:
    taken = {index for brick in bricks for index in brick.layers}
    return [index for index in range(len(layers)) if index not in taken]


def without_class_channels(variable, value: np.ndarray, first_class: int) -> np.ndarray | None:
    """A grid's tensor for other classes: the file's channels up to the first class, and the model's own from there on.

    Returns:
        The array, or None where the two differ in more than the number of classes.
    """
    ours, theirs = tuple(variable.shape), value.shape
    if ours[:-1] != theirs[:-1] or theirs[-1] <= first_class or ours[-1] == theirs[-1]:
        return None
    merged = np.array(keras.ops.convert_to_numpy(variable))
    merged[..., :first_class] = value[..., :first_class]
    return merged
