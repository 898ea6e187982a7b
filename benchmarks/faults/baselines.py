"""What simpler means would say of the same trainings: the last line of comparison in the table of figures.

    python benchmarks/faults/baselines.py [the options of run.py]

* stop: ends when the loss is not a number, and watches whether it falls.
* thresholds: the built-in rules of SageMaker Debugger with their documented defaults, each read as the cause that its
  description names first.
* closed forms: the parts of the loss before the first step, beside what formulas say of a fresh head.

Each gives a ranked list of causes, as ids of the doctor's rules. They see the trainer that the doctor sees, and the
first two as many steps of it.
"""

import math
import sys
from dataclasses import dataclass, field

import numpy as np

STEPS = 160
# defaults of https://docs.aws.amazon.com/sagemaker/latest/dg/debugger-built-in-rules.html
VANISHING = 1e-7  # VanishingGradient: mean absolute gradient of a layer
LARGE_UPDATE, SMALL_UPDATE = 10.0, 1e-8  # WeightUpdateRatio
LOSS_STEPS, LOSS_PERCENT, LOSS_RISE = 10, 0.1, 5.0  # LossNotDecreasing: per cent in so many steps
INACTIVE, DEAD_LAYER = 1.0, 50.0  # DeadRelu: per cent of the time, per cent of a layer
SIGMOID = (-23.0, 16.99999)  # SaturatedActivation: inputs beyond, in `DEAD_LAYER` per cent of a layer
VARIANCES = 10.0  # PoorWeightInitialization: largest over smallest variance of a layer's inputs
OVERFIT = 0.1  # Overfit: validation above training loss, of the training loss
IMBALANCE = 10.0  # ClassImbalance: the commonest over the rarest class

TOLERANCE = 0.25  # of a closed form


@dataclass
class Trace:
    """What was seen of a training."""

    losses: list = field(default_factory=list)
    epoch: int = 1  # its steps
    val_loss: float = math.nan
    updates: dict = field(default_factory=dict)  # of each trainable weight: change in the last step, of its own size
    gradients: dict = field(default_factory=dict)  # mean absolute, after the last step
    activity: dict = field(default_factory=dict)  # of each activation: per cent of its units that are dead
    variances: list = field(default_factory=list)  # of the inputs of each activation, before the first step
    saturated: float = 0.0  # per cent of the objectness logits
    classes: np.ndarray = field(default_factory=lambda: np.zeros(0))
    finite: bool = True


def examine(trainer) -> dict:
    """{"said": {baseline: ids of rules}} of a trainer, which is trained."""
    before = _closed_forms(trainer)
    trace = _train(trainer)
    return {"said": {"stop": _stop(trace), "thresholds": _thresholds(trace), "closed forms": before}}


def _stop(trace: Trace) -> list[str]:
    if not trace.finite:
        return ["MG501"]
    losses = np.array(trace.losses)
    quarter = max(1, len(losses) // 4)
    return ["MG504"] if losses[-quarter:].mean() >= losses[:quarter].mean() else []


def _thresholds(trace: Trace) -> list[str]:
    """Exploding tensors first, then what keeps a network from learning, then what is watched besides."""
    ratios = np.array(list(trace.updates.values()) or [1e-3])
    variances = [value for value in trace.variances if value > 0]
    counts = trace.classes[trace.classes > 0]
    said = {
        "MG501": not trace.finite or ratios.max() > LARGE_UPDATE,
        "MG708": any(value < VANISHING for value in trace.gradients.values()),
        "MG406": ratios.min() < SMALL_UPDATE,
        "MG751": any(share > DEAD_LAYER for share in trace.activity.values()),
        "MG612": trace.saturated > DEAD_LAYER,
        "MG504": _not_decreasing(trace.losses, trace.epoch),
        "MG704": len(variances) > 1 and max(variances) / min(variances) > VARIANCES,
        "MG951": trace.val_loss > (1 + OVERFIT) * np.mean(trace.losses[-LOSS_STEPS:] or [math.inf]),
        "MG611": len(counts) > 1 and counts.max() / counts.min() > IMBALANCE,
    }
    return [cause for cause, speaks in said.items() if speaks]


def _not_decreasing(losses, epoch: int) -> bool:
    """Whether the loss rises by too much, or has not fallen by enough in the end.

    Of the means of whole epochs: others differ by more than the rule allows in every healthy training.
    """
    steps = max(LOSS_STEPS, epoch)
    means = [float(np.mean(losses[end - steps : end])) for end in range(steps, len(losses) + 1, steps)]
    if len(means) < 2:
        return False
    rises = any(late > early * (1 + LOSS_RISE / 100) for early, late in zip(means[:-1], means[1:], strict=True))
    return rises or not means[-1] <= means[0] * (1 - LOSS_PERCENT / 100)


def _closed_forms(trainer) -> list[str]:
    """Causes of the parts that are off their formula before the first step, the furthest off first.

    A fresh head says the prior everywhere, each class with 1/C and all anchors alike; what localization is then, the
    probe says.
    """
    from multigrid.diagnosis.probe import describe_batch

    detector, (images, truth) = trainer.detector, trainer.train_data[0][:2]
    record = describe_batch(detector, images[:4], {name: values[:4] for name, values in truth.items()})
    units = {row["component"]: row["measured"] for row in record["per_unit"]}
    fresh = {row["component"]: row["at_initialization"] for row in record["per_unit"]}
    classes, anchors, prior = detector.num_classes, len(detector.anchors[0]), trainer.config.model.objectness_prior
    share = 1.0 / max(2, classes)
    expected = {
        "no_object": (-math.log(1 - prior), "MG702"),
        "anchor": (math.log(anchors), "MG606"),
        "classification": (-math.log(share) - (classes - 1) * math.log(1 - share), "MG611"),
        "localization": (fresh["localization"], "MG301"),
    }
    if not record["batch_stats"]["total_objects"]:
        return ["MG101"]
    if any(value is not None and not math.isfinite(value) for value in units.values()):
        return ["MG409"]
    off = {
        cause: abs(math.log(max(units[name], 1e-12) / value))
        for name, (value, cause) in expected.items()
        if units.get(name) is not None and value
    }
    wrong = [cause for cause, distance in off.items() if distance > math.log1p(TOLERANCE)]
    return sorted(wrong, key=lambda cause: -off[cause])


def _train(trainer) -> Trace:
    from multigrid.training.faults import gradients_of

    detector, data, trace = trainer.detector, trainer.train_data, Trace()
    first, trace.epoch = data[0][:2], len(data)
    trace.variances = [float(np.var(values)) for values in _activations(detector, first[0]).values()]
    counts, before = np.zeros(detector.num_classes + 1), {}
    for step in range(STEPS):
        index = step % len(data)
        if index == 0 and step:
            data.on_epoch_begin()
            data.on_epoch_end()
        images, truth = data[index][:2]
        counts += np.bincount(
            np.clip(truth["classes"], -1, detector.num_classes - 1).ravel() + 1, minlength=len(counts)
        )
        if step == STEPS - 1:
            before = _weights(detector)
        trace.losses.append(float(detector.train_on_batch(images, truth, return_dict=True)["loss"]))
        detector.reset_metrics()
        if not math.isfinite(trace.losses[-1]):
            trace.finite = False
            return trace
    trace.classes = counts[1:]
    trace.updates = {
        path: float(np.linalg.norm(values - before[path])) / max(float(np.linalg.norm(before[path])), 1e-9)
        for path, values in _weights(detector).items()
    }
    _look(trainer, trace, first)
    trace.gradients = {path: float(np.abs(values).mean()) for path, values in gradients_of(detector, *first).items()}
    trace.finite = all(math.isfinite(value) for value in (*trace.gradients.values(), *trace.updates.values()))
    return trace


def _weights(detector) -> dict:
    return {variable.path: variable.numpy() for variable in detector.trainable_variables}


def _look(trainer, trace: Trace, first) -> None:
    """Activations, logits and the validation loss after the last step."""
    detector = trainer.detector
    for name, values in _activations(detector, first[0]).items():
        active = 100.0 * (values > 0).mean(axis=(0, 1, 2))
        trace.activity[name] = 100.0 * float((active < INACTIVE).mean())
    logits = np.concatenate([grid[..., 4].ravel() for grid in detector.predict_on_batch(first[0])])
    trace.saturated = 100.0 * float(((logits < SIGMOID[0]) | (logits > SIGMOID[1])).mean())
    losses = [float(detector.loss_breakdown(*trainer.val_data[index][:2]).total) for index in range(2)]
    trace.val_loss = float(np.mean(losses))


def _activations(detector, images) -> dict:
    """The outputs of the LeakyReLU layers of neck and head, [B, rows, columns, filters] each."""
    import keras

    layers = [layer for layer in detector.layers if isinstance(layer, keras.layers.LeakyReLU)]
    model = keras.Model(detector.input, [layer.output for layer in layers])
    return dict(zip((layer.name for layer in layers), model.predict_on_batch(images), strict=True))


if __name__ == "__main__":
    from run import main

    sys.exit(main("baselines"))
