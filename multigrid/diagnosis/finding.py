"""What a rule says: a cause, what was seen of it, why it is this one, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

STAGES = ("static", "batch", "evaluation", "training", "run")  # the earliest point at which a rule can speak
GROUPS = ("labels", "augmentation", "targets", "weights", "optimization", "loss", "model", "evaluation", "pipeline")
PARTS = ("data", "criterion", "detector", "optimizer", "predictor")  # of a training, that a remedy may rebuild
CERTAIN = 0.8  # from here on a cause needs no further examination
LIKELY = 0.5  # from here on it is a verdict; below, a possibility


@dataclass(frozen=True)
class Observation:
    """A number or word that was seen, and what it is when all is well."""

    what: str
    value: object
    reference: str


@dataclass(frozen=True)
class Remedy:
    """What mends a cause, in words and as far as possible in a form that a program can apply.

    Attributes:
        text: what to do, in one or two sentences.
        settings: `key=value` over the config.
        part: the part of the training, one of `PARTS`, that is to be the one that the config describes.
        boxes: a hypothesis of `examinations.alignment` that mends the boxes of each batch.
        where: the file, object or line to look at.
    """

    text: str
    settings: tuple[str, ...] = ()
    part: str | None = None
    boxes: str | None = None
    where: str = ""


@dataclass(frozen=True)
class Verdict:
    """What a rule returns where its cause is there.

    Attributes:
        confidence: in (0, 1]; see `CERTAIN` and `LIKELY`.
        seen: the numbers that speak for the cause.
        why: the tests that tell it from its look-alikes, each with its result.
        remedy: what mends it.
        hygiene: whether it may do no harm here, so that nothing has to be done.
        consequences: further rules, beside those of the rule itself, whose causes are consequences here.
    """

    confidence: float
    seen: tuple[Observation, ...]
    why: tuple[str, ...]
    remedy: Remedy
    hygiene: bool = False
    consequences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rule:
    """One cause, and the function that looks for it."""

    id: str  # "MG101"
    cause: str  # in words, as a heading: "Boxes are read in another format than they are written in"
    group: str
    stage: str
    function: Callable = field(repr=False)
    explains: tuple[str, ...] = ()  # rules whose causes are its consequences

    @property
    def page(self) -> str:
        """Its page, from the top of the project."""
        return f"docs/doctor/{self.id}.md"


@dataclass(frozen=True)
class Finding:
    """A verdict and the rule that gave it."""

    rule: Rule
    verdict: Verdict
    step: int = 0  # updates of the weights that were seen before
    consequence_of: str | None = None  # the rule that explains it

    @property
    def id(self) -> str:
        """Of the rule."""
        return self.rule.id

    @property
    def confidence(self) -> float:
        """Of the verdict, less where another finding explains it."""
        return self.verdict.confidence * (0.3 if self.consequence_of else 1.0)

    @property
    def is_cause(self) -> bool:
        """Whether it is a verdict: likely, harmful and no consequence of another."""
        return self.confidence >= LIKELY and not self.verdict.hygiene and not self.consequence_of

    def plain(self) -> dict:
        """All of it in JSON's own types."""
        remedy = self.verdict.remedy
        return {
            "id": self.id,
            "cause": self.rule.cause,
            "group": self.rule.group,
            "stage": self.rule.stage,
            "confidence": round(float(self.confidence), 3),
            "hygiene": bool(self.verdict.hygiene),
            "step": self.step,
            "consequence_of": self.consequence_of,
            "seen": [
                {"what": one.what, "value": _plain(one.value), "reference": one.reference} for one in self.verdict.seen
            ],
            "why": list(self.verdict.why),
            "remedy": {
                "text": remedy.text,
                "settings": list(remedy.settings),
                "part": remedy.part,
                "boxes": remedy.boxes,
                "where": remedy.where,
            },
            "page": self.rule.page,
        }


def _plain(value):
    """A value that was seen in JSON's own types: NumPy's numbers and arrays become Python's."""
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def rule(id: str, cause: str, *, group: str, stage: str, explains: tuple[str, ...] = ()):
    """Makes a `Rule` of a function from a `Case` to a `Verdict`, or to None where the cause is not there."""
    if group not in GROUPS or stage not in STAGES:
        raise ValueError(f"{id}: expected a group of {GROUPS} and a stage of {STAGES}, received {group!r}, {stage!r}")
    return lambda function: Rule(id, cause, group, stage, function, explains)


def ranked(findings: list[Finding]) -> list[Finding]:
    """Findings by confidence; those that another one of them explains come after, and faults before hygiene."""
    sure = {finding.id: finding for finding in findings if finding.verdict.confidence >= LIKELY}
    cause_of = {
        consequence: finding.id
        for finding in sorted(sure.values(), key=lambda one: one.verdict.confidence)
        for consequence in (*finding.rule.explains, *(() if finding.verdict.hygiene else finding.verdict.consequences))
        if consequence != finding.id
    }
    explained = [
        Finding(one.rule, one.verdict, one.step, cause_of.get(one.id) if one.id not in _roots(cause_of) else None)
        for one in findings
    ]
    return sorted(explained, key=lambda one: (one.verdict.hygiene, -one.confidence))


def _roots(cause_of: dict) -> set:
    """Rules that explain each other: neither is taken for a consequence."""
    return {one for one, cause in cause_of.items() if cause_of.get(cause) == one}
