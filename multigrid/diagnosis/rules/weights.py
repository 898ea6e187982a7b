"""Causes in what was loaded."""

from __future__ import annotations

from multigrid.diagnosis.examinations import activity, coverage
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.models.blocks import head_blocks
from multigrid.models.darknet import BATCH_NORM_EPSILON, LEAKY_SLOPE

LEAST = 0.9  # share of the backbone's tensors that counts as loaded
FEW = 3  # tensors that somebody may have changed after a load
NORMS_LOOKED_AT = 3  # the first ones
BEYOND = 2.1  # the same, beyond what images of another brightness and contrast make: up to 1.9 for photographs
FAR = 2.5  # distance of the first layer's input from its statistics; see `activity.scalings`
MUCH_BETTER, NEARER = 1.4, 0.3  # how many times, and by how much, another scaling must be nearer


@rule("MG401", "The weights that the config names are not in the network", group="weights", stage="static")
def weights_not_loaded(case):
    """Hardly a tensor of the network is as the file has it."""
    for found in case.examined(coverage.examine):
        share = found.equal / max(1, found.tensors)
        if found.tensors and share < 0.1:
            return Verdict(
                0.97,
                (
                    Observation("tensors of the network that are as in the file", f"{share:.0%}", "100 %"),
                    Observation("the first that is not", found.different[0], "none"),
                ),
                (
                    f"{found.tensors} tensors of {found.path} fit the network by name and shape, "
                    f"{found.equal} have its values: the file is right, and was not loaded or was overwritten",
                    "learning rate and gradients play no part: no step was made yet",
                ),
                _reload(found),
            )
    return None


@rule("MG402", "The backbone's weights are loaded only in part", group="weights", stage="static")
def weights_partial(case):
    """Some stages of the backbone are as in the file, others are not."""
    for found in case.examined(coverage.examine):
        share = found.equal / max(1, found.tensors)
        kernels = [name for name in found.different if name.rsplit("/", 1)[-1] not in coverage.STATISTICS]
        if kernels and share >= 0.1:
            return Verdict(
                0.95 if len(kernels) > FEW else 0.45,
                (Observation("tensors of the network that are as in the file", f"{share:.1%}", "100 %"),),
                (
                    f"the file has all {found.tensors} of them; {len(found.different)} are different, "
                    f"first {kernels[0]}",
                    "the output grids are not counted: those of other classes need not fit",
                ),
                _reload(found),
            )
    for ledger in case.ledgers:
        missing = [entry for entry in ledger.backbone if entry.kind in ("missing", "misshapen")]
        share = 1.0 - len(missing) / max(1, len(ledger.backbone))
        if share < LEAST:
            return Verdict(
                0.7,
                (Observation("tensors of the backbone that the file filled", f"{share:.0%}", "100 %"),),
                (f"{len(missing)} of {len(ledger.backbone)} start at random, first {missing[0].name}",),
                Remedy(
                    "Use a file of this very backbone: the same width, depth and layer names.",
                    settings=("allow_partial=false",),
                    where=ledger.path,
                ),
            )
    return None


@rule("MG403", "BatchNorm statistics were not loaded with the weights", group="weights", stage="static")
def statistics_not_loaded(case):
    """Kernels come from a file, moving means and variances are (0, 1) or others than the file's."""
    seen = case.examined(coverage.tensors)
    for found in case.examined(coverage.examine):
        lost = found.statistics - found.equal_statistics
        others = found.tensors - found.statistics
        kept = found.equal - found.equal_statistics
        if lost > 0.2 * found.statistics and kept > 0.5 * others:
            return Verdict(
                0.97,
                (
                    Observation(
                        "BatchNorm statistics that are as in the file", found.equal_statistics, found.statistics
                    ),
                    Observation("layers with statistics of exactly (0, 1)", len(seen.untouched), "0"),
                ),
                (
                    f"{kept} of {others} other tensors are as in the file: it was loaded, all but the statistics",
                    "a momentum that is too high would leave the file's statistics where they are",
                ),
                _reload(found),
            )
    for ledger in case.ledgers:
        if ledger.norms.untrained:
            return Verdict(
                0.8,
                (Observation("BatchNorm statistics in the file", "all (0, 1)", "those of a training"),),
                ("they were loaded as they are: the file was written without statistics",),
                Remedy("Use a file that holds moving means and variances.", where=ledger.path),
            )
    return None


@rule(
    "MG404",
    "BatchNorm's epsilon or the activation's slope differ from those the weights were trained with",
    group="weights",
    stage="static",
)
def other_arithmetic(case):
    """Layers of Darknet53 with Keras' defaults in place of Darknet's."""
    ours = [one for one in case.detector._flatten_layers(include_self=False) if _is_of_darknet(one)]
    wrong = [
        (layer.name, name, float(value), expected)
        for layer in ours
        for name, value, expected in _constants(layer)
        if abs(float(value) - expected) > 0.05 * expected
    ]
    if not wrong:
        return None
    loaded = bool(case.ledgers) or bool(case.examined(coverage.examine))
    layer, name, value, expected = wrong[0]
    return Verdict(
        0.9 if loaded else 0.4,
        (Observation(f"{name} of {layer}", value, f"{expected:g}"),),
        (
            f"{len(wrong)} layers differ in this way; every tensor may be loaded, and still the layers compute others",
            "weights of a file were made for these numbers" if loaded else "no weights were loaded: these may learn so",
        ),
        Remedy(f"Give the layers the numbers that the weights were made for: {name} {expected:g}.", part="detector"),
        hygiene=not loaded,
    )


SETTLED = 460  # steps after which a momentum of 0.99 has 1 % of the first statistics left


@rule("MG408", "Images are scaled in another way than the loaded weights expect", group="weights", stage="batch")
def other_preprocessing(case):
    """The first BatchNorm layers see inputs far from their own statistics."""
    norms = case.examined(activity.examine).norms[:NORMS_LOOKED_AT]
    untouched = case.examined(coverage.tensors).untouched
    norms = [norm for norm in norms if norm.name not in untouched]
    if not norms or not (case.ledgers or case.examined(coverage.examine)):
        return None  # statistics of a network that learnt nothing yet say nothing
    if 0 < case.step < SETTLED:
        return None  # those of a short run are still near where they began
    found, first = dict(case.examined(activity.scalings)), norms[0]
    if not found:
        return None
    live = found.pop("as it is")
    best = min(found, key=lambda name: found[name].distance)
    now, then = live.distance, found[best].distance
    # Scaling is a factor and an offset, so that the right one mends mean and spread. Images of another contrast, as
    # those of another data set, are off in their spread alone.
    other = now > MUCH_BETTER * then and now - then > NEARER and found[best].shift < live.shift
    if not other and now < FAR:
        return None
    return Verdict(
        (0.75 if now > FAR else 0.65 if now > BEYOND else 0.45) if other else 0.45,
        (
            Observation(
                f"{first.name}: mean of the batch off the moving one", f"{first.shift:.2f} deviations", "< 0.5"
            ),
            Observation(f"{first.name}: variance of the batch by the moving one", f"{first.ratio:.3g}", "0.5 to 2"),
        ),
        (
            f"distance from the layer's statistics, as it is: {now:.2f}; with images scaled otherwise: "
            + ", ".join(f"{name}: {norm.distance:.2f}" for name, norm in found.items()),
            "its statistics were loaded, and are not (0, 1): a forgotten load would show there",
        ),
        Remedy(
            f"Scale images as the weights were trained with: {best or '0 to 1'}.",
            part="detector",
            where="the first layer, scale_to_unit",
        ),
    )


@rule(
    "MG409", "The weights are not finite before the first step", group="weights", stage="static",
    explains=("MG401", "MG402", "MG403", "MG501", "MG655", "MG656", "MG657", "MG750", "MG751", "MG752"),
)  # fmt: skip
def weights_not_finite(case):
    """NaN or infinity in a live variable."""
    wrong = case.examined(coverage.tensors).non_finite
    if not wrong:
        return None
    total = len(case.detector.weights)
    return Verdict(
        1.0,
        (Observation("variables with NaN or infinity", len(wrong), "0"), Observation("the first", wrong[0], "finite")),
        (f"{len(wrong)} of {total} variables, before any batch was seen: data and learning rate cannot be the cause",),
        Remedy("Start from a checkpoint from before the loss became NaN, or from other weights.", part="detector"),
    )


def _reload(found) -> Remedy:
    return Remedy(
        "Load the file with multigrid.models.weights.load_weights, which refuses what does not fit, and change no "
        "weights after that.",
        part="detector",
        where=f"{found.key}: {found.path}",
    )


def _is_of_darknet(layer) -> bool:
    """Whether it is a layer of the package's own network, by the block in its name."""
    name = layer.name
    return coverage.block_of(name) not in (coverage.BACKBONE, *head_blocks([coverage.block_of(name)]))


def _constants(layer):
    """(name, value, Darknet's value) of the numbers of a layer that are no weights."""
    if coverage.is_norm(layer):
        yield "epsilon", layer.epsilon, BATCH_NORM_EPSILON
    if hasattr(layer, "negative_slope") and layer.negative_slope:
        yield "slope", layer.negative_slope, LEAKY_SLOPE
