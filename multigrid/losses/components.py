"""The parts of the loss, unweighted, one function each.

Each takes what cells predict and what they should predict, and returns one number a cell. Masks, sums, normalizers and
coefficients come later, once, in `multigrid_loss`.
"""

from keras import ops

from multigrid.config import LossConfig
from multigrid.geometry import boxes as box_geometry

DEFAULTS = LossConfig()
LOCALIZATIONS = ("ciou", "diou", "giou", "mse")
CLASSIFICATIONS = ("bce", "softmax", "focal")
ANCHORS = ("softmax", "bce")
LEAST_SIDE = 1.0  # pixels; a unit for the distances of boxes from each other
CLASS_WEIGHTS = ("balanced", "inverse", "sqrt_inverse")
_OVERLAP = {"ciou": box_geometry.ciou, "diou": box_geometry.diou, "giou": box_geometry.giou}


def localization(kind: str, predicted_boxes, true_boxes, predicted_code, true_code):
    """How far predicted boxes are from true ones.

    Args:
        kind: "ciou", "diou", "giou": one less the overlap of the decoded boxes; "mse": squared error of the code, as
            in the paper.
        predicted_boxes: [..., 4] float corners in input pixels.
        true_boxes: [..., 4] float, likewise.
        predicted_code: [..., 4] float, offset (x, y) in cells and ln(size / anchor).
        true_code: [..., 4] float, likewise.

    Returns:
        [...] float, >= 0.

    Raises:
        ValueError: an unknown kind.
    """
    if kind == "mse":
        return ops.sum((predicted_code - true_code) ** 2, axis=-1)
    _check("localization", kind, LOCALIZATIONS)
    return 1.0 - _OVERLAP[kind](predicted_boxes, true_boxes)


def objectness(logits, target):
    """Binary cross-entropy of objectness.

    Args:
        logits: [...] float.
        target: [...] float in [0, 1], or a number: 0 for cells that answer for nothing.

    Returns:
        [...] float, nats a cell.
    """
    return ops.binary_crossentropy(ops.broadcast_to(target, ops.shape(logits)), logits, from_logits=True)


def anchor(kind: str, logits, index):
    """Cross-entropy of the choice of anchor.

    Args:
        kind: "softmax" (ln A for equal logits) or "bce" summed over the anchors (A ln 2 for zero logits).
        logits: [..., A] float.
        index: [...] int, the matched anchor.

    Returns:
        [...] float, nats a cell.

    Raises:
        ValueError: an unknown kind.
    """
    _check("anchor", kind, ANCHORS)
    return _cross_entropy(kind, logits, ops.one_hot(index, logits.shape[-1]), 0.0)


def classification(
    kind: str,
    logits,
    index,
    label_smoothing: float = DEFAULTS.label_smoothing,
    focal_gamma: float = DEFAULTS.focal_gamma,
    focal_alpha: float = DEFAULTS.focal_alpha,
):
    """Cross-entropy of the class.

    Args:
        kind: "bce" summed over the classes (C ln 2 for zero logits), "softmax" (ln C for equal logits), or "focal",
            which weighs each term of "bce" by alpha (1 - p)^gamma.
        logits: [..., C] float.
        index: [...] int class ids.
        label_smoothing: e; targets become z (1 - e) + e / 2 ("bce", "focal") or z (1 - e) + e / C ("softmax").
        focal_gamma: exponent of "focal".
        focal_alpha: weight of the true class in "focal"; the others have 1 - alpha.

    Returns:
        [...] float, nats a cell.

    Raises:
        ValueError: an unknown kind.

    Source of "focal": Lin et al. 2017, equation 5.
    """
    _check("classification", kind, CLASSIFICATIONS)
    target = ops.one_hot(index, logits.shape[-1])
    if kind != "focal":
        return _cross_entropy(kind, logits, target, label_smoothing)
    smooth = target * (1.0 - label_smoothing) + label_smoothing / 2.0
    terms = ops.binary_crossentropy(smooth, logits, from_logits=True)
    # the power as an exponential: its gradient stays finite where nothing is missed and the exponent is below 1
    log_missed = ops.log_sigmoid(ops.where(target > 0.5, -logits, logits))
    alpha = target * focal_alpha + (1.0 - target) * (1.0 - focal_alpha)
    return ops.sum(alpha * ops.exp(focal_gamma * log_missed) * terms, axis=-1)


def consensus(boxes, true_boxes, objectness, classes, positive):
    """How far each of the cells that answer for one object is from what they say on average.

    The squared distance of a cell's statement from the mean statement of the object's positive cells. A statement is
    the four corners of the decoded box, in units of the object's own width and height, the objectness and the class
    probabilities. Summed over the cells of an object this is their number times the variance.

    Args:
        boxes: [..., K, 4] float, decoded, corners in input pixels.
        true_boxes: [..., K, 4] float, the object's; its sides are taken for no less than `LEAST_SIDE`.
        objectness: [..., K] float, probability.
        classes: [..., K, C] float, probabilities.
        positive: [..., K] bool, which of the cells answer; the others count for nothing.

    Returns:
        [..., K] float, >= 0; 0 for other cells, for a cell alone, and where all cells say the same.

    Source: of this project.
    """
    _, sides = box_geometry.centers_and_sizes(true_boxes)
    sides = ops.maximum(sides, LEAST_SIDE)
    corners = (boxes - true_boxes) / ops.concatenate([sides, sides], axis=-1)
    said = ops.concatenate([corners, objectness[..., None], classes], axis=-1)
    answers = positive[..., None]
    number = ops.maximum(ops.sum(ops.cast(answers, "float32"), axis=-2, keepdims=True), 1.0)
    # the mean needs no gradient: the distances from it add up to 0
    mean = ops.stop_gradient(ops.sum(ops.where(answers, said, 0.0), axis=-2, keepdims=True) / number)
    return ops.sum(ops.where(answers, said - mean, 0.0) ** 2, axis=-1)


def redundancy(overlap, best):
    """How much worse a cell's box is than the best box of the cells that answer for the same object.

    1 - overlap / best, and no less than 0.

    Args:
        overlap: [...] float in [0, 1], IoU of the cell's box with the object it overlaps most.
        best: [...] float in [0, 1], the largest IoU with that object among its positive cells; 0 where it has none.

    Returns:
        [...] float in [0, 1]; 0 where the cell is as good as the best, and where there is no other.

    Source: of this project.
    """
    return ops.relu(1.0 - overlap / ops.maximum(best, box_geometry.TINY))


def _cross_entropy(kind, logits, target, label_smoothing):
    classes = logits.shape[-1]
    if kind == "softmax":
        target = target * (1.0 - label_smoothing) + label_smoothing / classes
        return ops.categorical_crossentropy(target, logits, from_logits=True)
    target = target * (1.0 - label_smoothing) + label_smoothing / 2.0
    return ops.sum(ops.binary_crossentropy(target, logits, from_logits=True), axis=-1)


def _check(name, kind, known):
    if kind not in known:
        raise ValueError(f"{name}: expected one of {', '.join(known)}, received {kind!r}")


def balance_classes(counts, rule: str) -> list:
    """Weights that let rare classes count for more.

    Args:
        counts: [C] objects of each class; a class without any is treated as one with a single object.
        rule: "balanced" is N / (C n); "inverse" is 1 / n and "sqrt_inverse" 1 / sqrt(n), scaled to a mean of 1 over the
            classes ("inverse") or over the objects ("sqrt_inverse"). "balanced" has a mean of 1 over the objects too.

    Returns:
        C floats.

    Raises:
        ValueError: an unknown rule.
    """
    counts = [max(float(count), 1.0) for count in counts]
    total, classes = sum(counts), len(counts)
    if rule == "balanced":
        return [total / (classes * count) for count in counts]
    if rule == "inverse":
        mean = sum(1.0 / count for count in counts) / classes
        return [1.0 / count / mean for count in counts]
    _check("class_weights", rule, CLASS_WEIGHTS)
    mean = sum(count**0.5 for count in counts) / total
    return [count**-0.5 / mean for count in counts]
