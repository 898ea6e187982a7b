"""What is run: the list of faulty and healthy trainings, each with an id that says nothing, and how one is made."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass

from controls import CONTROLS
from faults import DOSES, FAULTS
from making import Making
from stage import DRAWN, Stage

ROOT = pathlib.Path("runs/faults")


@dataclass(frozen=True)
class Run:
    """One training of the benchmark.

    Attributes:
        fault: key of the fault or, where there is none, of the control.
        dose: of the fault; None of a control.
        seed: of the training.
        data: name of the data set.
    """

    fault: str
    dose: str | None
    seed: int
    data: str = DRAWN

    @property
    def id(self) -> str:
        """Names its files; says nothing to who reads it."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    @property
    def healthy(self) -> bool:
        """Whether it is a control."""
        return self.dose is None

    @property
    def words(self) -> str:
        """For people."""
        return " ".join(str(word) for word in (self.fault, self.dose, f"seed {self.seed}", self.data) if word)


def planned(
    faults: Iterable[str] = tuple(FAULTS),
    doses: Sequence[str] = DOSES,
    controls: Iterable[str] = tuple(CONTROLS),
    seeds: Sequence[int] = (1,),
    data: str = DRAWN,
) -> Iterator[Run]:
    """All runs of these faults, at those of the doses that they have, and of these controls."""
    for seed in seeds:
        for key in faults:
            yield from (Run(key, dose, seed, data) for dose in doses if dose in FAULTS[key].doses)
        for key in controls:
            if data == DRAWN or not CONTROLS[key].drawn:
                yield Run(key, None, seed, data)


def making_of(run: Run, stage: Stage) -> Making:
    """The training of a run, with its fault."""
    making = base_of(run, stage)
    if run.healthy:
        CONTROLS[run.fault].make(making)
    else:
        FAULTS[run.fault].put_into(making, run.dose)
    return making


def base_of(run: Run, stage: Stage) -> Making:
    """The healthy training that the fault of a run is put into; of a control the stage's own."""
    settings = () if run.healthy else FAULTS[run.fault].settings
    return Making(stage, run.seed, settings, stage.folder / "files" / run.id)


def read_rows(path: pathlib.Path) -> list[dict]:
    """The rows of a table of one JSON object a line; [] where there is none."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def append_row(path: pathlib.Path, row: dict) -> None:
    """Adds a row to a table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(json.dumps(row) + "\n")
