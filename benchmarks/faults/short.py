"""A short training and what it leads to, measured on labels that no fault has touched."""

from __future__ import annotations

import math

import numpy as np
from keras import ops

from multigrid import assembly
from multigrid.evaluation.agnostic import class_agnostic_metrics
from multigrid.evaluation.run import evaluate


def train_and_measure(making, healthy) -> dict:
    """Trains as a making says.

    Args:
        making: of the training.
        healthy: of the same training without the fault: its labels and its loss measure.

    Returns:
        {"finite", "mAP50", "agnostic", "parts"}: whether every loss was a number; mAP50, and with all classes
        as one; the parts of the healthy loss an image, None where the detector is for other classes or anchors.
    """
    trainer = making.trainer()
    detector, config = trainer.detector, healthy.checked()
    epochs = config.training.epochs
    history = detector.fit(trainer.train_data, epochs=epochs, shuffle=False, verbose=0).history["loss"]
    vocabulary = assembly.read_vocabulary(config)
    samples = assembly.read_split(config, "val", vocabulary.class_names)
    found = evaluate(trainer.predictor(evaluating=True), samples, trainer.class_names)
    as_one = class_agnostic_metrics(found.ground_truth, found.records)
    return {
        "finite": all(math.isfinite(value) for value in history),
        "mAP50": round(float(found.metrics["mAP50"]), 4),
        "agnostic": round(float(as_one["mAP50"]), 4),
        "parts": _parts(detector, config, vocabulary, samples),
    }


def _parts(detector, config, vocabulary, samples) -> dict | None:
    """The parts of the config's loss on samples, an image."""
    sizes = vocabulary.anchors.sizes
    theirs = np.asarray(detector.anchors, "float32")
    same = theirs.shape == sizes.shape and np.allclose(theirs, sizes)
    if not same or detector.num_classes != len(vocabulary.class_names):
        return None
    criterion = assembly.build_criterion(config, vocabulary, samples)
    data, sums = assembly.build_generator(config, samples, training=False), {}
    for index in range(len(data)):
        images, truth = data[index]
        outputs = [ops.convert_to_tensor(grid) for grid in detector.predict_on_batch(images)]
        breakdown = criterion.breakdown(criterion.encode(truth, outputs), outputs)
        for name, values in breakdown.sums.items():
            sums[name] = sums.get(name, 0.0) + float(ops.sum(values))
    return {name: round(value / len(samples), 5) for name, value in sums.items()}
