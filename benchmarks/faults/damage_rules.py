"""What the rows of the table of damage say: whether a fault did harm, and whether advice mended it."""

from __future__ import annotations

import statistics

from faults import FAULTS

from runs import Run

LOST = 0.8  # of the paired healthy average precision: below it a fault did harm
MENDED = 0.9  # of the same: from here on advice helped
DEVIATIONS = 2.0  # that a part of the loss may be above the mean of the healthy seeds
LEAST_DEVIATION = 0.05  # of that mean: three seeds may agree by chance


def healthy_key(fault: str, seed: int, data: str) -> str:
    """Names the healthy training that is paired with a fault's; faults with the same settings share it."""
    return f"healthy {' '.join(FAULTS[fault].settings)} {seed} {data}"


def mended_key(run_id: str, finding: dict) -> str:
    """Names the training of a run after the advice of a finding."""
    remedy = finding["remedy"]
    return f"mended {run_id} {remedy['part']} {remedy['boxes']} {' '.join(remedy['settings'])}"


def harmed(row: dict, table: list[dict]) -> bool | None:
    """Whether a run's fault did harm; None where it, or its healthy pair, was not trained."""
    by_key = {one["key"]: one for one in table}
    run = Run(row["fault"], row["dose"], row["seed"], row["data"])
    own = by_key.get(run.id)
    healthy = [by_key.get(healthy_key(run.fault, seed, run.data)) for seed in _seeds(table)]
    healthy = [one for one in healthy if one is not None and "error" not in one]
    if own is None or not healthy:
        return None
    if "error" in own or not own["finite"]:
        return True
    pair = next((one for one in healthy if one["seed"] == run.seed), healthy[0])
    return any(own[name] < LOST * pair[name] for name in ("mAP50", "agnostic")) or _worse_part(own, healthy)


def repaired(row: dict, table: list[dict]) -> bool | None:
    """Whether the advice of a run's first finding brought the average precision back; None where nobody tried."""
    by_key = {one["key"]: one for one in table}
    first = next(iter(row.get("findings") or ()), None)
    if first is None or "remedy" not in first:
        return None
    own, pair = (
        by_key.get(mended_key(row["id"], first)),
        by_key.get(healthy_key(row["fault"], row["seed"], row["data"])),
    )
    if own is None or pair is None:
        return None
    return "error" not in own and own["finite"] and own["mAP50"] >= MENDED * pair["mAP50"]


def _worse_part(own: dict, healthy: list[dict]) -> bool:
    """Whether a part of the healthy loss is further above the mean of the healthy seeds than these allow."""
    if own["parts"] is None or len(healthy) < 2:
        return False
    for name, value in own["parts"].items():
        seen = [one["parts"][name] for one in healthy]
        mean = statistics.mean(seen)
        if not value <= mean + DEVIATIONS * max(statistics.stdev(seen), LEAST_DEVIATION * mean):
            return True
    return False


def _seeds(table: list[dict]) -> list[int]:
    return sorted({one["seed"] for one in table if one["kind"] == "healthy"})
