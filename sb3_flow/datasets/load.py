"""From whatever names offline data to the data."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_flow.common.checks import require_choice
from sb3_flow.datasets.dataset import Dataset, OfflineDataset, ShardedDataset, from_arrays
from sb3_flow.datasets.errors import missing_file
from sb3_flow.datasets.fits import check_seen
from sb3_flow.datasets.lerobot import find_lerobot, load_lerobot
from sb3_flow.datasets.lerobot_files import INFO
from sb3_flow.datasets.minari import load_minari
from sb3_flow.datasets.ogbench import find_ogbench, load_ogbench
from sb3_flow.datasets.replay import from_replay_buffer
from sb3_flow.datasets.robomimic import KINDS, find_robomimic, load_robomimic

Space = spaces.Space[Any]
DatasetSpec = Dataset | Mapping[str, Any] | ReplayBuffer | str | PathLike[str]


class Spaces(NamedTuple):
    """Of the environment that data are of, as far as they are known."""

    observations: Space | None
    actions: Space | None

    @property
    def are_dict(self) -> bool:
        return isinstance(self.observations, spaces.Dict)


FORMS = (
    '"ogbench:cube-double-play-singletask-task2-v0", "robomimic:lift/mh", "robomimic:lift/mh/<filter key>", '
    '"minari:mujoco/hopper/medium-v0", "lerobot:<user>/<name>", each with "@/path" behind it if the data are '
    "elsewhere; or a path"
)


def load_dataset(
    spec: DatasetSpec, observation_space: Space | None = None, action_space: Space | None = None
) -> Dataset:
    """Load offline data.

    :param spec: a path: an npz file with rewards, a directory of them, a Robomimic HDF5 file, Minari's or LeRobot's
        directory; a string "suite:name" or "suite:name@path" with the suites ogbench, robomimic, minari and lerobot; a
        dict of arrays under OGBench's names; a replay buffer of SB3, as it is now; or a dataset, which is returned as
        it is
    :param observation_space: of the environment; of a Dict Minari's observations are kept by their keys, and LeRobot's
        looked for by them. None: they are joined
    :param action_space: of the environment, by whose bounds LeRobot's actions are scaled. None: they are in [-1, 1]
    :raises ValueError: for an unknown form, and for bad data of every kind, naming file, key and row
    :raises FileNotFoundError: saying what was looked for, where, and how to get it
    """
    if isinstance(spec, (OfflineDataset, ShardedDataset)):
        return spec
    if isinstance(spec, Mapping):
        return from_arrays(spec)
    if isinstance(spec, ReplayBuffer):
        return from_replay_buffer(spec)
    if not isinstance(spec, (str, PathLike)) or spec == "":  # as a path "" would be the working folder
        name = getattr(spec, "id", "") if type(spec).__module__.partition(".")[0] == "minari" else ""
        remedy = f'give "minari:{name}"' if name else f"give {FORMS}, a dict of arrays, a replay buffer, or a dataset"
        raise ValueError(f"offline_dataset={spec!r} is not allowed: {remedy}")
    text = str(spec)
    suite, colon, rest = text.partition(":")
    if not (colon and suite in LOADERS):
        return _load_path(Path(text).expanduser(), Spaces(observation_space, action_space))
    name, _, path = rest.partition("@")
    return LOADERS[suite](name, Path(path) if path else None, Spaces(observation_space, action_space))


def load_fitting(spec: DatasetSpec, observation_space: Space, action_space: Space, horizon_length: int) -> Dataset:
    """Load offline data that a model is to learn from.

    :param spec: see `load_dataset`, also for what is raised
    :param observation_space: of the model
    :param action_space: of the model
    :param horizon_length: h of the model
    :raises DataError: if they are of another environment, or have no h steps in a row
    """
    dataset = load_dataset(spec, observation_space, action_space)
    check_seen(dataset, observation_space, action_space)
    dataset.check_chunks(horizon_length)
    return dataset


def _load_ogbench(name: str, path: Path | None, of: Spaces) -> Dataset:
    return load_ogbench(find_ogbench(name) if path is None else path, task=name)


def _load_robomimic(name: str, path: Path | None, of: Spaces) -> Dataset:
    task, _, kind = name.partition("/")
    kind, _, filter_key = kind.partition("/")
    if not kind:
        raise ValueError(f'offline_dataset="robomimic:{name}" is not allowed: write it like "robomimic:lift/mh"')
    require_choice("dataset type", kind, KINDS)  # a filter key in its place would load everything
    return load_robomimic(find_robomimic(task, kind) if path is None else path, task, filter_key or None)


def _load_minari(name: str, path: Path | None, of: Spaces) -> Dataset:
    if not name and path is None:
        raise ValueError(
            'offline_dataset="minari:" is not allowed: write it like "minari:mujoco/hopper/medium-v0", or '
            '"minari:@/path/to/the/data"'
        )
    return load_minari(name if path is None else path, of.are_dict)


def _load_lerobot(name: str, path: Path | None, of: Spaces) -> Dataset:
    if not name and path is None:
        raise ValueError(
            'offline_dataset="lerobot:" is not allowed: write it like "lerobot:<user>/<name>", or '
            '"lerobot:@/path/to/the/data"'
        )
    return load_lerobot(find_lerobot(name) if path is None else path, of.observations, of.actions)


LOADERS = {"ogbench": _load_ogbench, "robomimic": _load_robomimic, "minari": _load_minari, "lerobot": _load_lerobot}


def _load_path(path: Path, of: Spaces) -> Dataset:
    if path.suffix == ".npz" or (path.is_dir() and any(path.glob("*.npz"))):
        return load_ogbench(path)
    if path.suffix in (".hdf5", ".h5"):
        return load_robomimic(path)
    if (path / INFO).is_file():
        return load_lerobot(path, of.observations, of.actions)
    above = next((parent for parent in path.absolute().parents if (parent / INFO).is_file()), None)
    if above is not None:
        raise ValueError(f"offline_dataset={str(path)!r} is not allowed: of LeRobot's dataset give {str(above)!r}")
    if path.is_dir():
        inner = path / "data"
        return load_minari(inner if inner.is_dir() else path, of.are_dict)
    if path.exists():
        raise ValueError(
            f"offline_dataset={str(path)!r} is not allowed: a file ends in .npz (OGBench's form), or in .hdf5 or .h5 "
            "(Robomimic's); for Minari's main_data.hdf5 give its directory"
        )
    beside = path.with_name(f"{path.name}.npz")
    if beside.exists():
        raise ValueError(f"offline_dataset={str(path)!r} is not allowed: there is {str(beside)!r}; give that")
    raise missing_file(f"The dataset {str(path)!r}", [path], f"What can be loaded: {FORMS}.")
