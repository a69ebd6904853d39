"""LeRobot's datasets, of formats 2 and 3."""

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from sb3_flow.common.checks import extra, require
from sb3_flow.datasets.arrays import (
    STEP_REWARD,
    Array,
    bounded_actions,
    check_shape,
    flag_array,
    float_array,
    scalable,
    scaled_actions,
)
from sb3_flow.datasets.dataset import OfflineDataset
from sb3_flow.datasets.errors import DataError, missing_file
from sb3_flow.datasets.lerobot_files import INFO, Recording
from sb3_flow.datasets.observations import Keys, as_seen, leaves, listed, parts, whole

PREFIX = "observation."
# What LeRobot calls the observations that Gymnasium's environments show under these names
THEIR_NAMES = {"agent_pos": "state", "pixels": "image"}
REWARD, SUCCESS, DONE, TRUNCATED = "next.reward", "next.success", "next.done", "next.truncated"


class Task(NamedTuple):
    """What a recording says of the task, (N,) each."""

    rewards: NDArray[np.float32]
    terminal: NDArray[np.bool_]


class Rows(NamedTuple):
    """Where the frames go: behind a terminal end of an episode its last frame stands again, which is no step."""

    frame: NDArray[np.intp]  # (R,) which one is there
    is_step: NDArray[np.bool_]  # (R,)
    ends: NDArray[np.bool_]  # (R,)


def load_lerobot(
    path: str | Path,
    observation_space: spaces.Space[Any] | None = None,
    action_space: spaces.Space[Any] | None = None,
    observation_keys: Keys | None = None,
    action_key: str = "action",
    episodes: Iterable[int] | None = None,
    demonstrations: bool | None = None,
    terminal: str | None = None,
) -> OfflineDataset:
    """Read a LeRobot dataset.

    The reward is `next.reward`; where that was not recorded, a step costs 1. LeRobot keeps no observation after an
    episode's last step, which is left out therefore if it is not terminal.

    :param path: a directory with meta/info.json
    :param observation_space: that the model sees, or of the environment: of a Dict each key's observation is looked for
        by its name, and pictures are brought to its size, channels first. None: vectors side by side
    :param action_space: of the environment, in whose units the actions are: its bounds become -1 and 1. None if they
        are in [-1, 1] already
    :param observation_keys: what an observation is made of, in this order, e.g. ["observation.state"]; of a Dict space
        a dict that says it of each key
    :param action_key: the actions
    :param episodes: those to read, by their numbers; None for all
    :param demonstrations: whether every episode ends in success: then a step costs 1, the last one is terminal, and
        what else was recorded of the task is not read. None: if nothing was
    :param terminal: the column that is not 0 where a step ended in a terminal state, "next.reward" for rewards of
        success alone. None: `next.success`, and `next.done` if that is all there is, or `next.truncated` tells it apart
    :raises ValueError: for bad data of every kind, naming file, key and row
    :raises FileNotFoundError: if there is no such directory
    """
    recording = Recording(Path(path).expanduser(), episodes)
    task = _task(recording, demonstrations, terminal)
    actions = _actions(recording, action_key, action_space)
    rows = _rows(recording, task.terminal)
    chosen = _chosen(recording, observation_space, observation_keys)
    shown = {} if observation_space is None else leaves(as_seen(observation_space))
    observations = {key: _joined(recording, names, rows.frame, shown.get(key)) for key, names in parts(chosen).items()}
    return OfflineDataset(
        whole(observations),
        actions[rows.frame],
        np.where(rows.is_step, task.rewards[rows.frame], 0),
        ~task.terminal[rows.frame],
        rows.ends,
        is_step=rows.is_step,
        source=recording.path,
        scaled_by=None if action_space is None else scalable(recording.path, action_space),
    )


def find_lerobot(name: str) -> Path:
    """Where a dataset of the hub is, downloaded if it is not there.

    :param name: e.g. "lerobot/pusht"; or a directory
    :raises FileNotFoundError: saying what was looked for, where, and how to get it
    """
    here = Path(name).expanduser()
    if (here / INFO).is_file():
        return here
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.constants import HF_HOME
    except ImportError as error:
        raise ImportError(f"LeRobot's datasets need huggingface_hub: {extra('lerobot')}") from error
    home = Path(os.environ.get("HF_LEROBOT_HOME", Path(HF_HOME) / "lerobot")).expanduser()
    downloaded = home / "hub" / f"datasets--{name.replace('/', '--')}" / "snapshots"
    found = [path for path in (home / name, *downloaded.glob("*")) if (path / INFO).is_file()]
    if found:
        return max(found, key=lambda path: (path / INFO).stat().st_mtime)
    how = f"Record it, or get it by: hf download --repo-type dataset {name} --local-dir {home / name}"
    try:
        return Path(snapshot_download(name, repo_type="dataset"))
    except Exception as error:  # whatever fails, the remedy is the same
        raise missing_file(f"LeRobot's {name}", [home / name, downloaded], how, error) from error


def _task(recording: Recording, demonstrations: bool | None, terminal: str | None) -> Task:
    advice = "demonstrations=True says already what is terminal"
    require(not (demonstrations and terminal), "terminal", terminal, advice)
    recorded = recording.features.keys() & {REWARD, SUCCESS, DONE, TRUNCATED}
    _warn_of_several_tasks(recording)
    costs = np.full(len(recording), STEP_REWARD, dtype=np.float32)
    if demonstrations is None and not recorded and terminal is None:
        _warn_of_no_success(recording, f"it has neither {REWARD} nor {SUCCESS} nor {DONE}")
        return Task(costs, recording.last)
    if demonstrations:
        _warn_of_failures(recording)
        return Task(costs, recording.last)
    marked = _terminal(recording, terminal)
    guessed = terminal is None and not recorded & {SUCCESS, TRUNCATED}
    if REWARD in recorded:
        task = Task(float_array(recording.path, REWARD, _column(recording, REWARD)), marked)
        if guessed:
            _warn_of_time_limits(recording, task)
        _warn_of_lost_rewards(recording, task)
        return task
    if not marked.any():
        problem = (
            f"no step has it, and there is no {REWARD}: nothing says what the task is. If every episode ends in "
            "success, say so: load_lerobot(..., demonstrations=True)"
        )
        raise DataError(recording.path, terminal or (SUCCESS if SUCCESS in recorded else DONE), problem)
    if guessed and marked[recording.last].all():
        _warn_of_no_success(recording, f"{DONE} marks the end of every episode, and there is no {REWARD}")
    return Task(costs, marked)


def _terminal(recording: Recording, column: str | None) -> NDArray[np.bool_]:
    """Where a step ended in a terminal state, as far as that was recorded, (N,)."""
    if column is not None:
        return np.not_equal(float_array(recording.path, column, _column(recording, column)), 0)
    success, done, truncated = (
        _flags(recording, key) if key in recording.features else None for key in (SUCCESS, DONE, TRUNCATED)
    )
    marked = np.zeros(len(recording), dtype=np.bool_) if success is None else success
    if done is not None and truncated is not None:
        return marked | (done & ~truncated)
    return marked if done is None or success is not None else done


def _warn_of_no_success(recording: Recording, why: str) -> None:
    warnings.warn(
        f"{recording.path}: {why}: all its episodes are taken as demonstrations that end in success, where each step "
        "costs 1, as it should in the environment. Leave out those that failed, by load_lerobot(..., episodes=[...]); "
        "demonstrations=True says that none did.",
        stacklevel=4,
    )


def _warn_of_failures(recording: Recording) -> None:
    """Point out demonstrations that were recorded as failures."""
    if SUCCESS not in recording.features:
        return
    succeeded = recording.episode[_flags(recording, SUCCESS)]
    failed = sorted(set(recording.episode.tolist()) - set(succeeded.tolist()))
    if failed:
        warnings.warn(
            f"{recording.path}: {len(failed)} episodes, {failed[0]} the first, were recorded without {SUCCESS}, and "
            "demonstrations=True takes them as successes. Leave them out, by episodes=[...].",
            stacklevel=4,
        )


def _warn_of_several_tasks(recording: Recording) -> None:
    if "task_index" not in recording.features:
        return
    tasks = np.unique(recording.numbers("task_index"))
    if len(tasks) > 1:
        warnings.warn(
            f"{recording.path}: its episodes are of {len(tasks)} tasks, which a policy that is not told them takes for "
            "one. Choose by load_lerobot(..., episodes=[...]).",
            stacklevel=4,
        )


def _warn_of_time_limits(recording: Recording, task: Task) -> None:
    """Point out ends that look as if a time limit had made some of them."""
    last = task.rewards[recording.last & task.terminal]
    if set(np.unique(task.rewards)) == {0.0, 1.0} and 0 < np.count_nonzero(last) < len(last):
        warnings.warn(
            f"{recording.path}: {DONE} marks {len(last)} ends, {np.count_nonzero(last)} of them with a reward. All "
            f'count as terminal; if time limits made the others, give load_lerobot(..., terminal="{REWARD}").',
            stacklevel=4,
        )


def _warn_of_lost_rewards(recording: Recording, task: Task) -> None:
    """Point out rewards that stand at steps which are left out alone."""
    left_out = recording.last & ~task.terminal
    kept = np.unique(task.rewards[~left_out])
    if len(kept) == 1 and (task.rewards[left_out] != kept).any():
        warnings.warn(
            f"{recording.path}: {REWARD} is {kept[0]:g} but at last steps of episodes, which are left out, for they "
            f'are not terminal. If they are, give load_lerobot(..., terminal="{REWARD}").',
            stacklevel=4,
        )


def _column(recording: Recording, key: str) -> Array:
    """One number a frame, (N,)."""
    array = recording.numbers(key)
    array = array[:, 0] if array.shape[1:] == (1,) else array
    check_shape(recording.path, key, array, (len(recording),))
    return array


def _flags(recording: Recording, key: str) -> NDArray[np.bool_]:
    return flag_array(recording.path, key, _column(recording, key), len(recording))


def _vectors(recording: Recording, key: str) -> NDArray[np.float32]:
    """(N, ...) finite numbers."""
    array = float_array(recording.path, key, recording.numbers(key))
    return array[:, None] if array.ndim == 1 else array


def _actions(recording: Recording, key: str, action_space: spaces.Space[Any] | None) -> Array:
    """(N, d) in [-1, 1]."""
    raw = _vectors(recording, key)
    if action_space is None:
        remedy = (
            "LeRobot's are in the environment's units: load_dataset(..., env.observation_space, env.action_space) "
            "scales them by its bounds"
        )
        return bounded_actions(recording.path, key, raw, remedy=remedy)
    bounds = scalable(recording.path, action_space)
    if raw[0].size != bounds.low.size:
        raise DataError(recording.path, key, f"one has {raw[0].size} numbers, but the environment takes {bounds}")
    raw = raw.reshape(len(raw), *bounds.shape)
    remedy = "widen them to what is commanded, or clip what was recorded"
    return scaled_actions(recording.path, key, raw, bounds, "the environment's space", remedy)


def _rows(recording: Recording, terminal: NDArray[np.bool_]) -> Rows:
    closed = recording.last & terminal
    frame = np.repeat(np.arange(len(recording)), 1 + closed)
    again = np.append(False, frame[1:] == frame[:-1])
    no_step = again | (recording.last & ~terminal)[frame]
    follows = np.append(recording.episode[frame][1:] == recording.episode[frame][:-1], False)
    # The last step of an episode is the one before the row that is none
    return Rows(frame, ~no_step, follows & np.append(no_step[1:], False))


def _chosen(
    recording: Recording, space: spaces.Space[Any] | None, observation_keys: Keys | None
) -> list[str] | dict[str, list[str]]:
    """Which columns make up the observations."""
    if observation_keys is not None:
        return listed(observation_keys)
    observed = [name for name in recording.features if name.startswith(PREFIX)]
    if isinstance(space, spaces.Dict):
        return {key: [_called(recording, key, observed)] for key in space}
    cameras = list(filter(recording.is_camera, observed))
    numeric = list(filter(recording.is_numeric, observed))
    # Some datasets have the parts of a vector beside it: observation.state, observation.state.gripper
    vectors = [name for name in numeric if not any(name.startswith(f"{other}.") for other in numeric)]
    wants_image = space is not None and len(space.shape or ()) == 3
    found = cameras if wants_image else vectors
    if not found or (wants_image and len(cameras) > 1):
        problem = (
            f"there are {', '.join(observed) or 'none'}; say what is seen: load_lerobot(..., observation_keys=[...])"
        )
        raise DataError(recording.path, "observation", problem)
    return found


def _called(recording: Recording, key: str, observed: Sequence[str]) -> str:
    """The column that a key of a Dict space means: observation.state, observation.images.<camera>."""
    for wanted in (key, THEIR_NAMES.get(key, key)):
        for name in (wanted, PREFIX + wanted):
            if name in observed:
                return name
        found = [name for name in observed if name.endswith(f".{wanted}")]
        if len(found) == 1:
            return found[0]
    problem = (
        f"the environment shows {key!r}, but there are {', '.join(observed) or 'none'}; say which is meant: "
        f"load_lerobot(..., observation_keys={{{key!r}: ...}})"
    )
    raise DataError(recording.path, "observation", problem)


def _joined(
    recording: Recording, names: Sequence[str], frame: NDArray[np.intp], space: spaces.Space[Any] | None
) -> Array:
    """Vectors side by side, or pictures by their channels, (R, ...)."""
    cameras = [recording.is_camera(name) for name in names]
    if any(cameras) and not all(cameras):
        problem = f"of {', '.join(names)} some are pictures; give a dict, {{key: [these], other: [those]}}"
        raise DataError(recording.path, "observation", problem)
    if not any(cameras):
        vectors = [_vectors(recording, name) for name in names]
        joined = vectors[0] if len(names) == 1 else np.hstack([part.reshape(len(part), -1) for part in vectors])
        return joined[frame]
    shape = None
    if space is not None and space.dtype == np.uint8 and len(space.shape or ()) == 3:
        channels, *size = space.shape or ()
        if channels % len(names):
            problem = f"of {len(names)} cameras {channels} channels are wanted; they are joined by their channels"
            raise DataError(recording.path, ", ".join(names), problem)
        shape = (channels // len(names), *size)
    found = [_pictures(recording, name, frame, shape) for name in names]
    for name, pictures in zip(names, found, strict=True):
        check_shape(recording.path, name, pictures, found[0].shape)
    return found[0] if len(found) == 1 else np.concatenate(found, axis=1)


def _pictures(
    recording: Recording, name: str, frame: NDArray[np.intp], shape: tuple[int, ...] | None
) -> NDArray[np.uint8]:
    """(R, channels, height, width), in the memory that the dataset keeps: there may be gigabytes of them."""
    rows = np.searchsorted(frame, np.arange(len(recording)))  # where each frame stands first
    pictures: NDArray[np.uint8] | None = None
    for number, picture in recording.pictures(name, shape):
        if pictures is None:
            pictures = np.empty((len(frame), *picture.shape), dtype=np.uint8)
        check_shape(recording.path, name, picture, pictures.shape[1:])
        pictures[rows[number]] = picture
    assert pictures is not None
    again = np.flatnonzero(frame[1:] == frame[:-1]) + 1
    pictures[again] = pictures[again - 1]
    return pictures
