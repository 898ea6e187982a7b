"""Healthy trainings that look unusual: none of them may raise an alarm.

A control is a function (making) -> None, like a fault without a dose. Those that need scenes of their own are for the
drawn data set alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import stage as stages
from making import with_boxes

from multigrid.data.samples import read_class_names, read_samples, write_samples
from multigrid.models.weights import save_weights

SCRATCH = "backbone_weights=null"
CONTROLS: dict[str, Control] = {}


@dataclass(frozen=True)
class Control:
    """One healthy training.

    Attributes:
        key: in words.
        code: the same, short.
        make: the function: (making) -> None.
        drawn: whether it is for drawn scenes alone.
    """

    key: str
    code: str
    make: Callable = field(repr=False)
    drawn: bool = False


def control(code: str, *, drawn: bool = False):
    """Adds a function to `CONTROLS`; its name is the key."""

    def made(function) -> Control:
        CONTROLS[function.__name__] = Control(function.__name__, code, function, drawn)
        return CONTROLS[function.__name__]

    return made


@control("C0")
def as_the_faults_begin(making):
    """The stage itself, with the pretrained backbone."""


@control("C1")
def from_scratch(making):
    making.config(SCRATCH, "training.optimizer=adam", "training.learning_rate=1e-3", "training.batch_size=16")


@control("C2")
def from_finished_weights(making):
    if not making.stage.whole.exists():
        trainer = type(making)(making.stage, 1).trainer()
        trainer.detector.fit(trainer.train_data, epochs=trainer.config.training.epochs, shuffle=False, verbose=0)
        save_weights(trainer.detector, making.stage.whole)
    making.config(SCRATCH, f"weights={making.stage.whole}", "training.learning_rate=1e-3")


@control("C3")
def single_class(making):
    """All classes are one, in label files of their own."""
    _relabel(making, "single", ("object",), lambda sample: with_boxes(sample, sample.boxes, sample.classes * 0))


@control("C4", drawn=True)
def dense_scenes(making):
    _scenes(making, "dense", objects=(45, 55), sizes=(9.0, 26.0), seed=21)


@control("C5", drawn=True)
def many_backgrounds(making):
    _scenes(making, "background", background=0.6, seed=22)


@control("C6", drawn=True)
def rare_class(making):
    """Stars against all else, one in a hundred, with weights that even it out."""
    star = stages.CLASS_NAMES.index("star")

    def thin(sample):
        if star in sample.classes and int(sample.image_id) % 25:
            return None
        return with_boxes(sample, sample.boxes, sample.classes == star)

    folder = stages.draw(making.stage.folder.parent / "many", {"train": 420, "val": 120}, seed=23)
    _relabel(making, "rare", ("shape", "star"), thin, folder)
    making.config("loss.class_weights=balanced")


@control("C7")
def frozen_then_freed(making):
    making.config("training.stages=[{epochs: 4, freeze: backbone}, {epochs: 6}]")


@control("C8")
def half_precision(making):
    making.config("model.precision=mixed_float16")


@control("C9")
def mosaic_and_mixup(making):
    size = [96, 160] if making.stage.name == stages.DRAWN else [128, 160]  # at either, the stage's anchors still fit
    making.config("augmentation.mosaic=0.7", "augmentation.mixup=0.3", f"model.input_size={size}")


@control("C10")
def two_images_a_step(making):
    making.config(
        "training.batch_size=2",
        "training.gradient_accumulation=8",
        "training.freeze=backbone",
        "training.optimizer=sgd",
        "training.learning_rate=5e-3",
        "training.warmup_epochs=0.1",
    )


@control("C11", drawn=True)
def tiny_objects(making):
    _scenes(making, "tiny", sizes=(14.0, 24.0), objects=(1, 6), seed=24)


@control("C12")
def smooth_labels_and_focal(making):
    making.config("loss.classification=focal", "loss.label_smoothing=0.1", "loss.focal_gamma=1.5")


def _scenes(making, name: str, **drawing) -> None:
    """Has the config name scenes of its own, and anchors that are fitted to them."""
    root = making.stage.folder.parent
    making.config(*stages.settings_of(stages.draw(root / name, **drawing), root / name))


def _relabel(making, name: str, class_names, change, source=None) -> None:
    """Has the config name label files whose samples went through a function that may drop them."""
    folder = making.stage.folder / name
    if not (folder / "classes.txt").exists():
        folder.mkdir(parents=True, exist_ok=True)
        data = making.stage.config().data
        files = {split: source / f"{split}.txt" if source else getattr(data, split) for split in ("train", "val")}
        names = read_class_names(source / "classes.txt" if source else data.classes)
        for split, file in files.items():
            kept = [change(one) for one in read_samples(file, names)[0]]
            write_samples([one for one in kept if one is not None], class_names, folder / f"{split}.txt", "yolo3")
        (folder / "classes.txt").write_text("".join(f"{one}\n" for one in class_names))
    making.config(*(f"data.{name}={folder / f'{name}.txt'}" for name in ("train", "val", "classes")))
