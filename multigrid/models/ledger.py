"""The ledger of a load: what came of every tensor of the model and of the file."""

from __future__ import annotations

import collections
import dataclasses
import math

import numpy as np

from multigrid.models.blocks import backbone_blocks

KINDS = ("loaded", "partial", "missing", "misshapen", "unexpected")
ELSEWHERE = "not in the model"  # the row of tensors that only the file has
_OF_MODEL = ("loaded", "partial", "missing", "misshapen")


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor.

    Args:
        kind: "loaded"; "partial": all but the class channels of a grid; "missing": the file has none for it, and it
            stays as it was; "misshapen": the file's has another shape; "unexpected": only the file has it.
        name: "layer/variable" in the model, or its place in the file where it is unexpected.
        block: of the model that it belongs to.
        expected: its shape in the model; None if unexpected.
        received: its shape in the file; None if missing.
        parameters: how many numbers of it were loaded.
        place: where it stands in the file.
    """

    kind: str
    name: str
    block: str
    expected: tuple[int, ...] | None
    received: tuple[int, ...] | None
    parameters: int = 0
    place: str | None = None

    @property
    def size(self) -> int:
        """Numbers in the model, or in the file where only that has it."""
        return math.prod(self.expected if self.expected is not None else self.received)


@dataclasses.dataclass(frozen=True)
class BatchNorms:
    """Whether the BatchNorm statistics that came from a file can be right.

    Args:
        layers: how many variances were loaded.
        smallest: of all variances; None without any.
        zeros: how many variances are 0: channels that were never active.
        untrained: all means are 0 and all variances 1, so that nothing was ever counted.
    """

    layers: int
    smallest: float | None
    zeros: int
    untrained: bool

    @classmethod
    def of(cls, means: list[np.ndarray], variances: list[np.ndarray]) -> BatchNorms:
        """Of what was loaded."""
        if not variances:
            return cls(0, None, 0, False)
        untrained = all((mean == 0).all() for mean in means) and all((one == 1).all() for one in variances)
        zeros = sum(int(np.count_nonzero(one == 0)) for one in variances)
        return cls(len(variances), float(min(one.min() for one in variances)), zeros, untrained)

    def describe(self) -> str:
        """One line."""
        if not self.layers:
            return "no BatchNorm statistics"
        text = f"BatchNorm statistics of {self.layers} layers, smallest variance {self.smallest:.3g}"
        if self.zeros:
            text += f", {self.zeros} variances are 0"
        return text + (", all still (0, 1): never trained" if self.untrained else "")


@dataclasses.dataclass(frozen=True)
class Ledger:
    """What a load did.

    Args:
        path: of the file.
        model: the name of the model.
        format: of the file, in words.
        strategy: how tensors were matched, in words.
        entries: one a tensor, the model's in its order and then what only the file has.
        norms: of the statistics that were loaded.
        notes: what else is worth knowing, one line each.
    """

    path: str
    model: str
    format: str
    strategy: str
    entries: tuple[Entry, ...]
    norms: BatchNorms
    notes: tuple[str, ...] = ()

    COLUMNS = ("block", "tensors", "loaded", "partial", "missing", "misshapen", "parameters", "share")

    def of_kind(self, kind: str) -> list[Entry]:
        """The entries of one kind."""
        return [entry for entry in self.entries if entry.kind == kind]

    @property
    def wanted(self) -> list[Entry]:
        """The entries of the model's own tensors."""
        return [entry for entry in self.entries if entry.kind in _OF_MODEL]

    @property
    def backbone(self) -> list[Entry]:
        """Those of its backbone."""
        blocks = backbone_blocks(list(dict.fromkeys(entry.block for entry in self.wanted)))
        return [entry for entry in self.wanted if entry.block in blocks]

    @property
    def tensor_share(self) -> float:
        """Share of the model's tensors that were loaded whole."""
        return tensor_share(self.wanted)

    @property
    def parameter_share(self) -> float:
        """Share of the model's parameters that were loaded."""
        return parameter_share(self.wanted)

    def rows(self) -> list[tuple]:
        """One a block, as `COLUMNS`, for `report.table`: then the sum, and what only the file has."""
        blocks: dict[str, list[Entry]] = {}
        for entry in self.wanted:
            blocks.setdefault(entry.block, []).append(entry)
        rows = [_row(block, entries) for block, entries in blocks.items()]
        rows.append(_row("all", self.wanted))
        unexpected = self.of_kind("unexpected")
        if unexpected:
            size = sum(entry.size for entry in unexpected)
            rows.append((ELSEWHERE, len(unexpected), None, None, None, None, size, None))
        return rows

    def plain(self) -> dict:
        """All of it in JSON's own types."""
        counts = collections.Counter(entry.kind for entry in self.entries)
        return {
            "path": self.path,
            "model": self.model,
            "format": self.format,
            "strategy": self.strategy,
            "tensor_share": self.tensor_share,
            "parameter_share": self.parameter_share,
            "counts": {kind: counts[kind] for kind in KINDS},
            "batch_norm": dataclasses.asdict(self.norms),
            "notes": list(self.notes),
            "blocks": [dict(zip(self.COLUMNS, row, strict=True)) for row in self.rows()],
            "tensors": [dataclasses.asdict(entry) for entry in self.entries],
        }

    def describe(self) -> str:
        """One line."""
        text = f"{self.path}: {self.format}, matched {self.strategy}: {self.counts()}; {self.norms.describe()}"
        return "; ".join((text, *self.notes))

    def counts(self) -> str:
        """How many tensors and parameters were loaded, and how many were not, in words."""
        loaded, wanted = len(self.of_kind("loaded")), len(self.wanted)
        text = f"{loaded} of {wanted} tensors, {percent(self.parameter_share)} of the parameters"
        others = [(kind, len(self.of_kind(kind))) for kind in KINDS[1:]]
        return ", ".join((text, *(f"{count} {kind}" for kind, count in others if count)))

    def complaint(self) -> str:
        """What did not fit, by kind, with the first of each."""
        parts = []
        for kind, said in (("missing", "missing"), ("misshapen", "of another shape"), ("partial", "for other classes")):
            entries = self.of_kind(kind)
            if entries:
                parts.append(f"{len(entries)} {said}, first {entries[0].name}{_shapes(entries[0])}")
        unexpected = self.of_kind("unexpected")
        if unexpected:
            first = unexpected[0]
            parts.append(f"{len(unexpected)} that the model has no place for, first {first.name} {first.received}")
        return "; ".join(parts)


def tensor_share(entries: list[Entry]) -> float:
    """Share of tensors that were loaded whole."""
    return sum(entry.kind == "loaded" for entry in entries) / max(1, len(entries))


def parameter_share(entries: list[Entry]) -> float:
    """Share of parameters that were loaded."""
    return sum(entry.parameters for entry in entries) / max(1, sum(entry.size for entry in entries))


def _row(block: str, entries: list[Entry]) -> tuple:
    counts = collections.Counter(entry.kind for entry in entries)
    size = sum(entry.size for entry in entries)
    return (block, len(entries), *(counts[kind] for kind in _OF_MODEL), size, percent(parameter_share(entries)))


def percent(share: float) -> str:
    """A share in words: never 100 % for less than all, nor 0 % for more than nothing."""
    if 0.999 < share < 1:
        return "99.9 %"
    return "0.1 %" if 0 < share < 0.001 else f"{100 * share:.3g} %"


def _shapes(entry: Entry) -> str:
    return "" if entry.received is None else f": expected {entry.expected}, received {entry.received}"
