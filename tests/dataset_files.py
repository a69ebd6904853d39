"""Small files in the real formats, and the arrays that they must be read as."""

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sb3_flow.datasets import OfflineDataset
from sb3_flow.datasets.robomimic import OBSERVATION_KEYS

OBS, ACT = 3, 2
LIFT_WIDTHS = {"robot0_eef_pos": 3, "robot0_eef_quat": 4, "robot0_gripper_qpos": 2, "object": 10}
COLUMNS = ("observations", "actions", "rewards", "masks", "ends", "next_observations")

CONTROLLER_V14 = {"type": "OSC_POSE", "input_max": 1, "input_min": -1, "kp": 150, "control_delta": True}
CONTROLLER_V15 = {"type": "BASIC", "body_parts": {"right": CONTROLLER_V14 | {"gripper": {"type": "GRIP"}}}}


def env_args(controller: dict[str, Any] = CONTROLLER_V14, version: str = "1.4.1", name: str = "Lift") -> dict[str, Any]:
    """What robomimic keeps of an environment."""
    kwargs = {"robots": ["Panda"], "control_freq": 20, "controller_configs": controller}
    return {"env_name": name, "env_version": version, "type": 1, "env_kwargs": kwargs}


def steps_of(dataset: OfflineDataset) -> dict[str, NDArray[Any]]:
    """All steps, one a row, whatever the layout."""
    rows = dataset.rows(np.arange(len(dataset)))
    columns = {name: getattr(dataset, name)[rows] for name in COLUMNS[:-1]}
    return columns | {"next_observations": dataset.next_observations(rows)}


def trajectories(lengths: list[int], seed: int = 0) -> list[dict[str, NDArray[Any]]]:
    """Random trajectories: T + 1 observations, and T of everything else."""
    rng = np.random.default_rng(seed)
    return [
        {
            "observations": rng.normal(size=(steps + 1, OBS)).astype(np.float32),
            "actions": rng.uniform(-0.99, 0.99, (steps, ACT)).astype(np.float32),
            "rewards": rng.normal(size=steps).astype(np.float32),
            "masks": rng.integers(0, 2, steps).astype(np.float32),
        }
        for steps in lengths
    ]


def expected(episodes: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """The steps of trajectories, written down the slow and obvious way."""
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for episode in episodes:
        steps = len(episode["actions"])
        for t in range(steps):
            rows["observations"].append(episode["observations"][t])
            rows["next_observations"].append(episode["observations"][t + 1])
            rows["ends"].append(t == steps - 1)
            for name in ("actions", "rewards", "masks"):
                rows[name].append(episode[name][t])
    return {name: np.array(values) for name, values in rows.items()}


def raw_arrays(episodes: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """As OGBench publishes them: T + 1 rows a trajectory, the mark on the last."""
    last = {
        "actions": np.zeros((1, ACT), np.float32),
        "rewards": np.zeros(1, np.float32),
        "masks": np.ones(1, np.float32),
    }
    arrays = {"observations": np.concatenate([episode["observations"] for episode in episodes])}
    for name, row in last.items():
        arrays[name] = np.concatenate([part for episode in episodes for part in (episode[name], row)])
    arrays["terminals"] = np.concatenate([np.arange(len(e["observations"])) == len(e["actions"]) for e in episodes])
    arrays["qpos"] = arrays["observations"][:, :1]
    return arrays


def regular_arrays(episodes: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """ogbench's regular form: only steps, and next observations of their own."""
    arrays = expected(episodes)
    return {"terminals" if name == "ends" else name: values for name, values in arrays.items()}


def pendulum_arrays(lengths: list[int]) -> dict[str, NDArray[Any]]:
    """Those of random episodes in Pendulum's spaces, one transition a row."""
    arrays = regular_arrays(trajectories(lengths))
    return {**arrays, "actions": arrays["actions"][:, :1]}


def compact_arrays(episodes: list[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    """ogbench's compact form: T + 1 rows, the last two marked, the last invalid."""
    arrays = raw_arrays(episodes)
    last = arrays["terminals"]
    arrays["valids"] = 1.0 - last
    arrays["terminals"] = (last | np.append(last[1:], True)).astype(np.float32)
    return arrays


LAYOUTS = {"raw": raw_arrays, "regular": regular_arrays, "compact": compact_arrays}


def write_robomimic(
    path: Path,
    lengths: list[int],
    next_obs: bool = True,
    names: list[int] | None = None,
    dones: str = "success",
    masks: dict[str, list[int]] | None = None,
    args: dict[str, Any] | None = None,
    seed: int = 0,
    checksums: bool = False,
    **storage: Any,
) -> dict[str, NDArray[Any]]:
    """Demonstrations as robomimic's dataset_states_to_obs.py writes them, and the steps that they must be read as.

    :param names: numbers of the demos, in the order of writing
    :param dones: "success": 1 in the last two steps; "end": 1 in the last; "never": 0
    :param masks: filters
    :param checksums: write everything with HDF5's own, which robomimic does not
    :param storage: of h5py's create_dataset
    """
    import h5py

    rng = np.random.default_rng(seed)
    names = list(range(len(lengths))) if names is None else names
    demos: dict[int, dict[str, Any]] = {}
    storage |= {"fletcher32": True} if checksums else {}
    with h5py.File(path, "w", libver="latest" if checksums else None) as file:
        data = file.create_group("data")
        for name, steps in zip(names, lengths, strict=True):
            demo = data.create_group(f"demo_{name}")
            demo.attrs["num_samples"] = steps
            demo.attrs["model_file"] = "<mujoco/>"
            actions = rng.uniform(-1, 1, (steps, 7))
            done = np.arange(steps) >= {"success": steps - 2, "end": steps - 1, "never": steps}[dones]
            demo.create_dataset("actions", data=actions, **storage)
            demo.create_dataset("states", data=rng.normal(size=(steps, 5)))
            demo.create_dataset("rewards", data=done.astype(np.float64), **storage)
            demo.create_dataset("dones", data=done.astype(np.int64), **storage)
            obs = {key: rng.normal(size=(steps + 1, width)) for key, width in LIFT_WIDTHS.items()}
            obs["robot0_joint_pos"] = rng.normal(size=(steps + 1, 7))
            for key, values in obs.items():
                demo.create_dataset(f"obs/{key}", data=values[:-1], **storage)
                if next_obs:
                    demo.create_dataset(f"next_obs/{key}", data=values[1:], **storage)
            joined = np.hstack([obs[key] for key in OBSERVATION_KEYS]).astype(np.float32)
            demos[name] = {"observations": joined, "actions": actions.astype(np.float32), "done": done}
        data.attrs["total"] = sum(lengths)
        data.attrs["env_args"] = json.dumps(env_args() if args is None else args, indent=4)
        for key, members in (masks or {}).items():
            file.create_dataset(f"mask/{key}", data=np.array([f"demo_{i}" for i in members], dtype="S"))
    return robomimic_steps([demos[name] for name in sorted(demos)])


def robomimic_steps(demos: list[dict[str, Any]]) -> dict[str, NDArray[Any]]:
    """The steps of demonstrations: reward -1, no bootstrap where done."""
    ends = [demo["done"] | (np.arange(len(demo["done"])) == len(demo["done"]) - 1) for demo in demos]
    steps = sum(map(len, ends))
    return {
        "observations": np.concatenate([demo["observations"][:-1] for demo in demos]),
        "actions": np.concatenate([demo["actions"] for demo in demos]),
        "rewards": np.full(steps, -1, dtype=np.float32),
        "masks": np.concatenate([1 - demo["done"].astype(np.float32) for demo in demos]),
        "ends": np.concatenate(ends),
        "next_observations": np.concatenate([demo["observations"][1:] for demo in demos]),
    }


def write_minari(
    folder: Path, lengths: list[int], low: float = -2.0, high: float = 1.0, seed: int = 0, action_space: Any = None
) -> Path:
    """A dataset written by Minari, with episodes that terminate and are truncated in turns.

    :param action_space: instead of that of `low` and `high`; the actions are of its shape, and between those
    :return: its directory
    """
    from gymnasium import spaces
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    space = spaces.Box(low, high, (ACT,), np.float32) if action_space is None else action_space
    storage = MinariStorage.new(folder, spaces.Box(-np.inf, np.inf, (OBS,), np.float64), space)
    storage.update_metadata({"dataset_id": "test/random-v0", "minari_version": "0.5.3"})
    storage.update_episodes(
        EpisodeBuffer(
            id=i,
            observations=rng.normal(size=(steps + 1, OBS)),
            actions=rng.uniform(low, high, (steps, *space.shape)).astype(np.float32),
            rewards=list(rng.normal(size=steps)),
            terminations=[t == steps - 1 and i % 2 == 0 for t in range(steps)],
            truncations=[t == steps - 1 and i % 2 == 1 for t in range(steps)],
            infos={},
        )
        for i, steps in enumerate(lengths)
    )
    return folder


def write_lerobot(folder: Path, columns: dict[str, NDArray[Any]], lengths: list[int], files: int = 1) -> Path:
    """A dataset in LeRobot's form without cameras.

    :param columns: (frames, ...) of all episodes, in their order
    :param lengths: frames of each episode
    :param files: to distribute the frames over, out of order
    """
    import pyarrow as pa
    from pyarrow import parquet

    episodes = np.repeat(np.arange(len(lengths)), lengths)
    steps = np.concatenate([np.arange(length) for length in lengths])
    table = pa.table(
        {name: list(values) for name, values in columns.items()}
        | {"episode_index": episodes, "frame_index": steps, "timestamp": (steps / 10).astype(np.float32)}
    )
    (folder / "data" / "chunk-000").mkdir(parents=True)
    order = np.random.default_rng(len(steps)).permutation(len(steps)) if files > 1 else np.arange(len(steps))
    for number, rows in enumerate(np.array_split(order, files)):
        parquet.write_table(table.take(rows), folder / "data" / "chunk-000" / f"file-{number:03d}.parquet")
    info = {
        "codebase_version": "v3.0",
        "fps": 10,
        "total_frames": len(steps),
        "total_episodes": len(lengths),
        "features": {name: {"dtype": "float32"} for name in table.column_names},
    }
    (folder / "meta").mkdir()
    (folder / "meta" / "info.json").write_text(json.dumps(info))
    return folder


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """A file cut short, or with some bytes changed."""
    if rng.random() < 0.3:
        return data[: int(rng.integers(0, len(data)))]
    changed = bytearray(data)
    for at in rng.integers(0, len(data), size=int(rng.integers(1, 9))):
        changed[at] ^= int(rng.integers(1, 256))
    return bytes(changed)


class HangError(BaseException):
    """Loading took too long."""


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise HangError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
