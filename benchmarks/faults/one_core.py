"""Imported before anything that starts TensorFlow: one thread a process, no GPU, no chatter."""

import os

SETTINGS = {
    "NO_ALBUMENTATIONS_UPDATE": "1",
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
}

for _name, _value in SETTINGS.items():
    os.environ.setdefault(_name, _value)
