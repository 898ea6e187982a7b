"""A training in the making: each of its parts can be changed where a user could have got it wrong.

What comes out is a `MultiGridTrainer` with the very objects that would train. Nothing in it says what was changed: the
classes that stand in for the package's have the same names, and paths are those of the stage.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import keras
import numpy as np

from multigrid import assembly
from multigrid.config import Config
from multigrid.data.generator import MultiGridDataGenerator
from multigrid.data.samples import Sample, read_class_names
from multigrid.losses.multigrid_loss import MultiGridLoss
from multigrid.training.trainer import MultiGridTrainer

# The parts, in the order in which they are made, and the parts of a remedy that make each anew from the config.
PARTS = {
    "vocabulary": {"data", "criterion", "detector", "anchors"},
    "samples": {"data"},
    "generator": {"data"},
    "batches": {"data"},
    "criterion": {"criterion"},
    "detector": {"detector"},
    "compiled": {"optimizer"},
    "predictor": {"predictor"},
}


class Making:
    """One training, healthy until something is changed.

    Args:
        stage: where it takes place.
        seed: of weights, order and augmentation, and of what a change draws.
        settings: `key=value` over the stage's.
        folder: for files of its own; its name says nothing.
    """

    def __init__(self, stage, seed: int, settings: Sequence[str] = (), folder: pathlib.Path | None = None):
        self.stage, self.seed = stage, seed
        self.folder = folder or stage.folder / f"{seed:08x}"
        self.settings = list(settings)
        self._changes: dict[str, list] = {part: [] for part in PARTS}

    @property
    def class_count(self) -> int:
        """C of the stage's data."""
        return len(read_class_names(self.stage.config().data.classes))

    def file(self, name: str) -> pathlib.Path:
        """Where a file of this training goes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def config(self, *settings: str) -> None:
        """Adds settings."""
        self.settings += settings

    def change(self, part: str, function: Callable) -> None:
        """Has a part go through a function.

        Args:
            part: "vocabulary": function(vocabulary) -> vocabulary; "samples": function(samples, rng) -> samples, of
                each split; "generator": function(class) -> class that makes both streams; "batches": see `batches`;
                "criterion": function(criterion) -> criterion; "detector": function(trainer) -> None, before it is
                compiled; "compiled": function(trainer) -> None, after; "predictor": function(predictor) -> None.
        """
        self._changes[part].append(function)

    def samples(self, function: Callable, share: float = 1.0) -> None:
        """Has this share of the samples of every split go through function(sample, rng) -> sample."""

        def each(samples, rng):
            chosen = rng.random(len(samples)) < share
            return [function(one, rng) if hit else one for one, hit in zip(samples, chosen, strict=True)]

        self.change("samples", each)

    def batches(self, function: Callable, splits: Sequence[str] = ("train",)) -> None:
        """Has every batch go through function(images, boxes, classes, rng), which alters the arrays in place."""
        self._changes["batches"].append((function, tuple(splits)))

    def criterion(self, **methods: Callable) -> None:
        """Puts a subclass of `MultiGridLoss` with these methods in the criterion's place."""

        def made(criterion):
            kind = type(MultiGridLoss.__name__, (type(criterion),), {"__module__": MultiGridLoss.__module__, **methods})
            return kind(**criterion.get_config())

        self.change("criterion", made)

    def mended(self, part: str | None = None, settings: Sequence[str] = ()) -> Making:
        """The same training with a part of a remedy made anew from the config, and settings over it."""
        other = Making(self.stage, self.seed, [*self.settings, *settings], self.folder)
        anew = {part, *("anchors" for word in settings if word.startswith("data.anchors="))}
        for name, changes in self._changes.items():
            other._changes[name] = [] if anew & PARTS[name] else list(changes)
        return other

    def trainer(self) -> MultiGridTrainer:
        """Makes everything: a trainer with data, a compiled detector and a predictor."""
        trainer = self._with_data()
        self._make_detector(trainer)
        for function in self._changes["predictor"]:
            function(trainer.predictor(evaluating=True))
        return trainer

    def checked(self) -> Config:
        """The config."""
        return self.stage.config([*self.settings, f"training.seed={self.seed}"])

    def data(self):
        """The training data."""
        return self._with_data().train_data

    def _with_data(self) -> MultiGridTrainer:
        trainer = MultiGridTrainer(self.checked())
        trainer.vocabulary = self._through("vocabulary", assembly.read_vocabulary(trainer.config))
        self._make_data(trainer)
        return trainer

    def _through(self, part: str, value, *more):
        for function in self._changes[part]:
            value = function(value, *more)
        return value

    def _make_data(self, trainer) -> None:
        config, kind = trainer.config, self._through("generator", MultiGridDataGenerator)
        for number, split in enumerate(("train", "val")):
            samples = assembly.read_split(config, split, trainer.class_names)
            trainer.samples[split] = self._through("samples", samples, np.random.default_rng((self.seed, number)))
            data = assembly.build_generator(config, trainer.samples[split], training=split == "train")
            data.__class__, data.epoch = kind, 0
            for function, splits in self._changes["batches"]:
                data = Data(data, function, self.seed) if split in splits else data
            setattr(trainer, f"{split}_data", data)

    def _make_detector(self, trainer) -> None:
        config, vocabulary = trainer.config, trainer.vocabulary
        criterion = assembly.build_criterion(config, vocabulary, trainer.samples["train"])
        detector = assembly.build_detector(config, vocabulary, self._through("criterion", criterion))
        trainer.ledgers = assembly.load_configured_weights(config, detector, required="backbone")
        trainer.detector, trainer.own_detector = detector, False  # nobody chose what a fault changes in it
        for function in self._changes["detector"]:
            function(trainer)
        trainer.build_model()
        for function in self._changes["compiled"]:
            function(trainer)


class Data(keras.utils.PyDataset):
    """Batches of another data set that go through a function on their way; the same batch for the same epoch."""

    def __init__(self, data, function: Callable, seed: int):
        super().__init__(workers=data.workers, max_queue_size=data.max_queue_size)
        self._data, self._function, self._seed = data, function, seed

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int):
        images, truth = self._data[index]
        images, boxes, classes = images.copy(), truth["boxes"].copy(), truth["classes"].copy()
        self._function(images, boxes, classes, np.random.default_rng((self._seed, self._data.epoch, index)))
        return images, {"boxes": boxes, "classes": classes}

    @property
    def epoch(self) -> int:
        return self._data.epoch

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._data.epoch = epoch

    def on_epoch_begin(self) -> None:
        self._data.on_epoch_begin()

    def on_epoch_end(self) -> None:
        self._data.on_epoch_end()

    def __getattr__(self, name: str):
        if name == "_data":
            raise AttributeError(name)
        return getattr(self._data, name)


def with_boxes(sample: Sample, boxes, classes=None) -> Sample:
    """A sample with other boxes [N, 4] and, if given, other classes [N]."""
    classes = sample.classes if classes is None else classes
    return replace(sample, boxes=np.asarray(boxes, "float32").reshape(-1, 4), classes=np.asarray(classes, "int32"))
