"""Faults that were made up by somebody who had not seen the rules, from what users of a detector get wrong.

Each has a line "expected" that was written with it. The rules that name them were chosen, and mostly written, after the
doctor had been asked about all of them once; see the README for what it said then.
"""

from __future__ import annotations

import cv2
import keras
import numpy as np
from keras import ops
from making import with_boxes

from faults.kinds import fault
from faults.loss import raw_outputs, with_sums
from faults.model import grid_layers
from multigrid import assembly
from multigrid.data.samples import read_class_names, read_samples, write_samples
from multigrid.detection.decode import DecodeGrids
from multigrid.geometry.anchor_fit import fit_anchors
from multigrid.geometry.anchors import write_anchors
from multigrid.geometry.cells import STRIDES
from multigrid.losses.multigrid_loss import MultiGridLoss, _by_scale_of_claims
from multigrid.training.optimizers import inner_optimizer
from multigrid.training.schedules import WarmUpThen, build_schedule

BOTH = ("train", "val")


# --- labels and data files: the files themselves are wrong ------------------------------------------------------------


def _files(making, change, splits=BOTH, share: float = 1.0) -> dict:
    """Has the config name label files of which this share of the images went through change(sample) -> sample."""
    data = making.stage.config().data
    names, written = read_class_names(data.classes), {}
    for number, split in enumerate(splits):
        samples = read_samples(getattr(data, split), names)[0]
        chosen = np.random.default_rng((making.seed, number)).random(len(samples)) < share
        written[split] = [change(one) if hit else one for one, hit in zip(samples, chosen, strict=True)]
        _write(making, split, written[split], names)
    return written


def _write(making, split: str, samples, names) -> None:
    path = making.file(f"{split}.txt")
    write_samples(samples, names, path, "yolo3")
    making.config(f"data.{split}={path}")


def _clipped(sample, boxes, classes=None):
    """A sample with boxes cut at the border; those of less than two pixels are left out, as tools do."""
    classes = sample.classes if classes is None else classes
    height, width = sample.size
    boxes = np.clip(boxes, 0, np.array([width, height] * 2, "float32"))
    kept = (boxes[:, 2:] - boxes[:, :2] >= 2.0).all(axis=1)
    return with_boxes(sample, boxes[kept], classes[kept])


@fault("U01", "labels", "S", (0.25, 0.125), ("MG118",), blind=True)
def boxes_snapped_to_grid(making, step):
    """Shares of the side were saved with too few digits, or drawn on a thumbnail: corners lie on a coarse grid."""

    # expected: box coordinates are quantised / only a few distinct values occur; look at how label files were rounded
    #     or converted. Acceptable: labels inexact or boxes and image edges do not agree (labels), localization stays
    #     high because of the labels. Not: anchors, learning rate, loss.
    def snap(sample):
        height, width = sample.size
        grid = np.array([width, height], "float32") * step
        first, last = np.round(sample.boxes[:, :2] / grid), np.round(sample.boxes[:, 2:] / grid)
        return _clipped(sample, np.hstack([first, np.maximum(last, first + 1)]) * np.tile(grid, 2))

    _files(making, snap)


@fault("U02", "labels", "E", (1.0, 0.5), ("MG658",), blind=True)
def train_classes_in_other_order(making, share):
    """The training labels (or half of them) were exported with the names in alphabetical order, the others not."""

    # expected: class ids of the training file follow another order than classes.txt / than those of the validation
    #     file: classes are confused in pairs while boxes are right. Acceptable (labels): class ids permuted, class
    #     labels wrong or contradictory (half of the files: as if noisy), distributions of classes differ between train
    #     and val. Not: class loss, class weights, head.
    names = read_class_names(making.stage.config().data.classes)
    other = np.array([sorted(names).index(name) for name in names])
    _files(making, lambda one: with_boxes(one, one.boxes, other[one.classes]), ("train",), share)


@fault("U03", "labels", "B", (0.2, 0.1), ("MG113",), blind=True)
def boxes_shifted(making, shift):
    """Labels were made on images with a border (or before a crop): every box is off by the same number of pixels."""

    # expected: all boxes are displaced by a constant offset, right and down, against the image content: look at the
    #     label export. Acceptable: boxes do not lie on objects / labels misaligned (labels); letterbox border not
    #     undone. Not: labels of other images without a word on the shift (half right); cell off by one.
    def move(sample):
        height, width = sample.size
        return _clipped(sample, sample.boxes + np.array([width, height] * 2, "float32") * shift)

    _files(making, move)


@fault("U04", "labels", "B", (0.5, 0.7), ("MG117",), blind=True)
def boxes_half_as_large(making, factor):
    """Radii were written where sides belong: all boxes are too small about the right centre; anchors fitted to them."""

    # expected: boxes are uniformly too small (by this factor) about their centres: look at the label conversion.
    #     Acceptable: boxes do not end at the objects' edges / wrong scale of labels. Not: anchors do not fit (they fit
    #     the labels), wrong unit (half right).
    def shrink(sample):
        centre, half = (sample.boxes[:, :2] + sample.boxes[:, 2:]) / 2, (sample.boxes[:, 2:] - sample.boxes[:, :2]) / 2
        return with_boxes(sample, np.hstack([centre - half * factor, centre + half * factor]))

    written = _files(making, shrink)
    sizes = assembly.network_sizes(written["train"], making.checked().model.input_size)
    path = making.file("anchors.txt")
    write_anchors(fit_anchors(sizes), path, "scales")
    making.config(f"data.anchors={path}")


@fault("U05", "labels", "S", ("both", "train"), ("MG658",), blind=True)
def class_is_number_in_image(making, where):
    """The column of the class holds the object's number within its image (the instance id), all of them legal ids."""

    # expected: the class id is the position of the object in its image: class 0 once an image, 1 only beside 0, some
    #     classes never; look at the column that is read as class. Acceptable: class labels do not depend on what is in
    #     the box / random class labels (labels); some classes without any label. Not: class loss, class weights.
    def number(sample):
        return with_boxes(sample, sample.boxes, np.arange(len(sample.classes)) % making.class_count)

    _files(making, number, BOTH if where == "both" else ("train",))


@fault("U06", "labels", "E", (1, 2), ("MG101",), blind=True)
def few_objects_labelled(making, most):
    """Annotators stopped after the first object(s) of an image: the others, plainly to be seen, are unlabelled."""

    # expected: objects without label: the number of boxes an image is capped (exactly one each), confident detections
    #     at unlabelled objects; complete the labels. Acceptable: labels missing (in part). Not: too few positives of
    #     the assignment, no_object_scale, augmentation drops boxes (half right at best).
    _files(making, lambda one: with_boxes(one, one.boxes[:most], one.classes[:most]))


@fault("U07", "labels", "S", (4, 2), ("MG119",), blind=True)
def classes_missing_in_train(making, missing):
    """A filter, or a subset of a big data set, dropped all boxes of some classes from the training file alone."""

    # expected: classes 0 … n−1 have no training labels though the validation labels have them: look at the filter.
    #     Acceptable: labels missing in training, class distribution of train and val differ. Not: class weights,
    #     generally too many background images.
    def drop(sample):
        kept = sample.classes >= missing
        return with_boxes(sample, sample.boxes[kept], sample.classes[kept])

    _files(making, drop, ("train",))


@fault("U08", "labels", "B", (1.0, 0.5), ("MG113",), blind=True)
def boxes_of_stored_rotation(making, share):
    """The labelling tool ignored the EXIF tag: boxes are those of the picture turned by a quarter."""

    # expected: boxes are rotated by 90° against the upright images: EXIF orientation; many clipped or outside.
    #     Acceptable: boxes misaligned, x and y exchanged (with a mirror), boxes outside of the image or clipped. Not:
    #     labels of other images without a word of rotation (half right).
    def turn(sample):
        x1, y1, x2, y2 = sample.boxes.T
        width = sample.size[1]
        return _clipped(sample, np.stack([y1, width - x2, y2, width - x1], axis=1))

    _files(making, turn, share=share)


@fault("U09", "labels", "S", (4, 12), ("MG120",), blind=True)
def few_images_repeated(making, different):
    """The training list names the same few images again and again (a shard was concatenated with itself)."""

    # expected: the training file has only so many different images, each named many times: overfitting; look at how
    #     the list was made. Acceptable: duplicates, too little variety, memorised / training much better than
    #     validation. Not: duplicates between train and val, same draws every epoch (half right).
    data = making.stage.config().data
    names = read_class_names(data.classes)
    samples = read_samples(data.train, names)[0]
    chosen = np.random.default_rng(making.seed).permutation(len(samples))[:different]
    _write(making, "train", [samples[chosen[row % different]] for row in range(len(samples))], names)


# --- augmentation -----------------------------------------------------------------------------------------------------


@fault("U10", "augmentation", "B", (2.0, 1.3), ("MG201",), blind=True)
def zoom_leaves_boxes(making, zoom):
    """A random crop, scaled back to the full size, is applied to the images of training and not to their boxes."""

    # expected: an augmentation (random crop/zoom) changes the image but not the boxes: raw labels fit, augmented do
    #     not. Acceptable: any "boxes do not follow the augmentation", misaligned in training batches only. Not: label
    #     files wrong, labels of other images.
    def crop(images, boxes, classes, rng):
        height, width = images.shape[1:3]
        rows, columns = round(height / zoom), round(width / zoom)
        for image in images:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            image[...] = cv2.resize(image[top : top + rows, left : left + columns].copy(), (width, height))

    making.batches(crop)


@fault("U11", "augmentation", "B", ((0.02, 0.06), (0.08, 0.2)), ("MG204", "MG209"), blind=True)
def crops_leave_slivers(making, scale):
    """Random crops of a few percent of the area, and whatever is left of a box stays: training sees close-ups."""

    # expected: the augmentation crops far too much: boxes in training are fragments that fill the image, much larger
    #     than in validation; RandomResizedCrop's scale and min_visibility. Acceptable: augmentation too strong,
    #     augmentation drops boxes, train and val box sizes differ; anchors do not fit the augmented boxes (half right).
    making.config(
        "augmentation.min_visibility=0.0",
        f"augmentation.steps=[{{name: RandomResizedCrop, scale: [{scale[0]}, {scale[1]}], ratio: [1.0, 1.7], p: 1.0}}]",
    )


@fault(
    "U12", "augmentation", "B", (1.0, 0.5), ("MG201",), blind=True, settings=("augmentation.multi_scale=[0.6, 1.7]",)
)  # fmt: skip
def boxes_of_stale_size(making, share):
    """In training at several sizes the boxes are those of the configured size, whatever size the batch has."""

    # expected: boxes are not scaled with the image where the batch has another size than configured (multi_scale);
    #     right at the configured size, wrong by the ratio elsewhere. Acceptable: boxes not moved by
    #     letterbox/resize/augmentation, wrong unit or scale in training batches only. Not: label files, anchors.
    height, width = making.stage.config().model.input_size

    def stale(images, boxes, classes, rng):
        if rng.random() < share:
            boxes *= np.array([width, height] * 2, "float32") / np.array([*images.shape[2:0:-1]] * 2, "float32")

    making.batches(stale)


@fault("U13", "augmentation", "B", (60, 30), ("MG117", "MG209"), blind=True)
def rotation_widens_boxes(making, degrees):
    """Every training image is turned by a large angle: boxes become hulls of turned boxes, far wider than objects."""

    # expected: the rotation makes boxes too large for the objects (hulls): less rotation. Acceptable: augmentation too
    #     strong, boxes in training larger than in validation, boxes loose after augmentation. Not: labels wrong.
    making.config(
        "augmentation.steps=[{name: HorizontalFlip, p: 0.5}, "
        f"{{name: Affine, rotate: [-{degrees}, {degrees}], fill: 114, p: 1.0}}]"
    )


# --- targets ----------------------------------------------------------------------------------------------------------


@fault("U14", "targets", "B", ((0, 1), (1,)), ("MG322", "MG321"), blind=True)
def scales_never_answer(making, silent):
    """A loop over scales begins too late: objects that belong to these grids (coarse to fine) get no cell."""

    # expected: some grids (strides 32 and 16) have no positive cells though objects match their anchors: objects are
    #     lost in the encoding; look at the assignment by scale. Acceptable: too few positives / objects without cells,
    #     a scale without positives. Not: anchors do not fit, labels missing.
    def encode(self, y_true, outputs):
        found = MultiGridLoss.encode(self, y_true, outputs)
        kept = ops.ones_like(found.own_scale, dtype="bool")
        for scale in silent:
            kept = kept & (found.own_scale != scale)
        return found._replace(claimed=found.claimed & kept[..., None], positive=found.positive & kept[..., None])

    making.criterion(encode=encode)


@fault("U15", "targets", "B", ("all", "two"), ("MG315",), blind=True)
def class_target_rolled(making, which):
    """The encoder counts a background class that is not there: what it asks for is the next class, the last the first.
    Or it takes the first two classes for each other."""

    # expected: the class that the loss trains towards is not the label's: one-hot shifted in the encoder; the loss is
    #     good and names are wrong by a fixed permutation. Acceptable: class channels exchanged in the targets, oracle
    #     through the decoder gives other classes. Not: label files' class ids, class loss.
    def encode(self, y_true, outputs):
        classes = ops.convert_to_tensor(y_true["classes"])
        moved = (classes + 1) % self.num_classes if which == "all" else ops.where(classes < 2, 1 - classes, classes)
        return MultiGridLoss.encode(self, {**y_true, "classes": ops.where(classes >= 0, moved, classes)}, outputs)

    making.criterion(encode=encode)


@fault(
    "U16", "targets", "B", ("all",), ("MG314",), blind=True, settings=("loss.localization=mse", "loss.coord_scale=1.0")
)  # fmt: skip
def anchor_target_off_by_one(making, _):
    """The index of the anchor in the target is one too high, the sizes are coded against the right one."""

    # expected: the anchor that cells are told to choose is not the one that sizes are coded against: decoded truth has
    #     the wrong size; index of the anchor in the encoder. Acceptable: encode and decode disagree / round trip fails
    #     in size, wrong anchors used in decoding. Not: anchors do not fit, anchors in wrong order or unit.
    def encode(self, y_true, outputs):
        found = MultiGridLoss.encode(self, y_true, outputs)
        return found._replace(anchor=(found.anchor + 1) % len(self.anchors[0]))

    making.criterion(encode=encode)


@fault("U17", "targets", "B", (0.5, 0.25), ("MG314", "MG311"), blind=True)
def cells_at_corner(making, share):
    """The encoder computes the centre as (x1, y1), or only half of the way: cells up left of the object answer."""

    # expected: cells that answer lie at the boxes' upper left corner instead of the centre, off in proportion to the
    #     size: centre computed wrongly in the encoder. Acceptable: wrong cells answer, cell off by one or more,
    #     offsets outside their range, centre/corner confusion. Not: label files shifted, localization coefficient.
    def encode(self, y_true, outputs):
        boxes = ops.cast(ops.convert_to_tensor(y_true["boxes"]), "float32")
        size = boxes[..., 2:] - boxes[..., :2]
        moved = boxes - ops.concatenate([size, size], axis=-1) * share
        return MultiGridLoss.encode(self, {**y_true, "boxes": moved}, outputs)._replace(boxes=boxes)

    making.criterion(encode=encode)


# --- loss -------------------------------------------------------------------------------------------------------------


@fault("U18", "loss", "B", ("localization", "anchor"), ("MG625",), blind=True)
def part_of_wrong_sign(making, part):
    """The loss takes IoU − 1 for 1 − IoU (or the log-likelihood for its negative): the part is maximised."""

    # expected: this part of the loss is negative / falls as predictions get worse: its sign. Acceptable: part grows
    #     without bound in the wrong direction, gradient of this part points the wrong way. Not: learning rate,
    #     coefficients out of balance, labels.
    def negate(criterion, sums, cells, quality, encoded, layout):
        return {**sums, part: -sums[part]}

    with_sums(making, negate)


@fault("U19", "loss", "B", ("localization", "classification"), ("MG618",), blind=True)
def part_without_gradient(making, part):
    """The part goes through NumPy or stop_gradient on its way: it is shown, and trains nothing."""

    # expected: this part of the loss has no gradient (exactly zero) although its value is not zero. Acceptable: this
    #     part never falls / stays at its constant baseline, its channels get no gradient, coefficient without effect.
    #     Not: learning rate too low, frozen layers, labels (localization stays high because of the labels).
    def stop(criterion, sums, cells, quality, encoded, layout):
        return {**sums, part: ops.stop_gradient(sums[part])}

    with_sums(making, stop)


@fault("U20", "loss", "B", (1.0, 0.5), ("MG618",), blind=True)
def class_loss_times_objectness(making, power):
    """The class loss of a cell is weighted by its own objectness, with gradient: saying "nothing here" is cheap."""

    # expected: classification is far below its closed form at the start (a hundredth) and its gradient pushes
    #     objectness of positive cells down; weight by a prediction without stop_gradient. Acceptable: class part scaled
    #     wrongly / too small / out of balance, parts not independent of each other. Not: labels, class weights.
    def weigh(criterion, sums, cells, quality, encoded, layout):
        raw = raw_outputs(criterion, cells, encoded)
        values = criterion._classification(raw.classes, encoded) * ops.sigmoid(raw.objectness) ** power
        return {**sums, "classification": _by_scale_of_claims(values, encoded, layout)}

    with_sums(making, weigh)


@fault("U21", "loss", "B", ("swapped", "mirrored"), ("MG622", "MG706"), blind=True)
def loss_reads_boxes_wrongly(making, how):
    """The IoU of the loss is taken with true boxes in another frame, x and y exchanged (or x counted from the right of
    128 pixels); cells and labels are right."""

    # expected: the localization of perfect predictions is not zero: true boxes are read in another order/frame in the
    #     loss than in encoder and decoder. Acceptable: localization loss disagrees with the decoder, oracle does not
    #     reach the floor of localization, cells right and boxes transposed. Not: labels with x and y swapped (files are
    #     right; half right), anchors.
    def boxes(self, offsets, log_sizes, encoded, layout):
        decoded, true = MultiGridLoss._boxes(self, offsets, log_sizes, encoded, layout)
        if how == "swapped":
            return decoded, ops.take(true, [1, 0, 3, 2], axis=-1)
        width = float(layout.shapes[-1][1] * layout.strides[-1])
        mirrored = ops.stack([width - true[..., 2], true[..., 1], width - true[..., 0], true[..., 3]], axis=-1)
        return decoded, ops.where(encoded.positive[..., None], mirrored, true)

    making.criterion(_boxes=boxes)


# --- model ------------------------------------------------------------------------------------------------------------


@fault("U22", "model", "B", ("relu", "tanh"), ("MG702",), blind=True)
def activation_on_outputs(making, activation):
    """The layers of the grids have an activation, as the convolutions before them: logits cannot be what they like."""

    # expected: outputs of the grids are bounded from below (no negative logits; tanh: within ±1): activation on the
    #     output layer. Acceptable: saturated / dead outputs, objectness cannot go below one half, objectness prior has
    #     no effect. Not: prior bias itself wrong (half right), no_object_scale, learning rate.
    def change(trainer):
        for layer in grid_layers(trainer):
            layer.activation = keras.activations.get(activation)

    making.change("detector", change)


def _after(making, strides, function) -> None:
    """Has what comes before the grids of these strides go through a function."""

    def change(trainer):
        for stride in strides:
            layer = trainer.detector.get_layer(f"head_{stride}_leaky")
            layer.call = lambda inputs, before=layer.call: function(before(inputs))

    making.change("detector", change)


@fault("U23", "model", "E", (STRIDES, STRIDES[1:]), ("MG710",), blind=True)
def features_reshaped(making, strides):
    """Channels first were made channels last by reshape instead of transpose: cells see features from anywhere."""

    # expected: what a cell says does not depend on the image at its place: the head's feature maps are scrambled in
    #     space (reshape for transpose) at these strides. Acceptable: scale has no usable signal / outputs do not follow
    #     the image, head cannot localise. Not: labels misaligned, learning rate.
    def scramble(features):
        shape = ops.shape(features)
        return ops.reshape(ops.transpose(features, (0, 3, 1, 2)), shape)

    _after(making, strides, scramble)


@fault("U24", "model", "B", (0.9, 0.6), ("MG709",), blind=True)
def dropout_in_prediction(making, rate):
    """Dropout before the grids that is always on (training=True in the model), in prediction too."""

    # expected: predictions are random: the same image twice gives different outputs without training; dropout active
    #     at inference (or far too strong). Acceptable: evaluation/prediction in training mode, outputs noisy, channels
    #     mostly zero. Not: learning rate, labels.
    seeds = keras.random.SeedGenerator(making.seed)
    _after(making, STRIDES, lambda features: keras.random.dropout(features, rate, seed=seeds))


# --- optimization -----------------------------------------------------------------------------------------------------


@fault("U25", "optimization", "E", (0.0, 0.05), ("MG504", "MG505"), blind=True)
def schedule_in_epochs(making, fraction):
    """The schedule's length is given in epochs where it counts steps: ten steps after the warm-up it is at its end."""

    # expected: the learning rate is at its final value (zero) after some 20 steps: schedule too short, epochs taken for
    #     steps. Acceptable: learning rate too low / zero from then on, live schedule is not the config's. Not: frozen
    #     layers, warm-up.
    making.config(f"training.final_learning_rate_fraction={fraction}")

    def change(trainer):
        training = trainer.config.training
        rise = round(training.warmup_epochs * len(trainer.train_data))
        optimizer = inner_optimizer(trainer.detector.optimizer)
        optimizer.learning_rate = build_schedule(
            training.schedule,
            training.learning_rate,
            steps=rise + training.epochs,
            warmup_steps=rise,
            final_fraction=training.final_learning_rate_fraction,
        )

    making.change("compiled", change)


@fault("U26", "optimization", "E", (30.0, 10.0), ("MG505",), blind=True)
def schedule_rises(making, factor):
    """A step schedule multiplies by its factor where it should divide: the rate jumps up after epochs 2 and 4."""

    # expected: the learning rate rises in steps in mid-training (steps 48 and 96) and the loss jumps there: factor of
    #     the schedule is upside down. Acceptable: learning rate too high (from a step on), live schedule is not the
    #     config's. Not: no warm-up, a bad batch, clipping.
    making.config("training.schedule=step", "training.step_epochs=[2, 4]", "training.step_factor=0.1")

    def change(trainer):
        training, steps = trainer.config.training, len(trainer.train_data)
        rise = round(training.warmup_epochs * steps)
        rates = [training.learning_rate * factor**power for power in range(3)]
        drops = keras.optimizers.schedules.PiecewiseConstantDecay(
            [epoch * steps - rise for epoch in training.step_epochs], rates
        )
        inner_optimizer(trainer.detector.optimizer).learning_rate = WarmUpThen(drops, rise)

    making.change("compiled", change)


@fault("U27", "optimization", "E", ("all", "backbone"), ("MG520",), blind=True)
def gradients_reversed(making, which):
    """Gradients are added instead of subtracted, in a training step of the user's own; or in the backbone alone, by a
    gradient reversal that was left in."""

    # expected: steps go up the gradient: the loss rises with any learning rate, also a tiny one; sign of the update.
    #     Acceptable: loss rises from the first step although gradients are right, update and gradient do not oppose.
    #     Learning rate too high: half right at best.
    def change(trainer):
        optimizer = inner_optimizer(trainer.detector.optimizer)
        backbone = {variable.path for variable in trainer.detector.backbone.variables}
        kind = type(optimizer)

        def apply_gradients(self, grads, trainable_variables):
            signs = [-1.0 if which == "all" or one.path in backbone else 1.0 for one in trainable_variables]
            grads = [grad * sign for grad, sign in zip(grads, signs, strict=True)]
            kind._backend_apply_gradients(self, grads, trainable_variables)

        methods = {"_backend_apply_gradients": apply_gradients, "__module__": kind.__module__}
        optimizer.__class__ = type(kind.__name__, (kind,), methods)

    making.change("compiled", change)


# --- pipeline ---------------------------------------------------------------------------------------------------------


def _generator(making, methods) -> None:
    """Has a subclass of the generator, with the methods that `methods` makes for it, make both streams."""
    making.change(
        "generator", lambda kind: type(kind.__name__, (kind,), {**methods(kind), "__module__": kind.__module__})
    )


@fault("U28", "pipeline", "B", ("for ever", "an epoch"), ("MG909",), blind=True)
def same_batch_every_step(making, how):
    """`next(iter(data))` in the loop: training sees the first batch in every step, of the first epoch's order or of the
    epoch's."""

    # expected: all steps (of an epoch) show the same images; nearly all samples are never seen: index of the batch is
    #     ignored. Acceptable: repeated batches, little variety, memorised a batch / training good, validation bad. Not:
    #     same augmentation every epoch, no shuffling (half right).
    def methods(kind):
        def positions(self, index):
            return kind._positions(self, 0 if self.shuffle else index)

        def set_epoch(self, epoch):
            kind.epoch.fset(self, epoch)
            if how == "for ever" and self.shuffle:
                first = self._rng(0, 1).permutation(len(self.samples))
                self._now = (epoch, first)

        return {"_positions": positions, "epoch": property(lambda self: kind.epoch.fget(self), set_epoch)}

    _generator(making, methods)


@fault("U29", "pipeline", "S", (2, 6), ("MG909",), blind=True)
def epoch_too_short(making, batches):
    """The length of the data set was divided by the batch size twice: an epoch ends after a few batches."""

    # expected: an epoch has 2 steps of 8 images where there are 192 samples: most samples are not seen in an epoch and
    #     the training is far too short; length of the generator. Acceptable: too few steps, samples never shown. Not:
    #     learning rate too low, warm-up.
    def methods(kind):
        return {"__len__": lambda self: min(batches, kind.__len__(self)) if self.shuffle else kind.__len__(self)}

    _generator(making, methods)


@fault("U30", "pipeline", "B", (5, 2), ("MG209",), blind=True)
def brightness_overflows(making, gain):
    """Training images are brightened in uint8, where 256 is 0 again: bright parts wrap around. Validation is not."""

    # expected: training images are garbled (values wrap around), validation images are not: colours of the two differ;
    #     integer overflow. Acceptable: augmentation too strong / train images unlike val images, statistics of pixel
    #     values off. Not: images not scaled, labels.
    def brighten(images, boxes, classes, rng):
        images[...] = (images.astype("uint16") * gain).astype("uint8")

    making.batches(brighten)


# --- prediction and evaluation ----------------------------------------------------------------------------------------


def _decoded(making, function) -> None:
    """Has the predictor's decoded boxes and scores go through a function."""

    def change(predictor):
        decoder = predictor.model.get_layer("decode")
        kind = type(decoder)

        def call(self, grids):
            return function(kind.call(self, grids))

        stand_in = type(kind.__name__, (kind,), {"call": call, "__module__": DecodeGrids.__module__})
        grids = decoder._inbound_nodes[0].input_tensors
        outputs = stand_in(**decoder.get_config())(grids)
        predictor.model = keras.Model(predictor.model.input, outputs, name=predictor.model.name)

    making.change("predictor", change)


@fault("U31", "evaluation", "P", ("all", "three"), ("MG811",), blind=True)
def predictor_classes_in_other_order(making, which):
    """Prediction has its own list of names, in alphabetical order, or with the first three turned round."""

    # expected: prediction's classes are a permutation of training's: boxes right, names wrong; oracle through the
    #     predictor gives other classes. Acceptable: class order in prediction/decoder differs, class-agnostic AP far
    #     above AP. Not: class loss, class labels of the files.
    names = read_class_names(making.stage.config().data.classes)
    order = [names.index(name) for name in sorted(names)] if which == "all" else [2, 1, 0, *range(3, len(names))]
    _decoded(making, lambda found: {**found, "scores": ops.take(found["scores"], order, axis=-1)})


@fault("U32", "evaluation", "P", ("all",), ("MG803",), blind=True)
def predictor_boxes_yxyx(making, _):
    """Boxes come out as (y1, x1, y2, x2), as TensorFlow's suppression wants them, and are read as (x1, y1, x2, y2)."""

    # expected: predicted boxes have x and y exchanged while the training is right: order of coordinates in prediction.
    #     Acceptable: decoder of the predictor differs from that of training, oracle through the predictor fails. Not:
    #     labels swapped.
    _decoded(making, lambda found: {**found, "boxes": ops.take(found["boxes"], [1, 0, 3, 2], axis=-1)})


@fault("U33", "evaluation", "P", ("objectness", "none"), ("MG808",), blind=True)
def scores_of_background(making, how):
    """The score is that of "no object" (1 − objectness); or it is the class alone, so that empty cells score too."""

    # expected: scores in prediction are inverted (best boxes last) or leave out objectness: definition of the score.
    #     Acceptable: decoder/score of the predictor differs from training, flood of false positives, oracle through the
    #     predictor fails. Not: score threshold, suppression, no_object_scale.
    def change(found):
        objectness = ops.clip(found["objectness"], 1e-7, 1.0)[..., None]
        factor = (1.0 - objectness if how == "objectness" else 1.0) / objectness
        return {**found, "scores": found["scores"] * factor}

    _decoded(making, change)


@fault("U34", "evaluation", "P", (255, 8), ("MG809",), blind=True)
def predictor_scales_again(making, divisor):
    """Who predicts divides images by 255 first, as other networks want it: they arrive as black."""

    # expected: images reach the network darker in prediction than in training (scaled twice); same detector, same
    #     image, other outputs than in training. Acceptable: prediction's preprocessing differs, inputs of the predictor
    #     out of range, outputs of the predictor do not depend on the image. Not: training images not scaled.
    def change(predictor):
        model, predict = predictor.model, predictor.model.predict_on_batch
        model.predict_on_batch = lambda images: predict((images // divisor).astype("uint8"))

    making.change("predictor", change)


@fault("U35", "evaluation", "P", (0.34, 2.0), ("MG812",), blind=True)
def predictor_looks_at_other_size(making, scale):
    """Prediction looks at images at a third (or twice) the size that was trained at."""

    # expected: detection.scales has no 1: the network sees objects at a third of the size that it was trained for.
    #     Acceptable: input size of prediction and training differ, objects too small in prediction. Not: anchors,
    #     training.
    making.config(f"detection.scales=[{scale}]")
