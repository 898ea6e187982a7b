"""Files of the same content: in both splits, or again and again among the samples to train on."""

from __future__ import annotations

import hashlib
import os
import pathlib
from dataclasses import dataclass

import numpy as np

MOST = 500  # files of a split that are looked at


@dataclass(frozen=True)
class Shared:
    """Validation images that are training images too.

    Attributes:
        share: of the validation images that were looked at.
        count: of them.
        example: the path of one; "" where there is none.
    """

    share: float
    count: int
    example: str


def examine(case) -> Shared | None:
    """By path first, then by content where sizes agree; None where a split is not known."""
    train, val = ([one.path for one in case.samples.get(split, ())] for split in ("train", "val"))
    if not train or not val:
        return None
    looked = [val[index] for index in np.unique(np.linspace(0, len(val) - 1, min(MOST, len(val))).astype(int))]
    by_size: dict[int, list] = {}
    for path in train:
        by_size.setdefault(os.path.getsize(path), []).append(path)
    same = [path for path in looked if _is_among(path, by_size.get(os.path.getsize(path), ()))]
    return Shared(len(same) / len(looked), len(same), same[0] if same else "")


def repeats(case) -> tuple[int, int]:
    """(samples to train on, different files among them).

    Files are told apart by path, and `MOST` of them by content where sizes agree.
    """
    paths = [one.path for one in case.samples.get("train", ())]
    files = sorted(set(paths))
    looked = [files[index] for index in np.unique(np.linspace(0, len(files) - 1, min(MOST, len(files))).astype(int))]
    by_size: dict[int, list] = {}
    for path in looked:
        by_size.setdefault(os.path.getsize(path), []).append(path)
    different = sum(len({_digest(path) for path in group}) if len(group) > 1 else 1 for group in by_size.values())
    return len(paths), different if 2 * different < len(looked) else len(files) - len(looked) + different


def _is_among(path: str, others) -> bool:
    return path in others or any(_digest(path) == _digest(other) for other in others)


def _digest(path: str) -> str:
    return hashlib.blake2b(pathlib.Path(path).read_bytes(), digest_size=16).hexdigest()
