"""Cases of one small training with other parts, and what rules say of them."""

import contextlib
import copy

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.doctor import diagnose


@contextlib.contextmanager
def case_with(trainer, loss=None, *, predictor=None, samples=None, config=None, **options):
    """A `Case` of a trainer's parts, some of them replaced; the detector has its own criterion again afterwards.

    Args:
        trainer: built.
        loss: a class derived from `MultiGridLoss`, made with the options of the trainer's criterion; or an object.
        predictor: instead of the trainer's.
        samples: instead of the trainer's.
        config: instead of the trainer's.
        options: of the criterion, over its own.
    """
    detector, kept = trainer.detector, trainer.detector.criterion
    if isinstance(loss, type) or options:
        settings = kept.get_config()
        made = (loss or type(kept)).from_config({**settings, **{k: v for k, v in options.items() if k in settings}})
        for name, value in options.items():
            setattr(made, name, value)
        detector.criterion = made
    elif loss is not None:
        detector.criterion = loss
    try:
        yield Case(
            detector,
            trainer.train_data,
            val_data=trainer.val_data,
            config=config or trainer.config,
            class_names=trainer.class_names,
            samples=trainer.samples if samples is None else samples,
            predictor=predictor or (lambda: trainer.predictor(evaluating=True)),
        )
    finally:
        detector.criterion = kept


@contextlib.contextmanager
def predictor_with(trainer, **attributes):
    """A copy of the trainer's predictor with other attributes."""
    made = copy.copy(trainer.predictor(evaluating=True))
    for name, value in attributes.items():
        setattr(made, name, value)
    yield made


def verdicts(case, rules) -> dict:
    """{id: verdict} of the rules that speak."""
    found = {rule.id: rule.function(case) for rule in rules}
    return {name: verdict for name, verdict in found.items() if verdict is not None}


def first(case, rules) -> str | None:
    """The id of the likeliest cause; no rule may fail."""
    found = diagnose(case, rules=rules)
    assert not found.failed
    return found.causes[0].id if found.causes else None


def rules_of(*modules) -> list:
    """All rules of some modules."""
    return [value for module in modules for value in vars(module).values() if hasattr(value, "explains")]
