"""Causes that the curves of a finished training tell."""

from __future__ import annotations

import math

from multigrid.diagnosis.finding import Observation, Remedy, Verdict, rule

FEWEST_EPOCHS = 6  # of a training whose curves say anything
LOST = 0.2  # share of the best validation mAP that is gone at the end
STILL_RISING = 0.05  # share of the best that the last fifth of the epochs brought


def _measured(history, name: str) -> list[tuple[int, float]]:
    return [(row["epoch"], row[name]) for row in history if math.isfinite(row.get(name, math.nan))]


@rule("MG951", "It learned the training images by heart", group="pipeline", stage="run")
def overfitting(case):
    """The best validation mAP is long past, though the loss on training images fell all the time."""
    quality, losses = _measured(case.history, "val_mAP"), _measured(case.history, "loss")
    if len(quality) < FEWEST_EPOCHS or len(losses) < FEWEST_EPOCHS:
        return None
    (best_epoch, best), (_, last) = max(quality, key=lambda pair: pair[1]), quality[-1]
    then = min(losses, key=lambda pair: abs(pair[0] - best_epoch))[1]
    fell = 1.0 - losses[-1][1] / max(then, 1e-12)
    if best <= 0 or last > (1.0 - LOST) * best or fell < 0.05:
        return None
    return Verdict(
        0.6,
        (
            Observation("validation mAP at the end", last, f"near its best, {best:.3f} after epoch {best_epoch}"),
            Observation("loss on training images since then", f"{-fell:+.0%}", "falls as validation improves"),
        ),
        ("the loss went on falling: the learning rate is not too high, and nothing was frozen",),
        Remedy(
            "The best weights are kept; take those. For more: more images, stronger augmentation, or early stopping.",
            settings=("training.early_stopping=10",),
            where="augmentation",
        ),
        hygiene=True,
    )


@rule("MG952", "It was stopped while it still got better", group="pipeline", stage="run")
def too_short(case):
    """Validation mAP rose to the last epoch."""
    quality = _measured(case.history, "val_mAP")
    if len(quality) < FEWEST_EPOCHS:
        return None
    cut = len(quality) - max(1, len(quality) // 5)
    before, after = max(value for _, value in quality[:cut]), max(value for _, value in quality[cut:])
    if after <= 0 or (after - before) / after < STILL_RISING:
        return None
    epochs = quality[-1][0] if case.config is None else case.config.training.total_epochs
    return Verdict(
        0.5,
        (
            Observation("best validation mAP before the last fifth", before, "near the best of all"),
            Observation("best validation mAP", after, ""),
        ),
        (f"it gained {(after - before) / after:.0%} of its mAP in the last fifth of {quality[-1][0]} epochs",),
        Remedy("Train for longer.", settings=(f"training.epochs={2 * epochs}",)),
        hygiene=True,
    )


@rule("MG953", "Nothing is detected though the loss fell", group="evaluation", stage="run")
def no_detections(case):
    """Validation mAP never left 0, while the loss fell by half."""
    quality, losses = _measured(case.history, "val_mAP"), _measured(case.history, "loss")
    if min(len(quality), len(losses)) < FEWEST_EPOCHS or max(value for _, value in quality) > 0.005:
        return None
    fell = 1.0 - losses[-1][1] / max(losses[0][1], 1e-12)
    if fell < 0.5:
        return None
    return Verdict(
        0.55,
        (
            Observation("best validation mAP", max(value for _, value in quality), "rises within some epochs"),
            Observation("loss", f"{-fell:+.0%}", "falls"),
        ),
        ("the loss fell by more than half: something is learned, and lost between outputs and metric",),
        Remedy("See the other findings; if there are none, look at predictions.jpg and at val's labels.", where="val"),
    )
