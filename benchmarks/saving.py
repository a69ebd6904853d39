"""How long saving a full replay buffer takes, next to writing its bytes, and how much memory it needs for that.

    python benchmarks/saving.py

Both are flushed to the disk. The disk is everybody's: of several rounds the fastest counts.
"""

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from arguments import positive
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_flow.common.files import write_pickle

OBSERVATIONS, ACTIONS = 376, 17  # Humanoid-v4's


def resident() -> int:
    """Bytes of memory that this process has (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def arrays_of(buffer: ReplayBuffer) -> list[NDArray[np.float32]]:
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return [getattr(buffer, name) for name in names]


def write_plainly(path: Path, buffer: ReplayBuffer) -> None:
    with open(path, "wb") as file:
        for array in arrays_of(buffer):
            file.write(array.data)
        file.flush()
        os.fsync(file.fileno())


def seconds(write: Callable[[Path, ReplayBuffer], None], path: Path, buffer: ReplayBuffer) -> float:
    path.unlink(missing_ok=True)
    os.sync()
    start = time.perf_counter()
    write(path, buffer)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=positive, default=400_000)
    parser.add_argument("--rounds", type=positive, default=5)
    args = parser.parse_args()
    box = spaces.Box(-np.inf, np.inf, (OBSERVATIONS,), np.float32)
    buffer = ReplayBuffer(args.steps, box, spaces.Box(-1.0, 1.0, (ACTIONS,), np.float32), "cpu")
    for array in arrays_of(buffer):
        array[:] = 0.5
    buffer.full = True
    peak, before, done = 0, resident(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, resident() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        plain, ours = zip(
            *((seconds(write_plainly, path, buffer), seconds(write_pickle, path, buffer)) for _ in range(args.rounds)),
            strict=True,
        )
    done.set()
    watcher.join()
    size = sum(array.nbytes for array in arrays_of(buffer))
    print(f"{size / 1e9:.2f} GB: plain {min(plain):.2f} s, saved {min(ours):.2f} s, ratio {min(ours) / min(plain):.2f}")
    print(f"additional memory at most {peak / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
