"""What the doctor costs: its examination before training, and its watch beside the steps: --help lists the options."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

# Before the first import that reads them: the shares are promised for TensorFlow on the CPU.
os.environ["KERAS_BACKEND"] = "tensorflow"
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from multigrid import ConfigLoader, MultiGridTrainer, diagnose
from multigrid.diagnosis.watch import DoctorWatch
from multigrid.report import table

EXAMINATION = 20.0  # seconds of CPU time, at most
SHARE = 0.10  # of the CPU time of the steps that the watch may take


def main() -> int:
    """Measures, prints the table, and returns 1 where a target is missed."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        settings = ["data.cache=true", f"data.shapes.folder={folder}/scenes", *options.overrides]
        trainer = MultiGridTrainer(ConfigLoader.load(options.config, settings))
        trainer.build_model()
        began = time.process_time()
        diagnosis = diagnose(trainer)
        examined = time.process_time() - began
        plain, watched = _steps(trainer, options.rounds)
    share = watched / plain - 1.0
    rows = [
        ("examination before training, CPU s", f"{examined:.1f}", f"{EXAMINATION:.0f}"),
        ("the watch, share of the CPU time of an epoch, %", f"{100 * share:.1f}", f"{100 * SHARE:.0f}"),
    ]
    images, size = len(trainer.train_data.samples), trainer.config.model.input_size
    title = (
        f"{images} images of {size[0]}×{size[1]}, width {trainer.config.model.width:g}; {options.rounds} epochs each"
    )
    table(title, ("what", "measured", "target"), rows)
    if diagnosis.causes:
        table("it found", ("rule", "cause"), [(one.id, one.rule.cause) for one in diagnosis.causes])
    return int(examined > EXAMINATION or share > SHARE)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="benchmarks/accuracy/scratch.yaml", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="epochs with the watch, and as many without it")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in data.shapes.train=320")
    return parser.parse_intermixed_args()


def _steps(trainer, rounds: int) -> tuple[float, float]:
    """CPU time of epochs without the watch and with it, in turn; a first epoch, which is traced, counts for neither."""
    watch = DoctorWatch()
    watch.trainer = trainer
    seconds = {False: 0.0, True: 0.0}
    _epoch(trainer, [])
    for _ in range(rounds):
        for watched in seconds:
            seconds[watched] += _epoch(trainer, [watch] if watched else [])
    return seconds[False], seconds[True]


def _epoch(trainer, callbacks) -> float:
    began = time.process_time()
    trainer.detector.fit(trainer.train_data, epochs=1, shuffle=False, verbose=0, callbacks=callbacks)
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
