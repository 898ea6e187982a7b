"""The doctor: asks every rule about a case, from what costs nothing to what needs training, and ranks the causes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from multigrid.diagnosis.case import Case
from multigrid.diagnosis.examinations.course import Trial
from multigrid.diagnosis.finding import CERTAIN, Finding, Rule, ranked
from multigrid.diagnosis.remedies import fitted
from multigrid.diagnosis.rules import RULES

SHALLOW = ("static", "batch", "evaluation")
CHECKPOINTS = (5, 10, 20, 40, 80, 160)  # steps of a trial after which the rules of training are asked


@dataclass(frozen=True)
class Diagnosis:
    """What the doctor says.

    Attributes:
        findings: ranked, the likeliest cause first.
        failed: {rule id: error} of the rules that could not be asked, because what they look at raised an error.
        stages: that were examined.
        steps: of a trial that were made.
        seconds: that it took.
        case: what was looked at, for reports.
    """

    findings: tuple[Finding, ...]
    failed: dict
    stages: tuple[str, ...]
    steps: int
    seconds: float
    case: Case = field(repr=False)

    @property
    def causes(self) -> tuple[Finding, ...]:
        """The findings that are verdicts: likely, harmful and no consequence of another."""
        return tuple(one for one in self.findings if one.is_cause)

    @property
    def healthy(self) -> bool:
        """Whether nothing is wrong, and everything could be looked at."""
        return not self.causes and not self.failed

    def plain(self) -> dict:
        """All of it in JSON's own types."""
        return {
            "healthy": self.healthy,
            "causes": [one.id for one in self.causes],
            "findings": [one.plain() for one in self.findings],
            "failed": dict(self.failed),
            "stages": list(self.stages),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
        }


def diagnose(
    subject,
    *,
    deep: bool = False,
    rules: Sequence[Rule] = RULES,
    checkpoints=CHECKPOINTS,
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Names what is wrong with a training.

    Args:
        subject: a `MultiGridTrainer`, or a `Case` with the parts given one by one.
        deep: also train for some steps, and measure; everything is put back afterwards. Where the causes are certain
            before the first step no step is made.
        rules: those to ask.
        checkpoints: steps of the trial after which the rules of training are asked.
        progress: called with (rules asked and steps trained, all of them).

    Returns:
        A `Diagnosis`.
    """
    began, case = time.perf_counter(), subject if isinstance(subject, Case) else Case.of(subject)
    visit = _Visit(case, rules)
    stages = list(SHALLOW)
    if case.history:
        stages.append("run")
    if case.course is not None:  # a training that was seen
        stages.append("training")
    asked = [rule for rule in rules if rule.stage in stages]
    total = len(asked) + (checkpoints[-1] if deep else 0)
    for number, rule in enumerate(sorted(asked, key=lambda rule: stages.index(rule.stage))):
        visit.ask(rule)
        if progress is not None:
            progress(number + 1, total)
    if deep and not visit.certain:
        stages = list(dict.fromkeys((*stages, "training")))
        _train(visit, checkpoints, progress and (lambda steps: progress(len(asked) + steps, total)))
    return Diagnosis(
        tuple(ranked(list(visit.findings.values()))),
        visit.failed,
        tuple(stages),
        case.course.steps if case.course else 0,
        time.perf_counter() - began,
        case,
    )


def _train(visit: _Visit, checkpoints, progress) -> None:
    """Trains, and asks the rules of training at the checkpoints, until a cause is certain or nothing is finite."""
    with Trial(visit.case) as trial:
        for steps in checkpoints:
            try:
                visit.case.course = trial.until(steps)
            except Exception as error:  # as for a rule: what was found before is not lost with it
                visit.failed["trial"] = said(error)
                return
            for rule in visit.rules:
                if rule.stage == "training":
                    visit.ask(rule)
            if progress is not None:
                progress(steps)
            if visit.certain or not visit.case.course.finite:
                return


class _Visit:
    """The findings so far; a later verdict of a rule takes the place of its earlier one."""

    def __init__(self, case: Case, rules):
        self.case, self.rules = case, rules
        self.findings, self.failed = {}, {}

    @property
    def certain(self) -> bool:
        """Whether a harmful cause is beyond doubt."""
        return any(one.is_cause and one.confidence >= CERTAIN for one in ranked(list(self.findings.values())))

    def ask(self, rule: Rule) -> None:
        """Asks one rule."""
        ask(rule, self.case, self.findings, self.failed)


def ask(rule: Rule, case: Case, findings: dict, failed: dict) -> None:
    """Asks a rule about a case as it stands; what comes of it takes the place of what it said before.

    Args:
        rule: to ask.
        case: to ask about.
        findings: {rule id: `Finding`, its remedy fitted to the case's config}, changed in place.
        failed: {rule id: error, in words}, changed in place.
    """
    findings.pop(rule.id, None)
    failed.pop(rule.id, None)
    try:
        verdict = rule.function(case)
    except Exception as error:  # the parts of a broken training raise what they like: it is said, not passed over
        failed[rule.id] = said(error)
        return
    if verdict is not None:
        verdict = dataclasses.replace(verdict, remedy=fitted(verdict.remedy, case.config))
        findings[rule.id] = Finding(rule, verdict, case.course.steps if case.course else 0)


def said(error: Exception) -> str:
    """An error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
