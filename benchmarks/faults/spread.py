"""Work shared out among processes, one core each."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

TASKS_A_PROCESS = 8  # TensorFlow keeps what it has traced


def spread(function: Callable, tasks: Sequence, jobs: int) -> Iterator:
    """The results of a function for each task, as they come; processes are new after every few tasks.

    Args:
        function: of a module, for the other processes import it.
        tasks: its arguments, one each.
        jobs: processes at a time.

    Raises:
        concurrent.futures.process.BrokenProcessPool: one of them was killed; what came before stays.
    """
    share = jobs * TASKS_A_PROCESS
    for first in range(0, len(tasks), share):
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            for done in as_completed([pool.submit(function, task) for task in tasks[first : first + share]]):
                yield done.result()
