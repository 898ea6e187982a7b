"""The watch: the doctor looks on while a training runs, and says at once when something goes wrong.

It reads what each step has anyway, looks at the network rarely, and moves nothing: a training is the same with it and
without it.
"""

from __future__ import annotations

import math
import time

import keras
import numpy as np

from multigrid import report
from multigrid.diagnosis import events, page
from multigrid.diagnosis.case import Case
from multigrid.diagnosis.doctor import Diagnosis, ask, said
from multigrid.diagnosis.examinations.course import LOOKS, Course, counted, measured
from multigrid.diagnosis.examinations.looks import Watcher
from multigrid.diagnosis.finding import CERTAIN, Finding, ranked
from multigrid.diagnosis.rules import RULES
from multigrid.training.bundle import STEP, read_bundle
from multigrid.training.faults import Fault, first_fault
from multigrid.training.optimizers import inner_optimizer

SHARE = 0.05  # of the time that looks may take, after the first ones
KEPT = 1000  # steps whose figures are kept
WINDOW = 20  # steps that a loss or a norm is taken over
RISE = 1.5  # times the lowest that a loss may rise to
EXPLODED = 20.0  # times its usual value that the norm of the gradients may rise to
QUIET = 3 * WINDOW  # steps after an event before anything is compared with the past
EARLY = ("static", "batch")


class DoctorWatch(keras.callbacks.Callback):
    """Keeps the course of a training and asks the rules about it.

    Attributes:
        trainer: the `MultiGridTrainer` that it watches; to be set before `fit`.
        course: what was seen so far, a `Course`.
        findings: what is wrong, ranked; [] as long as nothing is.
        diagnosis: the `Diagnosis` that was written last; None before the end.
    """

    def __init__(self):
        super().__init__()
        self.trainer, self.course, self.diagnosis = None, Course(), None
        self._case, self._watcher, self._found, self._failed = None, None, {}, {}
        self._asked_early, self._said, self._planned = False, set(), None
        self._spent, self._began, self._amid, self._written = 0.0, time.perf_counter(), None, -1

    @property
    def findings(self) -> list[Finding]:
        """What is wrong, the likeliest cause first."""
        return ranked(list(self._found.values()))

    def on_train_begin(self, logs=None):
        self._started, self._clock, self._spent = time.perf_counter(), time.time(), 0.0
        optimizer = self._optimizer()
        self._counted = counted(optimizer) if optimizer.built else None
        self._case = self._make_case()
        if not self.course.rows:
            done = self._done()
            self._new_past(f"goes on after {done} updates" if done else "training begins")
        elif self._case is None:  # nobody says what is planned
            self._new_past("fit is called again")
        if self._case is not None and not self._asked_early and not self._done():  # before data are read ahead
            self._ask(*EARLY)
            for kept in ("batches", "val_batches"):  # images: they are made again where they are asked for
                vars(self._case).pop(kept, None)
        if self._planned is None:
            self._planned = events.planned(self._case) if self._case is not None else []

    def on_epoch_begin(self, epoch, logs=None):
        self._logs, self._images, self.epoch = {}, 0, epoch

    def on_train_batch_begin(self, batch, logs=None):
        self._pass_events(batch)
        if self._due():
            self._look()
        self._amid = batch

    def on_train_batch_end(self, batch, logs=None):
        self._amid = None
        row = self._row(batch, logs or {})
        self.course.rows.append(row)
        del self.course.rows[:-KEPT]
        if not math.isfinite(row["loss"]) and "dropped_batches" not in row:
            self._broke(batch)
        elif self._trouble():
            self._ask(*EARLY)

    def on_train_end(self, logs=None):
        self.write()
        folder = getattr(self.trainer, "own_dir", None)
        if self.diagnosis is not None and folder is not None:
            report.say(f"doctor: {page.headline(self.diagnosis)} Written: {folder / page.NAME}", self._console())

    def conclude(self) -> None:
        """Ends the watch of a training that may have been broken off: asks why, and writes what is not yet written."""
        if self._amid is not None and self.course.fault is None:
            self._find_bundle()
        if self._written != self.course.steps:
            self.write()

    def write(self) -> None:
        """Writes diagnosis.json and diagnosis.html into the run folder, where there is one."""
        if self._case is None:
            return
        self._written = self.course.steps
        stages = (*EARLY, "training") if self._asked_early else ("training",)
        seconds = time.perf_counter() - self._began
        self.diagnosis = Diagnosis(
            tuple(self.findings), dict(self._failed), stages, self.course.steps, seconds, self._case
        )  # fmt: skip
        folder = getattr(self.trainer, "own_dir", None)
        if folder is not None:
            page.write(self.diagnosis, folder)

    # --- the course -------------------------------------------------------------------------------------------------

    def _make_case(self):
        """The case of the trainer as it stands; None without one."""
        if self.trainer is None:
            return None
        case = Case(
            self.model,
            self.trainer.train_data,
            val_data=self.trainer.val_data,
            config=self.trainer.config,
            class_names=self.trainer.class_names,
            samples=self.trainer.samples,
            ledgers=self.trainer.ledgers,
            step=self.course.steps,
            keeps_compilation=self.trainer.keeps_compilation,
            own_detector=self.trainer.own_detector,
        )
        case.course = self.course
        self._watcher = Watcher(case)
        return case

    def _row(self, batch: int, logs: dict) -> dict:
        """The figures of one step alone: Keras' logs are means over the epoch so far."""
        row = {"step": self.course.steps + 1, "batch": batch}
        for name, mean in logs.items():
            old = self._logs.get(name, 0.0)
            row[name] = float(mean) if name == "dropped_batches" else float(mean * (batch + 1) - old * batch)
        self._logs = {name: float(mean) for name, mean in logs.items()}
        row.setdefault("loss", math.nan)
        optimizer = self._optimizer()
        if getattr(self._model, "_jax_state", None):  # JAX holds its state during an epoch
            return row
        row["learning_rate"] = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
        if self._counted is not None:
            row |= measured(optimizer, self._counted, row["step"] - 1)
        self._counted = counted(optimizer)
        return row

    def _due(self) -> bool:
        """Whether it is time to look at the network: at the first steps, later as often as costs little."""
        if self._case is None or "watch" in self._failed:
            return False
        looks, step = self.course.looks, self.course.steps
        if looks and looks[-1]["step"] == step:
            return False
        elapsed = time.perf_counter() - self._started
        if step not in LOOKS and (not looks or step < 1.5 * looks[-1]["step"]):
            return False
        return not looks or self._spent + self._last_look < SHARE * elapsed

    def _look(self) -> None:
        began, _ = time.perf_counter(), self.model  # asked for, Keras brings back on JAX what `fit` holds in an epoch
        try:
            self.course.looks.append(self._watcher.look(self.course.steps))
        except Exception as error:  # the watch must not end a training that goes on without it
            self._failed["watch"] = said(error)
            return
        if self.course.steps:
            self._ask()
        self._last_look = time.perf_counter() - began
        self._spent += self._last_look

    def _done(self) -> int:
        """Updates that the optimizer has made, in this training or before."""
        return int(keras.ops.convert_to_numpy(inner_optimizer(self._optimizer()).iterations))

    def _optimizer(self):
        return self._model.optimizer

    # --- trouble ----------------------------------------------------------------------------------------------------

    def _pass_events(self, batch: int) -> None:
        """Marks what the config planned for now, or passes over it where this training begins later."""
        while self._planned and self.epoch + batch / len(self._case.train_data) >= self._planned[0].epoch:
            event = self._planned.pop(0)
            if event.breaks and self.course.rows:
                self._new_past(event.what)
            elif self.course.rows:
                self.course.events.append({"step": self.course.steps, "what": event.what})

    def _new_past(self, what: str) -> None:
        """Something changed from without: what comes is not compared with what was."""
        self.course.events.append({"step": self.course.steps, "what": what})
        self._past_from, self._lowest = self.course.steps, math.inf

    def _trouble(self) -> bool:
        """Whether the loss has risen above its own past, or the gradients have exploded; said once."""
        past = self.course.steps - self._past_from
        if past < WINDOW or past % WINDOW:
            return False
        losses = np.median([row["loss"] for row in self.course.rows[-WINDOW:]])
        rose, self._lowest = losses > RISE * self._lowest, min(self._lowest, losses)
        norms = self.course.values("grad_norm")
        exploded = (
            past > QUIET + WINDOW
            and len(norms) > QUIET
            and np.median(norms[-WINDOW:]) > EXPLODED * np.median(norms[: -2 * WINDOW])
        )
        if past < QUIET or not (rose or exploded):
            return False
        self._new_past("the loss rose" if rose else "the gradients exploded")
        return True

    def _broke(self, batch: int) -> None:
        """The first loss that is not finite, where nobody ended the training for it."""
        if self.course.fault is not None or self._case is None:
            return
        images, truth = self._case.train_data[batch][:2]
        names = [name for name, value in self.course.rows[-1].items() if name.endswith("_loss") and value != value]
        fault = first_fault(self.model, images, truth, backward=False)
        if fault is None or fault.kind == "weights" and len(names) == 1:
            fault = Fault("component", names[0].removesuffix("_loss") if names else "total")
        self.course.fault, self.course.broken = fault, (images, truth)
        self._ask(*EARLY)

    def _find_bundle(self) -> None:
        """What was first in the step that ended the training, from the bundle that its guard has written."""
        folder = getattr(self.trainer, "own_dir", None)
        bundles = sorted(folder.glob(f"nan-epoch-*/{STEP}"), key=lambda path: path.stat().st_mtime) if folder else []
        if not bundles or bundles[-1].stat().st_mtime < self._clock:  # none of this training
            return
        step, _ = read_bundle(bundles[-1].parent)
        self.course.rows.append({"step": self.course.steps + 1, "batch": step.step, "loss": math.nan})
        self.course.fault, self.course.broken = step.fault(), (step.images, step.truth)
        if self.course.fault is not None:
            self._ask(*EARLY)

    def _ask(self, *early: str) -> None:
        """Asks the rules of training, if there was any, and those of earlier stages if named; says what is new."""
        stages = (*early, "training") if self.course.rows else early
        if early:  # of the network as it is by now
            self._asked_early, self._case.step = True, self._done()
            self._case.results.clear()
        for rule in RULES:
            if rule.stage in stages:
                ask(rule, self._case, self._found, self._failed)
        for finding in self.findings:
            if finding.is_cause and finding.id not in self._said:
                self._said.add(finding.id)
                self._say(finding)

    def _console(self):
        """Of the progress bar, where there is one."""
        display = getattr(getattr(self.trainer, "lines", None), "display", None)
        return display and display.console

    def _say(self, finding: Finding) -> None:
        """One line above the bar."""
        seen = finding.verdict.seen[0]
        sure = "" if finding.confidence >= CERTAIN else "probably: "
        value = f"{seen.value:.3g}" if isinstance(seen.value, float) else seen.value
        report.say(
            f"doctor, step {self.course.steps}: {sure}{finding.rule.cause} ({finding.id}; {seen.what} {value}, "
            f"expected {seen.reference}). {finding.verdict.remedy.text}",
            self._console(),
        )
        self.course.events.append({"step": self.course.steps, "what": finding.id})
