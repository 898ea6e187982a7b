"""Compares options of model and loss on the drawn scenes, in a short budget, and prints a table.

    python benchmarks/accuracy/options.py [--epochs 8] [--seeds 1]

Each variant is the quickstart's configuration with the keys that its row names. Short runs on drawn scenes tell which
option learns faster from scratch, and no more than that; run.py measures whole trainings on your own data.
"""

import argparse
import contextlib
import io
import logging
import pathlib
import statistics
import sys
import tempfile

from multigrid import report
from multigrid.config import ConfigLoader
from multigrid.training.trainer import MultiGridTrainer

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "quickstart.yaml"
SCENES = ("data.shapes.train=640", "data.shapes.folder=datasets/shapes-options")
VARIANTS = (
    (),
    ("model.neck=full",),
    ("model.offset_activation=tanh",),
    ("loss.assignment=single",),
    ("loss.assignment=best",),
    ("loss.assignment=inside",),
    ("loss.assignment=paper",),
    ("loss.localization=giou",),
    ("loss.localization=mse", "loss.coord_scale=1.0"),
    ("loss.iou_power=0",),
    ("loss.classification=softmax",),
    ("loss.loss_normalization=positives", "training.max_grad_norm=10.0"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=1, help="trainings a variant; their means are shown")
    options = parser.parse_args()
    rows = []
    logging.disable(logging.WARNING)
    for variant in VARIANTS:
        figures = [_train([*variant, f"training.seed={seed + 1}"], options.epochs) for seed in range(options.seeds)]
        means = [statistics.mean(each) for each in zip(*figures, strict=True)]
        rows.append((" ".join(variant) or "the defaults", *means))
        report.say(f"{rows[-1]}")
    report.table(f"{options.epochs} epochs, validation", ("keys", "mAP50", "mAP", "seconds"), rows)
    return 0


def _train(settings, epochs: int) -> tuple:
    """mAP50 and mAP of the best weights on the validation set, and the seconds of an epoch."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [*SCENES, *settings, f"training.epochs={epochs}", f"output.dir={folder}/run"]
        trainer = MultiGridTrainer(ConfigLoader.load(CONFIG, settings))
        with contextlib.redirect_stdout(io.StringIO()):
            history = trainer.train().history
        metrics = trainer.evaluate("val").metrics
    return metrics["mAP50"], metrics["mAP"], statistics.median(history["seconds"])


if __name__ == "__main__":
    sys.exit(main())
