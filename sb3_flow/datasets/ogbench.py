"""OGBench's npz files and directories of them, relabelled for a task by ogbench itself."""

import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np

from sb3_flow.common.checks import extra, require
from sb3_flow.datasets.arrays import BOUNDS, Array, action_bounds, check_finite, check_shape, flag_array
from sb3_flow.datasets.dataset import Dataset, Extent, OfflineDataset, ShardedDataset
from sb3_flow.datasets.errors import DataError, missing_file, reading
from sb3_flow.datasets.fits import check_fits
from sb3_flow.datasets.npz import NpzReader
from sb3_flow.datasets.observations import Observations, length, named, whole

DATA_DIR = Path("~/.ogbench/data")
ACTION_LIMIT = 1 - 1e-5  # the papers' clipping
URL = "https://rail.eecs.berkeley.edu/datasets/ogbench"
KINDS = "play|noisy|navigate|stitch|explore"
TASK = re.compile(
    rf"(?P<env>[a-z0-9-]+?)(?P<sparse>-sparse)?-(?P<kind>{KINDS})(?P<size>-\d+[mb])?-singletask(?P<task>-task\d)?-v0"
)
# Relabelling reads these, and no more
STATE_KEYS = ("qpos", "button_states")
PUBLISHED = "qpos"  # tells the published form, T + 1 rows an episode, from a regular one without next observations
LABEL_ROWS = 1 << 16
ELSEWHERE = (
    "Give an npz file, or a directory; of a model that was saved elsewhere as offline_dataset of `load` or `resume`."
)


def load_ogbench(path: str | Path, task: str | None = None, rotate_every: int = 1000) -> Dataset:
    """Read OGBench data: a file as published, one in ogbench's regular or compact form, or a directory of them.

    :param path: an npz file, or a directory, whose files take turns, but for those that end in -val.npz
    :param task: e.g. "cube-double-play-singletask-task2-v0", for rewards and masks; None takes those in the file. With
        "-sparse" before the kind of data ("scene-sparse-play-...") a step costs 1, however many subgoals are reached
    :param rotate_every: updates until the next file of a directory
    :raises ValueError: for another task's data, and bad data of every kind, naming file, key and row
    :raises FileNotFoundError: if there is no such file, or none in the directory
    """
    path = Path(path).expanduser()
    load = partial(_load_file, task=None if task is None else _Task(task))
    if path.is_file():
        return load(path)
    shards = sorted(file for file in path.glob("*.npz") if not file.stem.endswith("-val"))
    if not shards:
        raise missing_file(f"The dataset {str(path)!r}", [path, path / "*.npz"], ELSEWHERE)
    return load(shards[0]) if len(shards) == 1 else ShardedDataset(shards, load, measure, rotate_every)


def find_ogbench(task: str, data_dir: Path = DATA_DIR) -> Path:
    """The file or directory with a task's data, downloaded by ogbench if it is not there.

    :param task: e.g. "cube-double-play-singletask-task2-v0"; "cube-quadruple-play-100m-singletask-v0" is a directory
    :param data_dir: where ogbench keeps its files
    :raises FileNotFoundError: saying what was looked for, where, and how to get it
    :raises ValueError: for a name that is no task's
    """
    parts = _parse(task)
    name = f"{parts['env']}-{parts['kind']}{parts['size'] or ''}-v0"
    data_dir = data_dir.expanduser()
    file, directory = data_dir / f"{name}.npz", data_dir / name
    if file.is_file():
        return file
    if directory.is_dir():
        return directory
    if parts["size"]:
        how = f'Get it by: wget -r -np -nH --cut-dirs=2 -A "*.npz" -P {data_dir} {URL}/{name}/'
        raise missing_file(f"OGBench's {name}", [directory], how)
    how = f"Get {URL}/{name}.npz by hand, or generate data, and name its place: ogbench:{task}@/path/to/data.npz"
    try:
        import ogbench

        ogbench.download_datasets([name], str(data_dir))
    except Exception as error:  # whatever fails, from a missing package to a missing network, the remedy is the same
        raise missing_file(f"OGBench's {name}", [file, directory], how, error) from error
    return file


def env_id(task: str) -> str:
    """Gymnasium id of a task's environment in ogbench, after `import ogbench`.

    :param task: e.g. "cube-double-play-singletask-task2-v0"
    """
    parts = _parse(task)
    return f"{parts['env']}-singletask{parts['task'] or ''}-v0"


def measure(path: Path) -> Extent:
    """Extent of a file, from its headers and its marks of trajectories' ends; the number of rows is checked on the way.

    :param path: an npz file
    :raises ValueError: if an array is missing or of another length
    """
    with NpzReader(path) as file:
        _check_layout(path, file)
        _check_single_layout(path, file)
        names = _observation_names(file)
        shapes = {key: file.header(name).shape for key, name in names.items()}
        rows = next(iter(shapes.values()))[:1]
        for key, shape in shapes.items():
            if len(shape) < 2 or shape[:1] != rows:
                raise DataError(path, names[key], f"it has shape {shape}, not ({rows[0] if rows else 'steps'}, ...)")
        actions, terminals = (file.header(key).shape for key in ("actions", "terminals"))
        for key, other, fits in (("actions", actions, len(actions) > 1), ("terminals", terminals, len(terminals) == 1)):
            if other[:1] != rows or not fits:
                raise DataError(path, key, f"it has shape {other}, but there are {rows[0]} observations")
        steps = rows[0]
        if "valids" in file:
            steps = int(flag_array(path, "valids", file.read("valids"), steps).sum())
        elif not _holds_next(file):
            steps -= int(flag_array(path, "terminals", file.read("terminals"), steps).sum())
        of_one = {key: shape[1:] for key, shape in shapes.items()}
        types = {key: np.dtype(dtype) for key, dtype in _dtypes(file).items()}
        return Extent(steps, whole(of_one), whole(types), math.prod(actions[1:]))


def _check_layout(path: Path, file: NpzReader) -> None:
    """Refuse data whose next observations were left out: read as published, each episode would lose its last step."""
    if not (_holds_next(file) or "valids" in file or PUBLISHED in file):
        problem = (
            "give it, the observation after each row's action, or valids (OGBench's compact form); only files as "
            f"OGBench publishes them, which hold {PUBLISHED}, go without"
        )
        raise DataError(path, "next_observations", problem)


def _check_final_rows(path: Path, rewards: Array, masks: Array, final: Array) -> None:
    """Refuse a regular file that a robot's qpos makes look like a published one: it would lose its last steps."""
    if not rewards.shape == masks.shape == final.shape:  # which the dataset refuses by name
        return
    lost = final & ((rewards != 0) | (masks != 1))
    if lost.any():
        problem = (
            f"give it: a file with {PUBLISHED} and without it is read as OGBench publishes them, where a row with "
            f"terminals = 1 only holds the final observation, but row {lost.argmax()} has a reward, or a mask of 0"
        )
        raise DataError(path, "next_observations", problem)


def _check_single_layout(path: Path, file: NpzReader) -> None:
    """Refuse both layouts at once: it would not be known which rows are steps."""
    if _holds_next(file) and "valids" in file:
        raise DataError(path, "next_observations", "give it, or valids (OGBench's compact form), and not both")


def _parse(task: str) -> dict[str, str | None]:
    match = TASK.fullmatch(task)
    require(match is not None, "task", task, 'write it like "cube-double-play-singletask-task2-v0"')
    assert match is not None
    return match.groupdict()


class _Task:
    """Makes rewards and masks from simulator states by ogbench's own code.

    :param name: e.g. "cube-double-play-singletask-task2-v0"
    """

    def __init__(self, name: str):
        self.env_id = env_id(name)
        self.sparse = _parse(name)["sparse"] is not None
        try:
            import ogbench  # noqa: F401 (registers the environments)
            from ogbench.relabel_utils import relabel_dataset
        except ImportError as error:
            raise ImportError(f"Rewards of OGBench's tasks need ogbench: {extra('ogbench')}") from error
        self._relabel = relabel_dataset
        try:
            self.env = gym.make(self.env_id)
        except gym.error.Error as error:
            raise ValueError(f"task={name!r} is not allowed: ogbench has no environment {self.env_id}") from error
        # The reset sets the goal; it stays the same for all rows and files
        self.env.reset()
        self._at_goal = SimpleNamespace(unwrapped=self.env.unwrapped, reset=lambda: None)

    def label(self, path: Path, file: NpzReader, rows: int) -> tuple[Array, Array]:
        """Rewards and masks of all rows."""
        states = {key: file.read(key) for key in STATE_KEYS if key in file or key == "qpos"}
        for key, values in states.items():
            check_shape(path, key, values, (rows, None))
            check_finite(path, key, values)
        env: Any = self.env.unwrapped
        # Manipulation's simulator state is private, locomotion's is not
        simulator = env._data if hasattr(env, "_data") else env.data
        check_shape(path, "qpos", states["qpos"], (rows, len(simulator.qpos)))
        rewards, masks = np.empty(rows, dtype=np.float32), np.empty(rows, dtype=np.float32)
        # In parts: ogbench's code makes temporary arrays as large as its input
        for start in range(0, rows, LABEL_ROWS):
            part = slice(start, start + LABEL_ROWS)
            block = {key: values[part] for key, values in states.items()}
            with reading(path, " and ".join(states)):
                self._relabel(self.env_id, self._at_goal, block)
            rewards[part], masks[part] = block["rewards"], block["masks"]
        if self.sparse:
            rewards = -(rewards != 0).astype(np.float32)
        return rewards, masks


def _load_file(path: Path, task: _Task | None) -> OfflineDataset:
    with NpzReader(path) as file:
        observations = _read_observations(file, "observations")
        rows = length(observations)
        _check_single_layout(path, file)
        if task is None:  # a task needs qpos itself
            _check_layout(path, file)
        ends = flag_array(path, "terminals", file.read("terminals"), rows)
        is_step = following = final = None
        if _holds_next(file):
            following = _read_observations(file, "next_observations")
        elif "valids" in file:
            is_step = file.read("valids")
        else:
            # As published: the mark is on the row after the last step
            final = ends
            is_step, ends = ~final, np.append(final[1:], False)
        if task is not None:
            rewards, masks = task.label(path, file, rows)
        elif "rewards" in file:
            rewards, masks = file.read("rewards", np.float32), file.read("masks")
            if final is not None:
                _check_final_rows(path, rewards, masks, final)
        else:
            raise DataError(path, "rewards", "it is missing; name a task to make it: ogbench:<task>@<this path>")
        actions = file.read("actions", np.float32)
        bounds = {key: file.read(key) for key in BOUNDS if key in file}
        dataset = OfflineDataset(
            observations,
            actions,
            rewards,
            masks,
            ends,
            following,
            is_step,
            source=path,
            names={"ends": "terminals", "is_step": "valids"},
            action_limit=ACTION_LIMIT,
            scaled_by=action_bounds(path, bounds, actions.shape[1:]),
        )
    if task is not None:
        check_fits(dataset, task.env.observation_space, task.env.action_space, f"environment of {task.env_id}")
    return dataset


def _observation_names(file: NpzReader, name: str = "observations") -> dict[str, str]:
    """The arrays by key; "" is that of one array alone."""
    return named(file.path, file.keys(), name) or {"": name}  # reading it says what is missing


def _dtypes(file: NpzReader) -> dict[str, type[np.generic]]:
    """What the observations are read as, by key: images as they are."""
    names = _observation_names(file).items()
    return {key: np.uint8 if file.header(name).dtype == np.uint8 else np.float32 for key, name in names}


def _read_observations(file: NpzReader, name: str) -> Observations:
    dtypes = _dtypes(file)
    return whole({key: file.read(full, dtypes.get(key)) for key, full in _observation_names(file, name).items()})


def _holds_next(file: NpzReader) -> bool:
    return len(named(file.path, file.keys(), "next_observations")) > 0
