"""`multigrid anchors`: anchors for the boxes of a data set."""

from __future__ import annotations

import pathlib

from multigrid import report
from multigrid.cli.options import OK, add_config, add_parser, emit, labels_of, load_config, start_backend
from multigrid.errors import InputError

SCALES = 3  # of the network; anchors are dealt to them evenly


def add_verb(verbs) -> None:
    """Adds the options of `anchors`."""
    example = "multigrid anchors --config C --output anchors.txt data.train=my.txt"
    parser = add_parser(verbs, "anchors", run_anchors, example)
    add_config(parser)
    parser.add_argument(
        "--output", default="anchors.txt", help="the file to write; a picture goes beside it (%(default)s)"
    )
    parser.add_argument("--count", type=int, default=9, help="how many, a multiple of 3 (%(default)s)")
    parser.add_argument(
        "--deal",
        choices=("stride", "area"),
        default="stride",
        help="fit each scale to the boxes that suit its cells, or all at once and deal them by area (%(default)s)",
    )
    parser.add_argument("--layout", choices=("line", "scales"), default="line", help="one line in all, or one a scale")


def run_anchors(options) -> int:
    """Fits anchors to the training labels at the network's input size."""
    if options.count < 1 or options.count % SCALES:
        raise InputError(f"--count: expected a multiple of {SCALES}, as many for each scale, received {options.count}")
    config = load_config(options)
    report.check_file(options.output, "--output")
    picture = pathlib.Path(options.output).with_suffix(".png")
    if picture == pathlib.Path(options.output):
        raise InputError(f"--output: expected a text file, received {options.output}, the name of its picture")
    start_backend()
    from multigrid import assembly
    from multigrid.data.label_contents import files_behind
    from multigrid.data.samples import read_class_names
    from multigrid.evaluation.anchor_picture import draw_anchors
    from multigrid.geometry.anchor_fit import fit_anchors, match_statistics
    from multigrid.geometry.anchors import read_anchors, write_anchors

    if config.data.classes is None:
        raise InputError("data.classes: expected a file of class names, received null")
    samples = assembly.read_split(config, "train", read_class_names(config.data.classes))
    images = [sample.path for sample in samples]
    behind = [file for source in labels_of(config) for file in files_behind(source, images)]
    read = [options.config, config.data.classes, *images, *behind]
    report.check_unread([options.output, picture], read, "--output")
    sizes = assembly.network_sizes(samples, config.model.input_size)
    try:
        fitted = fit_anchors(sizes, count=options.count, seed=config.training.seed, deal=options.deal)
    except InputError as error:
        raise InputError(f"data.train ({config.data.train}): {error}") from None
    before = None
    if config.data.anchors is not None:
        before = match_statistics(read_anchors(config.data.anchors), sizes)
        report.say(f"before: {before.describe()}")
    after = match_statistics(fitted, sizes)
    report.say(f"fitted: {after.describe()}")
    write_anchors(fitted, options.output, options.layout)
    draw_anchors(fitted, sizes, picture)
    report.say(f"written: {options.output} and {picture}; use it with data.anchors={options.output}")
    emit(
        options,
        {
            "anchors": fitted.to_list(),
            "before": before and _figures(before),
            "fitted": _figures(after),
            "output": options.output,
            "picture": picture,
        },
    )
    return OK


def _figures(fit) -> dict:
    """How well anchors match the boxes, without the anchors."""
    names = ("boxes", "mean_iol", "share_above_half", "share_above_quarter", "shares")
    return {name: getattr(fit, name) for name in names}
