"""What the verbs share: options, settings over a config, JSON for machines, and a quiet start of Keras."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator

from multigrid import report
from multigrid.errors import InputError

OK, FAILED, BAD_INPUT = 0, 1, 2
STDERR = 2  # the file descriptor
OVERRIDES = "settings over the config's, such as training.epochs=30 or data.train=my/train.txt"


class UsageError(Exception):
    """The words after `multigrid` are not usable; carries the parser that refused them."""

    def __init__(self, parser: argparse.ArgumentParser, message: str):
        super().__init__(message)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """A parser that leaves it to `main` to say what is wrong: to people, and to machines in JSON."""

    def error(self, message: str):
        raise UsageError(self, message)


def add_parser(verbs, name: str, run, example: str) -> argparse.ArgumentParser:
    """A verb's parser with --json, its summary the first line of what it runs, with an example below the options."""
    summary = run.__doc__.split("\n")[0]
    # No abbreviations: a script with one would break on the day that a second option begins like it.
    parser = verbs.add_parser(name, help=summary, description=summary, epilog=f"example: {example}", allow_abbrev=False)
    parser.set_defaults(run=run, parser=parser, overrides=None, document=Document())
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document; all else that is shown goes to standard error"
    )
    return parser


class Document:
    """Standard output while it is kept for one JSON document.

    Args:
        file: where the document goes; None where none is asked for.
    """

    def __init__(self, file=None):
        self.file = file
        self.written = False

    def write(self, value) -> None:
        """Prints the value; a second one would make the output unreadable, and is a ValueError."""
        if self.file is None:
            return
        if self.written:
            raise ValueError("expected one document a command, received a second one")
        text = report.json_text(value)  # what cannot be said leaves the place to the error
        self.written = True
        report.print_document(text, self.file)

    def fail(self, message) -> None:
        """Prints an error, unless the verb has said already what it found."""
        if not self.written:
            self.write({"error": str(message)})


@contextlib.contextmanager
def standard_output(as_json: bool) -> Iterator[Document]:
    """The document of a command; where it is JSON, everything else that is printed goes to standard error."""
    if not as_json:
        yield Document()
        return
    document = Document(sys.stdout)
    with contextlib.redirect_stdout(sys.stderr):  # what libraries print too
        yield document


def emit(options, value) -> None:
    """Prints what a verb found and wrote as the one JSON document of the command, where --json asks for it.

    Args:
        options: of the verb.
        value: an object of what `report.json_text` takes: NaN becomes null, paths become texts.

    Raises:
        ValueError: there was one already.
    """
    options.document.write(value)


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


def add_detector(parser) -> None:
    """Adds what names a trained detector: --run, or --config with --weights, and key=value words."""
    parser.add_argument(
        "--run", metavar="RUN", dest="run_dir", help="a run folder: its config and best weights, instead of --config"
    )
    add_config(parser, required=False)
    add_weights(parser)


def detector_config(options, before=(), after=(), labels=()):
    """The checked `Config` of a trained detector, as `add_detector` names it.

    Args:
        options: those of the command.
        before: settings that the user's own words win over.
        after: settings that win over the user's own words.
        labels: the splits of a run that are to be read, such as "val".
    """
    if (options.run_dir is None) == (options.config is None):
        both = (
            " and not both" if options.config is not None else f", received neither{meant(options.overrides, '--run')}"
        )
        options.parser.error(f"expected --run or --config{both}")
    settings = [*before, *options.overrides, *weights_settings(options), *after]
    if options.run_dir is not None:
        from multigrid.prediction.run_folder import run_config

        return run_config(options.run_dir, settings, labels)
    if not any(word.startswith("weights=") for word in settings):
        options.parser.error("with --config the following argument is required: --weights")
    from multigrid.config import ConfigLoader

    return ConfigLoader.load(options.config, settings)


def meant(words, folder: str) -> str:
    """What a word may be for that names a file or folder and stands behind no option, for the end of an error.

    Args:
        words: those that are no options.
        folder: the option that a folder belongs to; a YAML file belongs to --config.
    """
    for word in words:
        if os.path.isdir(word):
            return f"; did you mean {folder} {word}?"
        if os.path.isfile(word) and word.lower().endswith((".yaml", ".yml")):
            return f"; did you mean --config {word}?"
    return ""


def count(text: str) -> int:
    """The number of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, received {text!r}")
    return int(text)


def load_config(options, settings=()):
    """The checked `Config` of --config, the words over it and further settings."""
    from multigrid.config import ConfigLoader

    return ConfigLoader.load(options.config, [*options.overrides, *settings])


def labels_of(config, splits=("train", "val", "test")) -> list:
    """The label files and folders of a config that are there: none of drawn scenes."""
    sources = (getattr(config.data, split) for split in splits)
    return [str(source) for source in sources if source is not None and os.path.exists(source)]


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
        except BaseException as error:
            backend = os.environ.get("KERAS_BACKEND")
            if isinstance(error, ModuleNotFoundError) and error.name == backend:
                raise InputError(f"KERAS_BACKEND={backend}: expected a backend that is installed, it is not") from None
            greetings.seek(0)
            os.write(terminal, greetings.read())
            raise
        finally:
            os.dup2(terminal, STDERR)
            os.close(terminal)


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
