"""Faults of learning rate, optimizer and BatchNorm's pace."""

from __future__ import annotations

from faults.kinds import fault
from faults.weights import norms
from multigrid.models.blocks import block_of, blocks_of
from multigrid.training.optimizers import configured_optimizer, inner_optimizer

SCRATCH = "backbone_weights=null"


@fault("O01", "optimization", "E", (300.0, 100.0, 30.0), ("MG501", "MG519"))
def learning_rate_too_high(making, factor):
    making.config(f"training.learning_rate={5e-3 * factor}")


@fault("O04", "optimization", "E", (1e-8, 1e-6, 1e-5), ("MG504",))
def learning_rate_too_low(making, rate):
    making.config(f"training.learning_rate={rate}")


@fault("O05", "optimization", "S", ("rate", "coefficient", "decay"), ("MG505", "MG504"))
def setting_does_not_arrive(making, which):
    """The live rate is a hundred-thousandth, a coefficient a hundredth or the decay a thousand times the config's."""

    def recompile(trainer, **changes):
        training = trainer.config.training.model_copy(update=changes)
        detector = trainer.detector
        blocks = {variable.path: block_of(variable.path) for variable in detector.variables}
        steps = len(trainer.train_data)
        optimizer = configured_optimizer(training, steps, block_of=blocks, blocks=blocks_of(detector))
        detector.compile(optimizer, jit_compile=False)
        detector.optimizer.build(detector.trainable_variables)

    def lower(criterion):
        criterion.coord_scale = criterion.coord_scale / 100
        return criterion

    if which == "coefficient":
        making.change("criterion", lower)
    elif which == "rate":
        making.change("compiled", lambda trainer: recompile(trainer, learning_rate=5e-8))
    else:
        making.change("compiled", lambda trainer: recompile(trainer, weight_decay=0.5))


@fault("O06", "optimization", "E", (1000.0, 300.0, 100.0), ("MG506",))
def head_rate_too_high(making, factor):
    making.config(f"training.head_lr_multiplier={factor}")


@fault("O13", "optimization", "E", (0.9999, 0.999, 0.99), ("MG513",), settings=(SCRATCH,))
def norm_momentum_too_high(making, momentum):
    def change(trainer):
        for layer in norms(trainer.detector):
            layer.momentum = momentum

    making.change("detector", change)


@fault("O08", "optimization", "E", (1e-6, 1e-4), ("MG508",), further=True, settings=("training.optimizer=sgd",))
def gradients_clipped_to_nothing(making, norm):
    making.config(f"training.max_grad_norm={norm}")


@fault("O10", "optimization", "E", (100.0, 20.0, 5.0), ("MG510",), further=True)
def weight_decay_too_high(making, decay):
    making.config(f"training.weight_decay={decay}")


@fault(
    "O11", "optimization", "E", (0.9999, 0.999, 0.99), ("MG511",), further=True, settings=("training.optimizer=sgd",)
)
def momentum_too_high(making, momentum):
    making.config(f"training.momentum={momentum}")


@fault("O12", "optimization", "E", (1,), ("MG512",), further=True)
def batches_of_one(making, size):
    making.config(f"training.batch_size={size}")


@fault(
    "O17", "optimization", "E", (300.0, 100.0), ("MG501", "MG519"), further=True, settings=("training.optimizer=sgd",)
)
def gradients_not_averaged(making, factor):
    """They are that many times too large, as where those of many batches are summed."""

    def change(trainer):
        optimizer = inner_optimizer(trainer.detector.optimizer)
        kind = type(optimizer)

        def apply_gradients(self, grads, trainable_variables):
            kind._backend_apply_gradients(self, [grad * factor for grad in grads], trainable_variables)

        methods = {"_backend_apply_gradients": apply_gradients, "__module__": kind.__module__}
        optimizer.__class__ = type(kind.__name__, (kind,), methods)

    making.config("training.max_grad_norm=null")
    making.change("compiled", change)


@fault("O03", "optimization", "E", (200.0, 50.0), ("MG503",), further=True)
def warmup_never_ends(making, epochs):
    making.config("training.epochs=201", f"training.warmup_epochs={epochs}")
