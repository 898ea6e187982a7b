"""Causes in learning rate, optimizer and precision that can be read from what is live, before a step."""

from __future__ import annotations

import numpy as np
from keras import ops

from multigrid.diagnosis.examinations import coverage, settings
from multigrid.diagnosis.finding import CERTAIN, Observation, Remedy, Verdict, rule
from multigrid.training.optimizers import average_for, first_weights_share, inner_optimizer

LONG_RISE = 3  # epochs of warm-up that are short in a run of any length
ADAPTIVE = (1e-5, 1.5e-2)  # learning rates of the Adam family that work
PLAIN = (1e-4, 0.2)  # learning rates of SGD, as if without momentum times 10
KNOWN = ("sgd", "adam", "adamw")  # optimizers whose rates these ranges are
FAR = 10.0  # times beyond these ranges: harm is likely then
BATCH = 16  # images that a rate of SGD's is usually given for
WHAT_OTHERS_DO = {  # of a setting that is another than the config says: what that other value does
    "training.learning_rate": ("MG501", "MG502", "MG503", "MG504", "MG509", "MG510", "MG519", "MG520"),
    "training.head_lr_multiplier": ("MG506",),
    "training.weight_decay": ("MG509", "MG510"),
    "training.momentum": ("MG511",),
    "training.max_grad_norm": ("MG507", "MG508"),
    "training.ema": ("MG518",),
}
OF_DATA = ("data.", "augmentation.", "model.input_size", "training.batch_size")  # settings of the batches


@rule("MG503", "The warm-up takes most of the training", group="optimization", stage="static")
def warmup_too_long(case):
    """The learning rate is still rising when a large share of the steps is over."""
    live = case.examined(settings.optimization)
    if not live.steps or live.peak_step <= LONG_RISE * live.epoch_steps:
        return None
    share = live.peak_step / live.steps
    if share < 0.2:
        return None
    return Verdict(
        0.9 if share > 0.5 else 0.6,
        (Observation("share of the steps in which the learning rate rises", f"{share:.0%}", "up to 5 %, or 3 epochs"),),
        (
            f"read from the live schedule: {live.peak:.3g} is reached at step {live.peak_step} of {live.steps}",
            f"the highest rate is not in question; over the run the mean is {live.sum / live.steps:.3g}",
        ),
        Remedy("Shorten the warm-up to an epoch or so.", settings=("training.warmup_epochs=1",), part="optimizer"),
    )


@rule("MG505", "A setting does not reach the object it is for", group="optimization", stage="static")
def setting_not_reached(case):
    """The config says one thing, the live object does another."""
    found = case.examined(settings.differences)
    if not found:
        return None
    own = case.keeps_compilation or all(_is_brought(case, one.key) for one in found)
    first = found[:6]
    return Verdict(
        0.75,  # who changed it may have wanted it: what it does is another rule's to say
        tuple(Observation(one.key, one.used, f"{one.asked}, as the config says") for one in first),
        (
            f"{len(found)} of the settings were read back from the live objects and differ from the config",
            "detector or data are their caller's own" if own else "nobody handed over a compiled detector, or data",
        ),
        Remedy(
            "Let the part be made from the config, or write the value that is wanted into it: "
            + ", ".join(one.key for one in first)
            + ".",
            part=_part_of(first[0].key),
            where=first[0].key,
        ),
        hygiene=own,
        consequences=tuple(other for one in found for other in WHAT_OTHERS_DO.get(one.key, ())),
    )


@rule("MG509", "Weight decay pulls at BatchNorm and biases", group="optimization", stage="static")
def decays_norms(case):
    """Vectors are decayed with the kernels, the objectness bias among them."""
    live = case.examined(settings.optimization)
    if not live.decayed:
        return None
    pull = live.weight_decay * (live.sum or live.peak * 1000)
    return Verdict(
        0.85 if pull > 0.1 else 0.5,
        (
            Observation("normalizations and biases with weight decay", len(live.decayed), "0"),
            Observation("what decay alone leaves of them after the run", f"{np.exp(-pull):.1%}", "100 %"),
        ),
        (
            f"read from the optimizer, variable by variable, first {live.decayed[0]}",
            f"sum of the learning rates times {live.weight_decay:g} is {pull:.3g}",
        ),
        Remedy(
            'Spare them: optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"]) before it is built; '
            "the optimizers of training.optimizers do.",
            part="optimizer",
        ),
        hygiene=pull <= 0.1,
    )


@rule("MG510", "The weight decay is far too large", group="optimization", stage="static", explains=("MG509",))
def decay_too_large(case):
    """Decay alone shrinks the kernels faster than gradients can hold them."""
    live = case.examined(settings.optimization)
    in_thousand = live.peak * live.weight_decay * 1000
    whole = live.weight_decay * live.sum if live.sum is not None else None
    if in_thousand < 0.1 or whole is not None and whole < 0.03:
        return None
    certain = in_thousand > 0.5 and (whole is None or whole > 0.1)
    return Verdict(
        0.85 if certain else 0.45,
        (
            Observation(
                "share of a kernel that decay takes in 1000 steps", f"{1 - np.exp(-in_thousand):.1%}", "< 10 %"
            ),
            Observation("weight decay", live.weight_decay, "5e-4"),
        ),
        (
            f"arithmetic alone: {live.peak:.3g} · {live.weight_decay:g} · 1000 = {in_thousand:.3g}",
            "over the run: unknown length" if whole is None else f"over the run it adds up to {whole:.3g}",
        ),
        Remedy("Use a weight decay of 5e-4 or so.", settings=("training.weight_decay=5.0e-4",), part="optimizer"),
    )


@rule(
    "MG511", "Momentum makes the steps far larger and later than the learning rate says", group="optimization",
    stage="static", explains=("MG501", "MG504"),
)  # fmt: skip
def momentum_wrong(case):
    """A momentum, or beta 1, next to 1."""
    live = case.examined(settings.optimization)
    if live.momentum is None or live.momentum < 0.98:
        return None
    window = 1 / max(1e-9, 1 - live.momentum)
    late = live.steps is not None and window > 0.2 * live.steps
    sure = window >= 200 or late
    return Verdict(
        0.9 if sure else 0.45,
        (
            Observation("momentum" if not live.adaptive else "beta 1", live.momentum, "0.9"),
            Observation("steps that a gradient goes on acting", f"{window:.0f}", "10"),
        ),
        (
            f"read from the live optimizer; in the end a gradient moves the weights by {live.peak * window:.3g} times "
            "itself" if not live.adaptive else "read from the live optimizer",
            f"the run has {live.steps or 'an unknown number of'} steps",
        ),
        Remedy("Use a momentum of 0.9.", settings=("training.momentum=0.9",), part="optimizer"),
    )  # fmt: skip


@rule("MG512", "Too few images a batch for BatchNorm", group="optimization", stage="static")
def batch_too_small(case):
    """A batch of one image, of which trainable BatchNorm takes its statistics."""
    images = case.batches[0][0]
    norms = [layer for layer in case.detector._flatten_layers() if coverage.is_norm(layer)]
    learning = [layer for layer in norms if layer.trainable]
    if len(images) > 2 or len(learning) < 0.5 * max(1, len(norms)):
        return None
    stride = max(case.detector.strides)
    samples = len(images) * (images.shape[1] // stride) * (images.shape[2] // stride)
    if samples >= 500:
        return None
    return Verdict(
        0.85 if len(images) == 1 else 0.45,
        (
            Observation("images a batch", len(images), "8 or more"),
            Observation("cells that the coarsest statistics come from", samples, "500 or more"),
        ),
        (
            f"{len(learning)} of {len(norms)} BatchNorm layers learn; frozen ones would not mind",
            "gathering gradients over batches does not help: statistics are of each batch alone",
        ),
        Remedy(
            "Use a larger batch, or freeze BatchNorm with the backbone.",
            settings=("training.batch_size=8",),
            part="data",
        ),
    )


@rule(
    "MG513", "BatchNorm's statistics are too slow for a training of this length", group="optimization", stage="static"
)
def norms_too_slow(case):
    """The momentum of the moving statistics leaves them behind the weights for most of the run."""
    live = case.examined(settings.optimization)
    norms = [layer for layer in case.detector._flatten_layers() if coverage.is_norm(layer) and layer.trainable]
    if not norms or not live.steps:
        return None
    momentum = float(np.median([layer.momentum for layer in norms]))
    left, window = momentum**live.steps, 1 / max(1e-9, 1 - momentum)
    lag = window / live.steps
    if lag < 0.25 or momentum < 0.98:
        return None
    return Verdict(
        0.9 if lag > 0.4 else 0.6,
        (
            Observation("momentum of the moving statistics", momentum, "0.97 for a few hundred steps"),
            Observation("share of the first statistics that is left after the run", f"{left:.1%}", "< 1 %"),
        ),
        (
            f"statistics look back over {window:.0f} steps, and the run has {live.steps}",
            "training does not see it: it takes the statistics of each batch; only validation does",
        ),
        Remedy("Lower the momentum of BatchNorm: 0.97, or 1 - 20 / steps.", part="detector"),
    )


@rule("MG514", "Half precision without scaling of the loss", group="optimization", stage="static")
def no_loss_scaling(case):
    """Layers compute in float16 and small gradients vanish."""
    half = case.examined(settings.compute_dtypes).get("float16", 0)
    scale = getattr(case.optimizer, "dynamic_scale", None)
    factor = getattr(case.optimizer, "loss_scale_factor", None)
    value = factor if scale is None and factor else float(ops.convert_to_numpy(scale)) if scale is not None else 1.0
    if not half or value > 1.0:
        return None
    return Verdict(
        0.9,
        (
            Observation("layers in float16", half, "0, or with a scaled loss"),
            Observation("scale", value, "32768 at first"),
        ),
        ("gradients below 6e-8 are 0 in float16, and the optimizer that scales the loss is not there",),
        Remedy(
            "Compile with auto_scale_loss=True, or use mixed_bfloat16.",
            settings=("model.precision=mixed_bfloat16",),
            part="optimizer",
        ),
    )


@rule("MG515", "Single layers compute in another precision than the network", group="optimization", stage="static")
def mixed_contexts(case):
    """Some layers in half precision, in a network that is not."""
    counts = case.examined(settings.compute_dtypes)
    half = sum(count for name, count in counts.items() if name in ("float16", "bfloat16"))
    whole = sum(counts.values())
    if case.config is not None and case.config.model.precision != "float32" or not 0 < half < 0.5 * whole:
        return None
    asked = case.config is not None
    return Verdict(
        CERTAIN if asked else 0.4,
        (Observation("layers in half precision", half, f"0 or nearly all of {whole}"),),
        ("the config asks for float32",) if asked else ("nobody said which precision is wanted",),
        Remedy(
            "Give all layers one dtype policy: model.precision.", settings=("model.precision=float32",), part="detector"
        ),
    )


@rule("MG517", "Training goes on with an optimizer that begins anew", group="optimization", stage="static")
def optimizer_forgot(case):
    """The detector has been trained for many steps, and the optimizer for none."""
    done = int(ops.convert_to_numpy(inner_optimizer(case.optimizer).iterations))
    staged = case.config is not None and bool(case.config.training.stages)
    over = bool(case.history) or case.course is not None  # nobody goes on with it
    if not case.step or done >= 0.5 * case.step or staged or over:
        return None
    return Verdict(
        0.85,
        (Observation("updates that the optimizer has counted", done, f"about {case.step}"),),
        ("weights are those of the run before, momentum and schedule are not: the warm-up repeats",),
        Remedy("Resume the run folder: multigrid train --resume, which restores the optimizer too.", part="optimizer"),
    )


@rule(
    "MG518",
    "The average of the weights is too slow for a training of this length",
    group="optimization",
    stage="static",
)
def average_too_slow(case):
    """The weights that are evaluated and saved are still those of the beginning."""
    live = case.examined(settings.optimization)
    if live.ema is None or not live.steps:
        return None
    left = first_weights_share(live.ema, live.steps)
    if left < 0.05:
        return None
    return Verdict(
        0.9 if left > 0.37 else 0.45,
        (
            Observation("momentum of the average", live.ema, "0.99 for 500 steps and more"),
            Observation("share of the first weights in the average after the run", f"{left:.0%}", "< 1 %"),
        ),
        (
            f"{live.steps} steps times {1 - live.ema:.3g} is {live.steps * (1 - live.ema):.2g}; 5 would do",
            "the weights that are trained are others: training goes well, and the evaluation shows nothing of it",
        ),
        Remedy(
            "Lower training.ema, or switch it off.",
            settings=(f"training.ema={average_for(live.steps):.3g}",),
            part="optimizer",
        ),
    )


@rule("MG519", "The learning rate does not suit optimizer and batch size", group="optimization", stage="static")
def rate_unusual(case):
    """A rate outside what works elsewhere: a possibility, which training has to show, unless it is far outside."""
    live = case.examined(settings.optimization)
    images = len(case.batches[0][0]) * live.accumulation
    if live.adaptive:
        low, high = ADAPTIVE
    else:
        low, high = (bound * max(images, BATCH / 4) / BATCH * (1 - (live.momentum or 0.0)) * 10 for bound in PLAIN)
    factor = max([1.0, *live.multipliers.values()])
    if low <= live.peak and live.peak * factor <= high:
        return None
    known = type(inner_optimizer(case.optimizer)).__name__.lower() in KNOWN
    far = known and (live.peak < low / FAR or live.peak * factor > FAR * high)
    return Verdict(
        0.7 if far else 0.4,
        (Observation("highest learning rate of any block", live.peak * factor, f"{low:.2g} to {high:.2g}"),),
        (f"for batches of {images} images with {'Adam' if live.adaptive else 'SGD'} and its kin",),
        Remedy(
            "Choose a rate in that range.",
            settings=(f"training.learning_rate={0.001 if live.adaptive else 0.01:g}",),
            part="optimizer",
        ),
        consequences=("MG510",) if far else (),  # decay goes with the rate
    )


def _is_brought(case, key: str) -> bool:
    """Whether the object that a setting is for is its caller's own."""
    if key.startswith(OF_DATA):
        return "train" not in case.samples
    return case.own_detector and key.startswith(("loss.", "model."))


def _part_of(key: str) -> str:
    """The part of a training that a key is for."""
    if key.startswith("loss."):
        return "criterion"
    if key.startswith("model.") and "input_size" not in key:
        return "detector"
    return "data" if key.startswith(("data", "augmentation", "model.", "training.batch_size")) else "optimizer"
