"""What every test shares: quiet imports and the way to the real data sets."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import pytest

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def real_data():
    """A function from the name of a real data set to its folder; skips the test where the set is not there."""
    root = pathlib.Path(os.environ.get("MULTIGRID_REAL_DATA", CHECKOUT.parent / "shared" / "data"))

    def folder(name: str) -> pathlib.Path:
        if not (root / name).is_dir():
            pytest.skip(f"the real data set {name!r} is not at {root} (set MULTIGRID_REAL_DATA)")
        return root / name

    return folder
