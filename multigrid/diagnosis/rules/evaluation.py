"""Causes in decoding, suppression, metric and inference.

The perfect answer is given to the live predictor, and what it finds is compared with the truth.
"""

from __future__ import annotations

import numpy as np

from multigrid.diagnosis.examinations import modes, oracle, roundtrip, steadiness
from multigrid.diagnosis.examinations.coverage import is_norm
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.diagnosis.rules.telling import defaults_for

DECODED = 0.95  # overlap of the perfect answer, decoded, with its object
SEEN = 0.9  # share of the objects that the perfect answer should find
SAME = 0.02  # error of a factor, as ln, or of a shift in cells, that is none
NEAR = 0.02  # of an image's side: labels that are nearer to the batches' objects are in their frame
HIGH_THRESHOLD = 0.05
UNSTEADY = 1e-3
OTHER_NETWORK = 0.02
OTHER_SIZE = 1.8  # times as large or small that an input may be; 416 and 608 pixels are 1.46 apart
WRONG_CLASSES = 0.3  # share of the objects of the perfect answer that get another class
APART = 1.3  # times the loss of training that the moving statistics' loss may be; 0.98 to 1.05 in healthy runs
UNSETTLED = 0.02  # share of the first statistics that is left


@rule("MG801", "The score threshold hides detections from the metric", group="evaluation", stage="evaluation")
def threshold_too_high(case):
    """Objects that the perfect answer is unsure of are not found."""
    seen = case.examined(oracle.examine_findings)
    if seen is None or seen.found < SEEN:
        return None
    hidden = seen.found_faint < 0.5
    if not hidden and seen.score_threshold < HIGH_THRESHOLD:
        return None
    return Verdict(
        0.85 if hidden else 0.5,
        (
            Observation("least score of a detection", seen.score_threshold, "0.001 to 0.01"),
            Observation("objects found where all are sure", round(seen.found, 3), "1"),
            Observation(f"objects found where objectness is {oracle.FAINT}", round(seen.found_faint, 3), "1"),
        ),
        ("boxes, classes and suppression are right: the same objects are found when they are surer",),
        Remedy(
            "Evaluate with a threshold of 0.001; average precision needs the whole curve.",
            settings=defaults_for(case, "detection", "score_threshold"),
            part="predictor", where="detection.score_threshold",
        ),
        hygiene=not hidden,
    )  # fmt: skip


@rule("MG802", "The overlap at which boxes are taken for one object is wrong", group="evaluation", stage="evaluation")
def suppression_out_of_range(case):
    """Two boxes on one object stay two detections, or two objects side by side become one."""
    seen = case.examined(oracle.examine_findings)
    if seen is None or seen.twice is None:
        return None
    kept = dict(zip(oracle.PAIRS, seen.twice, strict=True))
    doubles, merges = kept[0.8] and kept[0.9], not kept[0.2]
    if not doubles and not merges:
        return None
    last = max((overlap for overlap, both in kept.items() if both), default=0.0)
    return Verdict(
        0.85 if doubles else 0.75,
        (Observation("largest overlap at which two boxes of a class stay two", last, "0.4 to 0.7"),),
        ("asked of the live suppression with two boxes, so that no network has a part in it",),
        Remedy(
            "Use an overlap between 0.45 and 0.65.",
            settings=defaults_for(case, "detection", "nms_threshold", "suppression", "soft_sigma"), part="predictor",
            where="detection.nms_threshold",
        ),
    )  # fmt: skip


@rule(
    "MG803", "Boxes are decoded in another way than they are trained", group="evaluation", stage="evaluation",
    explains=("MG807", "MG808", "MG804", "MG801"),
)  # fmt: skip
def decoded_otherwise(case):
    """The perfect answer, decoded by the predictor, is not the truth."""
    seen, trip = case.examined(oracle.examine_decoding), case.examined(roundtrip.examine)
    if seen is None or seen.overlap >= DECODED:
        return None
    sound = trip is not None and trip.distance < 0.05 and trip.size_error < 0.05
    return Verdict(
        0.95 if sound else 0.5,
        (
            Observation("overlap of the decoded perfect answer with the objects", round(seen.overlap, 3), "1"),
            Observation("shift of the centres in cells, (x, y)", np.round(seen.shift, 3).tolist(), "[0, 0]"),
            Observation("decoded sides over true ones, (x, y)", np.round(np.exp(seen.log_size), 3).tolist(), "[1, 1]"),
            Observation("decoded centre over true centre", round(seen.magnified, 3), "1"),
        ),
        (
            _what_differs(seen),
            f"the training's own round trip is {'sound' if sound else 'not sound either'}",
        ),
        Remedy(
            "Decode with the anchors, strides and activations of the training: make the predictor of this detector.",
            part="predictor", where="predictor, detection.decode",
        ),
    )  # fmt: skip


@rule("MG804", "Boxes are not brought back to the image as it was", group="evaluation", stage="evaluation")
def not_mapped_back(case):
    """Right in an image of the network's own size, displaced in one with borders."""
    seen = case.examined(oracle.examine_findings)
    if seen is None or seen.found < SEEN or seen.found_padded > 0.6 * seen.found:
        return None
    return Verdict(
        0.9,
        (
            Observation("objects found in an image of the network's size", round(seen.found, 3), "1"),
            Observation("objects found in an image of other proportions", round(seen.found_padded, 3), "1"),
            Observation("shift there, (x, y) in pixels", np.round(seen.shift_padded, 1).tolist(), "[0, 0]"),
            Observation("border of the letterbox, (left, top)", np.round(seen.pad, 1).tolist(), "as it is"),
        ),
        ("the decoder is right, or the first image would fail too; the way back from the letterbox is not",),
        Remedy("Undo the letterbox: take its border off, then divide by its scale.", part="predictor"),
    )


@rule(
    "MG805", "Classes are trained by softmax and read by sigmoid, or the other way round", group="evaluation",
    stage="evaluation", explains=("MG808",),
)  # fmt: skip
def other_class_activation(case):
    """A constant added to all class logits changes the loss and not the scores, or the scores and not the loss."""
    seen = case.examined(oracle.examine_decoding)
    if seen is None or case.detector.num_classes < 2 or seen.class_shift == seen.loss_class_shift:
        return None
    if seen.scores_without["objectness"] > seen.score:
        return None  # a sure object has the lowest score: too little is left of it to hear a constant
    words = {True: "sigmoid", False: "softmax"}
    return Verdict(
        0.9,
        (
            Observation("the loss reads class logits by", words[seen.loss_class_shift], words[seen.class_shift]),
            Observation("the predictor reads them by", words[seen.class_shift], words[seen.loss_class_shift]),
        ),
        ("a softmax does not hear a constant in all logits, a sigmoid does",),
        Remedy("Make detector and criterion for the same reading.", part="predictor", where="loss.classification"),
    )


@rule(
    "MG806", "Evaluation runs the network in training mode", group="evaluation", stage="evaluation", explains=("MG809",)
)
def evaluates_in_training_mode(case):
    """What is found in an image depends on its neighbours in the batch, or predicting moves BatchNorm's statistics."""
    seen = case.examined(steadiness.examine)
    if seen is None or (seen.company < UNSTEADY and not seen.moved):
        return None
    return Verdict(
        0.9,
        (
            Observation(
                "change of boxes and scores when the neighbour is another image", float(f"{seen.company:.3g}"), "0"
            ),
            Observation("variables that predicting moved", len(seen.moved), "0"),
        ),
        ("weights that are merely wrong would give the same whatever stands beside the image",),
        Remedy("Call the network with training=False.", part="predictor"),
    )


@rule("MG807", "Labels and detections are in different frames in the metric", group="evaluation", stage="evaluation")
def other_frames(case):
    """The validation batches' own truth, found perfectly, does not match the labels that the metric compares with."""
    seen, whole = case.examined(oracle.examine_metric), case.examined(oracle.examine_findings)
    if seen is None or whole.found < SEEN or whole.found_padded < SEEN or seen.ap50 > 0.5 or not seen.apart > NEAR:
        return None
    apart = abs(seen.size) > 1.0 or seen.overlap < 0.05
    return Verdict(
        0.9 if apart else 0.6,
        (
            Observation("AP50 of the validation batches' truth against the labels", round(seen.ap50, 3), "0.9 to 1"),
            Observation("median best overlap of a label", round(seen.overlap, 3), "1"),
            Observation("distance of labels and batches, over the image's side", round(seen.apart, 3), "0"),
            Observation("side of a label over that of the object in the batch", float(f"{np.exp(seen.size):.4g}"), "1"),
        ),
        (
            f"{seen.images} images; decoder, way back and suppression find designed objects, so that the labels of the "
            "metric are in another frame than those of the batches",
        ),
        Remedy(
            "Bring labels and detections to pixels of the original image before they are compared.",
            part="data",
            where="samples of val",
        ),
    )


@rule("MG808", "Detections are capped or scored by half of what is known", group="evaluation", stage="evaluation")
def capped_or_half_scored(case):
    """Fewer detections than objects can be, or a score that does not listen to objectness or class."""
    whole, seen = case.examined(oracle.examine_findings), case.examined(oracle.examine_decoding)
    if whole is None:
        return None
    most = _most_objects(case)
    few = whole.found >= 0.5 or whole.crowd == getattr(case.predictor, "max_detections", None)
    capped = whole.crowd < 0.8 * whole.crowd_objects and few
    deaf = [name for name, score in seen.scores_without.items() if score > 0.6 * seen.score]
    if case.detector.num_classes == 1:
        deaf = [name for name in deaf if name != "class"]
    if not capped and not deaf:
        return None
    return Verdict(
        0.85,
        (
            Observation("detections in an image of separate objects", whole.crowd, whole.crowd_objects),
            Observation("most objects of a labelled image", most, "fewer than the cap"),
            Observation("what the score does not listen to", deaf, "none"),
            Observation("score of objectness 0.9 and class 0.8", round(seen.score, 3), "0.72"),
        ),
        ("every object was given with full confidence, and is found where there are few, or as many as the cap",),
        Remedy(
            "Allow more detections than an image has objects; score by objectness times class.",
            settings=defaults_for(case, "detection", "max_detections"),
            part="predictor", where="detection.max_detections",
        ),
        hygiene=not deaf and whole.crowd >= most,
    )  # fmt: skip


@rule(
    "MG811", "Prediction has the classes in another order", group="evaluation", stage="evaluation",
    explains=("MG808", "MG807"),
)  # fmt: skip
def classes_in_another_order(case):
    """The perfect answer comes out with its boxes and with other classes."""
    seen = case.examined(oracle.examine_decoding)
    if seen is None or case.detector.num_classes < 2 or seen.overlap < DECODED or seen.wrong_class < WRONG_CLASSES:
        return None
    return Verdict(
        0.9,
        (
            Observation("cells whose highest score is not of the class told", round(seen.wrong_class, 2), "0"),
            Observation("overlap of their decoded boxes with the objects", round(seen.overlap, 3), "1"),
        ),
        ("boxes are right, so that grids and anchors are read as they should be; a wrong activation keeps the order",),
        Remedy(
            "Give prediction the class names in the order of data.classes, and read the channels in theirs.",
            part="predictor", where="data.classes, the predictor's decoder",
        ),
    )  # fmt: skip


@rule(
    "MG812", "Prediction looks at images at another size than training", group="evaluation", stage="evaluation",
)  # fmt: skip
def other_input_size(case):
    """None of the sizes that images are predicted at is about one of those that are trained at."""
    views = getattr(case.predictor, "views", None)
    if not views:
        return None
    augmentation = getattr(case.config, "augmentation", None)
    span = augmentation.multi_scale if augmentation else None
    height, width = case.config.model.input_size if span else case.batches[0][0].shape[1:3]
    least, most = span or (1.0, 1.0)
    sides = [float(np.sqrt(view.size[0] * view.size[1] / (height * width))) for view in views]
    if any(least / OTHER_SIZE < side < most * OTHER_SIZE for side in sides):
        return None
    return Verdict(
        0.9,
        (
            Observation("sizes that prediction looks at, (height, width)", sorted({view.size for view in views}),
                        f"({height}, {width}) among them"),
        ),
        ("objects are then larger or smaller than any that were trained on; anchors and decoding fit the training",),
        Remedy("Predict at the size of training, alone or among others.",
               settings=defaults_for(case, "detection", "scales"), part="predictor", where="detection.scales"),
    )  # fmt: skip


@rule("MG809", "The predictor runs another network than the one that trains", group="evaluation", stage="evaluation")
def other_network(case):
    """The same image, and other boxes or scores than the detector's own outputs give through the same decoder."""
    seen = case.examined(steadiness.examine)
    if seen is None or seen.difference is None or seen.difference < OTHER_NETWORK:
        return None
    return Verdict(
        0.8,
        (Observation("difference of boxes, over the image's size, or scores", float(f"{seen.difference:.3g}"), "0"),),
        ("both went through the predictor's decoder, so that decoding is not the cause",),
        Remedy("Make the predictor of the detector that trains, with its weights of now.", part="predictor"),
    )


@rule(
    "MG810", "BatchNorm's moving statistics do not fit the weights", group="evaluation", stage="run",
    explains=("MG408", "MG903", "MG953"),
)  # fmt: skip
def statistics_do_not_fit(case):
    """The loss is far higher with the moving statistics than with those of the batch, and counting anew mends it."""
    if not _has_settled(case):
        return None
    seen = case.examined(modes.examine)
    if not (APART <= seen.gap < np.inf and seen.healed <= 1.0 + 0.4 * (seen.gap - 1.0)):
        return None
    return Verdict(
        0.9 if seen.gap > 2.0 * APART else 0.6,
        (
            Observation("loss of training images as validation computes it, over that of training", seen.gap, "1"),
            Observation("the same with statistics that were counted anew", seen.healed, "no better"),
        ),
        (
            f"weights and images are the same for both; counting was on {modes.PASSES} batches of the training",
            "after these steps nothing is left of the statistics that a training begins with",
        ),
        Remedy(
            "Count them anew: call the detector with training=True on some batches. Then look for what changes weights "
            "or statistics alone: a file that is loaded in part, an average of the weights.",
            part="detector",
        ),
    )


def _has_settled(case) -> bool:
    """Whether BatchNorm has seen so many steps that its statistics are those of these weights."""
    momenta = [layer.momentum for layer in case.detector._flatten_layers() if is_norm(layer) and layer.trainable]
    return bool(momenta) and max(momenta) ** case.step < UNSETTLED


def _what_differs(seen) -> str:
    """The form of a decoder's error, in words."""
    still = np.abs(seen.shift).max() < SAME
    if seen.crossed:
        return "centres are right, width and height are exchanged"
    if still and seen.log_size_spread < 10 * SAME:
        return "centres are right and all sizes are off by one factor: other anchors, or another reading of sizes"
    if still:
        return "centres are right and sizes are not: other anchors"
    if abs(np.log2(seen.magnified)) > 0.3 and seen.magnified_spread < 0.2:
        return f"all centres are {seen.magnified:.2f} times as far from the origin: another stride"
    if seen.shift_spread.max() < 10 * SAME:
        return "all centres are shifted alike"
    return "centres are wrong in no simple way: another activation of the offsets"


def _most_objects(case) -> int:
    samples = [one for split in case.samples.values() for one in split or ()]
    batches = [int((np.asarray(truth["classes"]) >= 0).sum(1).max()) for _, truth in case.batches]
    return max([*batches, *(len(one.boxes) for one in samples)], default=0)
