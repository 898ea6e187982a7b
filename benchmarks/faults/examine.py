"""What the doctor says of a run, and when it said so first."""

from __future__ import annotations

import time
from dataclasses import replace

from multigrid.diagnosis.doctor import diagnose
from multigrid.diagnosis.finding import Finding, ranked
from multigrid.diagnosis.rules import RULES


class Listener:
    """Rules that are asked as ever, and what each said after how many steps."""

    def __init__(self, rules=RULES):
        self.said = []
        self.rules = tuple(replace(rule, function=self._heard(rule)) for rule in rules)

    def _heard(self, rule):
        def ask(case):
            verdict = rule.function(case)
            self.said.append((case.course.steps if case.course else 0, Finding(rule, verdict) if verdict else rule.id))
            return verdict

        return ask

    def history(self) -> list[list]:
        """[[steps, id of the first verdict or None], …], for each number of steps at which rules were asked."""
        known, history = {}, []
        for steps in dict.fromkeys(steps for steps, _ in self.said):
            for _, one in (pair for pair in self.said if pair[0] == steps):
                if isinstance(one, Finding):
                    known[one.id] = one
                else:
                    known.pop(one, None)
            first = next(iter(ranked(list(known.values()))), None)
            history.append([steps, first.id if first is not None and first.is_cause else None])
        return history


def examine(trainer) -> dict:
    """A row of the table of results without what names the run."""
    began, listener = time.process_time(), Listener()
    diagnosis = diagnose(trainer, deep=True, rules=listener.rules)
    said = diagnosis.plain()
    short = ("id", "cause", "group", "stage", "confidence", "hygiene", "step", "consequence_of", "remedy")
    return {
        "causes": said["causes"],
        "findings": [{name: one[name] for name in short} for one in said["findings"]],
        "failed": said["failed"],
        "stages": said["stages"],
        "steps": said["steps"],
        "history": listener.history(),
        "seconds": said["seconds"],
        "cpu_seconds": round(time.process_time() - began, 1),
    }
