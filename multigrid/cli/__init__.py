"""The `multigrid` command: one verb a task, one style of options, `key=value` overrides everywhere.

Exit codes: 0 done; 1 the work failed or part of it did; 2 the input is not usable, and nothing was written.
With --json standard output holds one JSON document, {"error": ...} where it is an error.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys

from multigrid import __version__
from multigrid.cli import (
    anchors,
    compare,
    data,
    doctor,
    evaluate,
    export,
    predict,
    probe,
    replay,
    serve,
    train,
    weights,
)
from multigrid.cli.options import BAD_INPUT, FAILED, Document, Parser, UsageError, standard_output
from multigrid.errors import InputError

EXIT_CODES = (
    "Exit codes: 0 done; 1 the work failed or part of it did; 2 the input is not usable, and nothing was written."
)
VERBS = (train, evaluate, predict, export, serve, probe, doctor, anchors, data, weights, compare, replay)


def main(arguments=None) -> int:
    """Runs one verb.

    Args:
        arguments: the words after `multigrid`; those of the process if None.

    Returns:
        The exit code, see the module.
    """
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would ask the network for a newer version of itself
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # a machine without a GPU is no error
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # not every code page has a ² or a ×
    words = sys.argv[1:] if arguments is None else list(arguments)
    with standard_output(as_json="--json" in words) as document:
        try:
            return _run(words, document)
        except UsageError as error:
            document.fail(error)
            error.parser.print_usage(sys.stderr)
            error.parser.exit(BAD_INPUT, f"{error.parser.prog}: error: {error}\n")
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            document.fail(error)
            return BAD_INPUT
        except OSError as error:  # a full disk, a folder that may not be written to
            print(f"error: {error}", file=sys.stderr)
            document.fail(error)
            return FAILED
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            document.fail("interrupted")
            return FAILED
        except Exception as error:
            document.fail(f"{type(error).__name__}: {error}")
            raise


def _run(words, document: Document) -> int:
    options = _parse(words)
    options.document = document
    return options.run(options)


def _parse(arguments) -> argparse.Namespace:
    """The options; `key=value` words may stand anywhere between them."""
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    if "run" not in options:
        parser.error(f"expected a verb, one of {', '.join(verb.__name__.rpartition('.')[2] for verb in VERBS)}")
    for word in rest:
        if word.startswith("-"):  # any other word is checked with the config
            options.parser.error(f"unrecognized argument: {word}")
    if rest and options.overrides is None:
        options.parser.error(f"unrecognized argument: {rest[0]}")
    options.overrides = [*(options.overrides or ()), *rest]
    return options


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        "multigrid",
        description="Train, probe and use a multi-grid object detector.",
        epilog=f"example: {train.EXAMPLE}; `multigrid <verb> --help` has one for every verb. {EXIT_CODES}",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    verbs = parser.add_subparsers(metavar="verb")
    for verb in VERBS:
        verb.add_verb(verbs)
    return parser
