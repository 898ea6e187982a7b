"""The first tensor of a training step that is not finite: weights, input, target, output, component, gradient.

Everything is observed, by the detector's own forward pass, loss and gradients; no formula is repeated here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np
from keras import ops

from multigrid.models.listening import listening


@dataclass(frozen=True)
class Fault:
    """What was not finite first."""

    kind: str  # "weights", "input", "target", "output", "component" or "gradient"
    name: str  # of the variable, array, layer or component
    stride: int | None = None  # of a component
    images: tuple[int, ...] | None = None  # positions in the batch; None where single images have no part in it
    note: str = ""

    @property
    def subject(self) -> str:
        """The tensor in words, "component localization at stride 16"."""
        words = {"weights": "weight", "output": "output of layer", "gradient": "gradient of"}.get(self.kind, self.kind)
        place = "" if self.stride is None else f" at stride {self.stride}"
        return f"{words} {self.name}{place}"

    def describe(self, batch_size: int, files: list) -> str:
        """One line: the tensor, which images of the batch, and their files.

        Args:
            batch_size: images in the batch.
            files: for each image the files that it shows; empty where they are not known.
        """
        text = f"{self.subject} is the first that is not finite{self.note}"
        if self.images is None:
            return text
        shown = dict.fromkeys(file for image in self.images if image < len(files) for file in files[image])
        return f"{text}; {len(self.images)} of {batch_size} images; image files: {', '.join(shown) or 'unknown'}"


def first_fault(detector: keras.Model, images, truth: dict, *, backward: bool = True) -> Fault | None:
    """The first tensor that is not finite when the detector trains on a batch; None where all are.

    Args:
        detector: with the weights from before the step. It is compiled anew: hand over one that nobody trains.
        images: uint8 [B, H, W, 3].
        truth: {"boxes": [B, M, 4] corners in input pixels, "classes": [B, M], -1 for padding}.
        backward: whether gradients are looked at; without them the detector stays as it is, compiled or not.
    """
    looks = (_in_weights, _in_batch, _in_outputs, _in_components)
    looks += (_in_gradients,) if backward else ()
    return next(filter(None, (look(detector, images, truth) for look in looks)), None)


def gradients_of(detector: keras.Model, images, truth: dict) -> dict[str, np.ndarray]:
    """The gradients of a training step, before any clipping and loss scaling, by the path of their variable.

    Args:
        detector: as for `first_fault`; its weights stay as they are.
        images: uint8 [B, H, W, 3].
        truth: boxes and classes.
    """
    recorder = _Recorder()
    # a single step: TensorFlow does it before it would have traced it, JAX compiles it sooner than piece by piece
    eager = keras.backend.backend() == "tensorflow"
    detector.compile(recorder, run_eagerly=eager, jit_compile=not eager, auto_scale_loss=False)
    detector.train_on_batch(images, truth)
    pairs = zip(detector.trainable_variables, recorder.gradients, strict=True)
    return {variable.path: _numbers(gradient) for variable, gradient in pairs}


class _Recorder(keras.optimizers.Optimizer):
    """Keeps the gradients that it is given, and moves nothing."""

    def __init__(self):
        super().__init__(learning_rate=0.0, name="recorder")

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.gradients = [self.add_variable_from_reference(variable, name="gradient") for variable in variables]

    def update_step(self, gradient, variable, learning_rate):
        self.assign(self.gradients[self._get_variable_index(variable)], ops.cast(gradient, variable.dtype))


def _in_weights(detector, images, truth):
    wrong = [variable.path for variable in detector.weights if not np.isfinite(_numbers(variable)).all()]
    return Fault("weights", wrong[0], note=f", {len(wrong)} of {len(detector.weights)} are not") if wrong else None


def _in_batch(detector, images, truth):
    for kind, arrays in (("input", {"images": images}), ("target", truth)):
        for name, values in arrays.items():
            found = _images_of(np.asarray(values))
            if found:
                return Fault(kind, name, images=found)
    return None


def _in_outputs(detector, images, truth):
    with _watched(detector) as seen:
        _train_outputs(detector, images)
    name, wrong = next(((name, wrong) for name, wrong in seen if wrong), (None, None))
    return None if name is None else Fault("output", name, images=wrong)


def _in_components(detector, images, truth):
    breakdown = detector.loss_breakdown(images, truth, training=True)
    for name, values in breakdown.parts.items():
        for row, value in enumerate(_numbers(values)):
            if not np.isfinite(value):
                wrong = _images_with(detector, images, truth, name, row)
                return Fault("component", name, stride=detector.strides[row], images=wrong)
    if breakdown.regularization is not None and not np.isfinite(_numbers(breakdown.regularization)):
        return Fault("component", "regularization")
    if not np.isfinite(_numbers(breakdown.total)):
        return Fault("component", "total", note=", though every part is")
    return None


def _in_gradients(detector, images, truth):
    found = gradients_of(detector, images, truth)
    # what goes wrong goes wrong from the output's side on: its variables come last
    for name, values in reversed(found.items()):
        if not np.isfinite(values).all():
            return Fault("gradient", name, note=f", from the output's side; {_largest_part(detector, images, truth)}")
    with np.errstate(over="ignore"):
        squares = {name: np.sum(np.square(values.astype("float32"))) for name, values in found.items()}
        if np.isfinite(sum(squares.values())):
            return None
    largest = max(found, key=lambda name: np.abs(found[name]).max())
    size = np.abs(found[largest]).max()
    note = f": their common norm; up to {size:.3g} in {largest}; {_largest_part(detector, images, truth)}"
    return Fault("gradient", "all variables", note=note)


def _largest_part(detector, images, truth) -> str:
    """The part of a finite loss that such gradients come from most likely, in words."""
    weighted = detector.loss_breakdown(images, truth, training=True).weighted
    sizes = {(name, row): value for name, values in weighted.items() for row, value in enumerate(_numbers(values))}
    name, row = max(sizes, key=sizes.get)
    return f"the largest component is {name} at stride {detector.strides[row]}, {sizes[name, row]:.3g}"


def _images_with(detector, images, truth, name, row) -> tuple[int, ...]:
    """The images whose own share of a component at one scale is not finite."""
    outputs, criterion = _train_outputs(detector, images), detector.criterion
    wrong = []
    for index in range(len(images)):
        one = [output[index : index + 1] for output in outputs]
        theirs = {key: ops.convert_to_tensor(values[index : index + 1]) for key, values in truth.items()}
        share = criterion.breakdown(criterion.encode(theirs, one), one).parts[name]
        if not np.isfinite(_numbers(share)[row]):
            wrong.append(index)
    return tuple(wrong)


def _train_outputs(detector, images):
    """The grids that training sees, with the statistics of the batch; the detector stays as it is."""
    state = ([v.value for v in detector.trainable_variables], [v.value for v in detector.non_trainable_variables])
    return detector.stateless_call(*state, ops.convert_to_tensor(images), training=True)[0]


@contextlib.contextmanager
def _watched(detector) -> Iterator[list]:
    """Records, while the block runs, every layer that answers: (name, images whose answer is not finite), in order."""
    seen = []

    def record(layer, inputs, outputs):
        wrong = {image for output in keras.tree.flatten(outputs) for image in _images_of(_numbers(output))}
        seen.append((layer.name, tuple(sorted(wrong))))

    with listening(detector, record):
        yield seen


def _images_of(values: np.ndarray) -> tuple[int, ...]:
    """The rows of an array [B, …] that hold something that is not finite."""
    if values.dtype.kind in "iub" or not values.size:
        return ()
    finite = np.isfinite(values)
    rows = finite.reshape(len(values) if values.ndim else 1, -1).all(axis=1)
    return tuple(int(index) for index in np.flatnonzero(~rows))


def _numbers(tensor) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))
