"""What offline data cost: loading an OGBench npz next to `np.load` of its arrays, sampling chunks, and an update.

Each loading is a process of its own, for its peak memory; those that are compared run in a new order every round. The
offline update with chunks of 5 actions of 5 numbers is compared with that of the same nets on single actions of 25 from
SB3's own replay buffer, without any of the chunks' code, interleaved. Medians and ratios count. Bounds: 1.3 times the
time of `np.load` and the memory of its arrays, two shards of a directory in memory; 256 chunks of 5 in 1 ms; 1.1 times
the update without chunks.

    python benchmarks/datasets.py --rows 1000000
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from contenders import fill
from numpy.typing import NDArray
from records import machine
from shapes import Shapes
from stable_baselines3.common.logger import configure
from timing import interleaved

from sb3_flow import SACFlow
from sb3_flow.common.buffers import ChunkReplayBuffer, sample_dataset
from sb3_flow.datasets import OfflineDataset, ShardedDataset, load_ogbench

EPISODE = 1001  # rows, OGBench's
BATCH, HORIZON = 256, 5
UPDATES = 10  # in one measurement
SAMPLES = 500  # of which the median counts
SHARDS = 4
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
        "shards in turns": lambda: take_turns(path),
    }
    result = {"simulator": make_simulator() if "relabelled" in what else 0.0}
    before = peak_mb()
    start, cpu_start = time.perf_counter(), time.process_time()
    loaded = loads[what]()
    result |= {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu_start - result["simulator"],
        "peak_mb": peak_mb() - before,
    }
    if isinstance(loaded, list):
        result["mb"] = sum(array.nbytes for array in loaded) / 2**20
    if isinstance(loaded, OfflineDataset):
        result["sample_ms"] = sample_ms(partial(sample_dataset, loaded, BATCH, HORIZON, gamma=0.99))
    return result


def make_simulator() -> float:
    """CPU seconds to make ogbench's environment, which relabelling does once, whatever the size of the data."""
    import ogbench

    for _ in range(2):  # the first time it imports as well
        start = time.process_time()
        ogbench.make_env_and_datasets(TASK, env_only=True).reset()
    return time.process_time() - start


def take_turns(folder: Path) -> ShardedDataset:
    """Every shard twice, each while the next is read in the background."""
    dataset = load_ogbench(folder, rotate_every=1)
    assert isinstance(dataset, ShardedDataset)
    for update in range(2 * SHARDS):
        dataset.at(update)
    return dataset


def sample_ms(sample: Callable[[], Any]) -> float:
    """Median milliseconds of one call."""
    times = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        sample()
        times.append(time.perf_counter() - start)
    return 1000 * float(np.median(times))


def compare_loads(path: Path, rounds: int) -> None:
    """Loading next to `np.load`, with and without relabelling."""
    pairs = {"load_ogbench": "np.load", "load_ogbench, relabelled": "np.load with qpos"}
    runs = measure_in_turns({what: path for pair in pairs.items() for what in pair}, rounds)
    for ours, numpy in pairs.items():
        print(
            f"{path.stem:11} {ours:25} {median(runs[ours], 'cpu_seconds'):.3f} s of CPU time, "
            f"{ratio(runs[ours], 'cpu_seconds', runs[numpy]):.3f} x {numpy}, and "
            f"{median(runs[ours], 'simulator'):.2f} s for the simulator (wall clock of both: "
            f"{ratio(runs[ours], 'seconds', runs[numpy]):.3f} x {numpy}); peak memory "
            f"{median(runs[ours], 'peak_mb'):.0f} MB, {ratio(runs[ours], 'peak_mb', runs[numpy], 'mb'):.3f} x the "
            f"arrays; {BATCH} chunks of {HORIZON} in {median(runs[ours], 'sample_ms'):.3f} ms"
        )


def compare_shards(folder: Path, rounds: int) -> None:
    """Peak memory while all shards of a directory take turns, next to the arrays of one of them."""
    what = "shards in turns"
    runs = measure_in_turns({what: folder, "np.load": folder / "0.npz"}, rounds)
    held = ratio(runs[what], "peak_mb", runs["np.load"], "mb")
    print(f"{folder.name:11} {what:25} peak memory {median(runs[what], 'peak_mb'):.0f} MB, {held:.3f} x one shard")


def measure_in_turns(paths: dict[str, Path], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Several ways to load, each a process of its own, in a new order every round."""
    runs: dict[str, list[dict[str, float]]] = {what: [] for what in paths}
    for _ in range(rounds):
        for what in random.sample(list(paths), len(paths)):
            command = [sys.executable, __file__, "--measure", what, str(paths[what])]
            runs[what].append(json.loads(subprocess.check_output(command, text=True)))
    return runs


def median(runs: list[dict[str, float]], key: str) -> float:
    return float(np.median([run[key] for run in runs]))


def ratio(
    ours: list[dict[str, float]], key: str, theirs: list[dict[str, float]], their_key: str | None = None
) -> float:
    """Median of the rounds' ratios: what slows the machine slows both."""
    return float(np.median([a[key] / b[their_key or key] for a, b in zip(ours, theirs, strict=True)]))


def measure_buffer(rows: int) -> float:
    """Milliseconds to sample from a full replay buffer, in the middle of which it goes on."""
    spaces, rng = Shapes(WIDTHS["observations"], WIDTHS["actions"]), np.random.default_rng(0)
    buffer = ChunkReplayBuffer(
        rows, spaces.observation_space, spaces.action_space, "cpu", horizon_length=HORIZON, gamma=0.99
    )
    # Written to, so that the memory is there
    for array in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        array[:] = rng.random(array.shape, dtype=np.float32)
    buffer.dones[EPISODE - 1 :: EPISODE] = 1
    buffer.full, buffer.pos = True, rows // 2
    return sample_ms(partial(buffer.sample, BATCH))


def make_model(actions: int, **kwargs: Any) -> SACFlow:
    model = SACFlow(
        "FlowTPolicy",
        Shapes(WIDTHS["observations"], actions),
        bc_coef=300.0,
        ent_coef=0.0,
        policy_kwargs={"critic": "target", "noise_std": 0.1, "net_arch": {"qf": [256] * 3}},
        device="cpu",
        **kwargs,
    )
    model.offline_steps = 10**9  # not as an argument: the model without a dataset makes offline updates as well
    model.set_logger(configure(None, []))
    return model


def random_steps(rows: int) -> dict[str, NDArray[Any]]:
    """Arrays of offline data with cube-double's widths."""
    rng = np.random.default_rng(0)
    ends = np.arange(rows) % EPISODE == EPISODE - 1
    ends[-1] = True
    states = rng.normal(size=(rows + 1, WIDTHS["observations"]))
    return {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": rng.uniform(-1, 1, (rows, WIDTHS["actions"])),
        "rewards": -np.ones(rows),
        "masks": np.ones(rows),
        "terminals": ends,
    }


def with_chunks(rows: int) -> SACFlow:
    """Learns from a dataset, in chunks."""
    data = random_steps(rows)
    return make_model(WIDTHS["actions"], buffer_size=HORIZON, horizon_length=HORIZON, offline_dataset=data)


def without_chunks(rows: int) -> SACFlow:
    """Learns from SB3's replay buffer, in steps whose actions have a chunk's numbers: the nets are the same."""
    model = make_model(HORIZON * WIDTHS["actions"], buffer_size=rows)
    fill(model.replay_buffer)
    return model


def compare_updates(rows: int) -> None:
    """Offline updates with the chunks' code and without."""
    models = {f"h = {HORIZON}": with_chunks(rows), "SB3's replay buffer": without_chunks(rows)}
    runs: dict[str, Callable[[], None]] = {name: partial(model.train, UPDATES, BATCH) for name, model in models.items()}
    timings = interleaved(runs, rounds=15, warmup=3, scale=1 / UPDATES)
    for name, timing in timings.items():
        print(f"{name}: {1 / timing['median']:.1f} updates/s, {1000 * timing['q1']:.1f} - {1000 * timing['q3']:.1f} ms")
    ours, theirs = timings.values()
    print(f"ratio {ours['median'] / theirs['median']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="of loading")
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure[0], Path(args.measure[1]))))
        return
    print(machine())
    print(f"replay buffer: {BATCH} chunks of {HORIZON} in {measure_buffer(args.rows):.3f} ms")
    compare_updates(args.rows // 10)
    for compress in (False, True):
        form = "compressed" if compress else "stored"
        with tempfile.TemporaryDirectory() as name:
            path, folder = Path(name) / f"{form}.npz", Path(name) / form
            write(path, args.rows, compress)
            compare_loads(path, args.rounds)
            path.unlink()
            folder.mkdir()
            for shard in range(SHARDS):
                write(folder / f"{shard}.npz", args.rows // SHARDS, compress)
            compare_shards(folder, args.rounds)


if __name__ == "__main__":
    main()
