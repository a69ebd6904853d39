"""Minari's datasets, read by Minari."""

import json
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from sb3_flow.common.checks import extra
from sb3_flow.datasets.arrays import Array, check_shape, flag_array, float_array, scalable, scaled_actions
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.errors import DataError, missing_file, reading
from sb3_flow.datasets.hdf5 import check_stored
from sb3_flow.datasets.observations import Observations, concatenated, has_channels_last, length


def load_minari(name: str | Path, as_dict: bool = False) -> OfflineDataset:
    """Read a dataset by its id, downloaded by Minari if it is not there, or from its directory.

    Actions are scaled from the bounds of their space to [-1, 1], as SB3 does.

    :param name: e.g. "mujoco/hopper/medium-v0", or a directory with metadata.json and the data
    :param as_dict: keep Dict observations by their keys, for an environment that shows them; else they are joined as by
        gymnasium.wrappers.FlattenObservation
    :raises ValueError: for bad data of every kind, naming file, key and row
    :raises FileNotFoundError: saying what was looked for, where, and how to get it
    """
    try:
        import minari
    except ImportError as error:
        raise ImportError(f"Minari's datasets need it: {extra('minari')}") from error
    path = Path(name).expanduser()
    if not path.is_dir() and isinstance(name, Path):
        raise missing_file("Minari's data", [path], "Give the directory with metadata.json and the data.")
    if not path.is_dir():
        path = _download(str(name))
    _check_stored(path)
    with reading(path):
        data = minari.MinariDataset(path)
        action_space = data.action_space
    bounds = scalable(path, action_space)
    with reading(path):
        stated = int(data.storage.metadata["total_steps"])
        whole = _in_recorded_order(data.observation_space, _described(path))
        leaves = dict(whole.items()) if as_dict and isinstance(whole, spaces.Dict) else whole
        episodes = [_episode(path, episode, leaves, action_space) for episode in data]
        columns = list(zip(*episodes, strict=True))
    if not episodes:
        raise DataError(path, "episodes", "it has none")
    steps = sum(length(episode[0]) - 1 for episode in episodes)
    if steps != stated:
        raise DataError(path, "total_steps", f"the metadata say {stated} steps, but the episodes have {steps}")
    observations, (actions, rewards, masks, ends, is_step) = concatenated(columns[0]), map(np.concatenate, columns[1:])
    return OfflineDataset(observations, actions, rewards, masks, ends, is_step=is_step, source=path, scaled_by=bounds)


def _described(path: Path) -> Any:
    """The observation space as the metadata have it; None if they leave it to the environment."""
    space = json.loads((path / "metadata.json").read_bytes()).get("observation_space")
    return None if space is None else json.loads(space)


def _in_recorded_order(space: spaces.Space[Any], described: Any) -> spaces.Space[Any]:
    """A space whose keys have the environment's order, in which FlattenObservation joins them; Minari sorts them."""
    if not isinstance(space, spaces.Dict) or described is None:
        return space
    parts = described["subspaces"]
    return spaces.Dict(OrderedDict((key, _in_recorded_order(space[key], parts[key])) for key in parts))


def _download(name: str) -> Path:
    import minari
    from minari.storage import get_dataset_path

    with reading(name):
        path = Path(get_dataset_path(name)) / "data"
    if path.is_dir():
        return path
    how = f"Get it by: minari download {name}, and see: minari list remote"
    try:
        minari.download_dataset(name)
    except Exception as error:  # whatever fails, the remedy is the same
        raise missing_file(f"Minari's {name}", [path], how, error) from error
    return path


def _check_stored(path: Path) -> None:
    """Refuse damaged arrays, which Minari would read for hours; its other format needs no such check."""
    file_path = path / "main_data.hdf5"
    if not file_path.is_file():
        return
    import h5py

    def check(key: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            check_stored(file_path, key, item)

    with reading(file_path), h5py.File(file_path, "r") as file:
        file.visititems(check)


def _episode(
    path: Path,
    episode: Any,
    observation_space: spaces.Space[Any] | dict[str, spaces.Space[Any]],
    action_space: spaces.Box,
) -> tuple[Observations, Array, Array, Array, Array, Array]:
    """Observations, actions, rewards, masks, ends, and which rows are steps, in T + 1 rows: the last has no action."""
    prefix = f"episode_{episode.id}"
    rewards = float_array(path, f"{prefix}/rewards", episode.rewards)
    steps = len(rewards)
    if steps == 0:
        raise DataError(path, f"{prefix}/rewards", "the episode has no steps")
    check_shape(path, f"{prefix}/rewards", rewards, (steps,))
    raw = float_array(path, f"{prefix}/actions", episode.actions)
    check_shape(path, f"{prefix}/actions", raw, (steps, *action_space.shape))
    actions = scaled_actions(path, f"{prefix}/actions", raw, action_space, "the data's own space", "clip it")
    terminated = flag_array(path, f"{prefix}/terminations", episode.terminations, steps)
    truncated = flag_array(path, f"{prefix}/truncations", episode.truncations, steps)
    if not (terminated[-1] or truncated[-1]):
        raise DataError(path, f"{prefix}/terminations", "the episode never ends", steps - 1)
    name, shown = f"{prefix}/observations", episode.observations
    if isinstance(observation_space, dict):
        items = observation_space.items()
        observations: Observations = {
            key: _channels_first(_observations(path, f"{name}/{key}", shown[key], part, steps), part)
            for key, part in items
        }
    else:
        whole = _observations(path, name, shown, observation_space, steps)
        observations = _channels_first(whole, observation_space)
    row = ((0, 1), *((0, 0),) * (actions.ndim - 1))
    is_step = np.arange(steps + 1) < steps
    ends = np.append(terminated | truncated, False)
    return observations, np.pad(actions, row), np.append(rewards, 0), np.append(~terminated, True), ends, is_step


def _channels_first(array: Array, space: spaces.Space[Any]) -> Array:
    """Images as SB3's policies see them."""
    return np.ascontiguousarray(array.transpose(0, 3, 1, 2)) if has_channels_last(space) else array


def _observations(path: Path, key: str, values: Any, space: spaces.Space[Any], steps: int) -> Array:
    """Observations of T + 1 moments as float32 vectors, or as uint8 images."""
    if isinstance(space, spaces.Dict):
        parts = [_observations(path, f"{key}/{name}", values[name], part, steps) for name, part in space.items()]
        return np.hstack([part.reshape(len(part), -1) for part in parts])
    if not isinstance(space, spaces.Box):
        raise DataError(path, key, f"the space is {space}; only numbers, and Dicts of them, can be read")
    array: Array = np.asarray(values)
    array = array if array.dtype == np.uint8 else float_array(path, key, array)
    check_shape(path, key, array, (None, *space.shape))
    if len(array) != steps + 1:
        raise DataError(path, key, f"it has {len(array)} rows, but {steps} steps need {steps + 1}")
    return array
