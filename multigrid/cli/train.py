"""`multigrid train`: a config to a trained detector."""

from __future__ import annotations

import pathlib
import sys

from multigrid import report
from multigrid.cli.options import (
    FAILED,
    OK,
    add_config,
    add_parser,
    add_weights,
    emit,
    load_config,
    meant,
    show_ledger,
    show_metrics,
    start_backend,
    weights_settings,
)

EXAMPLE = "multigrid train --config configs/quickstart.yaml training.epochs=5"


def add_verb(verbs) -> None:
    """Adds the options of `train`."""
    parser = add_parser(verbs, "train", run_train, EXAMPLE)
    add_config(parser, required=False)
    parser.add_argument("--resume", metavar="RUN", help="go on with this run folder, stopped or killed; no --config")
    add_weights(parser)
    parser.add_argument(
        "--save-weights",
        metavar="FILE",
        help="write the best weights here too (.h5, .weights.h5, .keras; .weights: backbone)",
    )


def run_train(options) -> int:
    """Trains, evaluates the best weights on the validation set and says where everything is."""
    if (options.config is None) == (options.resume is None):
        both = (
            " and not both"
            if options.config is not None
            else f", received neither{meant(options.overrides, '--resume')}"
        )
        options.parser.error(f"expected --config or --resume{both}")
    if options.resume and weights_settings(options):
        options.parser.error("--resume: expected no weights to begin with, the run has its own")
    config = options.config and load_config(options, weights_settings(options))
    start_backend()
    from multigrid.models.weights import save_weights
    from multigrid.training.guard import NonFiniteLossError

    _check_target(options.save_weights)
    trainer = _trainer(options, config)
    train_data, val_data = trainer.build_data()
    trainer.build_model()
    for ledger in trainer.ledgers:
        show_ledger(ledger)
    validation = "no validation" if val_data is None else f"{len(val_data.samples)} to validate"
    parameters = f"{trainer.detector.count_params():,} parameters"
    report.say(f"{len(train_data.samples)} images to train, {validation}; {parameters}")
    _tell_of_a_slow_average(trainer.config.training, len(train_data))
    try:
        history = trainer.train()
    except NonFiniteLossError as error:
        print(f"error: {error}", file=sys.stderr)
        emit(options, {"error": str(error), "run_dir": trainer.run_dir})
        return FAILED
    found = _findings(trainer, history)
    if trainer.stopped_by:
        report.say(f"stopped: {trainer.stopped_by}; go on with: multigrid train --resume {trainer.run_dir}")
        emit(options, found)
        return OK
    if val_data is not None:
        found["metrics"] = trainer.evaluate("val").metrics
        show_metrics("Best weights on the validation set", found["metrics"])
    if options.save_weights:
        save_weights(trainer.detector, options.save_weights)
        report.say(f"weights: {options.save_weights}")
    report.say(f"run folder: {trainer.run_dir}")
    emit(options, found | {"saved_weights": options.save_weights})
    return OK


def _findings(trainer, history) -> dict:
    """What --json says of a training; `metrics` and `saved_weights` are those of one that came to its end."""
    from multigrid.prediction.run_folder import BEST

    best = trainer.run_dir / BEST
    return {
        "run_dir": trainer.run_dir,
        "epochs": len(history.epoch),
        "stopped_by": trainer.stopped_by,
        "last_epoch": {name: values[-1] for name, values in history.history.items()},
        "best_weights": best if best.exists() else None,
        "metrics": None,
        "saved_weights": None,
    }


def _tell_of_a_slow_average(training, batches: int) -> None:
    """Says before a short training that validation will see little of it."""
    from multigrid.training.optimizers import average_for, first_weights_share

    steps = training.epochs * batches // training.gradient_accumulation
    if training.ema is None or training.stages or steps == 0:
        return
    left = first_weights_share(training.ema, steps)
    if left < 0.05:
        return
    report.say(
        f"{steps} steps are few for training.ema={training.ema:g}: the averaged weights, which are validated and kept, "
        f"will be {left:.0%} the first ones; training.ema={average_for(steps):.3g} suits so short a training"
    )


def _check_target(path) -> None:
    """Sees that the weights can be written where --save-weights says, before they are trained."""
    from multigrid.models.weights import check_weights_name

    if path is not None:
        check_weights_name(path)
        report.check_file(path, "--save-weights")


def _trainer(options, config):
    from multigrid.training.trainer import MultiGridTrainer

    if config is None:
        return MultiGridTrainer.from_run(options.resume, options.overrides)
    trainer = MultiGridTrainer(config, name=pathlib.Path(options.config).stem)
    trainer.check_run_dir()
    return trainer
