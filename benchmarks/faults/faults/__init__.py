"""The faults: one function each, by the part of a training that they lie in."""

from faults import augmentation, blind, evaluation, labels, loss, model, optimization, pipeline, targets, weights
from faults.kinds import DOSES, SETS, WHEN, Fault

__all__ = ["DOSES", "FAULTS", "SETS", "WHEN", "Fault"]

MODULES = (labels, augmentation, targets, weights, optimization, loss, model, evaluation, pipeline, blind)
FAULTS = {
    value.key: value for module in MODULES for value in vars(module).values() if isinstance(value, Fault)
}  # fmt: skip
