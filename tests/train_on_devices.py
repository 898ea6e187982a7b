"""Trains as a config says on the devices that there are: python tests/train_on_devices.py JSON

JSON has "config", a whole config; or "run", a run folder to go on with; "logical_cpus", into how many devices
TensorFlow splits the processor; "kill_at", the epoch and the batch, from 0, after which the process kills itself;
"saved", a file for the detector. Devices are split before anything runs on them, so this is a program of its own;
`test_devices.py` runs it.
"""

import json
import os
import signal
import sys

import keras

from multigrid.config import Config
from multigrid.training.processes import is_first, join_processes
from multigrid.training.trainer import MultiGridTrainer


class KillAt(keras.callbacks.Callback):
    """Kills the process after a batch of an epoch, as the system would."""

    def __init__(self, epoch, batch):
        super().__init__()
        self.at = (epoch, batch)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    options = json.loads(sys.argv[1])
    if "logical_cpus" in options:
        import tensorflow as tf

        parts = [tf.config.LogicalDeviceConfiguration()] * options["logical_cpus"]
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
    join_processes()
    callbacks = [KillAt(*options["kill_at"])] if "kill_at" in options else []
    if "run" in options:
        trainer = MultiGridTrainer.from_run(options["run"], callbacks=callbacks)
    else:
        trainer = MultiGridTrainer(Config(**options["config"]), callbacks=callbacks)
    trainer.train()
    metrics = trainer.evaluate("val").metrics
    print(json.dumps({"mAP": metrics["mAP"], "run_dir": str(trainer.run_dir)}))
    if "saved" in options and is_first():
        trainer.detector.save(options["saved"])


if __name__ == "__main__":
    main()
