"""What every test shares: quiet imports, one thread a process, graphs as traced, and the way to the real data sets."""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
for threads in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
    os.environ.setdefault(threads, "1")  # every core has a worker of its own

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # A test traces many graphs and runs each a few times: making them faster costs more than it gains. Trainings in
    # processes of their own, the README's commands among them, keep the optimizer of graphs, as a user's do.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})

CHECKOUT = pathlib.Path(__file__).resolve().parents[1]


# Whole trainings in processes of their own: minutes each. Begun last, one of them would leave the other workers idle.
LONGEST = ("test_killed_runs.py", "test_resume.py", "test_devices.py")


def pytest_collection_modifyitems(items):
    """Puts the longest files first."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


@pytest.fixture(scope="session")
def real_data():
    """A function from the name of a real data set to its folder; skips the test where the set is not there."""
    root = pathlib.Path(os.environ.get("MULTIGRID_REAL_DATA", CHECKOUT.parent / "shared" / "data"))

    def folder(name: str) -> pathlib.Path:
        if not (root / name).is_dir():
            pytest.skip(f"the real data set {name!r} is not at {root} (set MULTIGRID_REAL_DATA)")
        return root / name

    return folder


@pytest.fixture(scope="session")
def draw_scenes(tmp_path_factory):
    """A function from counts, such as `train=12, val=5`, to the `data` section of a config: scenes drawn from one seed.

    Their anchors are those of 64 × 96 pixels: [[40, 28], [48, 44]], [[20, 14], [14, 30]], [[8, 6], [12, 9]].
    """
    from multigrid.data.shapes import CLASS_NAMES, draw_data_set

    def draw(**counts) -> dict:
        folder = tmp_path_factory.mktemp("scenes")
        labels = draw_data_set(folder / "shapes", counts=counts, seed=4)
        (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
        (folder / "anchors.txt").write_text("8,6  12,9\n20,14  14,30\n40,28  48,44\n")
        files = {name: str(path) for name, path in labels.items()}
        return {**files, "classes": str(folder / "classes.txt"), "anchors": str(folder / "anchors.txt")}

    return draw
