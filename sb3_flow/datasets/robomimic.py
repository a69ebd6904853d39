"""Robomimic's low-dimensional HDF5 files, official or in their form, of robosuite 1.4 and 1.5."""

import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from sb3_flow.common.checks import extra, require_choice
from sb3_flow.datasets.arrays import (
    STEP_REWARD,
    Array,
    bounded_actions,
    check_dtype,
    check_shape,
    flag_array,
    float_array,
)
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.errors import DataError, missing_array, missing_file, reading
from sb3_flow.datasets.hdf5 import check_stored
from sb3_flow.datasets.observations import Keys, Observations, concatenated, each, length, listed, parts

DATA_DIR = Path("~/.robomimic")
FILES = ("low_dim_v15.hdf5", "low_dim_v141.hdf5", "low_dim.hdf5")
OBSERVATION_KEYS = ("robot0_eef_pos", "robot0_eef_quat", "robot0_gripper_qpos", "object")
KINDS = ("ph", "mh")
ENVIRONMENTS = {"lift": "Lift", "can": "PickPlaceCan", "square": "NutAssemblySquare"}
DEMO = re.compile(r"demo_(\d+)")


def load_robomimic(
    path: str | Path,
    task: str | None = None,
    filter_key: str | None = None,
    observation_keys: Keys = OBSERVATION_KEYS,
) -> OfflineDataset:
    """Read demonstrations: reward -1 a step, no bootstrap where `dones` is 1. Rewards in the file are not used.

    :param path: an HDF5 file with data/demo_<i>/{actions,dones,obs,next_obs}
    :param task: "lift", "can" or "square", to be sure that it is that one's data; None accepts any
    :param filter_key: load only the demos listed in mask/<filter_key>; None loads all
    :param observation_keys: what an observation is made of, in this order; of a Dict space a dict that says it of each
        key. Images, which are uint8 (frames, height, width, channels) in the file, become channels first
    :raises ValueError: for bad data of every kind, naming file, key and row
    :raises FileNotFoundError: if there is no such file
    """
    path = Path(path).expanduser()
    if task is not None:
        require_choice("task", task, list(ENVIRONMENTS))
    keys = listed(observation_keys)
    with _open(path) as file:
        if task is not None:
            _check_task(path, task, _env_args(path, file))
        names = _demo_names(path, file, filter_key)
        demos = [_read_demo(path, file["data"][name], name, keys) for name in names]
        _check_widths(path, file["data"], names, [key for part in parts(keys).values() for key in part])
        _warn_of_rewards(path, file["data"], names)
    with reading(path):
        shown, *columns = zip(*demos, strict=True)
        observations = concatenated(shown)
        actions, masks, ends, is_step = map(np.concatenate, columns)
        del demos, shown  # images are large
    if masks.all():
        warnings.warn(
            f"{path}: no demo has a step with dones = 1, so that no step solves the task, and there is nothing to "
            "learn but to do as the data. Set dones to 1 where it is solved.",
            stacklevel=2,
        )
    rewards = np.full(len(actions), STEP_REWARD, dtype=np.float32)
    return OfflineDataset(observations, actions, rewards, masks, ends, is_step=is_step, source=path)


def find_robomimic(task: str, kind: str, data_dir: Path = DATA_DIR) -> Path:
    """The file with a task's demonstrations, downloaded by robomimic if that is installed and the file is not there.

    :param task: "lift", "can" or "square"
    :param kind: "ph" (proficient human) or "mh" (multi-human)
    :param data_dir: where files are looked for, as <task>/<kind>/low_dim*.hdf5
    :raises FileNotFoundError: saying what was looked for, where, and how to get it
    :raises ValueError: for another task or kind
    """
    data_dir = data_dir.expanduser()
    require_choice("task", task, list(ENVIRONMENTS))
    require_choice("dataset type", kind, KINDS)
    looked = [folder / task / kind / name for name in FILES for folder in (data_dir, data_dir / "v1.5")]
    found = next(filter(Path.is_file, looked), None)
    if found is not None:
        return found
    cause = None
    if importlib.util.find_spec("robomimic") is not None:
        command = [
            sys.executable,
            "-m",
            "robomimic.scripts.download_datasets",
            "--tasks",
            task,
            "--dataset_types",
            kind,
        ]
        try:
            subprocess.run([*command, "--hdf5_types", "low_dim", "--download_dir", str(data_dir)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            cause = error
        found = next(filter(Path.is_file, looked), None)
        if found is not None:
            return found
    how = (
        f"Get it from https://robomimic.github.io/docs/datasets/robomimic_v0.1.html into {looked[0].parent}, or "
        f"generate data, and name its place: robomimic:{task}/{kind}@/path/to/low_dim.hdf5"
    )
    raise missing_file(f"Robomimic's {task}/{kind}", looked, how, cause) from cause


def read_env_args(path: str | Path) -> dict[str, Any]:
    """What the demonstrations' environment was made with, in the form that robosuite 1.5 takes.

    :param path: an HDF5 file
    :return: env_name, env_version, env_kwargs, ...; a flat controller of robosuite 1.4 is nested
    :raises ValueError: if they are missing or damaged
    :raises FileNotFoundError: if there is no such file
    """
    path = Path(path).expanduser()
    with _open(path) as file:
        env_args = deepcopy(_env_args(path, file))
    kwargs = env_args["env_kwargs"]
    controller = kwargs.get("controller_configs")
    if isinstance(controller, dict) and "body_parts" not in controller:
        arm = controller | {"gripper": {"type": "GRIP"}}
        kwargs["controller_configs"] = {"type": "BASIC", "body_parts": {"right": arm}}
    return env_args


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        import h5py
    except ImportError as error:
        raise ImportError(f"Robomimic's files need h5py: {extra('robomimic')}") from error
    if not path.is_file():
        raise missing_file(
            "A Robomimic file", [path], 'Name the data, e.g. "robomimic:lift/mh", to be told how to get it.'
        )
    with reading(path), h5py.File(path, "r") as file:
        yield file


def _env_args(path: Path, file: Any) -> dict[str, Any]:
    key = "data.attrs[env_args]"
    with reading(path, key):
        env_args = json.loads(file["data"].attrs["env_args"])
    if not (isinstance(env_args, dict) and isinstance(env_args.get("env_kwargs"), dict)):
        raise DataError(path, key, "it must be a JSON object with env_name and env_kwargs")
    return env_args


def _check_task(path: Path, task: str, env_args: dict[str, Any]) -> None:
    if env_args.get("env_name") != ENVIRONMENTS[task]:
        problem = f"the demonstrations are of {env_args.get('env_name')!r}, but {task!r} is {ENVIRONMENTS[task]!r}"
        raise DataError(path, "data.attrs[env_args]", problem)


def _demo_names(path: Path, file: Any, filter_key: str | None) -> list[str]:
    """The demos to load, demo_2 before demo_10."""
    if "data" not in file:
        raise DataError(path, "data", "it is missing")
    present = list(file["data"])
    names = present
    if filter_key is not None:
        key = f"mask/{filter_key}"
        if key not in file:
            raise DataError(path, key, f"there is no such filter; there are {list(file.get('mask', ())) or 'none'}")
        with reading(path, key):
            names = [bytes(name).decode() for name in file[key][()]]
    for name in names:
        if DEMO.fullmatch(name) is None or name not in present:
            raise DataError(
                path, f"data/{name}", "it is no demo" if name in present else "a filter names it; it is missing"
            )
    if not names:
        raise DataError(path, "data", "it has no demos")
    _check_total(path, file["data"], present)
    return sorted(names, key=lambda name: int(name.removeprefix("demo_")))


def _check_total(path: Path, data: Any, names: list[str]) -> None:
    """Notice demos that have vanished."""
    with reading(path, "data.attrs[total]"):
        total = data.attrs.get("total")
        steps = sum(int(data[name].attrs["num_samples"]) for name in names) if total is not None else None
    if total != steps:
        raise DataError(
            path, "data.attrs[total]", f"it says {total} steps, but the demos' num_samples add up to {steps}"
        )


def _read_demo(
    path: Path, demo: Any, name: str, keys: list[str] | dict[str, list[str]]
) -> tuple[Observations, Array, Array, Array, Array]:
    """Observations, actions, masks, ends, and which rows are steps, in T + 1 rows: the last has no action."""
    prefix = f"data/{name}"
    actions = bounded_actions(path, f"{prefix}/actions", _read(path, demo, prefix, "actions"))
    frames = len(actions) if actions.ndim == 2 else 0
    if frames == 0:
        raise DataError(path, f"{prefix}/actions", f"it has shape {actions.shape}: the demo has no frames")
    stated = demo.attrs.get("num_samples", frames)
    if stated != frames:
        raise DataError(path, f"{prefix}/actions", f"it has {frames} frames, but the demo's num_samples is {stated}")
    done = flag_array(path, f"{prefix}/dones", _read(path, demo, prefix, "dones"), frames)
    observations = each(lambda part: _joined(path, demo, prefix, part, frames, bool(done[-1])), keys)
    rows = length(observations)
    is_step = np.arange(rows) < rows - 1
    ends = np.arange(rows) == rows - 2
    ends[:frames] |= done
    masks = np.ones(rows, dtype=np.bool_)
    masks[:frames] = ~done
    return observations, np.pad(actions, ((0, rows - frames), (0, 0))), masks, ends, is_step


def _warn_of_rewards(path: Path, data: Any, names: list[str]) -> None:
    """Point out what a reward of -1 a step does not say."""
    shaped = failed = 0
    for name in names:
        if "rewards" not in data[name]:
            continue
        rewards = float_array(path, f"data/{name}/rewards", _read(path, data[name], f"data/{name}", "rewards"))
        shaped += bool(((rewards != 0) & (rewards != 1)).any())
        failed += bool(data[name]["dones"][-1] == 1 and not (rewards > 0).any())
    if shaped:
        warnings.warn(
            f"{path}: the rewards of {shaped} of {len(names)} demos are not 0 or 1, and are not used: a step costs 1. "
            "To learn from them, give arrays (docs/own_data.md).",
            stacklevel=3,
        )
    if failed:
        warnings.warn(
            f"{path}: {failed} of {len(names)} demos end with dones = 1 and never had a reward. They are learned from "
            "as successes; if they failed, set their dones to 0.",
            stacklevel=3,
        )


def _check_widths(path: Path, data: Any, names: list[str], keys: Sequence[str]) -> None:
    """Refuse demos whose actions or observations are not those of one environment."""
    for key in ("actions", *(f"obs/{key}" for key in keys)):
        wanted = data[names[0]][key].shape[1:]
        for name in names:
            width = data[name][key].shape[1:]
            if width != wanted:
                ours, first = ("x".join(map(str, shape)) for shape in (width, wanted))
                problem = f"its rows have {ours} numbers, those of data/{names[0]} {first}"
                raise DataError(path, f"data/{name}/{key}", problem)


def _joined(path: Path, demo: Any, prefix: str, keys: Sequence[str], frames: int, terminal: bool) -> Array:
    """Vectors side by side, or images by their channels."""
    found = [_observations(path, demo, prefix, key, frames, terminal) for key in keys]
    shapes = {array.shape[2:] for array in found}
    if len(shapes) != 1:
        problem = f"it has {', '.join(keys)}, which are not of one size; give a dict, {{key: [these], other: [those]}}"
        raise DataError(path, f"{prefix}/obs", problem)
    return np.concatenate(found, axis=1)


def _observations(path: Path, demo: Any, prefix: str, key: str, frames: int, terminal: bool) -> Array:
    """One part of the observations and after them the final one; without it if the file has none and it is needed."""
    obs_key, next_key = f"obs/{key}", f"next_obs/{key}"
    obs = _vectors_or_images(path, f"{prefix}/{obs_key}", _read(path, demo, prefix, obs_key), frames)
    if "next_obs" not in demo:
        return np.concatenate([obs, obs[-1:]]) if terminal else obs
    after = _vectors_or_images(path, f"{prefix}/{next_key}", _read(path, demo, prefix, next_key), frames)
    check_shape(path, f"{prefix}/{next_key}", after, obs.shape)
    differs = (after[:-1] != obs[1:]).any(axis=tuple(range(1, obs.ndim)))
    if differs.any():
        problem = f"it differs from the following row of obs/{key}: one is damaged; else pass the data as arrays"
        raise DataError(path, f"{prefix}/{next_key}", problem, int(differs.argmax()))
    return np.concatenate([obs, after[-1:]])


def _vectors_or_images(path: Path, key: str, array: Array, frames: int) -> Array:
    """(frames, numbers) float32, or (frames, channels, height, width) uint8."""
    if array.dtype == np.uint8 and array.ndim == 4:
        check_shape(path, key, array, (frames, None, None, None))
        if array.shape[3] not in (1, 3, 4):
            raise DataError(path, key, f"it has shape {array.shape}; images have their 1, 3 or 4 channels last here")
        return np.ascontiguousarray(array.transpose(0, 3, 1, 2))
    if array.ndim == 4:
        raise DataError(path, key, f"it has shape {array.shape} and is {array.dtype}; images are uint8")
    vectors = float_array(path, key, array)
    check_shape(path, key, vectors, (frames, None))
    return vectors


def _read(path: Path, demo: Any, prefix: str, key: str) -> Array:
    if key not in demo:
        group = key.partition("/")[0]
        parts = demo[group] if isinstance(demo.get(group), Mapping) else ()
        advice = "; load_robomimic takes others as observation_keys" if parts else ""
        raise missing_array(path, f"{prefix}/{key}", [f"{group}/{part}" for part in parts] or demo, advice)
    with reading(path, f"{prefix}/{key}"):
        check_dtype(path, f"{prefix}/{key}", demo[key].dtype)
        check_stored(path, f"{prefix}/{key}", demo[key])
        array: Array = demo[key][()]
        return array
