"""Remedies as they fit the config at hand: without settings that it has already, or that its stages override."""

from __future__ import annotations

import dataclasses

import yaml

from multigrid.config import Config
from multigrid.diagnosis.finding import Remedy

_OF_STAGES = {"training.freeze": "freeze", "training.epochs": "epochs", "training.learning_rate": "learning_rate"}


def fitted(remedy: Remedy, config: Config | None) -> Remedy:
    """A remedy of a rule for one config.

    Args:
        remedy: as the rule gives it.
        config: a `Config`, or None, and then the remedy stays as it is.
    """
    if config is None or not remedy.settings:
        return remedy
    stages, kept, staged = config.training.stages, [], []
    for setting in remedy.settings:
        key, _, value = setting.partition("=")
        own = _OF_STAGES.get(key)
        if stages and own and any(getattr(stage, own) is not None for stage in stages):
            staged.append(own)
        elif yaml.safe_load(value) != _plain(config, key):
            kept.append(setting)
    text = remedy.text
    if staged:
        text += f" training.stages has the word on {' and '.join(staged)} here: change it there."
    return dataclasses.replace(remedy, text=text, settings=tuple(kept))


def _plain(config, key: str):
    """What a config says of a key, as YAML would have it."""
    value = config.model_dump(mode="json")
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
