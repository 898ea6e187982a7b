"""The course of a training: one call of `fit` after the other, from the beginning or from where it stopped."""

from __future__ import annotations

import keras

from multigrid import report
from multigrid.errors import InputError
from multigrid.models.blocks import block_of, blocks_of
from multigrid.training import run_callbacks
from multigrid.training.checkpoints import Checkpoints, RestOfEpoch, remember
from multigrid.training.devices import scope_of
from multigrid.training.freezing import freeze
from multigrid.training.optimizers import configured_optimizer, inner_optimizer
from multigrid.training.processes import StopTogether, process_count
from multigrid.training.run_state import Position, RunState
from multigrid.training.stages import Stage
from multigrid.training.weight_files import WeightFiles


class Course:
    """Takes a training through its stages.

    `fit` is called once a stage, and once more for the rest of an epoch that was interrupted.

    Args:
        trainer: a `MultiGridTrainer` with data, a detector compiled for the first stage, and a run folder.
        signals: a `StopSignals`.

    Attributes:
        rows: of results.csv, one an epoch.
    """

    def __init__(self, trainer, signals):
        self.trainer, self.signals = trainer, signals
        self.stages = trainer.stages
        self.rows = []
        self.lasting, self.closing = run_callbacks.lasting_callbacks(trainer), run_callbacks.closing_callbacks(trainer)

    def run(self, state: RunState | None = None) -> None:
        """Trains to the end, to a signal or until a callback ends it.

        Args:
            state: the moment to go on from; None begins.

        Raises:
            TrainingInterrupted: a signal came in the middle of an epoch.
        """
        position = Position()
        if state is not None:
            self._prepare_for(state)
            position = self._after(state)
            if position.stage == len(self.stages):
                report.say(f"all {self.stages[-1].end_epoch} epochs of this run are done")
        while position.stage < len(self.stages):
            checkpoints = self._fit(position, None if position.begins_stage(self.stages) else state)
            state = checkpoints.state
            if checkpoints.ended or not (state.position.ends_stage(self.stages) or position.step):
                return
            position = self._after(state)

    def conclude(self) -> None:
        """Tells the callbacks that want to know it that the training is over, however it ended; Keras does not."""
        for callback in self.lasting:
            if hasattr(callback, "conclude"):
                callback.conclude()

    def _prepare_for(self, state: RunState) -> None:
        """Compiles for the stage of a state, and gives everything but the tensors back."""
        self.rows[:] = state.rows
        if state.position.stage >= len(self.stages):
            raise InputError(
                f"training.stages: expected more than {state.position.stage}, as many the run has begun, received "
                f"{len(self.stages)}"
            )
        remember([callback for callback in self.lasting if isinstance(callback, WeightFiles)], state.callbacks)
        self._begin(self.stages[state.position.stage])
        state.restore_random()
        state.restore_weights(self.trainer.detector)
        with scope_of(self.trainer.detector):
            state.restore_optimizer(self.trainer.detector)

    def _after(self, state: RunState) -> Position:
        """Where to go on after a state, with the detector made ready for it."""
        position = state.position
        if position.ends_stage(self.stages):
            return self._next_stage(position)
        state.restore_weights(self.trainer.detector)  # Keras ends every `fit` with other weights than the last step's
        with scope_of(self.trainer.detector):
            state.restore_optimizer(self.trainer.detector)
        return position

    def _next_stage(self, position: Position) -> Position:
        number = position.stage + 1
        if number == len(self.stages):
            return Position(number, position.epoch)
        stage = self.stages[number]
        if position.epoch < stage.first_epoch:
            report.say(f"stage {number} of {len(self.stages)} stopped early; on with epoch {stage.first_epoch + 1}")
        self._begin(stage)
        return Position(number, stage.first_epoch)

    def _begin(self, stage: Stage) -> None:
        if self.trainer.keeps_compilation:
            return
        begin_stage(self.trainer.detector, self.trainer.config.training, stage, len(self.trainer.train_data))

    def _fit(self, position: Position, resumed: RunState | None) -> Checkpoints:
        """One call of `fit`; returns its last callback, which knows how it ended."""
        trainer, stage = self.trainer, self.stages[position.stage]
        data = RestOfEpoch(trainer.train_data, position.step) if position.step else trainer.train_data
        title = f"stage {position.stage + 1} of {len(self.stages)}"
        others = [*run_callbacks.stage_callbacks(trainer, stage, title, data), *self.lasting]
        if process_count() > 1:
            others.append(StopTogether(self.signals))
        others += self.closing
        checkpoints = Checkpoints(
            trainer.run_dir, position.stage, stage.end_epoch, self.signals, others, self.rows, resumed
        )
        trainer.detector.fit(
            data,
            validation_data=trainer.val_data,
            initial_epoch=position.epoch,
            epochs=stage.end_epoch,
            shuffle=False,  # the generator has its own, seeded order
            callbacks=[*others, checkpoints],
            verbose=0,
        )
        return checkpoints


def begin_stage(detector: keras.Model, training, stage: Stage, steps_per_epoch: int) -> None:
    """Freezes what the stage freezes and compiles the detector for it.

    Args:
        detector: a `MultiGridDetector`.
        training: the config's section.
        stage: the one that begins.
        steps_per_epoch: batches of the training data.
    """
    before = detector.optimizer if detector.compiled else None
    if training.stages or training.freeze != "none":  # else what its maker froze stays so
        freeze(detector, stage.frozen)
    with scope_of(detector):
        optimizer = configured_optimizer(
            training,
            steps_per_epoch,
            epochs=stage.phase_end - stage.phase_first,
            learning_rate=stage.learning_rate,
            block_of={variable.path: block_of(variable.path) for variable in detector.variables},
            blocks=blocks_of(detector),
        )
        jit_compile = detector.prefers_xla if training.jit_compile == "auto" else training.jit_compile
        detector.compile(optimizer, jit_compile=jit_compile)
        # TensorFlow traces a step twice that makes variables
        detector.optimizer.build(detector.trainable_variables)
        if before is not None and before.built and not stage.begins_phase:
            _carry_over(before, detector.optimizer, detector.trainable_variables)


def _carry_over(before, after, variables) -> None:
    """Gives a new optimizer what the one before knows: counters, and the slots of the variables that both move."""
    if hasattr(before, "dynamic_scale") and hasattr(after, "dynamic_scale"):  # of the loss in float16
        after.dynamic_scale.assign(keras.ops.copy(before.dynamic_scale))
    before, after = inner_optimizer(before), inner_optimizer(after)
    known = {variable.name: variable for variable in before.variables}
    for slot in after.variables:
        if slot.name in known and slot.shape == known[slot.name].shape:
            slot.assign(keras.ops.copy(known[slot.name]))  # on JAX no two variables may share an array
    if after.use_ema:  # Keras fills averages at the very first step, which is over
        for variable, average in zip(variables, after._model_variables_moving_average, strict=True):
            if average.name not in known:
                average.assign(keras.ops.copy(variable))
