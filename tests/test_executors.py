"""What the processes of a sweep start with."""

import os
import queue
import sys
from pathlib import Path

import executors
import numpy as np
import pytest


def count_threads(run, progress):
    np.ones((500, 500)) @ np.ones((500, 500))
    progress.put((run, len(list(Path("/proc/self/task").iterdir())), 0.0))


@pytest.mark.skipif(sys.platform != "linux" or os.cpu_count() == 1, reason="counts threads in /proc, needs two cores")
def test_numpy_multiplies_with_one_thread_in_a_run(monkeypatch):
    for name in executors.ENVIRONMENT:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    pool = executors.LocalPool(jobs=1)
    process = pool.start(count_threads, "a run")
    _, threads, _ = pool.progress.get(timeout=60)
    while pool.outcome(process) is None:
        process.join(1)
    assert pool.outcome(process) == ""
    assert threads == 1


def test_a_run_that_fails_says_how():
    pool = executors.LocalPool(jobs=1)
    process = pool.start(sys.exit, 3)
    with pytest.raises(queue.Empty):
        pool.progress.get(timeout=0.1)
    process.join(60)
    assert pool.outcome(process) == "exit code 1"
