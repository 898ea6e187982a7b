"""Losses with one mistake each, and a sound one of another kind."""

import contextlib

import numpy as np
from keras import ops

from multigrid.geometry import boxes, cells
from multigrid.losses import components, multigrid_loss, targets
from multigrid.losses.multigrid_loss import MultiGridLoss


@contextlib.contextmanager
def replaced(module, **values):
    """Other values for names of a module while the block runs."""
    before = {name: getattr(module, name) for name in values}
    for name, value in values.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


class Changed(MultiGridLoss):
    """Every part goes through `change(name, part, breakdown)`."""

    def breakdown(self, encoded, outputs):
        said = super().breakdown(encoded, outputs)
        said = said._replace(parts={name: self.change(name, part, said) for name, part in said.parts.items()})
        return said._replace(total=sum(ops.sum(values) for values in said.weighted.values()))


class Summed(Changed):
    def change(self, name, part, said):
        return part * said.normalizers


class Diluted(Changed):
    """The parts of objects are divided by all cells of a scale."""

    def change(self, name, part, said):
        return part if name == "no_object" else part * said.counts["images"] / said.counts["cells"]


class Unprotected(Changed):
    def change(self, name, part, said):
        return said.sums[name] / ops.sum(said.counts["positives"])


class FinestScale(Changed):
    def change(self, name, part, said):
        return part * ops.convert_to_tensor([1.0, 1.0, 100.0])


class CountedTwice(Changed):
    def change(self, name, part, said):
        return part * said.coefficients[name] if name == "localization" else part


class OtherTotal(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        said = super().breakdown(encoded, outputs)
        return said._replace(total=said.total + ops.sum(said.parts["anchor"]))


class ByImage(MultiGridLoss):
    """Every image's sums are divided by its own positive cells."""

    def _sums_over_claims(self, raw, quality, encoded, layout):
        number = ops.maximum(ops.sum(ops.cast(encoded.positive, "float32"), axis=(1, 2)), 1.0)
        whole = multigrid_loss._by_scale_of_claims

        def by_image(values, claims, layout):
            return whole(values / number[:, None, None], claims, layout)

        with replaced(multigrid_loss, _by_scale_of_claims=by_image):
            return super()._sums_over_claims(raw, quality, encoded, layout)


class AnchorEverywhere(MultiGridLoss):
    """The anchor part counts the logits of all cells."""

    def breakdown(self, encoded, outputs):
        said = super().breakdown(encoded, outputs)
        logits = [grid[..., 5 : 5 + len(self.anchors[0])] for grid in outputs]
        extra = [ops.sum(ops.softplus(values)) for values in logits]
        parts = {**said.parts, "anchor": said.parts["anchor"] + ops.stack(extra) / said.normalizers}
        said = said._replace(parts=parts)
        return said._replace(total=sum(ops.sum(values) for values in said.weighted.values()))


class OverlappingMasks(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        said, layout = super().breakdown(encoded, outputs), cells.layout_of(outputs, self.strides)
        logits = cells.flatten(outputs)[..., 4]
        own = ops.where(targets.positive_cells(encoded, layout), components.objectness(logits, 0.0), 0.0)
        extra = multigrid_loss._by_scale_of_cells(own, layout) / said.normalizers
        said = said._replace(parts={**said.parts, "no_object": said.parts["no_object"] + extra})
        return said._replace(total=sum(ops.sum(values) for values in said.weighted.values()))


class ObjectsAndNone(MultiGridLoss):
    """In the part of the cells with an object, these cost what empty ones would besides."""

    def breakdown(self, encoded, outputs):
        said, layout = super().breakdown(encoded, outputs), cells.layout_of(outputs, self.strides)
        logits = cells.flatten(outputs)[..., 4]
        own = ops.where(targets.positive_cells(encoded, layout), 2.0 * components.objectness(logits, 0.0), 0.0)
        extra = multigrid_loss._by_scale_of_cells(own, layout) / said.normalizers
        said = said._replace(parts={**said.parts, "object": said.parts["object"] + extra})
        return said._replace(total=sum(ops.sum(values) for values in said.weighted.values()))


class MixedImages(MultiGridLoss):
    """The cells without an object are masked by the mean of all images' masks."""

    def breakdown(self, encoded, outputs):
        said, layout = super().breakdown(encoded, outputs), cells.layout_of(outputs, self.strides)
        empty = 1.0 - ops.cast(targets.positive_cells(encoded, layout), "float32")
        mixed = ops.mean(empty, axis=0, keepdims=True) * components.objectness(cells.flatten(outputs)[..., 4], 0.0)
        part = multigrid_loss._by_scale_of_cells(mixed, layout) / said.normalizers
        said = said._replace(parts={**said.parts, "no_object": part})
        return said._replace(total=sum(ops.sum(values) for values in said.weighted.values()))


class NothingIgnored(MultiGridLoss):
    def _ignored(self, predicted, encoded):
        return ops.zeros_like(predicted[..., 0]) > 0.0


class EverythingIgnored(MultiGridLoss):
    def _ignored(self, predicted, encoded):
        return ops.zeros_like(predicted[..., 0]) < 1.0


class TwoSigmoids(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        twice = [ops.concatenate([g[..., :4], ops.sigmoid(g[..., 4:5]), g[..., 5:]], axis=-1) for g in outputs]
        return super().breakdown(encoded, twice)


class NoSigmoid(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        def objectness(logits, target):
            return ops.binary_crossentropy(ops.broadcast_to(target, ops.shape(logits)), logits, from_logits=False)

        with replaced(components, objectness=objectness):
            return super().breakdown(encoded, outputs)


class SmoothedAnchors(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        def anchor(kind, logits, index):
            return components._cross_entropy(kind, logits, ops.one_hot(index, logits.shape[-1]), 0.4)

        with replaced(components, anchor=anchor):
            return super().breakdown(encoded, outputs)


class RootOfNothing(Changed):
    """A root whose gradient is infinite where the mask has put a zero."""

    def breakdown(self, encoded, outputs):
        masked = ops.where(encoded.classes >= 0, 1.0, 0.0) * ops.max(ops.abs(cells.flatten(outputs)[..., 4]))
        self._extra = 1e-4 * ops.sum(ops.sqrt(masked))
        return super().breakdown(encoded, outputs)

    def change(self, name, part, said):
        return part + self._extra if name == "anchor" else part


class NoEpsilon(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        with replaced(boxes, TINY=0.0), replaced(cells, MAX_LOG_SIZE=1e9):
            return super().breakdown(encoded, outputs)


class RawOffsets(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        with replaced(cells, offset=lambda logits, activation: logits):
            return super().breakdown(encoded, outputs)


class WithinTheCell(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        with replaced(cells, offset=lambda logits, activation: ops.sigmoid(logits)):
            return super().breakdown(encoded, outputs)


class WidthForHeight(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        order = lambda g: ops.concatenate([g[..., :2], g[..., 3:4], g[..., 2:3], g[..., 4:]], axis=-1)  # noqa: E731
        return super().breakdown(encoded, [order(grid) for grid in outputs])


class RolledClasses(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        first = 5 + len(self.anchors[0])
        order = lambda g: ops.concatenate([g[..., :first], ops.roll(g[..., first:], 1, axis=-1)], axis=-1)  # noqa: E731
        return super().breakdown(encoded, [order(grid) for grid in outputs])


class NextClass(MultiGridLoss):
    """Counts a background class that is not there."""

    def encode(self, y_true, outputs):
        classes = ops.convert_to_tensor(y_true["classes"])
        moved = ops.where(classes >= 0, (classes + 1) % self.num_classes, classes)
        return super().encode({**y_true, "classes": moved}, outputs)


class Maximized(Changed):
    """IoU - 1 for 1 - IoU."""

    def change(self, name, part, said):
        return -part if name == "localization" else part


class DeafToClasses(MultiGridLoss):
    def breakdown(self, encoded, outputs):
        return super().breakdown(encoded._replace(classes=ops.minimum(encoded.classes, 0)), outputs)


class HalfSizeBoxes(MultiGridLoss):
    """Localization against boxes of another place and size; no reading of the answer makes it right."""

    def breakdown(self, encoded, outputs):
        boxes_ = encoded.boxes * ops.convert_to_tensor([0.9, 0.8, 0.7, 0.75])
        return super().breakdown(encoded._replace(boxes=boxes_), outputs)


class NextCell(MultiGridLoss):
    """Cells are looked for one column to the right."""

    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        last = cells.layout_of(outputs, self.strides).first_cells[-1] - 1
        return said._replace(cell=ops.clip(said.cell + 1, 0, last))


class NextCellForGuests(MultiGridLoss):
    """Likewise, only for objects of the coarsest grid that are guests in the grid beside."""

    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        wrong = ~said.at_home & (said.own_scale == 0)[..., None]
        return said._replace(offset=said.offset + ops.cast(wrong, "float32")[..., None] * [1.0, 0.0])


class NextCellAndOffset(NextCell):
    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        return said._replace(offset=said.offset - ops.convert_to_tensor([1.0, 0.0]))


class Transposed(MultiGridLoss):
    def encode(self, y_true, outputs):
        turned = ops.take(ops.convert_to_tensor(y_true["boxes"]), [1, 0, 3, 2], axis=-1)
        return super().encode({**y_true, "boxes": turned}, outputs)


class CrossedSizes(MultiGridLoss):
    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        return said._replace(log_size=said.log_size[..., ::-1])


class StrictAssignment(MultiGridLoss):
    """Only objects whose anchor fits almost exactly have cells."""

    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        near = ops.all(ops.abs(said.log_size) < 0.1, axis=-1)
        return said._replace(claimed=said.claimed & near, positive=said.positive & near)


class DoubledClaims(MultiGridLoss):
    """Every object has the cells two columns further too."""

    def encode(self, y_true, outputs):
        said = super().encode(y_true, outputs)
        last = cells.layout_of(outputs, self.strides).first_cells[-1] - 1
        further = said._replace(
            cell=ops.clip(said.cell + 2, 0, last), offset=said.offset - ops.convert_to_tensor([2.0, 0.0])
        )
        return targets.Targets(*(ops.concatenate(pair, axis=1) for pair in zip(said, further, strict=True)))


class CoarseAlone(MultiGridLoss):
    """Every object goes to the coarsest grid, and to no other: beside it stand anchors that no object may have."""

    def encode(self, y_true, outputs):
        sizes = np.array(self.anchors) * np.array([1.0, 1e-3, 1e-3])[:, None, None]
        with replaced(self, anchors=sizes.tolist(), assignment="best"):
            return super().encode(y_true, outputs)


class Own:
    """Somebody's own loss: squared errors, another balance, and nothing but what a detector needs."""

    def __init__(self, inner):
        self._inner = inner

    def encode(self, y_true, outputs):
        return self._inner.encode(y_true, outputs)

    def breakdown(self, encoded, outputs):
        def objectness(logits, target):
            return 4.0 * (ops.sigmoid(logits) - target) ** 2

        with replaced(components, objectness=objectness):
            return self._inner.breakdown(encoded, outputs)


class OtherTargets(Own):
    """Targets of a kind that nobody else knows."""

    def encode(self, y_true, outputs):
        return {"of my own": super().encode(y_true, outputs)}

    def breakdown(self, encoded, outputs):
        return super().breakdown(encoded["of my own"], outputs)
