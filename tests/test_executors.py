"""What the processes of a sweep start with."""

import os
import queue
import sys
from pathlib import Path

import executors
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _environment_restored(monkeypatch):
    """A pool changes this process's environment, for its children to inherit."""
    for name in executors.ENVIRONMENT:
        # delenv alone remembers nothing of a name that is not there
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def fail(run, progress):
    sys.exit(1)


def count_threads(run, progress):
    np.ones((500, 500)) @ np.ones((500, 500))
    progress.put((run, len(list(Path("/proc/self/task").iterdir())), 0.0))


@pytest.mark.skipif(sys.platform != "linux" or os.cpu_count() == 1, reason="counts threads in /proc, needs two cores")
def test_numpy_multiplies_with_one_thread_in_a_run():
    pool = executors.LocalPool(jobs=1)
    process = pool.start(count_threads, "a run")
    _, threads, _ = pool.progress.get(timeout=60)
    while pool.outcome(process) is None:
        process.join(1)
    assert pool.outcome(process) == ""
    assert threads == 1


def test_a_run_that_fails_says_how():
    pool = executors.LocalPool(jobs=1)
    process = pool.start(fail, "a run")
    with pytest.raises(queue.Empty):
        pool.progress.get(timeout=0.1)
    process.join(60)
    assert pool.outcome(process) == "exit code 1"
