"""Where runs are trained: in processes of this machine, or on a Ray cluster, which has a scheduler of its own."""

import importlib
import multiprocessing as mp
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from sb3_flow.common.checks import extra

# What a process reads when it starts
ENVIRONMENT = {
    # One thread a run. numpy's OpenBLAS would have more, which spin between the products of a simulator's step
    "OMP_NUM_THREADS": "1",
    # glibc then keeps the memory that every update frees, instead of faulting it in again: 5-7 % faster
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "MALLOC_TOP_PAD_": "100000000",
}

Progress = tuple[str, int, float]  # name of the run, its step, its last return


class ProgressQueue(Protocol):
    """A queue that crosses processes."""

    def put(self, item: Progress) -> None: ...

    def get(self, block: bool = True, timeout: float | None = None) -> Progress: ...


class Executor(Protocol):
    """Starts runs that tell how far they are."""

    progress: ProgressQueue
    slots: int  # runs that may be started at once

    def start(self, train: Callable[[Any, ProgressQueue], None], run: Any) -> Any:
        """Start `train(run, progress)`, and return a handle."""

    def outcome(self, handle: Any) -> str | None:
        """None for a run that goes on, "" for one that is done, else what went wrong."""


class LocalPool:
    """Processes of this machine.

    :param jobs: of them at once
    """

    def __init__(self, jobs: int):
        os.environ.update(ENVIRONMENT)  # the children's
        self.slots = jobs
        self._context = mp.get_context("spawn")
        self.progress: ProgressQueue = self._context.Queue()

    def start(self, train: Callable[[Any, ProgressQueue], None], run: Any) -> Any:
        process = self._context.Process(target=train, args=(run, self.progress), daemon=True)
        process.start()
        return process

    def outcome(self, handle: Any) -> str | None:
        if handle.is_alive():
            return None
        handle.join()
        return f"exit code {handle.exitcode}" if handle.exitcode else ""


class RayCluster:
    """A Ray cluster whose machines share this folder under the same path, and have sb3_flow installed.

    Ray decides what runs where. A run whose machine is lost is started again, and goes on from its checkpoint.

    :param address: of the cluster, "auto" for the one this machine belongs to; "local" starts one here
    :param jobs: CPU cores of the one that is started here
    :raises SystemExit: if ray is not installed
    """

    slots = sys.maxsize

    def __init__(self, address: str, jobs: int):
        try:
            self._ray: Any = importlib.import_module("ray")
        except ImportError:
            raise SystemExit(f"--ray needs ray: {extra('ray')}") from None
        # The driver's own module is sent along, the ones beside it are not
        folders = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")]))
        environment = {"env_vars": {**ENVIRONMENT, "PYTHONPATH": folders}}
        size = {"num_cpus": jobs, "include_dashboard": False} if address == "local" else {"address": address}
        self._ray.init(runtime_env=environment, log_to_driver=False, **size)
        self.progress: ProgressQueue = importlib.import_module("ray.util.queue").Queue(actor_options={"num_cpus": 0})
        self._remote = self._ray.remote(num_cpus=1)(_train_in)

    def start(self, train: Callable[[Any, ProgressQueue], None], run: Any) -> Any:
        return self._remote.remote(os.getcwd(), train, run, self.progress)

    def outcome(self, handle: Any) -> str | None:
        done, _ = self._ray.wait([handle], timeout=0)
        if not done:
            return None
        try:
            self._ray.get(handle)
        except self._ray.exceptions.RayError as error:
            return str(error).strip().splitlines()[-1]  # what is above it is the cluster's traceback
        return ""


def _train_in(folder: str, train: Callable[[Any, ProgressQueue], None], run: Any, progress: ProgressQueue) -> None:
    """Train in the folder of the command: checkpoints and results have relative paths."""
    os.chdir(folder)
    train(run, progress)
