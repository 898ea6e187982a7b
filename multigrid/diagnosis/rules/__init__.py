"""The rules: one function a cause, by the part of a training that the cause lies in.

MG1xx labels, MG2xx augmentation, MG3xx targets, MG4xx weights, MG5xx optimization, MG6xx loss, MG7xx model, MG8xx
evaluation, MG9xx pipeline.
"""

from multigrid.diagnosis.finding import Rule
from multigrid.diagnosis.rules import (
    augmentation,
    balance,
    dynamics,
    evaluation,
    freezing,
    history,
    labels,
    learning_rate,
    loss,
    loss_functions,
    masks,
    model,
    optimization,
    pipeline,
    places,
    targets,
    weights,
)

MODULES = (
    labels, places, augmentation, targets, weights, freezing, optimization, learning_rate, loss, masks, balance,
    loss_functions, model, dynamics, evaluation, pipeline, history,
)  # fmt: skip
RULES = tuple(
    sorted(
        (value for module in MODULES for value in vars(module).values() if isinstance(value, Rule)),
        key=lambda rule: rule.id,
    )
)
