"""`multigrid weights`: what is in a weight file, what of it fits a network, and the same weights in another format."""

from __future__ import annotations

from multigrid import report
from multigrid.cli.options import OK, OVERRIDES, add_parser, emit, load_config, show_ledger, start_backend
from multigrid.errors import InputError

NO_OTHERS = ("weights=null", "backbone_weights=null")  # only FILE is loaded


def add_verb(verbs) -> None:
    """Adds the options of `weights`."""
    example = "multigrid weights darknet53.conv.74 --config C model.width=1 --convert darknet53.weights.h5"
    parser = add_parser(verbs, "weights", run_weights, example)
    parser.add_argument("file", metavar="FILE", help="Darknet binary, HDF5 of Keras 2 or 3, or .keras")
    parser.add_argument(
        "--config", help="YAML file of the network to load FILE into; without it, FILE's layers are listed"
    )
    parser.add_argument(
        "--convert", metavar="OUT", help="write the weights here too (.weights.h5, .keras, .h5; .weights: the backbone)"
    )
    parser.add_argument(
        "--allow-partial",
        action="store_true",
        help="show the ledger of a file that does not hold the whole backbone too",
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=OVERRIDES)


def run_weights(options) -> int:
    """Shows what is in a weight file, what of it a network takes, and writes it in another format."""
    if options.config is None:
        if options.overrides or options.convert:
            given = options.overrides[0] if options.overrides else "--convert"
            raise InputError(f"--config: expected a YAML file of the network for {given}, received none")
        start_backend()
        emit(options, _list_layers(options.file))
        return OK
    config = load_config(options, NO_OTHERS)
    start_backend()
    from multigrid import assembly
    from multigrid.models.weights import check_weights_name, load_weights

    if options.convert is not None:
        check_weights_name(options.convert)
        report.check_file(options.convert, "--convert")
    detector = assembly.build_detector(config, assembly.read_vocabulary(config))
    ledger = load_weights(detector, options.file, required="backbone", allow_partial=options.allow_partial)
    show_ledger(ledger)
    if options.convert is not None:
        _convert(detector, ledger, options.convert)
    emit(options, {**ledger.plain(), "converted": options.convert})
    return OK


def _list_layers(path) -> dict:
    """Shows the layers of a file; returns them as plain values."""
    from multigrid.models.darknet_file import is_darknet
    from multigrid.models.weights import check_weights_file, read_stored

    check_weights_file(path)
    if is_darknet(path):
        raise InputError(f"{path}: expected --config with a Darknet file, which does not say what its numbers are for")
    stored = read_stored(path)
    rows = [
        (
            layer.place or layer.name,
            layer.name,
            ", ".join(f"{role} {_shape(value)}" for role, value in layer.tensors.items()),
        )
        for layer in stored.layers
    ]
    report.say(f"{path}: {stored.format}")
    report.table("Layers in the order of the file", ("place", "layer", "tensors"), rows)
    sizes = [value.size for _, value in stored.tensors()]
    report.say(f"{len(stored.layers)} layers, {len(sizes)} tensors, {sum(sizes):,} numbers, all finite")
    for note in stored.notes:
        report.say(note)
    return {
        "path": path,
        "format": stored.format,
        "layers": [
            {
                "place": layer.place,
                "name": layer.name,
                "tensors": {role: value.shape for role, value in layer.tensors.items()},
            }
            for layer in stored.layers
        ],
        "notes": stored.notes,
    }


def _shape(value) -> str:
    return "×".join(map(str, value.shape)) or "1"


def _convert(detector, ledger, path) -> None:
    """Writes the whole detector if all of it came from the file, else the backbone if all of that did.

    Raises:
        InputError: neither did: nothing that is random is written for weights.
    """
    from multigrid.models.ledger import tensor_share
    from multigrid.models.weights import save_weights

    if tensor_share(ledger.backbone) < 1:
        raise InputError(f"--convert: expected a file with the whole backbone, received {ledger.counts()}")
    whole = ledger.tensor_share == 1 and not str(path).endswith(".weights")
    save_weights(detector if whole else detector.backbone, path)
    report.say(f"written: {path}" + ("" if whole else ", the backbone alone: load it with --backbone-weights"))
