"""What a weight file holds, whatever its format: layers in the order of the file, each with its tensors by role."""

from __future__ import annotations

import dataclasses

import numpy as np

from multigrid.errors import InputError

CONVOLUTION = ("kernel", "bias")
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")


@dataclasses.dataclass(frozen=True)
class StoredLayer:
    """A layer of a file.

    Args:
        name: the last part of its place, which is what a model's layer may be called too.
        tensors: {role: array}; a role is a variable's name ("kernel", "gamma"), or its number ("0") where the file has
            no more and the shapes do not tell.
        place: where it stands in the file; the name if "".
    """

    name: str
    tensors: dict[str, np.ndarray]
    place: str = ""


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A weight file as data.

    Args:
        format: in words, for people.
        layers: those that have tensors, in the order of the file.
        ordered: whether the names are of the reader's making, by the order in the file.
        anchors: A that the grids of a detector were made for, where the file says so.
        notes: what else is worth saying about it, one line each.
    """

    format: str
    layers: tuple[StoredLayer, ...]
    ordered: bool = False
    anchors: int | None = None
    notes: tuple[str, ...] = ()

    def tensors(self):
        """(place, array) of every tensor."""
        for layer in self.layers:
            for role, value in layer.tensors.items():
                yield f"{layer.place or layer.name}/{role}", value

    def check_finite(self, path) -> None:
        """Sees that every number is one.

        Raises:
            InputError: there is NaN or infinity; names the first tensor that has it.
        """
        for place, value in self.tensors():
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                count = int(np.count_nonzero(~np.isfinite(value)))
                raise InputError(
                    f"{path}: expected finite numbers, received {count} that are NaN or infinite in {place} "
                    f"(shape {value.shape}), the first tensor that has any"
                )


def by_role(values: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Names for tensors of one layer that come in Keras' own order: of a convolution, of a BatchNorm, else numbers."""
    shapes = [value.shape for value in values]
    kernel, rest = shapes[0], shapes[1:]
    if len(kernel) == 4 and rest in ([], [kernel[-1:]]):
        return dict(zip(CONVOLUTION, values, strict=False))
    if len(kernel) == 1 and shapes == [kernel] * len(BATCH_NORM):
        return dict(zip(BATCH_NORM, values, strict=True))
    return {str(number): value for number, value in enumerate(values)}
