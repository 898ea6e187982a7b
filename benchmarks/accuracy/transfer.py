"""What a backbone that was pretrained on drawn scenes is worth on a data set of photographs, in few epochs.

    python benchmarks/accuracy/transfer.py [--data FOLDER] [--epochs 10] [--pretraining-epochs 10] [--seed 1]

Trains a detector on drawn scenes, in runs/transfer-shapes-SEED; without --data that is all. Then one on FOLDER (as
`run.py` wants it) from scratch, and one that starts with the backbone of the drawn scenes, frozen for the first third
of the epochs and free for the rest. Both are chosen on val.txt and measured on test.txt once; the rows go to the table
of `run.py`.
"""

import argparse
import pathlib
import subprocess
import sys

from multigrid import report
from multigrid.cli import main as multigrid

HERE = pathlib.Path(__file__).parent
CONFIGS = HERE.parents[1] / "configs"


def main() -> int:
    options = _options()
    pretrained = pathlib.Path(f"runs/transfer-shapes-{options.seed}")
    if not (pretrained / "predictions.jpg").exists():  # written last: an earlier call got to the end
        _pretrain(pretrained, options)
    else:
        report.say(f"{pretrained}: there from an earlier call, and not trained again")
    if options.data is None:
        return 0
    frozen = max(1, options.epochs // 3)
    stages = f"[{{epochs: {frozen}, freeze: backbone}}, {{epochs: {options.epochs - frozen}}}]"
    starts = {
        "scratch": [f"training.epochs={options.epochs}"],
        "transfer": [f"training.stages={stages}", f"backbone_weights={pretrained / 'weights' / 'best.weights.h5'}"],
    }
    for name, settings in starts.items():
        command = [sys.executable, str(HERE / "run.py"), "--data", str(options.data), "--seed", str(options.seed)]
        command += ["--name", f"{options.data.name}-{name}", *settings]
        subprocess.run(command, check=True)
    return 0


def _pretrain(folder: pathlib.Path, options) -> None:
    settings = [f"data.{split}=shapes" for split in ("train", "val")]
    settings += [
        f"data.classes={CONFIGS / 'classes' / 'shapes.txt'}",
        f"data.anchors={CONFIGS / 'anchors' / 'shapes.txt'}",
    ]
    settings += ["model.input_size=[160,224]", "augmentation.mosaic=0.0", f"training.seed={options.seed}"]
    settings += [f"training.epochs={options.pretraining_epochs}", "data.shapes.train=1280", f"output.dir={folder}"]
    code = multigrid(["train", "--config", str(HERE / "scratch.yaml"), *settings])
    if code:
        sys.exit(code)


def _options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data",
        type=pathlib.Path,
        help="folder of train.txt, val.txt, test.txt, classes.txt; without it the drawn scenes are all that is learnt",
    )
    parser.add_argument("--epochs", type=int, default=10, help="on the data set (%(default)s)")
    parser.add_argument("--pretraining-epochs", type=int, default=10, help="on drawn scenes (%(default)s)")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
