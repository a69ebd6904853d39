"""Load time and peak memory of an OGBench npz next to `np.load` of its arrays, and the time to sample chunks.

Each measurement is a process of its own, for its peak memory. Bounds: 1.3 times `np.load`; 256 chunks of 5 in 1 ms.

    python benchmarks/datasets.py --rows 1000000
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sb3_flow.datasets import OfflineDataset, load_ogbench

EPISODE = 1001  # rows, OGBench's
BATCH, HORIZON = 256, 5
TASK = "cube-double-play-singletask-task2-v0"
WIDTHS = {"observations": 37, "actions": 5, "qpos": 28, "qvel": 26}  # cube-double's


def write(path: Path, rows: int, compress: bool) -> None:
    """A file with random numbers in the form of OGBench's.

    :param path: where to
    :param rows: how many, rounded down to whole episodes
    :param compress: as the published files are
    """
    rng = np.random.default_rng(0)
    rows -= rows % EPISODE
    arrays: dict[str, Any] = {
        # Half of the digits, so that they compress as simulators' numbers do
        key: rng.uniform(-1, 1, (rows, width)).astype(np.float16).astype(np.float32)
        for key, width in WIDTHS.items()
    }
    arrays["terminals"] = np.arange(rows) % EPISODE == EPISODE - 1
    arrays["rewards"] = -np.ones(rows, dtype=np.float32)
    arrays["masks"] = np.ones(rows, dtype=np.float32)
    (np.savez_compressed if compress else np.savez)(path, **arrays)


def numpy_load(path: Path, *extra: str) -> list[Any]:
    """The arrays that the loader reads, by `np.load`.

    :param extra: more of them
    """
    with np.load(path) as file:
        return [file[key] for key in ("observations", "actions", "terminals", "rewards", "masks", *extra)]


def peak_mb() -> float:
    """The most memory that this process has held; getrusage's number is inherited from the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def sample(dataset: OfflineDataset) -> tuple[Any, ...]:
    """What one update of chunks needs."""
    starts = dataset.rows(np.random.randint(0, len(dataset), size=BATCH))
    rows = dataset.chunk_rows(starts, HORIZON)
    return (
        dataset.observations[starts],
        dataset.actions[rows],
        dataset.rewards[rows],
        dataset.masks[rows],
        dataset.ends[rows],
        dataset.next_observations(rows[:, -1].clip(max=len(dataset.ends) - 2)),
    )


def measure(what: str, path: Path) -> dict[str, float]:
    """Time and peak memory of one way to load, in this process."""
    loads: dict[str, Callable[[], Any]] = {
        "np.load": lambda: numpy_load(path),
        "load_ogbench": lambda: load_ogbench(path),
        "np.load with qpos": lambda: numpy_load(path, "qpos"),
        "load_ogbench, relabelled": lambda: load_ogbench(path, TASK),
    }
    if "relabelled" in what:
        # Importing the simulator and compiling the scene is the environment's cost, and is paid anyway
        import ogbench

        ogbench.make_env_and_datasets(TASK, env_only=True).reset()
    before = peak_mb()
    start = time.perf_counter()
    loaded = loads[what]()
    result = {"seconds": time.perf_counter() - start, "peak_mb": peak_mb() - before}
    if isinstance(loaded, OfflineDataset):
        times = []
        for _ in range(500):
            start = time.perf_counter()
            sample(loaded)
            times.append(time.perf_counter() - start)
        result["sample_ms"] = 1000 * float(np.median(times))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3, help="the fastest counts")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        for compress in (False, True):
            path = Path(folder) / f"{'compressed' if compress else 'stored'}.npz"
            write(path, args.rows, compress)
            for what in ("np.load", "load_ogbench", "np.load with qpos", "load_ogbench, relabelled"):
                command = [sys.executable, __file__, "--measure", what, str(path)]
                runs = [json.loads(subprocess.check_output(command, text=True)) for _ in range(args.repeats)]
                best = min(runs, key=lambda run: float(run["seconds"]))
                print(f"{path.stem:11} {what:25}", ", ".join(f"{key} {value:.3f}" for key, value in best.items()))


if __name__ == "__main__":
    main()
