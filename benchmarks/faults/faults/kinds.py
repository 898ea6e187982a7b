"""What is said of a fault beside the function that makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

DOSES = ("gross", "medium", "subtle")
WHEN = {  # the earliest point at which a fault can be seen
    "S": "before the first batch",
    "B": "in the first batch, before any update",
    "E": "in some hundred steps",
    "L": "in some epochs",
    "P": "in evaluation",
}
SETS = ("development", "further", "blind")


@dataclass(frozen=True)
class Fault:
    """One fault that can be put into a healthy training.

    Attributes:
        key: in words, such as "boxes_xy_swapped".
        code: the same, short, such as "D04".
        group: of `multigrid.diagnosis.finding.GROUPS`.
        when: a letter of `WHEN`.
        set: of `SETS`.
        accepted: ids of the rules that name it.
        doses: what each dose means, by name: a number or words that `make` is handed.
        make: the function: (making, what the dose means) -> None.
        settings: of the healthy training that it is put into, over the stage's.
    """

    key: str
    code: str
    group: str
    when: str
    set: str
    accepted: tuple[str, ...]
    doses: dict
    make: Callable = field(repr=False)
    settings: tuple[str, ...] = ()

    def put_into(self, making, dose: str) -> None:
        """Makes the fault."""
        self.make(making, self.doses[dose])


def fault(
    code: str,
    group: str,
    when: str,
    doses: Sequence,
    accepted: Sequence[str],
    *,
    further: bool = False,
    blind: bool = False,
    settings: Sequence[str] = (),
):
    """Makes a `Fault` of a function (making, dose); its name is the key, doses come as in `DOSES`.

    Args:
        code, group, when, accepted, settings: see `Fault`.
        doses: what each of `DOSES` means, from the first on.
        further, blind: whether it is of this set; else it is of the development set.
    """
    named = dict(zip(DOSES, doses, strict=False))

    def made(function) -> Fault:
        kind = "blind" if blind else "further" if further else "development"
        return Fault(function.__name__, code, group, when, kind, tuple(accepted), named, function, tuple(settings))

    return made
