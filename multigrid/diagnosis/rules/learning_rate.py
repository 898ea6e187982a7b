"""Causes in the size of the steps, which training shows: rates, warm-up, clipping."""

from __future__ import annotations

import functools

import numpy as np

from multigrid.diagnosis.examinations import settings
from multigrid.diagnosis.examinations.counterfactual import range_test, undone
from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule
from multigrid.models.blocks import block_of, head_blocks

LARGE = 0.1  # share of a block's weights that one step changes
TINY = 1e-5
RISEN = 1.15  # times the first loss, of one and the same batch
WIDE = 30.0  # a logit that no healthy head has in its first steps
GAIN = 1.08  # times that a loss is smaller with the cause undone
HEAD = 20.0  # times that the head moves more than the rest, of its own size
OF_DATA = ("weights", "input", "target")  # first faults that no learning rate makes
USUAL = 2e-3  # learning rate of the Adam family that the package begins with; SGD's is ten times as high
SETTLED = 5  # updates before which nothing is said


@rule(
    "MG501", "The learning rate is too high", group="optimization", stage="training",
    explains=("MG519", "MG656", "MG657", "MG650", "MG651", "MG750", "MG751", "MG752"),
)  # fmt: skip
def rate_too_high(case):
    """Training goes wrong, and does not with a tenth of the rate."""
    course = case.course
    signs = _signs(course)
    if not signs or _head_alone(case):
        return None
    for share in (0.1, 0.01):
        tried = undone(case, f"learning rate x {share}", lambda path, step, share=share: share)
        if tried is None:
            return _observed_rate(case, signs)
        if tried.stable and (tried.gain > GAIN or not course.finite):
            break
    else:
        return None
    live = case.examined(settings.optimization)
    rate, tested = _better_rate(case, lambda rate: rate < live.peak, live.peak * share)
    return Verdict(
        0.95 if tried.gain > 2.0 or not course.finite else 0.85,
        (*signs, Observation("highest learning rate", live.peak, f"{rate:.3g}")),
        (
            f"the same {tried.steps} steps from the same start with the same batches at {share:g} of the rate end at a "
            f"loss of {tried.after:.4g} instead of {tried.before:.4g}",
            _of_one_batch(course),
            *tested,
        ),
        Remedy(
            f"Lower the learning rate to {rate:.2g}.",
            settings=(f"training.learning_rate={rate:.2g}",),
            part="optimizer",
        ),
    )


@rule(
    "MG520", "Steps go up the gradient: the sign of the update is turned", group="optimization", stage="training",
    explains=("MG501", "MG502", "MG506", "MG519", "MG650", "MG651", "MG656", "MG657", "MG659", "MG750", "MG752"),
)  # fmt: skip
def steps_go_up(case):
    """The loss rises, and falls if every step is made the other way."""
    signs = _signs(case.course)
    turned = undone(case, "steps the other way", lambda path, step: -1.0) if signs else None
    if turned is None or not turned.stable or turned.gain < GAIN:
        return None
    lower = undone(case, "learning rate x 0.1", lambda path, step: 0.1)
    if lower.stable and lower.after <= turned.after:
        return None
    return Verdict(
        0.9,
        signs,
        (
            f"the same {turned.steps} steps from the same start with the same batches, each made the other way, end at "
            f"a loss of {turned.after:.4g} instead of {turned.before:.4g}",
            f"a tenth of the rate ends at {lower.after:.4g}: a rate that is too high is mended by that, not by a turn",
        ),
        Remedy(
            "Subtract the gradient: look at the optimizer, a training step of your own, a reversed gradient.",
            part="optimizer", where="optimizer, train_step",
        ),
    )  # fmt: skip


@rule("MG502", "The training has no warm-up", group="optimization", stage="training", explains=("MG501", "MG519"))
def no_warmup(case):
    """The first steps are made at the highest rate, and go wrong; with a rise they do not."""
    course, live = case.course, case.examined(settings.optimization)
    signs = _signs(course)
    if not signs or live.first < 0.5 * live.peak or live.peak <= 0 or _warms_by_itself(case):
        return None
    steps = max(10, min(course.steps, 20)) if course.finite else max(20, course.steps)
    risen = undone(case, "warm-up", lambda path, step: min(1.0, (step + 1) / (0.75 * steps)), steps)
    lower = undone(case, "learning rate x 0.1", lambda path, step: 0.1, steps)
    if risen is None or not risen.stable or risen.gain < GAIN or risen.gain < 0.9 * lower.gain:
        return None
    return Verdict(
        0.9,
        (
            Observation("first learning rate by the highest", f"{live.first / live.peak:.0%}", "0 to 10 %"),
            *signs,
        ),
        (
            f"the same {steps} steps with a rise over the first {0.75 * steps:.0f} end at a loss of {risen.after:.4g} "
            f"instead of {risen.before:.4g}, at the full rate",
            f"a tenth of the rate throughout ends at {lower.after:.4g}: the rate itself is not too high",
        ),
        Remedy("Let the learning rate rise over an epoch.", settings=("training.warmup_epochs=1",), part="optimizer"),
    )


@rule("MG504", "The learning rate is too low", group="optimization", stage="training", explains=("MG519",))
def rate_too_low(case):
    """Gradients are there, and hardly anything moves."""
    course, live = case.course, case.examined(settings.optimization)
    ratios = _ratios(course.looks[-1]) if course.looks else {}
    if course.updates < SETTLED or not ratios or not course.finite:
        return None
    ratio, ended = float(np.median(list(ratios.values()))), live.steps
    norms = course.values("grad_norm")
    clipped = live.clip is not None and len(norms) and np.median(norms) > 100 * live.clip
    if ratio > 10 * TINY or clipped or len(norms) and not norms.any():
        return None
    whole = ratio * ended if ended else None
    usual = max(2e-3 if live.adaptive else 1e-2, 10.0 * live.peak)
    rate, tested = _better_rate(case, lambda rate: rate > live.peak, usual)
    sure = ratio < 0.1 * TINY or ratio < TINY and whole is not None and whole < 0.05
    return Verdict(
        0.9 if sure else 0.7 if ratio < TINY else 0.45,
        (
            Observation("share of the weights that one step changes", ratio, "1e-4 to 1e-2"),
            Observation("highest learning rate", live.peak, "1e-3 for Adam, 1e-2 for SGD"),
        ),
        (
            f"gradients are there, with a median norm of {np.median(norms):.3g}" if len(norms) else "weights do learn",
            f"{len(course.looks[-1]['unmoved'])} trainable variables have not moved at all, frozen ones left out",
            "the run's length is not known" if whole is None
            else f"over all {ended} steps the weights could change by {whole:.2g} of themselves",
            *tested,
        ),
        Remedy(
            f"Raise the learning rate to {rate:.2g}, to begin with.",
            settings=(f"training.learning_rate={rate:.2g}",),
            part="optimizer",
        ),
    )  # fmt: skip


@rule(
    "MG506", "The head learns at far too high a rate", group="optimization", stage="training",
    explains=("MG501", "MG519", "MG656", "MG657", "MG650", "MG651", "MG750", "MG752"),
)  # fmt: skip
def head_too_fast(case):
    """Training goes wrong in the head, and does not if the head alone is slowed."""
    signs = _signs(case.course)
    if not signs:
        return None
    quotient = _quotient(case.course)
    tried = _head_alone(case)
    if not tried:
        return None
    multiplied = case.examined(settings.optimization).multipliers
    return Verdict(
        0.95 if tried.gain > 2.0 or not case.course.finite else 0.85,
        (
            Observation("change of the head's weights by that of the others", f"{quotient:.0f} times", "1 to 10 times"),
            *signs,
        ),
        (
            f"the same {tried.steps} steps with the head alone slowed end at a loss of {tried.after:.4g} instead of "
            f"{tried.before:.4g}: the rate of the other layers is no problem",
            f"multipliers of the live optimizer: {multiplied or 'none'}",
        ),
        Remedy(
            "Give the head the learning rate of the others.",
            settings=("training.head_lr_multiplier=1.0",),
            part="optimizer",
        ),
    )


@rule(
    "MG507",
    "Rare batches have gradients far beyond the others, and nothing clips them",
    group="optimization",
    stage="training",
)
def no_clipping(case):
    """Single spikes of the gradient's norm that reach the weights."""
    course, live = case.course, case.examined(settings.optimization)
    norms = course.values("grad_norm")
    if len(norms) < 20 or not course.finite:
        return None
    usual, largest = np.median(norms), norms.max()
    spikes = int((norms > 15 * usual).sum())
    if not spikes or spikes > 0.1 * len(norms) or live.clip is not None and live.clip < largest / 3:
        return None
    return Verdict(
        0.45,
        (Observation("largest norm of a gradient by the usual one", f"{largest / usual:.0f} times", "< 10 times"),),
        (
            f"{spikes} of {len(norms)} steps: a rate that is too high makes norms grow and stay",
            f"clipped to {live.clip}" if live.clip is not None else "nothing is clipped",
        ),
        Remedy(
            "Clip the global norm at a few times the usual one.",
            settings=(f"training.max_grad_norm={5 * usual:.3g}",),
            part="optimizer",
        ),
    )


@rule("MG508", "Gradients are clipped to almost nothing", group="optimization", stage="training", explains=("MG504",))
def clipping_too_strict(case):
    """Every step is clipped, by a large factor."""
    course, live = case.course, case.examined(settings.optimization)
    norms = course.values("grad_norm")
    if live.clip is None or len(norms) < SETTLED:
        return None
    factor, hit = float(np.median(norms) / live.clip), float((norms > live.clip).mean())
    if hit < 0.9 or factor < 20:
        return None
    return Verdict(
        0.9 if factor > 500 and not live.adaptive else 0.45,
        (
            Observation("steps that are clipped", f"{hit:.0%}", "< 30 %"),
            Observation("usual norm of a gradient by what it is clipped to", f"{factor:.3g} times", "< 1"),
        ),
        (
            f"clipped to {live.clip:g}" + (" variable by variable" if live.clips_each else "")
            + f", with norms of {norms.min():.3g} to {norms.max():.3g}",
            "Adam's steps hardly depend on the size of gradients, only on that of single batches" if live.adaptive
            else "the steps of SGD shrink with it, whatever the learning rate",
        ),
        Remedy("Clip at the largest usual norm, or not.", settings=("training.max_grad_norm=1000",), part="optimizer"),
    )  # fmt: skip


def _better_rate(case, better, otherwise: float) -> tuple[float, tuple[str, ...]]:
    """The learning rate that trains best of those tried, and what came out; another one where none can be tried."""
    tested = case.examined(range_test)
    if tested is None or not any(np.isfinite(tested.losses)):
        return otherwise, ()
    usual = USUAL if case.examined(settings.optimization).adaptive else 10.0 * USUAL
    rate = usual if tested.best is None else tested.best
    if not better(rate):
        return otherwise, ()
    return rate, (tested.words if tested.best else f"{tested.words}: no difference, so the usual rate is advised",)


def _signs(course) -> tuple:
    """What is wrong with the course of a training that a rate could have done; () where nothing is."""
    if course is None or not course.steps:
        return ()
    signs = []
    if not course.finite:
        if course.fault.kind in OF_DATA or calm(course):
            return ()
        signs.append(Observation("first that is not finite", course.fault.subject, "none"))
    elif course.updates < SETTLED:
        return ()
    signs += _signs_of_looks(course) if course.finite else []
    norms = course.values("grad_norm")
    if not course.finite and len(norms) > 3 and norms[-1] > 10 * np.median(norms[:3]):
        growth = norms[-1] / np.median(norms[:3])
        signs.append(Observation("growth of the gradient's norm before", f"{growth:.3g} times", "< 10 times"))
    return tuple(signs)


def _signs_of_looks(course) -> list:
    signs, looks = [], course.looks
    ratios = _ratios(looks[-1]) if looks else {}
    if ratios and max(ratios.values()) > LARGE:
        block = max(ratios, key=ratios.get)
        signs.append(Observation(f"share of the weights of {block} that a step changes", ratios[block], "< 0.1"))
    seen = [look for look in looks if "loss" in look]
    if len(seen) > 1:
        if seen[-1]["loss"] > RISEN * seen[0]["loss"]:
            grown = seen[-1]["loss"] / seen[0]["loss"]
            signs.append(Observation("loss of one and the same batch by that at the start", grown, "< 1"))
        if seen[-1]["max_logit"] > max(WIDE, 3 * seen[0]["max_logit"]):
            signs.append(Observation("largest logit", seen[-1]["max_logit"], "< 10 in the first 100 steps"))
    return signs


def _ratios(look: dict) -> dict:
    """Block to the share of it that a step changes."""
    return {name.split("/", 1)[1]: value for name, value in look.items() if name.startswith("update_ratio/")}


def _quotient(course) -> float:
    """How much more the head changes than the rest, at the look where that is most."""
    found = [0.0]
    for look in course.looks[1:]:
        ratios = _ratios(look)
        head = [ratios[block] for block in head_blocks(list(ratios))]
        others = [value for block, value in ratios.items() if block not in head_blocks(list(ratios))]
        if head and others:
            found.append(float(np.median(head) / max(np.median(others), 1e-12)))
    return max(found)


def _head_alone(case):
    """The comparison with a slowed head, where that is what mends a training; None where it is not."""
    quotient, multipliers = _quotient(case.course), case.examined(settings.optimization).multipliers
    known = max([multipliers.get(block, 1.0) for block in head_blocks(list(multipliers))], default=1.0)
    if max(quotient, known) < HEAD:
        return None
    for share in (0.1, 1.0 / max(quotient, known)):
        tried = undone(case, f"head x {share:.4g}", functools.partial(_of_head, share))
        if tried is not None and tried.stable and (tried.gain > GAIN or not case.course.finite):
            return tried
    return None


def _of_head(share: float, path: str, step: int) -> float:
    return share if block_of(path).startswith(("head_", "grid_")) else 1.0


def _observed_rate(case, signs):
    """The verdict on a training that cannot be tried again."""
    course = case.course
    if course.finite:
        return None
    grew = any(one.what.startswith("growth") for one in signs)
    rate = course.rows[-1].get("learning_rate", float("nan"))
    return Verdict(
        0.65 if grew else 0.35,
        (*signs, Observation("learning rate of that step", rate, "lower")),
        (_of_one_batch(course), "a trial, multigrid doctor --deep, can make the steps again at a lower rate"),
        Remedy(
            "Lower the learning rate to a tenth.",
            settings=(f"training.learning_rate={rate / 10:.2g}",),
            part="optimizer",
        ),
    )


def calm(course) -> bool:
    """Whether losses and gradients were as usual until the last step."""
    losses, norms = course.values("loss")[:-1], course.values("grad_norm")
    steady = lambda values: len(values) < 2 or values[-1] < 3 * np.median(values)  # noqa: E731
    return steady(losses[np.isfinite(losses)]) and steady(norms[np.isfinite(norms)])


def _of_one_batch(course) -> str:
    """Whether it came with one batch or over several steps, in words."""
    norms = course.values("grad_norm")
    if len(norms) < 4:
        return "too few steps for a trend of the gradient's norm"
    return f"norms of the gradient went from {norms[0]:.3g} over {np.median(norms):.3g} to {norms[-1]:.3g}"


def _warms_by_itself(case) -> bool:
    """Whether a callback raises the rate, as with schedule plateau."""
    training = getattr(case.config, "training", None)
    return training is not None and training.schedule == "plateau" and training.warmup_epochs > 0
