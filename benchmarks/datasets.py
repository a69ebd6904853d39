"""What offline data cost: loading an OGBench npz next to `np.load` of its arrays, sampling chunks, and an update.

Each loading is a process of its own, for its peak memory. The update with chunks of 5 actions of 5 numbers is compared
with that of the same nets on single actions of 25, interleaved. Bounds: 1.3 times `np.load`; 256 chunks of 5 in 1 ms;
1.1 times the update without chunks.

    python benchmarks/datasets.py --rows 1000000
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from machine import machine
from shapes import Shapes
from stable_baselines3.common.logger import configure
from timing import interleaved

from sb3_flow import SACFlow
from sb3_flow.buffers import sample_dataset
from sb3_flow.datasets import OfflineDataset, load_ogbench

EPISODE = 1001  # rows, OGBench's
BATCH, HORIZON = 256, 5
CHUNK_NUMBERS = 25  # numbers in a chunk
UPDATES = 10  # in one measurement
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
            sample_dataset(loaded, BATCH, HORIZON, gamma=0.99)
            times.append(time.perf_counter() - start)
        result["sample_ms"] = 1000 * float(np.median(times))
    return result


def make_updates(horizon: int, rows: int) -> Callable[[], None]:
    """A function that makes some offline updates from random data; 25 numbers are decided at once in any case."""
    rng, actions = np.random.default_rng(0), CHUNK_NUMBERS // horizon
    arrays = {
        "observations": rng.normal(size=(rows, 37)),
        "next_observations": rng.normal(size=(rows, 37)),
        "actions": rng.uniform(-1, 1, (rows, actions)),
        "rewards": -np.ones(rows),
        "masks": np.ones(rows),
        "terminals": np.arange(rows) % EPISODE == EPISODE - 1,
    }
    arrays["terminals"][-1] = True
    model = SACFlow(
        "FlowTPolicy",
        Shapes(37, actions),
        offline_dataset=arrays,
        offline_steps=10**9,
        horizon_length=horizon,
        bc_coef=300.0,
        ent_coef=0.0,
        policy_kwargs={"critic": "target", "noise_std": 0.1, "net_arch": {"qf": [256] * 3}},
        device="cpu",
    )
    model.set_logger(configure(None, []))
    return partial(model.train, UPDATES, BATCH)


def compare_updates(rows: int) -> None:
    runs = {f"h = {horizon}": make_updates(horizon, rows) for horizon in (1, HORIZON)}
    timings = interleaved(runs, rounds=15, warmup=3, scale=1 / UPDATES)
    for name, timing in timings.items():
        print(f"{name}: {1 / timing['median']:.1f} updates/s, {1000 * timing['q1']:.1f} - {1000 * timing['q3']:.1f} ms")
    print(f"ratio {timings[f'h = {HORIZON}']['median'] / timings['h = 1']['median']:.3f}")


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
    compare_updates(args.rows // 10)
    print(machine())


if __name__ == "__main__":
    main()
