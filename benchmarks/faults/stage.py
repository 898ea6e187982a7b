"""The stage: a small healthy training, the same for every fault that is put into it.

Drawn scenes at 96×128 pixels, or a data set of the caller's at 160×160, with fitted anchors and a backbone that was
pretrained on other drawn scenes: so a training of some 240 steps reaches an average precision that a fault can spoil.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from multigrid import assembly
from multigrid.config import Config, ConfigLoader
from multigrid.data.samples import Sample, read_class_names, write_samples
from multigrid.data.shapes import CLASS_NAMES, draw_scene, scene_generator
from multigrid.geometry.anchor_fit import fit_anchors
from multigrid.geometry.anchors import write_anchors
from multigrid.models.weights import save_weights
from multigrid.training.trainer import MultiGridTrainer

CONFIG = pathlib.Path(__file__).with_name("stage.yaml")
DRAWN = "drawn"
SCENES = {"train": 192, "val": 64}
PRETRAINING = {"train": 768, "val": 1}
PRETRAINING_EPOCHS = 20
SIZES = (52.0, 160.0)  # pixels of the drawing, which the letterbox about halves
SEED, OTHER_SEED = 3, 11  # what is drawn to train on, and to pretrain on


@dataclass(frozen=True)
class Stage:
    """Where a data set lies, and the settings that make the training of it.

    Attributes:
        name: of the data set.
        folder: that anchors and pretrained weights are kept in.
        settings: `key=value` over stage.yaml.
    """

    name: str
    folder: pathlib.Path
    settings: tuple[str, ...]

    @property
    def backbone(self) -> pathlib.Path:
        """The file of the pretrained backbone."""
        return self.folder.parent / "backbone.weights.h5"

    @property
    def whole(self) -> pathlib.Path:
        """The file of a whole detector after one healthy training."""
        return self.folder / "trained.weights.h5"

    def config(self, settings: Sequence[str] = ()) -> Config:
        """The config with the pretrained backbone and these settings; `backbone_weights=null` begins at random."""
        return ConfigLoader.load(CONFIG, [*self.settings, f"backbone_weights={self.backbone}", *settings])


def open_stage(root: pathlib.Path, data: pathlib.Path | None = None) -> Stage:
    """The stage of drawn scenes, or of a folder with train.txt, val.txt and classes.txt; made at its first opening."""
    root = pathlib.Path(root).absolute()
    root, data = pathlib.Path(root).absolute(), data and pathlib.Path(data).absolute()
    name, labels = (DRAWN, draw(root / "scenes")) if data is None else (data.name, data)
    stage = Stage(name, root / name, settings_of(labels, root / name))
    if not stage.backbone.exists():
        _pretrain(root, stage)
    return stage


def settings_of(labels: pathlib.Path, folder: pathlib.Path) -> tuple[str, ...]:
    """The settings of a folder with train.txt, val.txt and classes.txt; its anchors are fitted unless they are there.

    Args:
        labels: the folder.
        folder: where the anchors go.
    """
    settings = [f"data.{name}={labels / f'{name}.txt'}" for name in ("train", "val", "classes")]
    if not (labels / "drawn.txt").exists():
        settings.append("model.input_size=[160, 160]")
    anchors = folder / "anchors.txt"
    if not anchors.exists():
        config = ConfigLoader.load(CONFIG, settings)
        samples = assembly.read_split(config, "train", read_class_names(config.data.classes))
        write_anchors(fit_anchors(assembly.network_sizes(samples, config.model.input_size)), anchors, "scales")
    return (*settings, f"data.anchors={anchors}")


def draw(
    folder: pathlib.Path, counts=SCENES, *, seed=SEED, objects=(1, 4), sizes=SIZES, background=0.0
) -> pathlib.Path:
    """A folder of drawn scenes with labels and class names, drawn unless it is there.

    Args:
        folder: where to.
        counts: scenes of each split.
        seed: of the scenes.
        objects, sizes: as `draw_scene` has them.
        background: share of the scenes without any object.
    """
    if (folder / "drawn.txt").exists():
        return folder
    for split, count in counts.items():
        (folder / split).mkdir(parents=True, exist_ok=True)
        samples = []
        for index in range(count):
            empty = np.random.default_rng((seed, index)).random() < background
            wanted = (0, 0) if empty else objects
            scene = draw_scene(scene_generator(seed, split, index), objects=wanted, sizes=sizes)
            path = folder / split / f"{index:04}.png"
            Image.fromarray(scene.image).save(path)
            samples.append(Sample(str(path), scene.boxes, scene.classes, index + 1, scene.image.shape[:2]))
        write_samples(samples, CLASS_NAMES, folder / f"{split}.txt", "yolo3")
    (folder / "classes.txt").write_text("\n".join(CLASS_NAMES) + "\n")
    (folder / "drawn.txt").write_text(f"seed {seed}\n")
    return folder


def _pretrain(root: pathlib.Path, stage: Stage) -> None:
    """Trains a detector on other drawn scenes and keeps its backbone."""
    labels = draw(root / "pretraining", PRETRAINING, seed=OTHER_SEED)
    settings = [*settings_of(labels, labels), f"training.epochs={PRETRAINING_EPOCHS}", "data.cache=true"]
    trainer = MultiGridTrainer(ConfigLoader.load(CONFIG, settings))
    detector = trainer.build_model()
    detector.fit(trainer.train_data, epochs=PRETRAINING_EPOCHS, shuffle=False, verbose=0)
    save_weights(detector.backbone, stage.backbone)
