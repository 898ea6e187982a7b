"""What the verbs share: options, settings over a config, and a quiet start of Keras."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile

from multigrid import report

OK, FAILED, BAD_INPUT = 0, 1, 2
STDERR = 2  # the file descriptor
OVERRIDES = "settings over the config's, such as training.epochs=30 or data.train=my/train.txt"


def add_parser(verbs, name: str, run, example: str) -> argparse.ArgumentParser:
    """A verb's parser, its summary the first line of what it runs, with an example below the options."""
    summary = run.__doc__.split("\n")[0]
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}")
    parser.set_defaults(run=run, parser=parser, overrides=None)
    return parser


def add_config(parser, default: str | None = None, required: bool = True) -> None:
    """Adds --config, which may be left out only where there is a default or it is not required, and key=value words."""
    text = "YAML file (%(default)s)" if default else "YAML file"
    parser.add_argument("--config", default=default, required=required and default is None, help=text)
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def add_weights(parser, required: bool = False) -> None:
    """Adds --weights and --backbone-weights."""
    parser.add_argument(
        "--weights", required=required, help="weights of the detector: Darknet, HDF5 or .keras, found from the content"
    )
    parser.add_argument("--backbone-weights", help="weights of the backbone alone")


def count(text: str) -> int:
    """The number of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def load_config(options, settings=()):
    """The checked `Config` of --config, the words over it and further settings."""
    from multigrid.config import ConfigLoader

    return ConfigLoader.load(options.config, [*options.overrides, *settings])


def weights_settings(options) -> list:
    """--weights and --backbone-weights as overrides: a file that is not there is then found with everything else."""
    settings = []
    for key in ("weights", "backbone_weights"):
        if getattr(options, key, None) is not None:
            # Quoted, for the value is read as YAML: a file may be called `null`.
            settings.append(f"{key}={json.dumps(getattr(options, key))}")
    return settings


def start_backend() -> None:
    """Imports Keras without the greetings that TensorFlow writes to standard error before it reads its log level.

    They are left where somebody asks for them with TF_CPP_MIN_LOG_LEVEL, and shown where the import fails. Then joins
    the processes that share a training, where the environment names them.
    """
    _import_keras()
    if any(name.startswith("KERAS_DISTRIBUTION_") for name in os.environ):
        from multigrid.training.processes import join_processes

        join_processes()


def _import_keras() -> None:
    if os.environ["TF_CPP_MIN_LOG_LEVEL"] < "3" or "keras" in sys.modules:
        return
    sys.stderr.flush()
    terminal = os.dup(STDERR)
    with tempfile.TemporaryFile() as greetings:
        os.dup2(greetings.fileno(), STDERR)
        try:
            import keras  # noqa: F401
        except BaseException:
            greetings.seek(0)
            os.write(terminal, greetings.read())
            raise
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)


def assembled(trainer, split: str):
    """A trainer whose detector and samples of one split are there; no other labels are read."""
    from multigrid import assembly

    trainer.vocabulary = assembly.read_vocabulary(trainer.config)
    trainer.samples[split] = assembly.read_split(trainer.config, split, trainer.vocabulary.class_names)
    trainer.detector = assembly.build_detector(trainer.config, trainer.vocabulary)
    assembly.load_configured_weights(trainer.config, trainer.detector)
    return trainer


def progress(description: str, total: int):
    """A function that passes items on and shows how far they are."""
    return lambda items: report.progress(items, description, total)


def show_ledger(ledger) -> None:
    """Prints what a load did: a table by block, and everything that is worth a line."""
    report.say(f"{ledger.path}: {ledger.format}, matched {ledger.strategy}")
    report.table("Weights by block", ledger.COLUMNS, ledger.rows())
    report.say(f"{ledger.counts()}; {ledger.norms.describe()}")
    for note in ledger.notes:
        report.say(note)
    complaint = ledger.complaint()
    if complaint:
        report.say(complaint)


def show_metrics(title: str, metrics: dict) -> None:
    """Prints mAP and mAP50 of all classes and of each."""
    rows = [("all", metrics["mAP"], metrics["mAP50"], None)]
    rows += [(name, one["AP"], one["AP50"], one["objects"]) for name, one in metrics["per_class"].items()]
    report.table(title, ("class", "mAP", "mAP50", "objects"), rows)
