"""Cases of one small training whose data were spoilt on their way."""

import dataclasses

import keras
import numpy as np

from multigrid import assembly
from multigrid.diagnosis.case import Case

SEED = 0


class Spoilt(keras.utils.PyDataset):
    """Batches of other data that go through a function (images, boxes, classes, rng), which alters them in place."""

    def __init__(self, data, function):
        super().__init__()
        self.data, self.function = data, function

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        images, truth = self.data[index]
        images, boxes, classes = images.copy(), truth["boxes"].copy(), truth["classes"].copy()
        self.function(images, boxes, classes, np.random.default_rng((SEED, self.data.epoch, index)))
        return images, {"boxes": boxes, "classes": classes}

    @property
    def epoch(self):
        return self.data.epoch

    @epoch.setter
    def epoch(self, epoch):
        self.data.epoch = epoch

    def __getattr__(self, name):
        if name in ("data", "function"):
            raise AttributeError(name)
        return getattr(self.data, name)


def spoilt(trainer, *, sample=None, samples=None, train=None, val=None, config=None) -> Case:
    """The case of a trainer's parts, spoilt.

    Args:
        trainer: built; it is left as it is.
        sample: function(sample) -> sample, of both splits.
        samples: function(list of samples) -> list, of the training split alone.
        train, val: functions of the batches, see `Spoilt`.
        config: another config, for the data.
    """
    config, data, read = config or trainer.config, {}, {}
    for split, function in (("train", train), ("val", val)):
        read[split] = [sample(one) for one in trainer.samples[split]] if sample else trainer.samples[split]
        if samples and split == "train":
            read[split] = samples(read[split])
        made = assembly.build_generator(config, read[split], training=split == "train")
        data[split] = Spoilt(made, function) if function else made
    return Case(
        trainer.detector,
        data["train"],
        val_data=data["val"],
        config=config,
        class_names=trainer.class_names,
        samples=read,
    )


def with_boxes(sample, boxes, classes=None):
    """A sample with other boxes, and other classes if given."""
    classes = sample.classes if classes is None else classes
    return dataclasses.replace(sample, boxes=np.asarray(boxes, "float32"), classes=np.asarray(classes, "int32"))


def named(module, case) -> dict:
    """{rule id: verdict} of the rules of a module that have one, those of training left out."""
    rules = [value for value in vars(module).values() if hasattr(value, "explains") and value.stage != "training"]
    found = {one.id: one.function(case) for one in rules}
    return {id: verdict for id, verdict in found.items() if verdict is not None}
