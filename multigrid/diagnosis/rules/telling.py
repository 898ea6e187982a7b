"""Numbers as rules say them, and settings as remedies give them."""

from __future__ import annotations

import numpy as np

from multigrid.config import Config
from multigrid.diagnosis.finding import Observation

ROUGH = "localization of the perfect answer, over that of boxes half a size off"


def short(value: float) -> float:
    """Four digits of a number."""
    return float(f"{value:.4g}")


def shorts(values) -> list[float]:
    """Four digits of each."""
    return [short(value) for value in np.asarray(values, "float64")]


def table(what: str, values: dict, reference: str) -> Observation:
    """Several named numbers as one observation."""
    return Observation(what, ", ".join(f"{name} {value:.4g}" for name, value in values.items()), reference)


def defaults_for(case, section: str, *keys: str) -> tuple[str, ...]:
    """Settings that give keys of a config's section their defaults: those of them that the config has otherwise."""
    if case.config is None:
        return ()
    defaults, given = getattr(Config(), section), getattr(case.config, section)
    changed = [key for key in keys if getattr(given, key) != getattr(defaults, key)]
    return tuple(f"{section}.{key}={_plain(getattr(defaults, key))}" for key in changed)


def _plain(value) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_plain, value))}]"
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
