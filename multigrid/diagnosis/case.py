"""The case: the live objects of one training, and what examinations found of them.

An examination is made when a rule first asks for it, and once. It looks at the very objects that train: data,
detector, criterion, optimizer, predictor, whatever the caller has put in their place; it recomputes no formula that
the package has. What it moves, such as weights in a trial, it puts back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TypeVar

import numpy as np

Result = TypeVar("Result")

BATCHES = 8  # of training data that static examinations look at
IMAGES = 4  # of a batch that the network is asked about


class Case:
    """What the doctor is given.

    Args:
        detector: compiled, with a criterion.
        train_data: batches `(images, {"boxes", "classes"})`: a `keras.utils.PyDataset` or anything with `len` and
            indices.
        val_data: likewise; None where there is none.
        config: the checked `Config` that describes the training; None where nobody wrote one, and then nothing is
            compared with what was asked for.
        class_names: one a class; numbers if None.
        samples: {"train": […], "val": […]} of `Sample`, what was read from the label files; {} where not known.
        predictor: a `DetectionPipeline` with the threshold of evaluation; None where there is none, or a function
            without arguments that makes it.
        ledgers: what came of each weights file.
        step: updates that the detector has seen in this training.
        history: figures by epoch of a training that is over, as rows of results.csv; () where there are none.
        keeps_compilation: whether the detector came compiled, so that its optimizer is its caller's.
        own_detector: whether detector and criterion are their caller's and not the config's.

    Attributes:
        results: what examinations found, by the examination.
        course: the record of the training so far, an `examinations.course.Course`; None before the first step.
    """

    def __init__(
        self,
        detector,
        train_data,
        *,
        val_data=None,
        config=None,
        class_names=None,
        samples=None,
        predictor=None,
        ledgers=(),
        step: int = 0,
        history=(),
        keeps_compilation: bool = False,
        own_detector: bool = False,
    ):
        self.detector, self.train_data, self.val_data = detector, train_data, val_data
        self.config, self.samples, self.ledgers = config, dict(samples or {}), tuple(ledgers)
        self.class_names = tuple(class_names or map(str, range(detector.num_classes)))
        self.step, self.course, self.history = step, None, list(history)
        self.keeps_compilation, self.own_detector = keeps_compilation, own_detector
        self._predictor, self.results = predictor, {}

    @classmethod
    def of(cls, trainer) -> Case:
        """The case of a `MultiGridTrainer`; what it has not yet built is built."""
        detector = trainer.build_model()
        return cls(
            detector,
            trainer.train_data,
            val_data=trainer.val_data,
            config=trainer.config,
            class_names=trainer.class_names,
            samples=trainer.samples,
            predictor=lambda: trainer.predictor(evaluating=True),
            ledgers=trainer.ledgers,
            keeps_compilation=trainer.keeps_compilation,
            own_detector=trainer.own_detector,
        )

    @property
    def criterion(self):
        """The detector's."""
        return self.detector.criterion

    @property
    def optimizer(self):
        """The one that the detector was compiled with."""
        return self.detector.optimizer

    @property
    def anchors(self) -> np.ndarray:
        """[scales, A, 2] float, (width, height) in input pixels: those that the criterion encodes with."""
        return np.asarray(getattr(self.criterion, "anchors", self.detector.anchors), "float64")

    @functools.cached_property
    def predictor(self):
        """The pipeline that validation measures with; None where there is none."""
        made = hasattr(self._predictor, "stream") or self._predictor is None
        return self._predictor if made else self._predictor()

    @functools.cached_property
    def batches(self) -> list:
        """The first batches of the training data as it gives them now: [(images, truth)], at most `BATCHES`."""
        return [self.train_data[index][:2] for index in range(min(BATCHES, len(self.train_data)))]

    @functools.cached_property
    def val_batches(self) -> list:
        """The first batches of the validation data; [] where there is none."""
        return [self.val_data[index][:2] for index in range(min(BATCHES, len(self.val_data or ())))]

    @functools.cached_property
    def batch(self) -> tuple:
        """(images, truth) of `IMAGES` images or fewer, those with most objects of the first batch."""
        images, truth = self.batches[0]
        order = np.argsort(-(np.asarray(truth["classes"]) >= 0).sum(1), kind="stable")[:IMAGES]
        return images[order], {name: np.asarray(values)[order] for name, values in truth.items()}

    def examined(self, examine: Callable[[Case], Result]) -> Result:
        """What an examination found: `examine(case)`, which is made once."""
        if examine not in self.results:
            self.results[examine] = examine(self)
        return self.results[examine]
