"""`multigrid probe`: every part of the loss, before any weight moves."""

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
    count,
    emit,
    load_config,
    show_ledger,
    start_backend,
    weights_settings,
)


def add_verb(verbs) -> None:
    """Adds the options of `probe`."""
    example = "multigrid probe --config configs/train_config.yaml --weights weights/model.h5 --verbose"
    probe = add_parser(verbs, "probe", run_probe, example)
    add_config(probe, "configs/train_config.yaml")
    add_weights(probe)
    probe.add_argument("--num-batches", type=count, default=2, help="how many training batches (%(default)s)")
    probe.add_argument("--output-dir", default="tests/loss_probe_outputs", help="where the files go (%(default)s)")
    probe.add_argument("--format", choices=("json", "csv", "both"), default="both", help="of the files (%(default)s)")
    probe.add_argument("--verbose", action="store_true", help="each component per scale, with its normalizer")
    probe.add_argument(
        "--training-mode",
        action="store_true",
        help="BatchNorm by the batch's statistics, as in fit, not by its averages",
    )
    probe.add_argument(
        "--gradients",
        action="store_true",
        help="which component rules: its gradient on the weights that all share, and scales for a balance",
    )
    probe.add_argument(
        "--balance",
        default="",
        metavar="PART=SHARE,...",
        help="of --gradients, as in localization=2,classification=1 (equal shares)",
    )
    probe.add_argument(
        "--compare",
        nargs=2,
        metavar=("A.json", "B.json"),
        help="two loss_components.json side by side, such as of random and of pretrained weights; probes nothing",
    )


def run_probe(options) -> int:
    """Shows every part of the loss on real batches, before any weight moves."""
    if options.compare:
        return _compare(options)
    balance = _balance(options)
    config = load_config(options, weights_settings(options))
    report.check_folder(options.output_dir, "--output-dir")
    start_backend()
    from multigrid.diagnosis import probe
    from multigrid.diagnosis.dominance import gradient_shares
    from multigrid.training.trainer import MultiGridTrainer

    trainer = MultiGridTrainer(config)
    trainer.build_model()
    for ledger in trainer.ledgers:
        if ledger.tensor_share < 1:
            show_ledger(ledger)
    records, broken = [], []
    try:
        for record in probe.run_probe(trainer, options.num_batches, training_mode=options.training_mode):
            _show_record(record, options.verbose)
            broken += [f"batch {record['batch_idx']}: {name}" for name in probe.non_finite_parts(record)]
            records.append(record)
    except probe.ProbeMismatchError as error:
        print(f"error: {error}", file=sys.stderr)
        emit(options, {"error": str(error)})
        return FAILED
    if options.gradients:
        for record in records[:1]:  # a step or two of the network a component
            record["gradients"] = gradient_shares(trainer.detector, *trainer.train_data[0][:2], balance)
            _show_gradients(record["gradients"])
    folder = pathlib.Path(options.output_dir)
    if options.format in ("json", "both"):
        report.write_json(folder / "loss_components.json", records)
    if options.format in ("csv", "both"):
        report.write_csv(folder / "loss_components.csv", [probe.flat_row(record) for record in records])
    if len(records) < options.num_batches:
        report.say(f"the training data has {len(records)} batches, fewer than --num-batches {options.num_batches}")
    report.say(f"written: {folder}")
    for name in broken:
        print(f"error: {name} is not finite", file=sys.stderr)
    emit(options, {"batches": records, "not_finite": broken, "output_dir": folder})
    return FAILED if broken else OK


def _show_record(record: dict, verbose: bool) -> None:
    stats, parts = record["batch_stats"], record["loss_components"]
    report.say(
        f"\nbatch {record['batch_idx']}: {stats['batch_size']} images, {stats['total_objects']} objects, "
        f"{stats['num_scales']} scales; total loss {parts['total_loss']:.6g}"
    )
    columns = ("stride", "grid", "objects", "positive cells", "claims lost", "ignored", "density")
    keys = ("stride", "grid_shape", "objects", "positive_cells", "claims_lost", "ignored_cells", "density")
    report.table("Cells", columns, [[scale[key] for key in keys] for scale in stats["per_scale_stats"]])
    scales = dict(zip(record["weighted_components"], record["scaling_coefficients"].items(), strict=True))
    rows = [
        (name, parts[f"{name}_loss"], f"{scales[name][0]} = {scales[name][1]:g}", weighted)
        for name, weighted in record["weighted_components"].items()
    ]
    rows.append(("objectness", parts["objectness_loss"], "", ""))  # of both kinds of cells
    if "regularization_loss" in parts:
        rows.append(("regularization", None, "", parts["regularization_loss"]))
    rows.append(("total", None, "", parts["total_loss"]))
    report.table("Loss", ("component", "raw", "scale", "weighted"), rows)
    if verbose:
        names = list(record["per_scale_losses"][0])
        report.table("Per scale, raw", names, [[scale[name] for name in names] for scale in record["per_scale_losses"]])
    units = [list(unit.values()) for unit in record["per_unit"]]
    columns = ("component", "per", "measured", "fresh head", "best constant head")
    report.table("Is it high? Each component per unit", columns, units)


def _balance(options) -> dict:
    """The shares of --balance."""
    found = {}
    for word in filter(None, options.balance.split(",")):
        name, _, share = word.partition("=")
        try:
            found[name.strip()] = float(share)
        except ValueError:
            options.parser.error(f"--balance: expected PART=SHARE,..., received {word!r}")
    if found and not options.gradients:
        options.parser.error("--balance: expected --gradients beside it, received none")
    return found


def _show_gradients(rows: list) -> None:
    columns = ("component", "scale", "now", "gradient", "share", "agrees with the rest", "for the balance")
    shown = [list(row.values()) for row in rows]
    report.table("Which component rules: gradients on backbone and neck, batch 0", columns, shown)


def _compare(options) -> int:
    from multigrid.diagnosis.probe_comparison import compare, read_records

    first, second = options.compare
    rows = compare(read_records(first), read_records(second))
    columns = ("component", "per", first, second, "ratio", "first / best constant", "second / best constant")
    report.table("Each component per unit", columns, [list(row.values()) for row in rows])
    emit(options, {"first": first, "second": second, "components": rows})
    return OK
